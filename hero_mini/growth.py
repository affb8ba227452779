"""What a student takes over from its teacher, update by update: `mechanism`'s masses, always on the same turns.

The turns are the base agent's own, so nothing but the agent changes from one measurement to the next (our choice; the
paper has no such figure).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd

from hero_mini.config import ARMS, TrainConfig
from hero_mini.distil import heeded
from hero_mini.errors import HeroError
from hero_mini.files import read_json
from hero_mini.mechanism import measure, summary
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, Usage
from hero_mini.seeds import rng
from hero_mini.tables import read_csv
from hero_mini.told import Told, demonstrated, hinted
from hero_mini.track import Track, track
from hero_mini.train import reflect_on


def kept(run: Path) -> tuple[TrainConfig, str, str, list[Path]]:
    """What a run was asked to do, the model that it began with and the fingerprint of its weights, and the adapters of
    the run's whole updates, in order.

    raises HeroError: there is no such folder, it holds no agents, or files of the run are damaged
    """
    if not run.is_dir():
        raise HeroError(f"there is no folder {run}; name that of a training run")
    whole = len(read_csv(run / "metrics.csv")) if (run / "metrics.csv").exists() else 0
    agents = [run / "updates" / str(k) for k in range(1, whole + 1)]
    if not agents or not all(folder.is_dir() for folder in agents):
        raise HeroError(f"{run} holds no agents by update: train it again, in a new folder")
    told = read_json(run / "config.json", remedy := "name the folder of a training run")
    try:
        config = TrainConfig(**{field.name: told[field.name] for field in fields(TrainConfig) if field.name in told})
        return config, told["model"], told["weights"], agents
    except (KeyError, TypeError) as problem:
        raise HeroError(f"{run / 'config.json'} is damaged ({problem}); {remedy}") from problem


def growth(
    policy: Policy, config: TrainConfig, rollouts: Sequence[Rollout], students: Iterable[Policy]
) -> pd.DataFrame:
    """A row per agent, path and number of `mechanism.summary`: who, update, path, number, value, low, high, n (tasks).

    policy: the base agent, whose rollouts these are; it counts as the student after 0 updates
    students: the student after 1, 2, ... updates
    who: "student", or "teacher" (of the run's arm, before any update; an arm without a teacher has none)
    path: turns "on" the reference's path, "off" it, or "all"
    """
    tracks = [track(policy, rollout) for rollout in rollouts]
    teachers = {} if ARMS[config.arm].context is None else {"teacher": _teacher(policy, config, rollouts, tracks)}
    turns = measure(policy, rollouts, tracks, teachers)[1].assign(update=0)
    later = [measure(one, rollouts, tracks, {})[1].assign(update=k) for k, one in enumerate(students, 1)]
    rows = []
    for (who, update), mine in pd.concat([turns, *later]).groupby(["context", "update"], sort=False):
        for path, part in {"all": mine, "on": mine[mine["on_path"]], "off": mine[~mine["on_path"]]}.items():
            if len(part):
                rows.append(summary(part).drop(columns="context").assign(who=who, update=update, path=path))
    table = pd.concat(rows, ignore_index=True)
    return table[["who", "update", "path", "number", "value", "low", "high", "n"]]


def _teacher(policy: Policy, config: TrainConfig, rollouts: Sequence[Rollout], tracks: Sequence[Track]) -> list[Told]:
    """What the teacher of a run's arm is told about these rollouts, as in training; of siblings there are none here."""
    arm = ARMS[config.arm]
    if arm.context == "full_demo":
        return demonstrated(rollouts, tracks, "expert", seed=config.seed)
    draw = rng(config.seed, "shuffle", "growth")
    reflections = reflect_on(policy, rollouts, config, draw, Usage())
    heard = [replace(one, diagnoses=heeded(one.diagnoses, config)) for one in reflections]
    return hinted(rollouts, arm.context, heard, always=config.hints == "all")
