"""How good an agent is on held-out tasks: success (mean@k), turns, and what it wastes; and agents without any skill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hero_mini import envs
from hero_mini.config import TrainConfig
from hero_mini.envs.base import Env
from hero_mini.errors import HeroError, check_whole
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, collect
from hero_mini.seeds import rng
from hero_mini.tables import read_csv
from hero_mini.track import guesses

COLUMNS = ("task", "trial", "success", "turns", "wasted", "errors", "repeated", "guessed")  # of `rollout_rows`


def evaluate(
    policy: Policy,
    env: str,
    *,
    split: str = "test",
    n_tasks: int = 200,
    k: int = 1,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """A row per rollout (see `rollout_rows`) of every task k times. The tasks do not depend on the seed.

    settings: as for `rollout.collect`
    """
    tasks = envs.make(env).tasks(split, n_tasks)
    rollouts = collect(policy, env, tasks, seed=seed, repeats=k, **settings)
    return rollout_rows(rollouts).assign(seed=seed)


def rollout_rows(rollouts: Sequence[Rollout]) -> pd.DataFrame:
    """A row per rollout: task, trial, success (0 or 1), turns, and how many were wasted, errors, repeated or guessed.

    wasted: turns that the oracle does not call necessary; guessed: see `track.guesses`
    """
    rows, seen = [], {}
    for r in rollouts:
        seen[r.task_id] = trial = seen.get(r.task_id, -1) + 1
        rows.append(
            {
                "task": r.task_id,
                "trial": trial,
                "success": float(r.success),
                "turns": len(r.turns),
                "wasted": sum(not t.necessary for t in r.turns),
                "errors": sum(t.info["error"] is not None for t in r.turns),
                "repeated": sum(t.info["repeated"] for t in r.turns),
                "guessed": sum(guesses(r)),
            }
        )
    return pd.DataFrame(rows)


def kept_rows(file: Path) -> pd.DataFrame:
    """The rows of earlier evaluations, which have an arm besides (a label); none if there is no file.

    raises HeroError: it is no whole table of evaluations
    """
    if not file.exists():
        return pd.DataFrame(columns=["arm", "seed", *COLUMNS])
    missing = {name: [""] for name in COLUMNS if name != "task"}  # a label may be called NA, or 1
    found = read_csv(file, dtype={"arm": str, "task": str}, keep_default_na=False, na_values=missing)
    if not {"arm", "seed", "task"} <= {*found.columns} <= {"arm", "seed", *COLUMNS}:
        raise HeroError(f"{file} is no table of eval, whose rows could stand in it; choose another --out")
    return found


def in_place_of(earlier: pd.DataFrame, rows: pd.DataFrame, env: str, split: str) -> pd.DataFrame:
    """The earlier rows and the new ones, which replace those of the same arm, seed and split of the environment."""
    world, (arm,), (seed,) = envs.make(env), set(rows["arm"]), set(rows["seed"])
    same = (earlier["arm"] == arm) & (earlier["seed"] == seed)
    same &= earlier["task"].isin([task for task in earlier["task"].unique() if world.in_split(task, split)])
    others = earlier[~same]
    return (pd.concat([others, rows]) if len(others) else rows)[["arm", "seed", *COLUMNS]]


def ended_early(rows: pd.DataFrame, max_turns: int = TrainConfig.max_turns) -> pd.Series:
    """1.0 for rollouts that failed although they ended before the limit of turns, 0.0 for all others.

    One whose context was full counts, too; in the mini worlds none is.
    """
    return ((rows["success"] == 0) & (rows["turns"] < max_turns)).astype(float)


def floors(
    env: str, *, split: str = "test", n_tasks: int = 200, seed: int = 0, max_turns: int | None = None
) -> pd.DataFrame:
    """Success without any skill: only "bye", random admissible actions (where they can be listed); and the expert.

    max_turns: per episode; None: see `envs.turn_limit`
    """
    check_whole(1, n_tasks=n_tasks)
    check_whole(0, seed=seed)
    draw = rng(seed, "floors")
    agents: dict[str, Callable[[Env], str]] = {
        "do nothing": lambda e: "bye",
        "random admissible": lambda e: draw.choice(e.admissible()),
        "expert": lambda e: str(e.expert()),
    }
    world = envs.make(env)
    tasks = world.tasks(split, n_tasks)
    world.reset(options={"task": tasks[0]})
    if world.admissible() is None:
        del agents["random admissible"]
    rows, limit = [], envs.turn_limit(env) if max_turns is None else max_turns
    for name, act in agents.items():
        success, turns = [], []
        for task in tasks:
            world = envs.make(env, max_turns=limit)
            world.reset(options={"task": task})
            done, reward = False, 0.0
            while not done:
                _, reward, terminated, truncated, info = world.step(act(world))
                done = terminated or truncated
            success.append(reward == 1.0)
            turns.append(info["turn"])
        rows.append({"agent": name, "success": np.mean(success), "turns": np.mean(turns), "n_tasks": len(tasks)})
    return pd.DataFrame(rows)
