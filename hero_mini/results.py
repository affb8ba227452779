"""The tables of the studies as one: rows of comparable runs, each once, with the name of their agent.

An *agent* is an arm with what differs from its defaults: "hero", "hero, teacher=ema", "grpo, G=4". Whatever is missing
is left out and never filled in.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pandas as pd

from hero_mini.config import TrainConfig
from hero_mini.errors import HeroError
from hero_mini.studies import OWN_LR, STUDIES, jobs
from hero_mini.tables import RESTORE, check_columns, origin, read_table

EMPTY = (  # columns of a table without rows
    "run arm variant trained_on seed env agent table task trial success turns update env_turns no_contrast item kind "
    "correct perplexity"
).split()
KEY = ("run", "env", "task", "trial", "update", "item", "who", "path", "number")  # no two rows are alike in all of them


def read(path: Path) -> pd.DataFrame:
    """A study's table, variants as text (empty: the defaults), with the column agent. raises HeroError: damaged"""
    rows = read_table(path)
    own = {"ability": ("perplexity",), "growth": ("value",)}
    needed = own.get(path.stem.rpartition("_")[2], ("trained_on", "success", "turns"))
    check_columns(path, rows, ("run", "arm", "variant", "seed", "env", *needed))
    if not all(isinstance(name, str) for name in rows["arm"]):
        raise HeroError(f"{path} has rows without an arm; {RESTORE}")
    if rows.duplicated([name for name in KEY if name in rows]).any():
        raise HeroError(f"{path} has rows of the same run twice; {RESTORE}")
    for name in ("seed", "success", "turns", "wasted", "env_turns"):
        if name in rows and not (pd.api.types.is_numeric_dtype(rows[name]) and rows[name].notna().all()):
            raise HeroError(f"{path} has values of {name} that are no numbers; {RESTORE}")
    return rows.assign(agent=[agent(*pair) for pair in zip(rows["arm"], rows["variant"], strict=True)])


@cache  # a table has thousands of rows of a few agents
def agent(arm: str, variant: str) -> str:
    """An arm with what differs from its defaults and from its own learning rate; of groups, the rollouts per task.

    >>> agent("hero", ""), agent("hero", "teacher=ema"), agent("grpo", f"group=4 tasks=4 lr={OWN_LR['grpo']}")
    ('hero', 'hero, teacher=ema', 'grpo, G=4')
    >>> agent("grpo", "group=4 tasks=4")
    'grpo, G=4 lr=0.0005'
    """
    settings = re.sub(r"group=(\d+) tasks=\d+", r"G=\1", variant).split()
    lr = next((setting for setting in settings if setting.startswith("lr=")), f"lr={TrainConfig.lr}")
    own = f"lr={OWN_LR.get(arm, TrainConfig.lr)}"
    named = [setting for setting in settings if setting != lr] + [lr] * (lr != own)
    return ", ".join([arm, *([" ".join(named)] if named else [])])


def read_all(data: Path, suffix: str = "") -> pd.DataFrame:
    """All runs in the studies' tables of the folder `data`, each once, as `read` gives them; table: where it was found.

    suffix: "" for test episodes, "_curves" for updates, "_ability" for its items
    Studies share runs, so a run may stand in several tables: the first one counts, in the order of STUDIES. Where the
    agents of two models act in the same world, those of the model that is found first count there.
    """
    tables = [read(path).assign(table=path.stem, model=_settings(path)["model"]) for path in alike(data, suffix)]
    if not tables:
        return pd.DataFrame(columns=EMPTY)
    rows = pd.concat(tables, ignore_index=True)
    rows = rows[rows["model"] == rows.groupby("env", dropna=False)["model"].transform("first")].drop(columns="model")
    first = rows.groupby(["run", "env"], sort=False)["table"].transform("first")
    return rows[rows["table"] == first].reset_index(drop=True)


def left_out(data: Path) -> dict[str, pd.DataFrame]:
    """The rows of the studies from a warm-up that lacks a lesson, by what it lacks; those that are in `data`."""
    files = {"no demonstrations": data / "no_demos.csv", "no diagnoses": data / "no_hints.csv"}
    return {lacking: read(file) for lacking, file in files.items() if file.exists()}


def alike(data: Path, suffix: str = "") -> list[Path]:
    """The studies' tables in `data` made with the settings of their model's newest one, as far as both name them.

    One base agent, trained by the same rules, has to be behind all rows of a comparison. Older tables do not name the
    rules: they stand beside each other, and beside no newer one. A study on validation tasks is none of them: settings
    were chosen on it.
    raises HeroError: only some of the tables say how they were made
    """
    tested = [name for name in STUDIES if {job.split for job in jobs(name, "full")} == {"test"}]
    paths = [path for name in tested if (path := data / f"{name}{suffix}.csv").exists()]
    made = {path: _settings(path) for path in paths}
    lost = [str(path) for path in paths if not origin(path)]
    if 0 < len(lost) < len(paths):
        raise HeroError(f"nobody knows how {', '.join(lost)} was made: its .json is not there; restore both")
    by_age = sorted(paths, key=lambda path: str(origin(path).get("date", "")))
    newest = {made[path]["model"]: made[path] for path in by_age}

    def fits(mine: dict, other: dict) -> bool:
        return ("budget" in mine) == ("budget" in other) and all(other.get(k, v) == v for k, v in mine.items())

    return [path for path in paths if fits(made[path], newest[made[path]["model"]])]


def _settings(path: Path) -> dict:
    """What the runs of a study's table have in common; older tables name preset and adapter only."""
    about = origin(path)
    return {"model": "default"} | {k: about[k] for k in ("preset", "adapter") if k in about} | about.get("settings", {})


def in_world(rows: pd.DataFrame, world: str, trained_on: str | None = None) -> pd.DataFrame:
    """The rows in a world of the base agent and of those that were trained on `trained_on`, by default that world."""
    here = rows[rows["env"] == world]
    return here[(here["arm"] == "base") | (here["trained_on"] == (trained_on or world))]


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main comparison's agents: every arm with the settings that it has in the study `retail`."""
    return rows[rows["agent"].isin({agent(job.arm, job.variant) for job in jobs("retail", "full")})]
