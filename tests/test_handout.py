"""The copies for a class: no solution is left, the notebooks stay, and every exercise can be run and judged."""

from __future__ import annotations

import json
import re
import shutil
import symtable
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat import NotebookNode

from hero_mini import models
from hero_mini.config import SIZES, Sizes
from hero_mini.errors import HeroError
from hero_mini.handout import EXERCISES, handout, write_handouts
from hero_mini.models import Policy

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
NAMES = [n.stem for n in NOTEBOOKS]
VERDICT = re.compile(r": correct$|: not yet\. ", re.MULTILINE)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def parts(page: NotebookNode) -> tuple[list[str], list[NotebookNode]]:
    """Sources of the code before the exercises, and the code cells of the exercises."""
    start = next(i for i, cell in enumerate(page.cells) if EXERCISES.search(cell.source))
    before = [cell for cell in page.cells[:start] if cell.cell_type == "code" and "raises-exception" not in tags(cell)]
    return [c.source for c in before], [c for c in page.cells[start:] if c.cell_type == "code"]


def names_of(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds, and those that it takes from outside."""
    top = symtable.symtable(source, "cell", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    inner = top.get_children()
    while inner:
        table = inner.pop()
        used |= {s.get_name() for s in table.get_symbols() if s.is_global()}
        inner += table.get_children()
    return bound, used - bound


def needed(before: list[str], wanted: list[str]) -> list[str]:
    """Those of the cells `before` on which the cells `wanted` depend, in order."""
    kept, names, own = [], set(), set()
    for source in wanted:
        bound, used = names_of(source)
        names, own = names | (used - own), own | bound
    for source in reversed(before):
        bound, used = names_of(source)
        if bound & names:
            kept.append(source)
            names = names - bound | used
    return kept[::-1]


@pytest.fixture
def brief(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Every page's model: the tiny one, which likes to end its turn, so that episodes are short."""
    bonus = 8.0 * torch.eye(len(tiny.tokenizer))[tiny.eos_id]
    tiny.model.lm_head.register_forward_hook(lambda module, given, logits: logits + bonus.to(logits))
    monkeypatch.setattr(models, "load_policy", lambda *given, **named: tiny)
    least = Sizes(rollouts=2, updates=1, tasks=1, eval_tasks=2, budget=10, seeds=1, headline_seeds=1)
    monkeypatch.setitem(SIZES, "smoke", least)
    return tiny


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_no_solution_is_left(path: Path) -> None:
    page, copy = read(path), handout(read(path))
    nbformat.validate(copy)
    solutions = [cell for cell in page.cells if "solution" in tags(cell)]
    assert len(copy.cells) == len(page.cells) - len(solutions) and len(solutions) >= 3
    kept = {line.strip() for cell in page.cells if "solution" not in tags(cell) for line in cell.source.splitlines()}
    secret = {line.strip() for cell in solutions for line in cell.source.splitlines()} - kept
    text = nbformat.writes(copy)  # sources and outputs, as JSON spells them
    spelt = [json.dumps(line, ensure_ascii=False)[1:-1] for line in secret if len(line) > 12]  # not a mere `break`
    assert spelt and not [line for line in spelt if line in text]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_only_the_exercises_lose_their_outputs(path: Path) -> None:
    page, copy = read(path), handout(read(path))
    _, exercises = parts(copy)
    assert not any(cell.outputs or cell.execution_count for cell in exercises)
    start = next(i for i, cell in enumerate(page.cells) if EXERCISES.search(cell.source))
    assert copy.cells[:start] == page.cells[:start]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_an_untouched_exercise_is_judged(
    path: Path, brief: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each exercise of a copy runs in a folder of its own, on the tiny model, and ends in verdicts."""
    monkeypatch.chdir(tmp_path)
    before, exercises = parts(handout(read(path)))
    judged = [cell.source for cell in exercises]
    names: dict[str, object] = {}
    parameters = "preset, env, seed, model, out, demo_kind = 'smoke', 'retail', 0, 'default', 'out', 'masked'"
    for source in [parameters, *needed(before[1:], judged)]:
        exec(source, names)
    capsys.readouterr()
    for source in judged:
        exec(source, names)
    assert len(VERDICT.findall(capsys.readouterr().out)) >= 3


def test_the_copies_are_written_and_the_notebooks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    before = [path.read_bytes() for path in NOTEBOOKS]
    written = write_handouts(tmp_path / "class")
    assert [file.name for file in written] == [path.name for path in NOTEBOOKS]
    assert sorted(p.name for p in (tmp_path / "class").iterdir()) == sorted(p.name for p in written)
    assert write_handouts(tmp_path / "class") == written, "the same once more"
    assert [path.read_bytes() for path in NOTEBOOKS] == before


@pytest.mark.parametrize("folder", ["class", "notebooks"])
def test_nobody_loses_work(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a copy in which somebody has worked is overwritten, nor a notebook; nothing else is written either."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    write_handouts(Path("class"))
    worked = Path(folder) / NOTEBOOKS[-1].name
    worked.write_text(worked.read_text().replace("After this page", "My notes"))
    Path("class", NOTEBOOKS[0].name).unlink()
    before = {file: file.read_bytes() for file in Path(folder).iterdir()}
    with pytest.raises(HeroError, match=f"{worked.name if folder == 'class' else folder}.*somebody's work"):
        write_handouts(Path(folder))
    assert before == {file: file.read_bytes() for file in Path(folder).iterdir()}


def test_a_page_without_exercises_is_refused() -> None:
    """Otherwise a changed heading would quietly hand out what the exercises print."""
    page = read(NOTEBOOKS[0])
    for cell in page.cells:
        cell.source = cell.source.replace("# Exercises", "# Tasks")
    with pytest.raises(ValueError, match="one heading"):
        handout(page)
