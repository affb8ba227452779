"""A result on disk: a CSV with a row per observation, and beside it a JSON file that says where it comes from."""

from __future__ import annotations

import io
import json
import platform
import subprocess
from collections.abc import Collection
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hero_mini.errors import HeroError
from hero_mini.files import atomic_write, check_out, read_json

if TYPE_CHECKING:
    import pandas as pd

RESTORE = "restore it (git checkout), delete it, or name another"


def write_table(path: Path, table: pd.DataFrame, **about: object) -> None:
    """Write `table` to `path`, and then its .json twin, which says how many rows there have to be.

    A table with fewer rows than before comes after its twin: a kill in between leaves more rows than there have to be.
    A carriage return, which readers take for the end of a row, becomes a line break.
    """
    content = table.replace("\r\n?", "\n", regex=True).to_csv(index=False)
    fewer = path.exists() and len(table) < origin(path).get("rows", 0)
    if not fewer:
        atomic_write(path, content)
    write_origin(path, **about, rows=len(table))
    if fewer:
        atomic_write(path, content)


def write_origin(path: Path, **about: object) -> None:
    """Write the .json twin of a table: the commit, the date, the versions, and `about` (the command)."""
    made = {
        "commit": commit(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "peft")},
        "machine": platform.machine(),
        **about,
    }
    atomic_write(path.with_suffix(".json"), json.dumps(made, indent=1) + "\n")


def read_table(path: Path, remedy: str = RESTORE) -> pd.DataFrame:
    """A table whose variant and env, where it has them, are text: empty, and never missing.

    raises HeroError: as `read_csv`
    """
    text = {"variant": str, "env": str}
    return read_csv(path, remedy, dtype=text).fillna(dict.fromkeys(text, ""))


def read_csv(path: Path, remedy: str = RESTORE, **settings: Any) -> pd.DataFrame:
    """`pandas.read_csv` of a table that is there whole.

    raises HeroError: there is no such table, it is damaged, it has fewer rows than its .json twin says, or its last
        line has no end
    """
    import pandas as pd

    try:
        content = path.read_bytes()
        table = pd.read_csv(io.BytesIO(content), **settings)
    except (OSError, ValueError) as problem:  # pandas' own kinds are ValueErrors
        raise HeroError(f"{path} is no table ({problem}); {remedy}") from problem
    if len(table) < (rows := origin(path).get("rows", 0)):  # more of them: a kill came between the table and its twin
        raise HeroError(f"{path} was cut off, with {len(table)} of {rows} rows; {remedy}")
    if not content.endswith(b"\n"):
        raise HeroError(f"{path} was cut off: there is no line break at its end; {remedy}")
    return table


def check_columns(path: Path, table: pd.DataFrame, needed: Collection[str]) -> None:
    """raises HeroError: the table that was read from `path` lacks some of these columns"""
    if lost := set(needed) - set(table):
        raise HeroError(f"{path} has no column {', '.join(sorted(lost))}; {RESTORE}")


def check_table(path: Path, line: str = "") -> None:
    """Before long work: whether its table can be written to this file. raises HeroError: it cannot

    line: the command that makes it, which may not take the place of another command's table
    """
    check_out(path)
    twin = path.with_suffix(".json")
    if path == twin:
        raise HeroError(f"{path} would be overwritten by the table's own description; end its name in .csv")
    if twin.exists() and "commit" not in read_json(twin):
        raise HeroError(f"{twin} is not a table's description, and would be overwritten by one; choose another name")
    before, now = (str(text).split()[3:4] for text in (origin(path).get("command", ""), line))
    if path.exists() and before and now and before != now:
        raise HeroError(f"{path} is a table of the command {before[0]}; choose another name")


def commit() -> str:
    """The last commit of this package, with "-dirty" if its files have changed since; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments, "--", "."]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git here
            return ""

    found = git("log", "-1", "--format=%h")
    return found + ("-dirty" if git("status", "--porcelain") else "") if found else "unknown"


def origin(path: Path) -> dict:
    """Where a table comes from; {} if nobody wrote it down. raises HeroError: its .json twin is damaged"""
    twin = path.with_suffix(".json")
    found = read_json(twin, RESTORE) if twin.exists() else {}
    kinds = {"rows": int, "settings": dict, "runs": dict, "failed": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name, kind()), kind)]:
        raise HeroError(f"{twin} is damaged ({', '.join(wrong)}); {RESTORE}")
    return found
