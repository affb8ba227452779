"""GRPO by hand: who is credited, and what the clip does to value and gradient."""

from __future__ import annotations

import math

import pytest
import torch

from hero_mini.grpo import advantages, kl_estimate, surrogate, without_contrast


def test_advantages_by_hand() -> None:
    rewards, groups = [1.0, 0.0, 0.0, 1.0, 1.0], ["a", "a", "a", "b", "b"]
    spread = math.sqrt(2) / 3  # of 1, 0, 0
    assert advantages(rewards, groups) == pytest.approx([2 / 3 / spread, -1 / 3 / spread, -1 / 3 / spread, 0, 0])
    assert advantages(rewards, groups, "group_mean") == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0, 0])
    assert without_contrast(rewards, groups) == 0.5
    summed = [0.1 + 0.2, 0.3, 0.5, 0.0]  # the first two are one reward, but for the rounding of the sum
    assert advantages(summed, ["a", "a", "b", "b"]) == [0, 0, 1, -1] and summed[0] != summed[1]
    assert without_contrast(summed, ["a", "a", "b", "b"]) == 0.5


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # a good action that has become likelier: no further push
        (0.5, 2.0, -1.0, -1.0),  # one that has become rarer is pushed back
        (0.5, -1.0, 0.8, 0.0),  # a bad action that has become rarer: no further push
        (1.5, -1.0, 1.5, 1.5),
    ],
)
def test_the_clip_by_hand(ratio: float, advantage: float, value: float, slope: float) -> None:
    now = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = surrogate(now, torch.zeros(1), torch.tensor([advantage]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(value) and now.grad.item() == pytest.approx(slope)


def test_the_kl_estimate_is_right_on_average() -> None:
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    estimate = kl_estimate(p.log(), q.log())
    assert (estimate >= 0).all()
    assert (p * estimate).sum().item() == pytest.approx(0.1927, abs=1e-4)
