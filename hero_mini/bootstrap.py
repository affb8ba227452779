"""Intervals by the bootstrap: what is known of a mean over seeds and tasks, or of a number of groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from hero_mini.errors import HeroError
from hero_mini.seeds import resampler

T = TypeVar("T")


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
