"""What success costs: the course of a training run over the turns spent, and the number of rollouts per task."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from hero_mini.bootstrap import by_task, interval
from hero_mini.compare import over_seeds
from hero_mini.config import ARMS


def spent(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves with the column spent: turns in the environment *before* an update's rollouts, which measure its agent."""
    rows = curves.sort_values("update", kind="stable")
    used = rows.groupby(["agent", "seed"])["env_turns"].shift(fill_value=0)
    return rows.assign(spent=used).sort_index()


def course(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """How a number moves in the training runs of one agent: a row per seed, columns whole and late.

    whole: last update minus first; late: the last third of the updates minus the third before, where a collapse shows
    """
    found = []
    for seed, run in runs.sort_values("update").groupby("seed"):
        values = run[column].dropna().to_numpy()
        third = max(1, len(values) // 3)
        late = values[-third:].mean() - values[-2 * third : -third].mean() if len(values) > third else np.nan
        found.append({"seed": seed, "whole": values[-1] - values[0], "late": late})
    return pd.DataFrame(found, columns=["seed", "whole", "late"]).set_index("seed")


def at_budget(curves: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """The largest budget that every run reached, in turns; and a row per run: agent, seed, end, way.

    end: success at that budget (between two updates on a line); way: mean success from no turn up to it, the area
        under the learning curve over its width
    """
    budget = float(curves.groupby(["agent", "seed"])["spent"].max().min())
    found = []
    for (agent, seed), run in curves.sort_values("spent").groupby(["agent", "seed"], sort=False):
        at = np.unique(np.append(run["spent"][run["spent"] < budget], budget))
        level = np.interp(at, run["spent"], run["success"])
        way = np.trapezoid(level, at) / budget if budget else level[-1]
        found.append({"agent": agent, "seed": seed, "end": level[-1], "way": way})
    return budget, pd.DataFrame(found)


def groups(rows: pd.DataFrame) -> pd.DataFrame:
    """Success by rollouts per task: columns arm, G, value, low, high, n_seeds, n_tasks. The base agent has no G."""
    found = []
    for (arm, g), mine in _by_group(rows):
        values = by_task(mine, "success")
        found.append([arm, g, *interval(values), *values.shape])
    return pd.DataFrame(found, columns=["arm", "G", "value", "low", "high", "n_seeds", "n_tasks"])


def contrast(curves: pd.DataFrame) -> pd.DataFrame:
    """Share of groups without contrast by rollouts per task, mean over updates: arm, G, value, low, high, n_seeds.

    The interval is one over seeds, cut at 0 and 1.
    """
    found = []
    for (arm, g), mine in _by_group(curves):
        shares = mine.groupby("seed")["no_contrast"].mean()
        found.append([arm, g, *np.clip(over_seeds(shares), 0, 1), len(shares)])
    return pd.DataFrame(found, columns=["arm", "G", "value", "low", "high", "n_seeds"])


def _by_group(rows: pd.DataFrame) -> list[tuple[tuple[str, int], pd.DataFrame]]:
    """The rows of every arm and group size of which nothing else was changed."""
    plain = [(re.fullmatch(r"(\w+)(?:, G=(\d+))?", agent), mine) for agent, mine in rows.groupby("agent")]
    found = [((name[1], int(name[2] or 1)), mine) for name, mine in plain if name and name[1] != "base"]
    return sorted(found, key=lambda one: (list(ARMS).index(one[0][0]), one[0][1]))
