"""The pages beside the notebooks: links resolve, names exist, and the table of pages is the notebooks' own."""

from __future__ import annotations

import importlib
import re
from operator import attrgetter
from pathlib import Path

import pytest

import hero_mini
from hero_mini.notebooks import overview
from hero_mini.report import render

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "notebooks" / f"{name}.md" for name in ("glossary", "paper_to_code", "teaching", "beyond")]
FILES = {".csv", ".json", ".md", ".py", ".yml", ".txt"}


def links(text: str) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http")]


def names(text: str) -> list[str]:
    """What stands in backticks and looks like `module.name`."""
    found = re.findall(r"`([a-z_]\w*(?:\.\w+)+)`", text)
    return [name for name in found if Path(name).suffix not in FILES]


def exists(name: str) -> bool:
    """Whether hero_mini has it: `module.name`, `package.module.Class.method`."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(["hero_mini", *parts[:cut]]))
            attrgetter(".".join(parts[cut:]))(module)
            return True
        except (ImportError, AttributeError):
            continue
    return False


@pytest.mark.parametrize(
    "path", [*GUIDES, ROOT / "README.md", ROOT / "figures" / "README.md"], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_links_and_names_resolve(path: Path) -> None:
    text = path.read_text()
    missing = [target for target in links(text) if not (path.parent / target.split("#")[0]).exists()]
    assert links(text) and not missing
    assert not [name for name in names(text) if not exists(name)]


def test_a_wrong_name_is_found() -> None:
    assert exists("rollout.collect") and exists("envs.tau.Tau.reward_parts") and exists("config.ARMS")
    assert not exists("rollout.colect") and not exists("no_module.x")
    assert names("`reflect.shuffled`, `demos.py`, `config.json` and `x`") == ["reflect.shuffled"]


def test_a_term_is_explained_and_leads_to_code_and_page() -> None:
    entries = re.split(r"^- (?=\*\*)", GUIDES[0].read_text(), flags=re.MULTILINE)[1:]
    terms = [re.match(r"\*\*(.+?)\*\*", entry)[1] for entry in entries]
    assert len(terms) == len(set(terms))
    for entry in entries:
        found = links(entry)
        assert names(entry) and any(f.startswith("../hero_mini/") for f in found), entry
        assert any(f.endswith(".ipynb") for f in found), entry


def test_every_row_of_the_paper_has_a_grade_and_a_page() -> None:
    rows = [line for line in GUIDES[1].read_text().splitlines() if line.startswith("| ") and "| here |" not in line]
    grades = {"abstract", "reading", "rendering", "our choice"}
    for row in rows:
        assert grades & {cell.strip() for cell in row.split("|")} and ".ipynb" in row, row


def test_the_table_of_pages_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else: python -m hero_mini report."""
    monkeypatch.chdir(ROOT)
    text = GUIDES[2].read_text()
    assert render(text, "pages", overview()) == text


def test_the_map_of_the_package_has_every_module_once() -> None:
    """In the first column of the package's docstring; `envs` has a paragraph of its own."""
    found = re.findall(r"^ {4}([a-z].*?)(?: {2}|$)", hero_mini.__doc__, flags=re.MULTILINE)
    named = [name for entry in found for name in entry.split(", ") if not name.startswith("envs")]
    modules = {path.stem for path in Path(hero_mini.__file__).parent.glob("[a-z]*.py")}
    assert sorted(named) == sorted(modules)
