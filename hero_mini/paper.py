"""The paper's numbers, and what the tables of the studies say beside them: rows in, numbers out.

An *agent* is an arm with what differs from its defaults: "hero", "hero, teacher=ema", "grpo, G=4". Whatever is missing
is left out and never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from hero_mini.config import ARMS, TrainConfig
from hero_mini.evaluate import by_task, interval
from hero_mini.runtime import HeroError
from hero_mini.studies import OWN_LR, STUDIES, jobs
from hero_mini.tables import RESTORE, check_columns, origin, read_table

NAN = float("nan")
PAPER = pd.DataFrame(  # its main table, from secondary readings of the full text; success as a share; nan: not known
    [
        ("4B", "retail", "grpo", 0.333, 13.4), ("4B", "retail", "hero", 0.347, 9.6),
        ("4B", "airline", "grpo", 0.180, NAN), ("4B", "airline", "hero", 0.195, NAN),
        ("4B", "webshop", "grpo", 0.652, 8.1), ("4B", "webshop", "hero", 0.689, 8.1),
        ("30B", "retail", "grpo", 0.478, NAN), ("30B", "retail", "hero", 0.503, NAN),
        ("30B", "airline", "grpo", 0.335, NAN), ("30B", "airline", "hero", 0.355, NAN),
        ("30B", "webshop", "grpo", 0.761, NAN), ("30B", "webshop", "hero", 0.796, NAN),
    ],
    columns=["model", "env", "arm", "success", "turns"],
)  # fmt: skip
TRAINED_ON = {"retail": "retail", "airline": "retail", "webshop": "webshop"}  # by the world of the test, in the paper
PAPER_ABLATION = pd.DataFrame(  # model and benchmark are not named; the last column is our reading
    [
        ("environment feedback only", 0.304, "env_feedback"),
        ("reflection only", 0.339, "diagnosis_only"),
        ("external GPT-4o reflector", 0.357, "oracle_hero (a rule, no model)"),
    ],
    columns=["in the paper", "success", "nearest here"],
)
VISIBLE = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)  # 2.8 standard errors: seen in four of five studies
EMPTY = (  # columns of a table without rows
    "run arm variant trained_on seed env agent table task trial success turns update env_turns no_contrast item kind "
    "correct perplexity"
).split()
T975 = (NAN, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 0 to 9 degrees of freedom


def quoted(model: str, env: str, arm: str) -> str:
    """What the paper reports for one of its models, in words.

    >>> quoted("4B", "retail", "hero"), quoted("4B", "retail", "base")
    ('34.7 %, 9.6 turns', 'not known')
    """
    found = PAPER[(PAPER["model"] == model) & (PAPER["env"] == env) & (PAPER["arm"] == arm)]
    if found.empty:
        return "not known"
    success, turns = found.iloc[0][["success", "turns"]]
    return f"{success:.1%}".replace("%", " %") + ("" if np.isnan(turns) else f", {turns:.1f} turns")


def read(path: Path) -> pd.DataFrame:
    """A study's table, variants as text (empty: the defaults), with the column agent. raises HeroError: damaged"""
    rows = read_table(path)
    number = {"ability": "perplexity", "growth": "value"}.get(path.stem.rpartition("_")[2], "success")
    check_columns(path, rows, ("run", "arm", "seed", "env", number))
    if number == "success" and not (pd.api.types.is_numeric_dtype(rows[number]) and rows[number].notna().all()):
        raise HeroError(f"{path} has values of {number} that are no numbers; {RESTORE}")
    rows = rows if "variant" in rows else rows.assign(variant="")
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

    >>> cell(0.1256, 0.1, 0.15), cell(-0.95, -1.5, -0.4, "+"), cell(0.5, NAN, NAN)
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
    """`effects` with se, the standard error that the interval implies, and smallest, the smallest visible difference.

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
        return float(values.mean()), NAN, NAN
    half = T975[min(len(values), len(T975)) - 1] * values.std(ddof=1) / np.sqrt(len(values))  # wider beyond ten seeds
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


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
        late = values[-third:].mean() - values[-2 * third : -third].mean() if len(values) > third else NAN
        found.append({"seed": seed, "whole": values[-1] - values[0], "late": late})
    return pd.DataFrame(found, columns=["seed", "whole", "late"]).set_index("seed")


def at_budget(curves: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """The largest budget that every run reached, in turns; and a row per run: agent, seed, end, way.

    end: success at that budget (between two updates on a line); way: mean success from no turn up to it
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
