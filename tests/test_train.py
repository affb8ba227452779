"""The loop on a tiny model: it learns from the oracle, not from nothing, and a kill costs no more than one update."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import hero_mini.train
from hero_mini import envs
from hero_mini.config import ARMS, TrainConfig
from hero_mini.lora import AdapterOptimizer, add_student
from hero_mini.losses import token_divergence
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, oracle
from hero_mini.rollout import Rollout, collect
from hero_mini.runtime import HeroError, rng
from hero_mini.teacher import student_tree, teacher_tree
from hero_mini.train import distil, train
from hero_mini.tree import forward
from hero_mini.warmup import WarmupConfig, scripted_episode

SMALL = TrainConfig(arm="oracle_hero", updates=3, tasks=2, max_turns=2, rank=4, lr=5e-3)


class Killed(BaseException):
    """What nobody catches."""


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model says nothing worth 96 tokens."""
    monkeypatch.setattr(hero_mini.train, "collect", partial(collect, max_action_tokens=8))
    monkeypatch.setattr("hero_mini.reflect.TOKENS_PER_LINE", 4)


@pytest.fixture
def rollouts(tiny: Policy) -> list[Rollout]:
    config = WarmupConfig(max_turns=4)
    tasks = envs.make("retail").tasks("train", 3)
    return [scripted_episode(tiny, t, rng(0, "test", t.index), config).rollout for t in tasks]


def metrics(out: Path) -> pd.DataFrame:
    table = pd.read_csv(out / "metrics.csv")
    return table[[c for c in table if not c.startswith("seconds_")]]


def adapter(out: Path) -> dict[str, Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Let the function with this dotted name die instead of its call number `call`, counted from 0."""
    where, attribute = name.rsplit(".", 1)
    module = __import__(where, fromlist=["_"]) if where != "peft.PeftModel" else PeftModel
    whole, calls = getattr(module, attribute), []

    def dies(*args, **kwargs):
        calls.append(0)
        if len(calls) == call + 1:
            raise Killed
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, attribute, dies)


# --- the loop --------------------------------------------------------------------------------------------------------
def test_one_update_leaves_a_run_behind(tiny: Policy, tmp_path: Path) -> None:
    config = replace(SMALL, updates=1)
    student = train(tiny, config, tmp_path)
    (row,) = metrics(tmp_path).to_dict("records")
    assert row["update"] == 0 and row["turns"] == 2 and row["env_turns"] == 4 and row["success"] == 0
    assert row["hinted"] == 1 and 0 < row["wasted"] <= 2
    assert row["loss"] > 0 and row["grad_norm"] > 0 and row["tokens_acting"] > row["tokens_training"] / 4 > 0
    assert row["tokens_reflecting"] == 0  # the oracle reads no tokens
    assert row["tokens_teaching"] > row["tokens_training"]  # hints are branches on the same trunk
    saved = adapter(tmp_path)
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in saved.items())
    again = PeftModel.from_pretrained(copy.deepcopy(tiny.model), tmp_path / "adapter")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, student.model(ids).logits)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("teacher", ["frozen", "ema", "live"])
def test_every_arm_and_teacher_runs(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, teacher: str
) -> None:
    monkeypatch.setattr("hero_mini.reflect.self_reflector", lambda policy, usage=None: oracle)
    train(tiny, replace(SMALL, arm=arm, teacher=teacher, updates=1, top_k=20, divergence="reverse_kl"), tmp_path)
    row = metrics(tmp_path).iloc[0]
    assert row["hinted"] == 1 and row["loss"] > 0 and row["grad_norm"] > 0


def test_seeds_and_updates_have_tasks_of_their_own(tiny: Policy, tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple] = []

    def noted(policy, env, tasks, **settings):
        seen.append((settings["seed"], [t.id for t in tasks]))
        return collect(policy, env, tasks, max_action_tokens=2, **settings)

    monkeypatch.setattr(hero_mini.train, "collect", noted)
    for seed in (0, 1):
        train(tiny, replace(SMALL, seed=seed, updates=2), tmp_path / str(seed))
    ids = [task for _, tasks in seen for task in tasks]
    assert ids == [f"retail/train/{i}{at}" for at in ("", "@1") for i in range(4)]
    assert len({seed for seed, _ in seen}) == 4


def test_no_hint_no_change(tiny: Policy, tmp_path: Path) -> None:
    """A random model's reflections cannot be read: empty hints, and the adapter stays what it was."""
    train(tiny, replace(SMALL, arm="hero", updates=2), tmp_path)
    table = metrics(tmp_path)
    assert (table[["hinted", "loss", "grad_norm", "tokens_training"]] == 0).all(axis=None)
    assert (table["tokens_reflecting"] > 0).all()
    before = add_student(tiny, rank=4, seed=0).model.state_dict()
    for name, value in adapter(tmp_path).items():
        assert torch.equal(value, before[name.replace(".weight", ".default.weight")])


# --- a kill ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("teacher", ["frozen", "ema"])
@pytest.mark.parametrize(
    "name, call",
    [
        ("hero_mini.train.collect", 2),  # while acting
        ("hero_mini.train.token_weights", 2),  # between the teacher's pass and the gradient
        ("hero_mini.run.atomic_write", 3),  # before the third row; the first call writes the configuration
        ("hero_mini.run.atomic_save", 2),  # after the third row, before its checkpoint
        ("peft.PeftModel.save_pretrained", 0),  # all is done but the adapter
    ],
)
def test_a_killed_run_goes_on_with_the_same_numbers(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, name: str, call: int
) -> None:
    config = replace(SMALL, teacher=teacher, ema_decay=0.5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny, config, whole)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, name, call)
        train(tiny, config, parts)
    assert not (parts / "adapter" / "adapter_model.safetensors").exists()
    train(tiny, config, parts)
    pd.testing.assert_frame_equal(metrics(parts), metrics(whole), check_exact=True)
    assert metrics(whole)["update"].tolist() == [0, 1, 2] and metrics(whole)["loss"].nunique() == 3
    one, two = adapter(whole), adapter(parts)
    assert set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


