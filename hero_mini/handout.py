"""The notebooks as a class gets them: without the solutions, and without what the exercises printed.

"Student" is a role of the model in this project, so the people who work through the pages are readers here.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from hero_mini.errors import HeroError
from hero_mini.files import atomic_write
from hero_mini.notebooks import all_notebooks, read_page

EXERCISES = re.compile(r"^#+ Exercises$", re.MULTILINE)  # the heading of a page's last part


def handout(page: NotebookNode) -> NotebookNode:
    """A copy of a page without the cells tagged `solution`; behind the heading "Exercises" no cell keeps its output.

    raises ValueError: the page has no such heading, or a solution stands before it
    """
    page = copy.deepcopy(page)
    heads = [i for i, cell in enumerate(page.cells) if cell.cell_type == "markdown" and EXERCISES.search(cell.source)]
    solutions = [i for i, cell in enumerate(page.cells) if "solution" in cell.metadata.get("tags", [])]
    if len(heads) != 1 or any(i < heads[0] for i in solutions):
        raise ValueError("a page needs one heading 'Exercises', and its solutions behind it")
    for cell in page.cells[heads[0] :]:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    page.cells = [cell for i, cell in enumerate(page.cells) if i not in solutions]
    return page


def write_handouts(out: Path) -> list[Path]:
    """A copy of every notebook in the folder `out`; the notebooks stay as they are. Returns the files in order.

    A copy that somebody has worked in is never overwritten, and then nothing is written at all.
    raises HeroError: such a copy (or a notebook itself) lies in `out`
    """
    copies = {}
    for notebook in all_notebooks():
        try:
            copies[out / notebook.name] = nbformat.writes(handout(read_page(notebook))).encode() + b"\n"
        except ValueError as problem:
            raise HeroError(f"{notebook}: {problem}") from problem
    for file, content in copies.items():
        if file.exists() and not (file.is_file() and file.read_bytes() == content):
            raise HeroError(
                f"{file} is there already and is no fresh copy, so it may hold somebody's work: "
                "move it away, or choose another folder with --out"
            )
    return [atomic_write(file, content) for file, content in copies.items()]
