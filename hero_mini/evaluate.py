"""How good an agent is on held-out tasks: success (mean@k), turns, and what it wastes; intervals; floors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from hero_mini import envs
from hero_mini.config import TrainConfig
from hero_mini.envs.base import Env
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, collect
from hero_mini.runtime import HeroError, check_whole, resampler, rng
from hero_mini.track import guesses

T = TypeVar("T")
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


def ended_early(rows: pd.DataFrame, max_turns: int = TrainConfig.max_turns) -> pd.Series:
    """1.0 for rollouts that failed although they ended before the limit of turns, 0.0 for all others."""
    return ((rows["success"] == 0) & (rows["turns"] < max_turns)).astype(float)


def interval(values: np.ndarray, *, n: int = 10_000, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of (seeds, tasks) values with its bootstrap interval; seeds and tasks are resampled together.

    A difference of two agents on the same seeds and tasks makes the interval a paired one (Miller 2024).
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))  # (S, T)
    draw = resampler(seed, "bootstrap", "seeds and tasks")
    s, t = values.shape
    over_seeds = draw.multinomial(s, np.full(s, 1 / s), size=n) @ values / s  # (n, T): a seed may come up twice
    means = np.take_along_axis(over_seeds, draw.integers(t, size=(n, t)), axis=1).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)


def resampled(groups: Sequence[T], of: Callable[[Sequence[T]], float]) -> tuple[float, float, float]:
    """A number of groups that belong together, such as the turns of a rollout, with its 95 % bootstrap interval.

    of: gives the number of some groups; samples of which it is nan are left out
    """
    draw = resampler(0, "bootstrap", "groups")
    values = [of([groups[i] for i in draw.integers(len(groups), size=len(groups))]) for _ in range(1000)]
    known = [value for value in values if not np.isnan(value)] or [np.nan]
    low, high = np.quantile(known, [0.025, 0.975])
    return of(groups), float(low), float(high)


def by_task(rows: pd.DataFrame, column: str) -> np.ndarray:
    """(seeds, tasks) means over trials of the tasks that every seed has, seeds and tasks in sorted order.

    raises HeroError: there is no such task
    """
    found = rows.pivot_table(index="seed", columns="task", values=column, aggfunc="mean").sort_index().dropna(axis=1)
    if found.empty:
        raise HeroError(f"no task has {column} in every seed: evaluate all seeds on the same tasks")
    return found.to_numpy()


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
