"""A result on disk names the code that made it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from hero_mini import tables
from hero_mini.errors import HeroError
from hero_mini.files import atomic_write, check_out
from hero_mini.tables import check_table, read_table, write_table


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the package."""
    folder = tmp_path / "repository/package"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tables, "__file__", str(folder / "tables.py"))
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_the_commit_is_the_code_s_and_not_the_results(package: Path) -> None:
    assert tables.commit() == "unknown"
    (package / "tables.py").write_text("1\n")
    git(package.parent, "init", "-q")
    assert tables.commit() == "unknown", "nothing committed"
    git(package.parent, "add", "-A")
    git(package.parent, "commit", "-qm", "first")
    first = tables.commit()
    assert re.fullmatch("[0-9a-f]{7,}", first)
    (package.parent / "result.csv").write_text("a\n")
    git(package.parent, "add", "-A")
    git(package.parent, "commit", "-qm", "a result")
    (package.parent / "result.csv").write_text("b\n")
    assert tables.commit() == first
    (package / "tables.py").write_text("2\n")
    assert tables.commit() == first + "-dirty"


def test_a_table_has_its_origin_beside_it(tmp_path: Path) -> None:
    tables.write_table(tmp_path / "t.csv", pd.DataFrame({"a": [1]}), command="python -m hero_mini x")
    found = tables.origin(tmp_path / "t.csv")
    assert {"commit", "date", "python", "torch", "command"} <= set(found)
    assert tables.origin(tmp_path / "none.csv") == {}


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b[: b.index(b"2,y")], lambda b: b"run\n"])
def test_half_a_table_is_not_read(tmp_path: Path, damage) -> None:
    path = tmp_path / "t.csv"
    tables.write_table(path, pd.DataFrame({"a": [1, 2, 34], "b": ["x", "y", "z"]}))
    assert len(tables.read_table(path)) == 3
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(HeroError, match="t.csv was cut off"):
        tables.read_table(path)


def test_a_carriage_return_ends_no_row(tmp_path: Path) -> None:
    tables.write_table(tmp_path / "t.csv", pd.DataFrame({"said": ["a\rb", "c\r\nd"], "n": [1, 2]}))
    assert tables.read_table(tmp_path / "t.csv")["said"].tolist() == ["a\nb", "c\nd"]


def test_every_committed_table_says_how_long_it_is() -> None:
    made = [path for path in Path(__file__).parents[1].glob("figures/data/**/*.csv") if path.name != "claims.csv"]
    assert made and all(len(tables.read_table(path)) == tables.origin(path)["rows"] for path in made)


def test_a_table_does_not_lie_under_its_own_description(tmp_path: Path) -> None:
    with pytest.raises(HeroError, match="end its name in .csv"):
        tables.check_table(tmp_path / "t.json")
    (tmp_path / "config.json").write_text('{"arm": "hero"}')
    with pytest.raises(HeroError, match="config.json is not a table's description"):
        tables.check_table(tmp_path / "config.csv")
    (tmp_path / "t.json").write_text('{"rows": "many"}')
    with pytest.raises(HeroError, match="t.json is damaged .rows."):
        tables.origin(tmp_path / "t.csv")


def test_a_kill_between_a_table_and_its_twin_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is written first: there are never fewer rows than the twin says."""
    path, calls = tmp_path / "rows.csv", []

    def dies(*arguments: object, **about: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        atomic_write(*arguments)

    for n, left in ((5, 5), (3, 5), (8, 8)):
        write_table(path, pd.DataFrame({"x": range(5)}))
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tables, "atomic_write", dies)
            write_table(path, pd.DataFrame({"x": range(n)}))
        assert len(read_table(path)) == left


def test_a_command_does_not_replace_anothers_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_table(path, pd.DataFrame({"x": [1]}), command="python -m hero_mini eval --n 3")
    check_table(path, "python -m hero_mini eval --n 4")
    with pytest.raises(HeroError, match="rows.csv is a table of the command eval; choose another name"):
        check_table(path, "python -m hero_mini ability")


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "checkpoint.pt"])
def test_a_file_of_a_run_is_nobodys_output(tmp_path: Path, name: str) -> None:
    check_out(tmp_path / name)
    for file in ("config.json", "checkpoint.pt"):
        (tmp_path / file).write_text("x")
    with pytest.raises(HeroError, match=f"{name} is a file of a training or a model"):
        check_out(tmp_path / name)
