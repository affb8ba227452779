"""Paired comparisons of agents: a difference with its interval, in words, and how small a one would have been seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

from hero_mini.bootstrap import interval

VISIBLE = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)  # 2.8 standard errors: seen in four of five studies
# Student's t, 0 to 9 degrees of freedom
T975 = (np.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def effect(rows: pd.DataFrame, against: pd.DataFrame, column: str) -> dict | None:
    """Paired difference rows - against, over the seeds and tasks that both have; None if they share none.

    A base agent of one seed is compared with every seed, since no training has made it.
    Returns value, low, high (95 %, seeds and tasks resampled), seeds (the difference of each), n_seeds and n_tasks.
    """
    a, b = (r.pivot_table(index="seed", columns="task", values=column) for r in (rows, against))  # (seeds, tasks)
    if len(b) == 1 and set(against["arm"]) == {"base"}:
        b = pd.DataFrame(np.repeat(b.to_numpy(), len(a), axis=0), index=a.index, columns=b.columns)
    gap = (a - b).dropna(how="all").dropna(axis=1)
    if gap.empty:
        return None
    value, low, high = interval(gap.to_numpy())
    n_seeds, n_tasks = gap.shape
    seeds = tuple(gap.mean(axis=1))
    return {"value": value, "low": low, "high": high, "seeds": seeds, "n_seeds": n_seeds, "n_tasks": n_tasks}


def effects(
    rows: pd.DataFrame, pairs: Sequence[tuple[str, str]], columns: Sequence[str] = ("success", "turns")
) -> pd.DataFrame:
    """A row per pair of agents and column: comparison, number, and what `effect` gives; pairs without data left out."""
    names = ["comparison", "number", "value", "low", "high", "seeds", "n_seeds", "n_tasks"]
    of = dict(tuple(rows.groupby("agent")))
    found = [
        {"comparison": f"{a} − {b}", "number": column, **one}
        for a, b in pairs
        for column in columns
        if a in of and b in of and (one := effect(of[a], of[b], column))
    ]
    return pd.DataFrame(found, columns=names)


def side_by_side(
    agents: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]], columns: Sequence[str] = ("success", "turns")
) -> pd.DataFrame:
    """`effects` of several base agents, each against its own: the label stands behind the comparison, pair by pair."""
    found = [effects(rows, [pair], columns).assign(label=label) for pair in pairs for label, rows in agents.items()]
    table = pd.concat(found, ignore_index=True)
    return table.assign(comparison=table["comparison"] + ", " + table["label"]).drop(columns="label")


def direction(low: float, high: float) -> str:
    """What an interval of a difference allows to say.

    >>> direction(0.1, 0.2), direction(-2, -1), direction(-0.1, 0.3)
    ('higher', 'lower', 'no direction is shown')
    """
    return "higher" if low > 0 else "lower" if high < 0 else "no direction is shown"


def cell(value: float, low: float, high: float, sign: str = "") -> str:
    """An estimate with its interval, three decimals below 1; sign "+" for a difference.

    >>> cell(0.1256, 0.1, 0.15), cell(-0.95, -1.5, -0.4, "+"), cell(0.5, np.nan, np.nan)
    ('0.126 [0.100, 0.150]', '-0.95 [-1.50, -0.40]', '0.500 [one seed: no interval]')
    """
    shape = f"{sign}.{3 if np.nanmax(np.abs([value, low, high])) < 1 else 2}f"
    limits = "one seed: no interval" if np.isnan(low) else f"{low:{shape}}, {high:{shape}}"
    return f"{value:{shape}} [{limits}]"


def seeds(n: int) -> str:
    """How many seeds, in words.

    >>> seeds(1), seeds(3)
    ('1 seed', '3 seeds')
    """
    return f"{n} seed{'s' * (n != 1)}"


def sentences(table: pd.DataFrame) -> list[str]:
    """A line per comparison of `effects`, in words that its intervals allow."""
    lines = []
    for name, rows in table.groupby("comparison", sort=False):
        said = [
            f"{r.number} {cell(r.value, r.low, r.high, '+')}, {direction(r.low, r.high)}" for r in rows.itertuples()
        ]
        lines.append(f"{name}: {'; '.join(said)}" + " (one seed)" * bool(rows["n_seeds"].max() == 1))
    return lines


def visible(table: pd.DataFrame) -> pd.DataFrame:
    """`effects` with se, the standard error that the interval implies, and smallest, the smallest visible difference:
    the minimum detectable effect at a power of 80 %.

    smallest: a true difference of this size excludes zero from the interval in four studies of five
    """
    se = (table["high"] - table["low"]) / (2 * NormalDist().inv_cdf(0.975))
    return table.assign(se=se, smallest=smallest_visible(table["low"], table["high"]))


def smallest_visible(low: float, high: float) -> float:
    """The smallest true difference that a comparison with such an interval would mostly have shown, see `visible`."""
    return VISIBLE * (high - low) / (2 * NormalDist().inv_cdf(0.975))


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with Student's 95 % interval, for numbers of which there is one per seed; nan limits with a single seed.

    >>> [round(v, 3) for v in over_seeds([0.1, 0.2, 0.3])]
    [0.2, -0.048, 0.448]
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), np.nan, np.nan
    half = T975[min(len(values), len(T975)) - 1] * values.std(ddof=1) / np.sqrt(len(values))  # wider beyond ten seeds
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)