def test_a_finished_run_is_not_run_again(tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, updates=1)
    student = train(tiny, config, tmp_path)
    kill_at(monkeypatch, "hero_mini.train.collect", 0)
    again = train(tiny, config, tmp_path)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, student.model(ids).logits)


@pytest.mark.parametrize(
    "change, named", [({"lr": 1e-3}, "lr was 0.005"), ({"seed": 3}, "seed was 0"), ({"updates": 9}, "updates was 1")]
)
def test_another_configuration_is_refused(tiny: Policy, tmp_path: Path, change: dict, named: str) -> None:
    config = replace(SMALL, updates=1, tasks=1, max_turns=1)
    train(tiny, config, tmp_path)
    before = adapter(tmp_path)
    with pytest.raises(HeroError, match=named):
        train(tiny, replace(config, **change), tmp_path)
    with pytest.raises(HeroError, match="model was 'tiny'"):
        train(replace(tiny, name="other"), config, tmp_path)
    assert all(torch.equal(before[n], value) for n, value in adapter(tmp_path).items())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"arm": "oracle_hreo"}, "did you mean 'oracle_hero'"),
        ({"env": "retial"}, "did you mean 'retail'"),
        ({"teacher": "frosen"}, "did you mean 'frozen'"),
        ({"updates": 0}, "updates is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict, message: str) -> None:
    with pytest.raises(HeroError, match=message):
        TrainConfig(**settings)


# --- one update ------------------------------------------------------------------------------------------------------
def diagnosed(rollouts: Sequence[Rollout]) -> list[list[Diagnosis | None]]:
    """The oracle's diagnoses, some turns and one whole rollout without."""
    found = [list(r.diagnoses) for r in oracle(rollouts)]
    found[0][1] = None
    found[1] = [None] * len(found[1])
    return found


def one_update(tiny: Policy, rollouts: Sequence[Rollout], diagnoses: Sequence, **settings) -> tuple[dict, Policy]:
    student = add_student(tiny, rank=4, seed=0)
    optimizer = AdapterOptimizer(student, lr=5e-3)
    return distil(student, optimizer, rollouts, diagnoses, replace(SMALL, **settings), update=0), student


def test_the_loss_is_the_mean_of_means(tiny: Policy, rollouts: list[Rollout]) -> None:
    """Over tokens, hinted turns, and rollouts with a hint; each rollout by itself, written with plain loops."""
    diagnoses = diagnosed(rollouts)
    per_rollout = []
    for rollout, hints in zip(rollouts, diagnoses, strict=True):
        grown, nodes = teacher_tree(tiny, rollout, "hero", hints)
        if all(node is None for node in nodes):
            continue
        with torch.no_grad():
            told, own = forward(tiny, [grown]), forward(tiny, [student_tree(tiny, rollout, [True] * len(hints))])
        student_nodes = own.node.unique().tolist()
        per_turn = []
        for t, node in enumerate(nodes):
            if node is not None:
                p = own.logits[own.node == student_nodes[t]].log_softmax(-1)
                q = told.logits[told.node == node].log_softmax(-1)
                per_turn.append(token_divergence(p, q).mean().item())
        per_rollout.append(sum(per_turn) / len(per_turn))
    assert len(per_rollout) == 2
    result, _ = one_update(tiny, rollouts, diagnoses)
    assert result["loss"] == pytest.approx(sum(per_rollout) / 2, rel=1e-4)


def test_micro_batches_add_up(tiny: Policy, rollouts: list[Rollout]) -> None:
    diagnoses = diagnosed(rollouts)
    small, a = one_update(tiny, rollouts, diagnoses, max_tokens=1)
    large, b = one_update(tiny, rollouts, diagnoses, max_tokens=100_000)
    assert small == pytest.approx(large, rel=1e-4)
    assert small["grad_norm"] > 0 and small["tokens_training"] > 0
    without, _ = one_update(tiny, [rollouts[0], rollouts[2]], [diagnoses[0], diagnoses[2]])
    assert without == pytest.approx(large, rel=1e-4)  # a rollout without a hint counts for nothing


@pytest.mark.parametrize("divergence", ["jsd", "forward_kl", "reverse_kl"])
def test_the_student_moves_to_its_teacher(tiny: Policy, rollouts: list[Rollout], divergence: str) -> None:
    student = add_student(tiny, rank=4, seed=0)
    optimizer = AdapterOptimizer(student, lr=5e-3)
    config, diagnoses = replace(SMALL, divergence=divergence), [r.diagnoses for r in oracle(rollouts)]
    losses = [distil(student, optimizer, rollouts, diagnoses, config, update)["loss"] for update in range(12)]
    assert losses[-1] < 0.7 * losses[0], losses
