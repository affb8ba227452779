"""A result on disk: a CSV with a row per observation, and beside it a JSON file that says where it comes from."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hero_mini.runtime import atomic_write

if TYPE_CHECKING:
    import pandas as pd


def write_table(path: Path, table: pd.DataFrame, **about: object) -> None:
    """Write `table` to `path`, and to its .json twin the commit, the date, the versions and `about` (the command)."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    origin = {
        "commit": git.stdout.strip() or "unknown",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "peft")},
        "machine": platform.machine(),
        **about,
    }
    atomic_write(path.with_suffix(".json"), json.dumps(origin, indent=1) + "\n")
    atomic_write(path, table.to_csv(index=False))


def origin(path: Path) -> dict:
    """Where a table comes from; {} if nobody wrote it down."""
    twin = path.with_suffix(".json")
    return json.loads(twin.read_text()) if twin.exists() else {}
