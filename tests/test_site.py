"""The site: built from the committed pages without a network, then read in Chromium as a reader would.

The tests that need a browser take the machine's own Chromium; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from hero_mini import site
from hero_mini.errors import HeroError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
INSTALL = "the extra `site` is not installed: pip install -e '.[site]'"
needs_site = pytest.mark.skipif(bool(site.missing()), reason=INSTALL)
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated. Check CHANGES")  # the theme, about Sphinx


# --- a small repository ----------------------------------------------------------------------------------------------
@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A front page, one notebook and what the build copies beside them; the working folder of the test."""
    page = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Why?\n\nThe loss $x_t^2$, a price of $5 and one of $6."),
            nbformat.v4.new_code_cell(
                "# NBVAL_CHECK_OUTPUT\nfigure",
                outputs=[
                    nbformat.v4.new_output(
                        "display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": 'a "dot", 1 < 2'}}
                    )
                ],
            ),
            nbformat.v4.new_code_cell("nb.say('told')", metadata={"tags": ["hide-input"]}),
            nbformat.v4.new_code_cell("answer", metadata={"tags": ["solution"]}),
            nbformat.v4.new_markdown_cell("# Second\n\n[home](../README.md#the-end)"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    (tmp_path / "notebooks").mkdir()
    nbformat.write(page, tmp_path / "notebooks" / "00_why.ipynb")
    (tmp_path / "hero_mini" / "adapters").mkdir(parents=True)
    (tmp_path / "hero_mini" / "adapters" / "README.md").write_text("# The card\n")
    (tmp_path / "figures" / "data").mkdir(parents=True)
    (tmp_path / "figures" / "README.md").write_text("# Results\n")
    (tmp_path / "README.md").write_text("# Front\n\n[why](notebooks/00_why.ipynb) [data](figures/data)\n\n## The end\n")
    for file in ("environment.yml", "Makefile"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@needs_site
def test_what_a_notebook_means_reaches_the_page(repository):
    front = BeautifulSoup(site.build(repository / "out").read_text(), "html.parser")
    assert front.article.find("a", string="why")["href"] == "notebooks/00_why.html"
    assert "data" in front.article.text and not front.article.find("a", string="data")
    html = (repository / "out" / "notebooks" / "00_why.html").read_text()
    page = BeautifulSoup(html, "html.parser")
    assert page.article.img["alt"] == 'a "dot", 1 < 2'
    assert len(page.find_all("math")) == 1 and "a price of $5 and one of $6" in html
    assert [h.name for h in page.article.find_all(["h1", "h2"])] == ["h1", "h2"]
    assert page.article.find("a", string="home")["href"] == "../index.html#the-end"
    told, fold = page.article.find_all("details")
    assert not fold.has_attr("open") and "answer" in fold.text and "Show the solution" in fold.summary.text
    assert not told.has_attr("open") and "nb.say" in told.text and "Show the code" in told.summary.text
    assert "NBVAL" not in html


@needs_site
def test_a_link_that_leads_nowhere_is_refused_and_the_old_site_stays(repository):
    old = site.build(repository / "out")
    before = old.read_text()
    (repository / "README.md").write_text("# Front\n\n[gone](notebooks/01_gone.ipynb)\n")
    with pytest.raises(HeroError, match="01_gone"):
        site.build(repository / "out")
    assert old.read_text() == before and not list(repository.glob(".out*"))


@needs_site
def test_a_folder_with_something_else_is_left_alone(repository):
    with pytest.raises(HeroError, match="choose an empty folder"):
        site.build(repository / "notebooks")
    assert (repository / "notebooks" / "00_why.ipynb").exists()


def test_a_missing_extra_is_one_sentence(repository, monkeypatch):
    monkeypatch.setattr(site, "missing", lambda: ["myst_nb"])
    with pytest.raises(HeroError, match=r"needs myst_nb.*make site"):
        site.build(repository / "out")


# --- the real pages, without a browser -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site of this repository, built once."""
    with contextlib.chdir(ROOT):
        return site.build(tmp_path_factory.mktemp("site") / "site").parent


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[str, BeautifulSoup]:
    """Every page by its address in the site."""
    found = [f for f in built.rglob("*.html") if "_static" not in f.parts]
    return {f.relative_to(built).as_posix(): BeautifulSoup(f.read_text(), "html.parser") for f in sorted(found)}


@needs_site
def test_every_notebook_is_in_the_contents_with_a_way_on(pages):
    addresses = [f"notebooks/{n.stem}.html" for n in NOTEBOOKS]
    listed = [a["href"] for a in pages["index.html"].select("nav.bd-links a.reference")]
    assert [a for a in listed if a in addresses] == addresses
    for here, following in zip(addresses, addresses[1:], strict=False):
        assert pages[here].select_one("a.right-next")["href"] == Path(following).name
        assert pages[following].select_one("a.left-prev")["href"] == Path(here).name


@needs_site
def test_every_solution_is_folded(pages):
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        solutions = [c for c in cells if "solution" in c.metadata.get("tags", [])]
        told = [c for c in cells if {"hide-input", "hide-output"} & {*c.metadata.get("tags", [])}]
        folds = pages[f"notebooks/{path.stem}.html"].article.find_all("summary")
        assert sum("solution" in fold.text for fold in folds) == len(solutions)
        assert len(folds) == len(solutions) + len(told)


@needs_site
def test_every_image_is_described(pages):
    images = [(address, image) for address, page in pages.items() for image in page.find_all("img")]
    assert images and not [address for address, image in images if not image.get("alt", "").strip()]


@needs_site
def test_internal_links_resolve_and_nothing_is_fetched(built, pages):
    ids = {address: {tag["id"] for tag in page.find_all(id=True)} for address, page in pages.items()}
    lost, fetched = [], []
    for address, page in pages.items():
        for tag in page.find_all(["a", "img", "script", "link"]):
            url = urlsplit(tag.get("href") or tag.get("src") or "")
            if url.scheme == "data":
                continue
            if url.netloc:
                fetched += [] if tag.name == "a" else [(address, url.geturl())]
                continue
            target = (built / address).parent / unquote(url.path) if url.path else built / address
            name = target.resolve().relative_to(built.resolve()).as_posix()
            if not target.exists() or (url.fragment and name in ids and unquote(url.fragment) not in ids[name]):
                lost.append((address, url.geturl()))
    assert not lost and not fetched


# --- in Chromium -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[str]:
    """The address of a plain server of the site on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.real
@needs_site
@pytest.mark.parametrize("place, width", [("disk", 390), ("server", 1280)], ids=["a phone", "a laptop"])
def test_pages_open_without_complaint_and_fit(browser, built, served, pages, place, width):
    """No error in the console, no failed request, none to another address, no page wider than its screen."""
    base = built.as_uri() if place == "disk" else served
    with contextlib.closing(browser.new_context(viewport={"width": width, "height": 800})) as context:
        tab, faults = context.new_page(), []
        tab.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        # what a page still loads when the next one is opened is "aborted", which is no fault
        tab.on("requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else faults.append(r.url))
        tab.on("response", lambda r: faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        tab.on("request", lambda r: None if r.url.startswith((base, "data:")) else faults.append(r.url))
        for address in pages:
            tab.goto(f"{base}/{address}")
            tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
                faults.append(f"{address} is {wide} pixels wide")
        assert not faults


@pytest.mark.real
@needs_site
def test_search_works_from_disk(browser, built):
    with contextlib.closing(browser.new_context()) as context:
        tab = context.new_page()
        tab.goto(f"{built.as_uri()}/search.html?q=diagnosis")
        tab.wait_for_selector("#search-results li a")
        found = {urlsplit(a.get_attribute("href")).path for a in tab.query_selector_all("#search-results li a")}
    assert "notebooks/03_reflection.html" in found


# one of each kind of coloured token is enough, and judging thousands takes axe minutes
THIN = """() => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const seen = new Set();
  for (const e of document.querySelectorAll('pre span, .text_html span')) {
    const box = e.closest('pre, div');
    const kind = [e.className, e.getAttribute('style'), box.className, box.parentElement.className].join();
    if (seen.has(kind)) e.replaceWith(...e.childNodes); else seen.add(kind);
  }
  document.getAnimations().forEach(a => a.finish());  // what is unfolded fades in
}"""


@pytest.mark.real
@needs_site
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(browser, built, pages, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=INSTALL).Axe()
    only = {"runOnly": ["color-contrast"], "resultTypes": ["violations"], "preload": False}
    faint = []
    with contextlib.closing(browser.new_context(color_scheme=scheme)) as context:
        tab = context.new_page()
        for address in pages:
            tab.goto(f"{built.as_uri()}/{address}")
            assert tab.evaluate("document.documentElement.dataset.theme") == scheme
            tab.evaluate(THIN)
            for violation in axe.run(tab, options=only).response["violations"]:
                faint += [(address, node["html"]) for node in violation["nodes"]]
    assert not faint
