"""The claims: what was predicted before the runs, and what the data say. No number of ours is typed anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from hero_mini import compare, grading, probe, results
from hero_mini.bootstrap import by_task, interval, resampled
from hero_mini.tables import check_columns, origin, read_table

DATA = Path("figures/data")
ONE_SEED = ", one seed"  # behind a verdict that the luck of a single training run may have made
COLUMNS = [
    "claim_id", "statement", "paper_value", "predicted_sign", "ours", "ci_low", "ci_high", "n_seeds", "n_tasks",
    "verdict", "command", "commit", "date",
]  # fmt: skip


class Missing(Exception):
    """The tables hold no run of an agent that a claim is about."""


class Estimate(NamedTuple):
    """A number with its 95 % interval, what it was computed from, and the tables where that stands."""

    value: float
    low: float
    high: float
    n_seeds: int
    n_tasks: int
    tables: tuple[str, ...]  # files in figures/data


@dataclass(frozen=True)
class Claim:
    """A statement whose sign was written down before the run, and how to estimate it from committed data."""

    claim_id: str
    statement: str
    paper_value: str
    predicted_sign: str  # "+", "-", "0 or -", or a range such as "0.15..0.45"
    estimate: Callable[[], Estimate]
    command: str  # which makes the runs
    size: float | None = None  # of the difference in the paper, if known; for "0 or -" the rise that counts as none
    aim: bool = False  # the warm-up was made until the value lay in this range: an aim, and no prediction


def _agents(rows: pd.DataFrame, agent: str, **values: str) -> pd.DataFrame:
    """The rows of an agent (see `results.agent`) with these values in some columns. raises Missing"""
    for column, value in {"agent": agent, **values}.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        raise Missing(agent)
    return rows


def _base_success(env: str) -> Callable[[], Estimate]:
    def estimate() -> Estimate:
        rows = _agents(results.read_all(DATA), "base", env=env)
        base = by_task(rows, "success")
        return Estimate(*interval(base), *base.shape, _files(rows))

    return estimate


def _gain(
    agent: str,
    column: str,
    against: str = "base",
    *,
    trained_on: str = "retail",
    env: str = "retail",
    study: str | None = None,
) -> Callable[[], Estimate]:
    """How much larger a number is than that of another agent.

    study: where to look, by default in all studies that can be compared
    """

    def estimate() -> Estimate:
        rows = results.read(_made(f"{study}.csv")).assign(table=study) if study else results.read_all(DATA)
        where = {} if against == "base" else {"trained_on": trained_on}
        trained = _agents(rows, agent, trained_on=trained_on, env=env)
        return _difference(trained, _agents(rows, against, env=env, **where), column)

    return estimate


def _made(name: str) -> Path:
    """A file in figures/data. raises Missing: it has not been made"""
    if not (DATA / name).exists():
        raise Missing(name)
    return DATA / name


def _difference(rows: pd.DataFrame, against: pd.DataFrame, column: str) -> Estimate:
    """raises Missing: the two have no seed in common"""
    gap = compare.effect(rows, against, column)
    if gap is None:
        raise Missing("a common seed")
    numbers = (gap[key] for key in ("value", "low", "high", "n_seeds", "n_tasks"))
    return Estimate(*numbers, _files(pd.concat([rows, against])))


def _files(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(f"{name}.csv" for name in rows["table"].unique())


def _both_parts() -> Estimate:
    """HERO's gain over the part from which its interval keeps the least distance: it has to beat either.

    From the seeds that all three have, so that neither difference is shown without the luck of its runs.
    """
    rows = results.read_all(DATA)
    of = [
        _agents(rows, agent, trained_on="retail", env="retail") for agent in ("hero", "diagnosis_only", "env_feedback")
    ]
    shared = set.intersection(*(set(mine["seed"]) for mine in of))
    hero, *parts = (mine[mine["seed"].isin(shared)] for mine in of)
    return min((_difference(hero, part, "success") for part in parts), key=lambda gain: gain.low)


def _no_forgetting() -> Estimate:
    """Log perplexity of plain text in nats per token, HERO - base.

    Not the instructions: the base agent answers so few of them that no loss could show.
    """
    rows = results.read_all(DATA, "_ability")
    rows = rows.dropna(subset=["perplexity"]).rename(columns={"item": "task"})
    rows = rows.assign(nats=np.log(rows["perplexity"].astype(float)))
    return _difference(_agents(rows, "hero"), _agents(rows, "base"), "nats")


def _reflection() -> Estimate:
    turns = read_table(path := _made(name := "probe_retail/reflection.csv"))
    check_columns(path, turns, ("rollout", "truth", "said"))
    truth, said = grading.blamed(turns)
    turns = turns.assign(right=truth == said)
    rollouts = [right.to_numpy() for _, right in turns.groupby("rollout")["right"]]
    share = resampled(rollouts, lambda some: float(np.concatenate(some).mean()))
    return Estimate(*share, 1, len(rollouts), (name,))


def _edge(teacher: str) -> Callable[[], Estimate]:
    def estimate() -> Estimate:
        edges = read_table(path := _made(name := "probe_retail/edge.csv"))
        check_columns(path, edges, ("probe", "rollout", "good", "edge"))
        edges = edges[edges["probe"] == teacher]
        if edges.empty:
            raise Missing(teacher)
        return Estimate(*probe.auc_interval(edges), 1, edges["rollout"].nunique(), (name,))

    return estimate


_RETAIL = "python -m hero_mini study retail"
_ABLATIONS = "python -m hero_mini study ablations_retail"
_WORLDS = "python -m hero_mini study worlds"
_NO_DEMOS = "python -m hero_mini study no_demos"
_NO_HINTS = "python -m hero_mini study no_hints"
_PROBE = "python -m hero_mini probe --preset full --out figures/data/probe_retail"
CLAIMS = [
    Claim("base_success_retail", "The warmed-up agent solves some held-out tasks, with room to improve", "not given",
          "0.15..0.45", _base_success("retail"), _RETAIL, aim=True),
    Claim("hero_beats_base_retail", "HERO with the model's own reflections raises success over the base agent",
          "higher", "+", _gain("hero", "success"), _RETAIL),
    Claim("hero_fewer_turns_retail", "HERO needs fewer turns than the base agent",
          "not given; against GRPO 13.4 -> 9.6", "-", _gain("hero", "turns"), _RETAIL),
    Claim("shuffled_no_gain_retail", "HERO with its diagnoses dealt out at random does not raise success", "not given",
          "0 or -", _gain("shuffled_hero", "success"), _RETAIL, size=0.05),
    Claim("full_demo_below_base_retail", "A full demonstration as feedback lowers success below the base agent",
          "lower (no number)", "-", _gain("full_demo", "success"), _RETAIL),
    Claim("full_demo_below_base_retail_no_demos", "After the warm-up without demonstrations, a full demonstration "
          "lowers success below the base agent", "lower (no number)", "-",
          _gain("full_demo", "success", study="no_demos"), _NO_DEMOS),
    Claim("hero_beats_base_retail_no_demos", "After the warm-up without demonstrations, too, HERO raises success over "
          "the base agent", "higher", "+", _gain("hero", "success", study="no_demos"), _NO_DEMOS),
    Claim("hero_beats_base_retail_no_hints", "After the warm-up without diagnoses, HERO raises success over the base "
          "agent", "higher", "+", _gain("hero", "success", study="no_hints"), _NO_HINTS),
    Claim("hero_beats_full_demo_retail", "HERO reaches more success than a full demonstration as feedback (a row added "
          "after three seeds)", "higher (no number)", "+", _gain("hero", "success", "full_demo"), _RETAIL),
    Claim("hero_beats_env_feedback_retail", "HERO reaches more success than raw observation and outcome as feedback",
          "reflection only 33.9, this 30.4 %", "+", _gain("hero", "success", "env_feedback"), _RETAIL,
          size=0.035),
    Claim("hero_beats_grpo_tight_budget_retail", "HERO reaches more success than GRPO from as many turns of episodes",
          "34.7 against 33.3 %", "+", _gain("hero", "success", "grpo, G=4"), _RETAIL, size=0.014),
    Claim("hero_fewer_turns_than_grpo_retail", "HERO needs fewer turns than GRPO", "13.4 -> 9.6", "-",
          _gain("hero", "turns", "grpo, G=4"), _RETAIL),
    Claim("reflection_plus_observation_beats_either", "Diagnosis and observation together beat the diagnosis alone and "
          "the observation alone (the weaker of both differences)", "higher", "+", _both_parts, _ABLATIONS),
    Claim("learns_at_g1", "HERO learns from a single rollout per task, where GRPO cannot (the gain over the base agent "
          "once more: these are its runs)", "higher", "+", _gain("hero", "success"), _RETAIL),
    Claim("learns_from_failures_only", "HERO trained on failed rollouts alone still raises success over the base agent",
          "failed trajectories still give a signal", "+",
          _gain("hero, outcomes=failure", "success"), _ABLATIONS),
    Claim("no_forgetting", "HERO does not raise the log perplexity of plain text (nats per token; a row put in "
          "place of one on instructions, after two seeds)", "no degradation", "0 or -", _no_forgetting, _RETAIL,
          size=0.05),
    Claim("hero_beats_base_retail_worlds", "HERO raises success in retail from the warm-up in three worlds, too (a row "
          "added after the runs)", "not given", "+", _gain("hero", "success", study="worlds"), _WORLDS),
    Claim("base_success_airline", "The warmed-up agent solves some held-out airline tasks", "not given", "0.15..0.45",
          _base_success("airline"), _WORLDS, aim=True),
    Claim("base_success_webshop", "The warmed-up agent solves some held-out shop tasks", "not given", "0.15..0.45",
          _base_success("webshop"), _WORLDS, aim=True),
    Claim("hero_beats_base_webshop", "HERO trained on the web shop raises success there over the base agent", "higher",
          "+", _gain("hero", "success", trained_on="webshop", env="webshop"), _WORLDS),
    Claim("hero_fewer_turns_webshop", "HERO trained on the web shop needs fewer turns there than the base agent",
          "not given; against GRPO 8.1 -> 8.1", "-",
          _gain("hero", "turns", trained_on="webshop", env="webshop"), _WORLDS),
    Claim("full_demo_below_base_webshop", "A full demonstration as feedback on the web shop lowers success there below "
          "the base agent", "lower (no number)", "-",
          _gain("full_demo", "success", trained_on="webshop", env="webshop"), _WORLDS),
    Claim("hero_beats_env_feedback_webshop", "HERO trained on the web shop reaches more success there than raw "
          "observation and outcome as feedback", "not given", "+",
          _gain("hero", "success", "env_feedback", trained_on="webshop", env="webshop"), _WORLDS),
    Claim("hero_beats_grpo_webshop", "HERO trained on the web shop reaches more success there than GRPO",
          "68.9 against 65.2 %", "+",
          _gain("hero", "success", "grpo, G=4", trained_on="webshop", env="webshop"), _WORLDS, size=0.037),
    Claim("hero_beats_base_airline", "HERO trained on the airline raises success there over the base agent",
          "not trained there", "+", _gain("hero", "success", trained_on="airline", env="airline"), _WORLDS),
    Claim("transfer_airline", "HERO trained on retail raises success on the airline, which it was not trained on",
          "not given; against GRPO 18.0 -> 19.5 %", "+", _gain("hero", "success", env="airline"), _WORLDS),
    Claim("transfer_beats_grpo_airline", "Trained on retail, HERO reaches more success on the airline than GRPO does",
          "19.5 against 18.0 %", "+", _gain("hero", "success", "grpo, G=4", env="airline"), _WORLDS, size=0.015),
    Claim("transfer_webshop", "HERO trained on retail raises success on the web shop, which it was not trained on",
          "not given", "+", _gain("hero", "success", env="webshop"), _WORLDS),
    Claim("reflection_accuracy_retail", "The model tells in hindsight whether a turn was necessary", "not given",
          "0.85..1", _reflection, _PROBE),
    Claim("teacher_edge_hero_retail", "The HERO teacher prefers good actions to others (AUC)", "not given", "0.8..1",
          _edge("hero"), _PROBE),
    Claim("teacher_edge_shuffled_retail", "With shuffled diagnoses it has no such preference (AUC)", "not given",
          "0.4..0.6", _edge("shuffled_hero"), _PROBE),
]  # fmt: skip


def verdict(sign: str, value: float, low: float, high: float, size: float | None = None) -> str:
    """Whether the prediction came out: the value in the range, or 0 outside the interval.

    size: see `Claim`. If no difference is seen, and one of the paper's size could not have been: no test. "0 or -"
        holds if the interval ends below `size`, and is not tested by one that holds 0 and reaches beyond

    >>> verdict("+", 0.2, 0.1, 0.3), verdict("+", 0.2, -0.1, 0.3), verdict("+", -0.2, -0.3, -0.1)
    ('reproduced', 'no direction shown', 'not reproduced')
    >>> verdict("0.4..0.6", 0.52, 0.48, 0.57), verdict("0.4..0.6", 0.3, 0.25, 0.35)
    ('reproduced', 'not reproduced')
    >>> verdict("+", 0.02, -0.05, 0.09, size=0.014)
    'not testable at this scale'
    >>> verdict("0 or -", 0.0, -0.02, 0.03, size=0.05), verdict("0 or -", 0.3, -0.01, 0.6, size=0.05)
    ('reproduced', 'not testable at this scale')
    """
    unseen = low <= 0 <= high
    if ".." in sign:
        least, most = map(float, sign.split(".."))
        return "reproduced" if least <= value <= most else "not reproduced"
    if sign == "0 or -":
        held, untested = high <= (size or 0.0), unseen
    else:
        held = low > 0 if sign == "+" else high < 0
        untested = unseen and size is not None and size < compare.smallest_visible(low, high)
    if held:
        return "reproduced"
    return "not testable at this scale" if untested else "no direction shown" if unseen else "not reproduced"


def claims_table() -> pd.DataFrame:
    """Every claim with our value where its data are there, an open row where they are not."""
    rows = []
    for c in CLAIMS:
        row = dict.fromkeys(COLUMNS, "") | {
            "claim_id": c.claim_id, "statement": c.statement, "paper_value": c.paper_value,
            "predicted_sign": c.predicted_sign, "verdict": "not run yet", "command": c.command,
        }  # fmt: skip
        try:
            value, low, high, seeds, tasks, tables = c.estimate()
        except Missing:
            rows.append(row)
            continue
        row |= {"ours": round(value, 3), "ci_low": round(low, 3), "ci_high": round(high, 3), "n_seeds": seeds}
        word = verdict(c.predicted_sign, value, low, high, c.size)
        word = {"reproduced": "aim met"}.get(word, "aim missed") if c.aim else word
        row |= {"n_tasks": tasks, "verdict": word + ONE_SEED * (seeds == 1 and not c.aim and c.command != _PROBE)}
        made = [origin(DATA / table) for table in tables]
        for key in ("command", "commit", "date"):
            row[key] = "; ".join(dict.fromkeys(str(one.get(key, "unknown")) for one in made))
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
