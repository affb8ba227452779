"""A result on disk: a CSV with a row per observation, and beside it a JSON file that says where it comes from."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hero_mini.runtime import HeroError, atomic_write, read_json

if TYPE_CHECKING:
    import pandas as pd


def write_table(path: Path, table: pd.DataFrame, **about: object) -> None:
    """Write `table` to `path`, and then its .json twin, which says how many rows there have to be."""
    atomic_write(path, table.to_csv(index=False))
    write_origin(path, **about, rows=len(table))


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


def read_table(path: Path) -> pd.DataFrame:
    """A table whose variant and env, where it has them, are text: empty, and never missing.

    raises HeroError: it is damaged, or has fewer rows than its .json twin says
    """
    text = {"variant": str, "env": str}
    table = read_csv(path, dtype=text).fillna(dict.fromkeys(text, ""))
    if len(table) < (rows := origin(path).get("rows", 0)):
        raise HeroError(f"{path} has {len(table)} of {rows} rows; restore it (git checkout), or delete it")
    return table


def read_csv(path: Path, **settings: Any) -> pd.DataFrame:
    """`pandas.read_csv`. raises HeroError: there is no such table, or it is damaged"""
    import pandas as pd

    try:
        return pd.read_csv(path, **settings)
    except (OSError, ValueError) as problem:  # pandas' own kinds are ValueErrors
        raise HeroError(f"{path} is no table ({problem}); restore it, delete it, or name another") from problem


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
    """Where a table comes from; {} if nobody wrote it down."""
    twin = path.with_suffix(".json")
    return read_json(twin) if twin.exists() else {}
