"""The teacher edge, measured before any training: does a context make the teacher prefer good actions to bad ones?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis
from hero_mini.rollout import Rollout
from hero_mini.teacher import score_rollouts


def edge_rows(
    policy: Policy,
    rollouts: Sequence[Rollout],
    context: str,
    diagnoses: Sequence[Sequence[Diagnosis | None]] | None = None,
    demos: Sequence[Rollout | None] | None = None,
) -> pd.DataFrame:
    """A row per turn that has a hint: rollout, turn, good (the oracle calls it necessary), edge.

    edge: log pi_T(a) - log pi_S(a) of the whole action, in nats; the student is the policy without a context
    """
    student = score_rollouts(policy, rollouts, "none")
    teacher = score_rollouts(policy, rollouts, context, diagnoses, demos)
    rows = [
        {
            "rollout": i,
            "turn": t,
            "good": turn.info["oracle"]["verdict"] == "necessary",
            "edge": float((told - own).sum()),
        }
        for i, r in enumerate(rollouts)
        for t, (turn, own, told) in enumerate(zip(r.turns, student[i].logprobs, teacher[i].logprobs, strict=True))
        if told is not None
    ]
    return pd.DataFrame(rows, columns=["rollout", "turn", "good", "edge"])


def auc(good: np.ndarray, edge: np.ndarray) -> float:
    """Probability that a good action has the larger edge, a tie counting half; nan without both kinds.

    >>> auc(np.array([True, True, False]), np.array([2.0, 0.0, 1.0]))
    0.5
    """
    ranks = pd.Series(edge).rank().to_numpy()
    good = np.asarray(good, dtype=bool)
    n, m = int(good.sum()), int((~good).sum())
    return float((ranks[good].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def auc_interval(
    rows: pd.DataFrame, *, n: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """AUC with its bootstrap interval; whole rollouts are resampled, since turns of one rollout belong together."""
    draw = np.random.default_rng([seed, 23])
    groups = [(g["good"].to_numpy(), g["edge"].to_numpy()) for _, g in rows.groupby("rollout")]
    values = []
    for _ in range(n):
        pick = [groups[i] for i in draw.integers(len(groups), size=len(groups))]
        values.append(auc(np.concatenate([p[0] for p in pick]), np.concatenate([p[1] for p in pick])))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return auc(rows["good"].to_numpy(), rows["edge"].to_numpy()), float(low), float(high)
