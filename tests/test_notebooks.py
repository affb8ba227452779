"""The notebooks: well formed and executed (fast tier), and run by papermill with the smoke preset (second tier)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from hero_mini.errors import HeroError
from hero_mini.notebooks import check_parameters, check_target, join_prints, overview, refresh, run_page, target_of

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9]*.ipynb"))
NAMES = [n.stem for n in NOTEBOOKS]


def execute(notebook: Path, out: Path, parameters: dict[str, object]) -> Path:
    """One page as `reproduce` runs all of them: where it lies, executed."""
    run_page(notebook, target := target_of(notebook, out, parameters), parameters)
    return target


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def executed(path: Path) -> Path:
    """Skips a page that carries no outputs yet: run `make refresh` to execute it."""
    page = nbformat.read(path, as_version=4)
    if not any(c.get("outputs") for c in page.cells):
        pytest.skip(f"{path.name} has not been executed yet")
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_well_formed(path):
    page = nbformat.read(path, as_version=4)
    nbformat.validate(page)
    code = [c for c in page.cells if c.cell_type == "code"]
    assert sum("parameters" in tags(c) for c in code) == 1
    assert any("raises-exception" in tags(c) for c in code), "one cell fails on purpose"
    assert sum("solution" in tags(c) for c in code) >= 3, "three exercises with solutions"
    folded = [c.id for c in code if c.metadata.get("jupyter", {}).get("source_hidden")]
    assert folded == [c.id for c in code if {"hide-input", "solution"} & {*tags(c)}], "in JupyterLab as on the site"
    assert page.cells[0].source.startswith("# ") and "?" in page.cells[0].source.split("\n")[0], (
        "the title is a question"
    )
    too_long = [c.id for c in code if len(c.source.splitlines()) > 30]
    assert not too_long


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_misspelt_parameter_is_refused(path):
    with pytest.raises(HeroError, match="did you mean 'preset'"):
        check_parameters(path, {"prest": "smoke"})


@pytest.mark.parametrize("name, value", [("preset", "smok"), ("env", "retial"), ("seed", "x"), ("seed", -5)])
def test_a_value_that_cannot_be_is_refused(name, value):
    with pytest.raises(HeroError, match=name):
        check_parameters(NOTEBOOKS[0], {name: value})


def test_a_page_that_no_run_has_left_is_not_overwritten(tmp_path):
    page = nbformat.v4.new_notebook()
    nbformat.write(page, tmp_path / "mine.ipynb")
    with pytest.raises(HeroError, match="would be lost"):
        check_target(tmp_path / "mine.ipynb")
    page.metadata["papermill"] = {}
    nbformat.write(page, tmp_path / "mine.ipynb")
    check_target(tmp_path / "mine.ipynb")


def test_prints_that_follow_each_other_are_one_output():
    """Or else a refresh on a busy machine changes bytes."""
    said = [
        nbformat.v4.new_output("stream", name=name, text=text) for name, text in (("stdout", "a\n"), ("stdout", "b\n"))
    ]
    shown = nbformat.v4.new_output("display_data", {"text/plain": "c"})
    cell = nbformat.v4.new_code_cell(
        outputs=[*said, shown, nbformat.v4.new_output("stream", name="stdout", text="d\n")]
    )
    join_prints(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x"), cell]))
    assert [output.get("text", "shown") for output in cell.outputs] == ["a\nb\n", "shown", "d\n"]


def test_single_pages_are_refreshed_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("00_one", "01_two"):
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1", id="sum")])
        page.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(page, tmp_path / f"notebooks/{name}.ipynb")
    with pytest.raises(HeroError, match="no page begins with '08'"):
        refresh(["08"])
    refresh(["01"])
    one, two = (nbformat.read(tmp_path / f"notebooks/{n}.ipynb", as_version=4) for n in ("00_one", "01_two"))
    assert not one.cells[0].outputs and two.cells[0].outputs[0].data["text/plain"] == "2"


def test_a_page_that_stops_or_is_cut_is_one_sentence(tmp_path, monkeypatch):
    """A refresh leaves the committed page as it was, and beside it the page up to the cell that raised."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    page = page_of(tmp_path / "notebooks/00_one.ipynb", ("1 / 0", []))
    before = page.read_bytes()
    with pytest.raises(HeroError, match="up to there is notebooks/.00_one.ipynb"):
        refresh()
    assert page.read_bytes() == before and (tmp_path / "notebooks/.00_one.ipynb").exists()
    with pytest.raises(HeroError, match="the kernel died"):
        execute(page_of(tmp_path / "dies.ipynb", ("import os; os._exit(1)", [])), tmp_path / "out", {})
    page.write_bytes(before[:50])
    for read in (refresh, overview, lambda: execute(page, tmp_path / "out", {})):
        with pytest.raises(HeroError, match="00_one.ipynb is no whole notebook"):
            read()


def failed(path: Path) -> list[str]:
    """The cells that ended in an error without having announced it."""
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    wrong = [c for c in code if any(o.output_type == "error" for o in c.outputs)]
    return [c.id for c in wrong if "raises-exception" not in tags(c)]


@pytest.mark.real
@pytest.mark.parametrize(("name", "env"), [("02_rollouts", "webshop"), ("05_loss", "airline")])
def test_a_page_in_another_world(name, env, tmp_path):
    page = next(path for path in NOTEBOOKS if path.stem == name)
    assert not failed(execute(page, tmp_path, {"preset": "smoke", "env": env, "out": str(tmp_path)}))


@pytest.mark.real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_and_prints_the_committed_numbers(path, tmp_path):
    """With the smoke preset: all of it by papermill, then by nbval as far as the last cell that it compares.

    nbval compares the marked cells with what is committed: what they print must not depend on the preset. It works in
    the same folder, so that rollouts are read, not sampled again.
    """
    assert not failed(execute(executed(path), tmp_path, {"preset": "smoke", "out": str(tmp_path)}))
    page = nbformat.read(path, as_version=4)
    marked = [i for i, c in enumerate(page.cells) if c.cell_type == "code" and "NBVAL_CHECK_OUTPUT" in c.source]
    assert marked and all(page.cells[i].outputs for i in marked), "marked cells carry their outputs"
    del page.cells[marked[-1] + 1 :]
    at = next(i for i, c in enumerate(page.cells) if "parameters" in tags(c))
    page.cells.insert(at + 1, nbformat.v4.new_code_cell(f"preset, out = 'smoke', {str(tmp_path)!r}"))
    copy = tmp_path / f"checked_{path.name}"
    nbformat.write(page, copy)
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]


def page_of(path: Path, *cells: tuple[str, list[str]]) -> Path:
    made = [nbformat.v4.new_code_cell(source, metadata={"tags": list(names)}) for source, names in cells]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)
    return path


def test_only_an_announced_error_is_accepted(tmp_path):
    parameters = ("preset: str = 'quick'", ["parameters"])
    announced = page_of(tmp_path / "a.ipynb", parameters, ("1 / 0", ["raises-exception"]), ("print(preset)", []))
    done = nbformat.read(execute(announced, tmp_path / "out", {"preset": "smoke"}), as_version=4)
    assert done.cells[-1].outputs[0].text == "smoke\n"
    assert len([c for c in done.cells if c.cell_type == "markdown"]) == 0, "no error markers stay"
    broken = page_of(tmp_path / "b.ipynb", parameters, ("1 / 0", ["raises-exception"]), ("{}['x']", []))
    with pytest.raises(HeroError, match="KeyError"):
        execute(broken, tmp_path / "out", {"preset": "smoke"})
