"""A result on disk: a CSV with a row per observation, and beside it a JSON file that says where it comes from."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hero_mini.runtime import atomic_write, read_json

if TYPE_CHECKING:
    import pandas as pd


def write_table(path: Path, table: pd.DataFrame, **about: object) -> None:
    """Write `table` to `path`, and its .json twin."""
    write_origin(path, **about)
    atomic_write(path, table.to_csv(index=False))


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
    """A table whose variant and env, where it has them, are text: empty, and never missing."""
    import pandas as pd

    text = {"variant": str, "env": str}
    return pd.read_csv(path, dtype=text).fillna(dict.fromkeys(text, ""))


def commit() -> str:
    """The last commit of this package, with "-dirty" if its files have changed since; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments, "--", "."]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    found = git("log", "-1", "--format=%h")
    return found + ("-dirty" if git("status", "--porcelain") else "") if found else "unknown"


def origin(path: Path) -> dict:
    """Where a table comes from; {} if nobody wrote it down."""
    twin = path.with_suffix(".json")
    return read_json(twin) if twin.exists() else {}
