"""Running the notebooks: all in order for `make reproduce`, and in place for `make refresh`; and a table of them.

papermill accepts a misspelt parameter without a word, so names are checked before anything starts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.execute import remove_error_markers
from tqdm.auto import tqdm

from hero_mini.config import SIZES
from hero_mini.envs import ENVS
from hero_mini.errors import HeroError, check_known, check_whole, nearest
from hero_mini.files import atomic_write, check_out

FOLDER = Path("notebooks")
# metadata that differs from run to run and that no reader needs
NOISE = "metadata.papermill metadata.widgets cell.metadata.execution cell.metadata.papermill metadata.language_info"


def all_notebooks() -> list[Path]:
    """The notebooks in teaching order. raises HeroError: there are none here"""
    found = sorted(FOLDER.glob("[0-9]*.ipynb"))
    if not found:
        raise HeroError(f"no notebooks in {FOLDER.resolve()}; run the command from the repository's top folder")
    return found


def read_page(notebook: Path) -> nbformat.NotebookNode:
    """raises HeroError: it is not there, or no whole notebook"""
    try:
        page = nbformat.read(notebook, as_version=4)
        nbformat.validate(page)
        page.cells[0].source.splitlines()[0]  # the title
    except (OSError, ValueError, LookupError, AttributeError, nbformat.ValidationError) as problem:
        raise HeroError(f"{notebook} is no whole notebook; restore it, for example with git checkout") from problem
    return page


def overview() -> str:
    """A markdown table of the pages: name, question (the title), and the minutes that the page's first cell gives."""
    rows = ["| page | question | time, as the page says |", "|---|---|---|"]
    for notebook in all_notebooks():
        head = read_page(notebook).cells[0].source.strip()
        title, last = head.split("\n")[0].removeprefix("# "), head.split("\n\n")[-1]
        if last.startswith("|"):  # preset | smoke | ... above minutes | 1 | ...
            names, _, values = ([cell.strip() for cell in line.strip("|").split("|")] for line in last.split("\n"))
            last = f"{values[0]}: " + ", ".join(f"{v} with `{n}`" for n, v in zip(names[1:], values[1:], strict=True))
        rows.append(f"| [{notebook.stem}]({notebook.name}) | {title} | {' '.join(last.split())} |")
    return "\n".join(rows)


def check_parameters(notebook: Path, parameters: dict[str, str]) -> None:
    """raises HeroError: a name that the notebook's parameters cell does not define, or a value that cannot be"""
    read_page(notebook)
    known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise HeroError(
                f"{notebook.name} has no parameter {name!r}{nearest(name, known)}; it has: {', '.join(known)}"
            )
    for name, choices in {"preset": SIZES, "env": ENVS}.items():
        if name in parameters:
            check_known(name, parameters[name], choices)
    if "seed" in parameters:
        check_whole(0, seed=parameters["seed"])


def run_page(notebook: Path, target: Path, parameters: dict[str, object]) -> None:
    """papermill, but a cell tagged `raises-exception` may raise (papermill runs on behind it and then complains).

    raises HeroError: another cell raised, or the kernel died; `target` holds the page up to there
    """
    try:
        papermill.execute_notebook(str(notebook), str(target), parameters, progress_bar=False, kernel_name="python3")
    except papermill.PapermillExecutionError:
        page = nbformat.read(target, as_version=4)
        for cell in page.cells:
            for output in cell.get("outputs", []):
                if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                    raise HeroError(
                        f"{notebook.name} stopped at cell {cell.execution_count} ({output.ename}: {output.evalue}); "
                        f"the page up to there is {target}"
                    ) from None
        remove_error_markers(page)
        atomic_write(target, nbformat.writes(page) + "\n")
    except DeadKernelError:
        raise HeroError(
            f"{notebook.name}: the kernel died, often for want of memory: close other programs, or choose a smaller "
            f"preset; the page up to there is {target}"
        ) from None


def check_target(target: Path) -> None:
    """raises HeroError: `target` cannot be written, or holds a page that no run has left, such as one's own work"""
    check_out(target)
    if target.exists():
        try:
            ours = "papermill" in nbformat.read(target, as_version=4).metadata
        except (ValueError, AttributeError):  # half of a page, which a kill has left
            ours = True
        if not ours:
            raise HeroError(f"{target} would be lost, and is no page that a run has left; choose another folder (out)")


def target_of(notebook: Path, out: Path, parameters: dict[str, object]) -> Path:
    """Where the executed page goes. raises HeroError: see `check_parameters` and `check_target`"""
    check_parameters(notebook, parameters)
    check_target(target := out / notebook.name)
    return target


def reproduce(preset: str, parameters: dict[str, str]) -> None:
    """All notebooks in order with one preset; prints where pages are and the table base -> HERO."""
    notebooks = all_notebooks()
    values: dict[str, object] = {"preset": preset, "out": "runs/notebooks", **parameters}
    if (seed := parameters.get("seed", "")).isdecimal():
        values["seed"] = int(seed)  # the one parameter that is a number
    if not values["out"]:
        raise HeroError("out is empty; name a folder")
    out = Path(str(values["out"]))
    targets = [target_of(notebook, out, values) for notebook in notebooks]  # all, before the first one runs
    for notebook, target in tqdm(list(zip(notebooks, targets, strict=True)), desc="notebooks"):
        run_page(notebook, target, values)
    print(f"\nexecuted pages: {out}/*.ipynb (open them with make lab, or any notebook viewer)")
    for picture in sorted(out.rglob("*.png")):
        print(f"figure: {picture}")
    table = out / "base_hero.md"
    if table.exists():
        print("\n" + table.read_text(encoding="utf-8"))


def join_prints(page: nbformat.NotebookNode) -> None:
    """Prints that follow each other become one output; on a busy machine they come in parts.

    nbclient's own `coalesce_streams` also puts what is printed behind a figure before it.
    """
    for cell in page.cells:
        joined: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            last = joined[-1] if joined else None
            if last and last.output_type == output.output_type == "stream" and last.name == output.name:
                last.text += output.text
            else:
                joined.append(output)
        if joined:
            cell.outputs = joined


def refresh(pages: Sequence[str] = ()) -> None:
    """Re-execute the committed notebooks in place; twice in a row changes no byte.

    pages: how the names of some begin, such as "08"; all without any
    raises HeroError: no page's name begins so, or a cell raised; the page up to there stays beside it, hidden
    """
    notebooks = all_notebooks()
    for page in pages:
        if not any(notebook.name.startswith(page) for notebook in notebooks):
            names = [notebook.stem for notebook in notebooks]
            raise HeroError(f"no page begins with {page!r}{nearest(page, names)}; there are: {', '.join(names)}")
    chosen = [notebook for notebook in notebooks if notebook.name.startswith(tuple(pages) or "")]
    for notebook in chosen:
        read_page(notebook)
    if find_spec("nbstripout") is None:
        raise HeroError("a refresh needs nbstripout: pip install -e '.[test]'")
    for notebook in tqdm(chosen, desc="refresh"):
        work = notebook.with_name(f".{notebook.name}")
        run_page(notebook, work, {})  # without parameters papermill adds no cell; where a page stops, it is left
        strip = ["nbstripout", "--keep-output", "--keep-count", "--keep-id", "--extra-keys", NOISE, str(work)]
        subprocess.run([sys.executable, "-m", *strip], check=True)
        page = nbformat.read(work, as_version=4)
        join_prints(page)
        here = f"{Path.cwd()}/"  # stands in the traceback of an error that is shown on purpose
        atomic_write(notebook, nbformat.writes(page).replace(here, "") + "\n")
        work.unlink()
