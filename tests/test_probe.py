"""The teacher edge: AUC against scikit-learn, edges against scores, and what each probe stands for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from hero_mini import envs
from hero_mini.models import Policy
from hero_mini.probe import PROBES, auc, auc_interval, edge_rows, probe, summary
from hero_mini.reflect import oracle
from hero_mini.rollout import Rollout
from hero_mini.seeds import rng
from hero_mini.teacher import score_rollouts
from hero_mini.warmup import WarmupConfig, scripted_episode


@pytest.fixture
def rollouts(tiny: Policy) -> list[Rollout]:
    config = WarmupConfig(max_turns=4)
    tasks = envs.make("retail").tasks("train", 3)
    return [scripted_episode(tiny, t, rng(0, "test", t.index), config).rollout for t in tasks]


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_sklearn(ties: bool) -> None:
    draw = np.random.default_rng(0)
    for n in (2, 5, 30, 300):
        good = np.arange(n) % 3 == 0
        edge = draw.integers(4, size=n) if ties else draw.normal(size=n) + good
        assert auc(good, edge) == pytest.approx(roc_auc_score(good, edge))


def test_auc_by_hand() -> None:
    good = np.array([True, True, False, False])
    assert auc(good, np.array([3.0, 2.0, 1.0, 0.0])) == 1.0
    assert auc(good, np.array([0.0, 1.0, 2.0, 3.0])) == 0.0
    assert auc(good, np.array([3.0, 0.0, 2.0, 1.0])) == 0.5
    assert auc(good, np.zeros(4)) == 0.5
    assert np.isnan(auc(good[:2], np.zeros(2))) and np.isnan(auc(good[2:], np.zeros(2)))


def rows(n_rollouts: int, shift: float, *, within: float = 0.0) -> pd.DataFrame:
    """Six turns per rollout; `shift` between good and other turns, `within` shared by a whole rollout."""
    draw = np.random.default_rng(1)
    found = []
    for i in range(n_rollouts):
        shared = within * draw.normal()
        for t in range(6):
            good = bool(draw.random() < 0.5)
            found.append({"rollout": i, "turn": t, "good": good, "edge": draw.normal() + shift * good + shared})
    return pd.DataFrame(found)


def test_the_interval_holds_the_value_and_narrows() -> None:
    few, many = auc_interval(rows(20, 1.0)), auc_interval(rows(200, 1.0))
    for value, low, high in (few, many):
        assert low < value < high and low > 0.5
    assert many[2] - many[1] < 0.6 * (few[2] - few[1])
    assert few == auc_interval(rows(20, 1.0))
    value, low, high = auc_interval(rows(100, 0.0))
    assert low < 0.5 < high


def test_whole_rollouts_are_resampled() -> None:
    """Ten copies of every turn in its rollout are no new evidence."""
    once = rows(20, 1.0)
    copies = pd.concat([once] * 10)
    width = {}
    for name, table in (("once", once), ("copies", copies)):
        value, low, high = auc_interval(table)
        assert value == pytest.approx(auc(once["good"].to_numpy(), once["edge"].to_numpy()))
        width[name] = high - low
    assert width["copies"] == pytest.approx(width["once"])


def test_an_edge_is_the_difference_of_two_scores(tiny: Policy, rollouts: list[Rollout]) -> None:
    diagnoses = [list(r.diagnoses) for r in oracle(rollouts)]
    diagnoses[0][1] = None
    table = edge_rows(tiny, rollouts, "hero", diagnoses)
    told, own = score_rollouts(tiny, rollouts, "hero", diagnoses), score_rollouts(tiny, rollouts, "none")
    keys = list(zip(table["rollout"], table["turn"], strict=True))
    assert keys == [(i, t) for i, r in enumerate(rollouts) for t in range(len(r.turns)) if (i, t) != (0, 1)]
    for (i, t), edge, good in zip(keys, table["edge"], table["good"], strict=True):
        assert edge == pytest.approx(float(told[i].logprobs[t].sum() - own[i].logprobs[t].sum()), abs=1e-4)
        assert good == (rollouts[i].turns[t].info["oracle"]["verdict"] == "necessary")
    pd.testing.assert_frame_equal(table, edge_rows(tiny, rollouts, "hero", diagnoses, student=own))
    assert (edge_rows(tiny, rollouts, "none")["edge"] == 0.0).all()
    assert edge_rows(tiny, rollouts, "hero").empty


def test_all_probes_on_a_model_that_cannot_reflect(tiny: Policy, rollouts: list[Rollout], monkeypatch) -> None:
    """Without a readable reflection only the contexts that need none have turns."""
    monkeypatch.setattr("hero_mini.reflect.BESIDE", 3)  # nonsense need not be long
    turns, edges = probe(tiny, rollouts, max_action_tokens=1)
    n = sum(len(r.turns) for r in rollouts)
    assert len(turns) == n and turns["said"].isna().all()
    assert edges.groupby("probe").size().to_dict() == {"env_feedback": n, "oracle_hero": n}
    table = summary(edges).set_index("context")
    assert set(table.index) <= set(PROBES) and (table["n"] == n).all()
    for name, values in table.iterrows():
        of_probe = edges[edges["probe"] == name]
        assert values["edge_good"] == pytest.approx(of_probe[of_probe["good"]]["edge"].mean())
        assert values["edge_other"] == pytest.approx(of_probe[~of_probe["good"]]["edge"].mean())


def test_the_shuffled_probe_is_seeded(tiny: Policy, rollouts: list[Rollout], monkeypatch) -> None:
    monkeypatch.setattr("hero_mini.reflect.self_reflector", lambda policy, **_: oracle)
    edges = [probe(tiny, rollouts, seed=seed)[1] for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(edges[0], edges[1])
    of = [table.set_index("probe") for table in edges]
    assert set(of[0].index) == set(PROBES)
    assert of[0].loc["shuffled_hero", "edge"].tolist() != of[2].loc["shuffled_hero", "edge"].tolist()
    assert of[0].loc["hero", "edge"].tolist() == of[0].loc["oracle_hero", "edge"].tolist()
