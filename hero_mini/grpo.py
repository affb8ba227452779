"""GRPO, the baseline without a teacher: every action token of a rollout is credited with the rollout's relative reward.

    A_i = R_i - mean of its group          ("group_mean", Dr. GRPO)          or divided by the group's std ("group_std")
    L   = mean over tokens of -min(r A, clip(r, 1 - e, 1 + e) A),   r = pi_now / pi_sampled
        + beta * mean over tokens of KL(pi_now || pi_frozen),       beta = `config.kl`, 0 by default

Group-relative policy optimisation: Shao et al., arXiv 2402.03300; without the division: Liu et al., arXiv 2503.20783.
Our choice: both means are over action tokens of one optimiser step, the first over those of all rollouts with contrast
(an advantage other than 0), the second over those of all rollouts, because an agent can drift on any task; and both
probabilities of r are those at temperature 1, should the sampling have another one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hero_mini.config import CHOICES
from hero_mini.errors import check_known

CONTRAST = 1e-6  # rewards closer than this are equal, up to the rounding of their sums


def advantages(rewards: Sequence[float], groups: Sequence[str], kind: str = "group_std") -> list[float]:
    """How much better than its group every rollout did; 0 throughout a group without contrast.

    rewards: one per rollout; groups: the name of each rollout's group (its task)

    >>> advantages([1, 0, 0, 0, 1, 1], ["a", "a", "a", "a", "b", "b"], "group_mean")
    [0.75, -0.25, -0.25, -0.25, 0.0, 0.0]
    """
    check_known("advantage", kind, CHOICES["advantage"])
    found = np.zeros(len(rewards))
    values, names = np.asarray(rewards, dtype=float), np.asarray(groups)
    for name in set(groups):
        own = values[names == name]
        if np.ptp(own) > CONTRAST:
            found[names == name] = (own - own.mean()) / (own.std() if kind == "group_std" else 1.0)
    return found.tolist()


def without_contrast(rewards: Sequence[float], groups: Sequence[str]) -> float:
    """Share of groups in which all rewards are equal: GRPO learns nothing from them.

    >>> without_contrast([1, 0, 1, 1], ["a", "a", "b", "b"])
    0.5
    """
    found = advantages(rewards, groups, "group_mean")
    names, credited = set(groups), {name for name, advantage in zip(groups, found, strict=True) if advantage}
    return len(names - credited) / len(names)


def surrogate(now: Tensor, sampled: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """The clipped policy-gradient loss of every token, (N,); gradient through `now` only.

    now, sampled: (N,) log-probabilities in nats, now and when the action was sampled; advantage: (N,)
    """
    ratio = (now - sampled).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def kl_estimate(now: Tensor, reference: Tensor) -> Tensor:
    """KL(now || reference) seen through the sampled tokens, (N,) nats, never negative (Schulman's k3, as in GRPO)."""
    gap = reference - now
    return gap.exp() - gap - 1
