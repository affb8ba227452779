"""JupyterLab for real: the first page in a browser, all cells run, a slider moved."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

PAGE = Path(__file__).parent.parent / "notebooks" / "00_start_here.ipynb"
MINUTES = 6 * 60_000  # ms; the page takes one


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab on this machine, open on the page with the smoke preset."""
    page = nbformat.read(PAGE, as_version=4)
    parameters = next(c for c in page.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source += f"\npreset, out = 'smoke', {str(tmp_path)!r}"
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbformat.write(page, tmp_path / PAGE.name)
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # all cells stay in the document, also those out of sight
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token="]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    where = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=where)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api")
            break
        except urllib.error.URLError:
            assert server.poll() is None, (tmp_path / "lab.log").read_text()[-2000:]
            time.sleep(0.5)
    yield f"{address}/lab/tree/{PAGE.name}"
    server.terminate()
    server.wait(30)


@pytest.mark.real
def test_a_moved_slider_changes_the_figure(browser, lab: str) -> None:
    with browser.new_context(viewport={"width": 1600, "height": 1000}) as context:
        tab = context.new_page()
        tab.set_default_timeout(MINUTES)
        tab.goto(lab)
        tab.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        tab.wait_for_function("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel")
        tab.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        handle = tab.wait_for_selector(".noUi-handle")
        picture = tab.wait_for_selector("img.widget-image")
        note = tab.locator(".widget-html-content", has_text="log π_T − log π_S in nats").last
        before, said = picture.get_attribute("src"), note.inner_text()
        at = int(float(handle.get_attribute("aria-valuenow")))
        handle.focus()
        handle.press("ArrowLeft" if at > 1 else "ArrowRight")
        tab.wait_for_function("([image, old]) => image.src !== old", arg=[picture, before])
        assert note.inner_text() != said and f"Turn {at - 1 if at > 1 else 2}," in note.inner_text()
        # and an edited diagnosis is scored again
        before = picture.get_attribute("src")
        cause = tab.get_by_label("cause")
        cause.fill("order not found")
        cause.press("Enter")
        tab.wait_for_function("([image, old]) => image.src !== old", arg=[picture, before])
