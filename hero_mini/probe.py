"""The teacher edge, measured before any training: does a context make the teacher prefer good actions to bad ones?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from hero_mini import grading, reflect
from hero_mini.bootstrap import resampled
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, Reflection
from hero_mini.rollout import Rollout
from hero_mini.seeds import rng
from hero_mini.teacher import TeacherScores, score_rollouts

PROBES = {  # name -> context, whose diagnoses
    "hero": ("hero", "self"),
    "diagnosis_only": ("diagnosis_only", "self"),
    "env_feedback": ("env_feedback", "self"),
    "oracle_hero": ("hero", "oracle"),
    "shuffled_hero": ("hero", "shuffled"),
}


def probe(
    policy: Policy,
    rollouts: Sequence[Rollout],
    *,
    seed: int = 0,
    progress: bool = False,
    **limits: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The policy's own reflections on its rollouts (`grading.turn_rows`), and the edge of every teacher in PROBES.

    The full demonstration joins with its own arm.
    limits: max_action_tokens and batch_size, as for `reflect.self_reflector`
    """
    own = reflect.self_reflector(policy, progress=progress, **limits)(rollouts)
    whose = by_source(rollouts, own, seed=seed)
    student = score_rollouts(policy, rollouts, "none")
    edges = [
        edge_rows(policy, rollouts, context, [r.diagnoses for r in whose[source]], student=student).assign(probe=name)
        for name, (context, source) in tqdm(PROBES.items(), desc="teachers", disable=not progress)
    ]
    return grading.turn_rows(rollouts, own), pd.concat(edges, ignore_index=True)


def by_source(rollouts: Sequence[Rollout], own: Sequence[Reflection], *, seed: int) -> dict[str, Sequence[Reflection]]:
    """The reflections that PROBES names: the model's own, the oracle's, and the own ones dealt out at random."""
    return {"self": own, "oracle": reflect.oracle(rollouts), "shuffled": reflect.shuffled(own, rng(seed, "shuffle"))}


def summary(edges: pd.DataFrame) -> pd.DataFrame:
    """AUC with interval per probe, the mean edge of good and of other actions in nats, and the number of turns."""
    rows = []
    for name, of_probe in edges.groupby("probe", sort=False):
        value, low, high = auc_interval(of_probe)
        means = of_probe.groupby("good")["edge"].mean()
        rows.append(
            {
                "context": name,
                "auc": value,
                "low": low,
                "high": high,
                "edge_good": means.get(True, np.nan),
                "edge_other": means.get(False, np.nan),
                "n": len(of_probe),
            }
        )
    return pd.DataFrame(rows)


def edge_rows(
    policy: Policy,
    rollouts: Sequence[Rollout],
    context: str,
    diagnoses: Sequence[Sequence[Diagnosis | None]] | None = None,
    *,
    student: Sequence[TeacherScores] | None = None,
) -> pd.DataFrame:
    """A row per turn that has a hint: rollout, turn (both from 0), good (the oracle's view), told, student, edge.

    good: the oracle calls the turn necessary
    told: the verdict that the teacher read, "" if none; student: log pi_S(a) of the whole action, in nats
    edge: log pi_T(a) - log pi_S(a) of the whole action, in nats; the student is the policy without a context
    (its scores can be passed in as `student`)
    """
    student = student or score_rollouts(policy, rollouts, "none")
    teacher = score_rollouts(policy, rollouts, context, diagnoses)
    reads = diagnoses and context in ("hero", "diagnosis_only")
    rows = [
        {
            "rollout": i,
            "turn": t,
            "good": turn.necessary,
            "told": diagnoses[i][t].verdict if reads and diagnoses[i][t] else "",
            "student": float(own.sum()),
            "edge": float((told - own).sum()),
        }
        for i, r in enumerate(rollouts)
        for t, (turn, own, told) in enumerate(zip(r.turns, student[i].logprobs, teacher[i].logprobs, strict=True))
        if told is not None
    ]
    columns = ["rollout", "turn", "good", "told", "student", "edge"]
    return pd.DataFrame(rows, columns=columns).astype({"good": bool, "student": float, "edge": float})


def auc(good: np.ndarray, edge: np.ndarray) -> float:
    """Probability that a good action has the larger edge, a tie counting half; nan without both kinds.

    >>> auc(np.array([True, True, False]), np.array([2.0, 0.0, 1.0]))
    0.5
    """
    ranks = pd.Series(edge).rank().to_numpy()
    good = np.asarray(good, dtype=bool)
    n, m = int(good.sum()), int((~good).sum())
    return float((ranks[good].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def auc_interval(rows: pd.DataFrame) -> tuple[float, float, float]:
    """AUC with its 95 % interval; whole rollouts are resampled. A sample with one kind of turn has none."""
    groups = [turns[["good", "edge"]].to_numpy(float) for _, turns in rows.groupby("rollout")]
    return resampled(groups, lambda some: auc(*np.concatenate(some).T))
