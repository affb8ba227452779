"""Evaluation: rows by hand, intervals against SciPy's bootstrap, paired differences, floors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from hero_mini import envs
from hero_mini.bootstrap import by_task, interval
from hero_mini.compare import effect
from hero_mini.errors import HeroError
from hero_mini.evaluate import evaluate, floors, rollout_rows
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, Turn


def turn(verdict: str, error: str | None = None, repeated: bool = False, action: str = "act") -> Turn:
    info = {"oracle": {"verdict": verdict, "cause": "", "better": None}, "error": error, "repeated": repeated}
    return Turn("user", "Hi.", action, (5,), (0.0,), "tool", "ok", info)


def test_rows_by_hand() -> None:
    turns = (turn("necessary"), turn("failed", "Error: x", True, "f('#W1234')"))
    first = Rollout("retail", "a", 0, "", turns, 1.0, True, False)
    second = replace(first, reward=0.0, turns=(turn("invalid", "Unknown action f"),))
    rows = rollout_rows([first, second, replace(second, task_id="b", reward=0.5)])
    assert rows.to_dict("records") == [
        {"task": "a", "trial": 0, "success": 1.0, "turns": 2, "wasted": 1, "errors": 1, "repeated": 1, "guessed": 1},
        {"task": "a", "trial": 1, "success": 0.0, "turns": 1, "wasted": 1, "errors": 1, "repeated": 0, "guessed": 0},
        {"task": "b", "trial": 0, "success": 0.0, "turns": 1, "wasted": 1, "errors": 1, "repeated": 0, "guessed": 0},
    ]


def test_an_evaluation_covers_the_same_tasks_for_every_seed(tiny: Policy) -> None:
    tables = [evaluate(tiny, "retail", split="test", n_tasks=2, k=2, seed=s, max_turns=1) for s in (0, 0, 1)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    for seed, table in zip((0, 0, 1), tables, strict=True):
        assert table["task"].tolist() == ["retail/test/0"] * 2 + ["retail/test/1"] * 2
        assert table["trial"].tolist() == [0, 1, 0, 1] and set(table["seed"]) == {seed}
        assert set(table["turns"]) == {1}


def test_a_task_that_some_seed_lacks_is_left_out() -> None:
    rows = pd.DataFrame({"seed": [0, 0, 1], "task": ["a", "b", "a"], "success": [1.0, 0.0, 0.0]})
    assert by_task(rows, "success").tolist() == [[1.0], [0.0]]
    with pytest.raises(HeroError, match="no task has success in every seed"):
        by_task(rows[1:], "success")


# --- intervals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_one_seed_equals_scipys_percentile_bootstrap(level: float) -> None:
    values = np.random.default_rng(0).random(60) ** 3
    mean, low, high = interval(values, n=20_000, level=level)
    theirs = bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert mean == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert [low, high] == pytest.approx([theirs.low, theirs.high], abs=0.03 * width)


def test_seeds_are_resampled_too() -> None:
    """All of the spread between two seeds: an interval over tasks alone would have no width."""
    values = np.repeat([[0.0], [1.0]], 50, axis=1)
    assert interval(values) == (0.5, 0.0, 1.0)
    assert interval(values[:1]) == (0.0, 0.0, 0.0)


def test_an_interval_is_seeded_and_covers() -> None:
    draw = np.random.default_rng(0)
    values = draw.random(40)
    assert interval(values) == interval(values) != interval(values, seed=1)
    inside = 0
    for _ in range(100):
        _, low, high = interval(draw.normal(0.3, 1.0, size=60), n=200)
        inside += low <= 0.3 <= high
    assert 85 <= inside <= 100


def table(values: np.ndarray, seeds: list[int]) -> pd.DataFrame:
    """Rows of (seeds, tasks) values."""
    return pd.DataFrame(
        [
            {"task": f"t{t:02d}", "seed": seed, "trial": 0, "success": values[s, t]}
            for s, seed in enumerate(seeds)
            for t in range(values.shape[1])
        ]
    )


def paired(rows: pd.DataFrame, against: pd.DataFrame) -> tuple[float, float, float]:
    gap = effect(rows, against, "success")
    return gap["value"], gap["low"], gap["high"]


def test_trials_are_averaged_within_a_task() -> None:
    rows = pd.concat([table(np.array([[1.0, 0.0]]), [0]), table(np.array([[0.0, 0.0]]), [0])])
    assert by_task(rows, "success").tolist() == [[0.5, 0.0]]
    assert by_task(table(np.array([[3.0, 4.0], [1.0, 2.0]]), [7, 2]), "success").tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_paired_difference_is_the_interval_of_the_differences() -> None:
    draw = np.random.default_rng(0)
    hard = draw.random((1, 80))  # most of the spread is between tasks and cancels
    base, better = hard + 0.01 * draw.random((3, 80)), hard + 0.2 + 0.01 * draw.random((3, 80))
    a, b = table(better, [0, 1, 2]), table(base, [0, 1, 2]).sample(frac=1, random_state=0)
    assert paired(a, b) == interval(better - base)
    mean, low, high = paired(a, b)
    assert low < mean < high and high - low < 0.02 and mean == pytest.approx(0.2, abs=0.01)
    flipped = paired(b, a)
    assert flipped[0] == pytest.approx(-mean)
    assert paired(a, a) == (0.0, 0.0, 0.0)
    unpaired = interval(better)
    assert unpaired[2] - unpaired[1] > 5 * (high - low)


def test_one_base_serves_all_seeds() -> None:
    a, base = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 1.0]])
    assert paired(table(a, [0, 1]), table(base, [9]).assign(arm="base"))[0] == pytest.approx((a - base).mean())
    assert effect(table(a, [0, 1]), table(base, [9]).assign(arm="hero"), "success") is None
    assert effect(table(a, [0, 1]), table(a, [0, 2]), "success")["n_seeds"] == 1


# --- floors ----------------------------------------------------------------------------------------------------------
def test_floors_stand_beside_the_expert() -> None:
    found = floors("retail", n_tasks=60).set_index("agent")
    assert found.loc["expert", "success"] == 1.0
    assert found.loc["do nothing", "success"] == 0.0
    assert found.loc["random admissible", "success"] < 0.05
    assert found.loc["do nothing", "turns"] == 10 > found.loc["expert", "turns"]
    assert set(found["n_tasks"]) == {60}
    pd.testing.assert_frame_equal(floors("retail", n_tasks=5), floors("retail", n_tasks=5))
    with pytest.raises(HeroError, match="'test'"):
        floors("retail", split="tset", n_tasks=1)


def test_tasks_do_not_depend_on_the_policy() -> None:
    assert [t.id for t in envs.make("retail").tasks("test", 2)] == ["retail/test/0", "retail/test/1"]
