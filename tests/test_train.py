"""The loop on a tiny model: it learns from the oracle, not from nothing, and a kill costs no more than one update."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import hero_mini.train
from hero_mini import envs
from hero_mini.config import ARMS, TrainConfig
from hero_mini.demos import demo_shares, demonstrations, expert_run, sibling
from hero_mini.distil import Lesson, distil
from hero_mini.errors import HeroError
from hero_mini.grpo import kl_estimate
from hero_mini.lora import AdapterOptimizer, add_student, checkpointing
from hero_mini.losses import token_divergence
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, oracle
from hero_mini.rollout import Rollout, collect
from hero_mini.seeds import rng
from hero_mini.teacher import student_tree, teacher_tree
from hero_mini.train import train
from hero_mini.tree import forward
from hero_mini.warmup import WarmupConfig, scripted_episode

SMALL = TrainConfig(arm="oracle_hero", updates=3, tasks=2, max_turns=2, rank=4, lr=5e-3, steps=1)


class Killed(BaseException):
    """What nobody catches."""


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model says nothing worth 96 tokens."""
    monkeypatch.setattr(
        hero_mini.train, "collect", lambda *which, **how: collect(*which, **how | {"max_action_tokens": 8})
    )
    monkeypatch.setattr("hero_mini.reflect.BESIDE", 4 - TrainConfig.max_action_tokens)


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


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: type[BaseException] = Killed) -> None:
    """Let the function with this dotted name die instead of its call number `call`, counted from 0."""
    where, attribute = name.rsplit(".", 1)
    module = __import__(where, fromlist=["_"]) if where != "peft.PeftModel" else PeftModel
    whole, calls = getattr(module, attribute), []

    def dies(*args, **kwargs):
        calls.append(0)
        if len(calls) == call + 1:
            raise error
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, attribute, dies)


# --- the loop --------------------------------------------------------------------------------------------------------
def test_one_update_leaves_a_run_behind(tiny: Policy, tmp_path: Path) -> None:
    config = replace(SMALL, updates=1)
    student = train(tiny, config, tmp_path)
    (row,) = metrics(tmp_path).to_dict("records")
    assert row["update"] == 0 and row["turns"] == 2 and row["env_turns"] == 4 and row["success"] == 0
    assert row["hinted"] == 1 and 0 < row["wasted"] <= 2 and row["early"] == 0
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
    monkeypatch.setattr("hero_mini.reflect.self_reflector", lambda policy, **_: oracle)
    monkeypatch.setattr("hero_mini.distil.advantages", lambda rewards, *_: [1.0, -1.0] * (len(rewards) // 2))
    told = {"teacher": teacher, "top_k": 20, "divergence": "reverse_kl"} if ARMS[arm].context else {}
    train(tiny, replace(SMALL, arm=arm, updates=1, group=2, **told), tmp_path)
    row = metrics(tmp_path).iloc[0]
    assert row["hinted"] == (arm != "grpo") and row["grad_norm"] > 0
    assert row["parsed"] == (ARMS[arm].reflector is not None) and row["no_contrast"] == 1
    assert row["loss"] > 0 or ARMS[arm].grpo


def test_seeds_and_updates_have_tasks_of_their_own(tiny: Policy, tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple] = []

    def noted(policy, env, tasks, **settings):
        seen.append((settings["seed"], [t.id for t in tasks]))
        return collect(policy, env, tasks, **settings | {"max_action_tokens": 2})

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
    assert (table[["hinted", "parsed", "loss", "grad_norm", "tokens_training"]] == 0).all(axis=None)
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
        ("hero_mini.distil.token_weights", 2),  # between the teacher's pass and the gradient
        ("hero_mini.run.atomic_write", 3),  # before the third row; the first call writes the configuration
        ("hero_mini.run.atomic_save", 2),  # after the third row, before its checkpoint
        ("peft.PeftModel.save_pretrained", 0),  # all is done but the adapter
    ],
)
def test_a_killed_run_goes_on_with_the_same_numbers(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, name: str, call: int
) -> None:
    config = replace(SMALL, teacher=teacher, **{"ema_decay": 0.5} if teacher == "ema" else {})
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


def test_an_interrupted_run_leaves_the_agent_of_its_last_whole_update(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(tiny, replace(SMALL, updates=2), whole)
    for call in (0, 2):  # in the first update, where there is nothing yet, and in the third
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, "hero_mini.train.collect", call, KeyboardInterrupt)
            train(tiny, SMALL, part)
        assert (part / "adapter").exists() == (call > 0)
    one, two = adapter(whole), adapter(part)
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
    next(tiny.model.parameters()).data.add_(1.0)  # the same name, other weights
    with pytest.raises(HeroError, match="weights was"):
        train(tiny, config, tmp_path)
    assert all(torch.equal(before[n], value) for n, value in adapter(tmp_path).items())


@pytest.mark.parametrize("content", ["", "[]"])
def test_a_damaged_description_is_named(tiny: Policy, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(HeroError, match=r"config.json is damaged .*; choose another folder"):
        train(tiny, replace(SMALL, updates=1, tasks=1, max_turns=1), tmp_path)


def test_a_run_from_before_a_setting_existed_goes_on(tiny: Policy, tmp_path: Path) -> None:
    config = replace(SMALL, updates=1, tasks=1, max_turns=1)
    train(tiny, config, tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["gradient_checkpointing"], told["batch_size"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(HeroError, match="batch_size was 64"):
        train(tiny, replace(config, batch_size=2), tmp_path)
    train(tiny, config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 64


def test_numbers_of_numpy_are_numbers() -> None:
    config = TrainConfig(seed=np.arange(3)[1], lr=np.float64(1e-3))
    assert config == TrainConfig(seed=1, lr=1e-3) and type(config.seed) is int


def test_an_arm_is_no_configuration_and_a_task_no_list(tiny: Policy, tmp_path: Path) -> None:
    with pytest.raises(HeroError, match="config is 'hero'; it has to be a TrainConfig"):
        train(tiny, "hero", tmp_path)
    with pytest.raises(HeroError, match="a single Task; put it into a list"):
        collect(tiny, "retail", envs.make("retail").tasks("train", 1)[0], seed=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"arm": "oracle_hreo"}, "did you mean 'oracle_hero'"),
        ({"env": ["retail"]}, "env is .*; it has to be a text"),
        ({"env": "retial"}, "did you mean 'retail'"),
        ({"teacher": "frosen"}, "did you mean 'frozen'"),
        ({"updates": 0}, "updates is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"steps": 2.5}, "steps is 2.5; it has to be a whole number"),
        ({"lr": "0.1"}, "lr is '0.1'; it has to be a number"),
        ({"lr": torch.ones(2)}, "lr is tensor.*; it has to be a number"),
        ({"gradient_checkpointing": "no"}, "gradient_checkpointing is 'no'; it has to be True or False"),
        ({"min_confidence": 80}, "min_confidence is 80; it has to be from 0 to 1"),
        ({"weight": 1.0}, "weight is 1.0; it has to be between 0 and 1"),
        ({"kl": 0.1}, "arm hero makes no use of kl"),
        ({"arm": "env_feedback", "corrections": "dropped"}, "arm env_feedback makes no use of corrections"),
        ({"demo": "sibling"}, "arm hero makes no use of demo"),
        ({"arm": "full_demo", "demo": "sibling"}, "other rollout of the same task; set group to 2 or more"),
        ({"arm": "oracle_hero", "min_confidence": 0.8}, "arm oracle_hero makes no use of min_confidence"),
        ({"ema_decay": 0.5, "weight": 0.1, "divergence": "forward_kl"}, "arm hero makes no use of weight, ema_decay"),
        ({"arm": "env_feedback", "hints": "blamed"}, "arm env_feedback makes no use of hints"),
        ({"mix": 0.9, "clip": 0.1}, "arm hero makes no use of clip, mix"),
        ({"arm": "grpo", "group": 2, "teacher": "ema"}, "arm grpo makes no use of teacher"),
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


def one_update(
    tiny: Policy, rollouts: Sequence[Rollout], diagnoses: Sequence, demos: Sequence | None = None, **settings
) -> tuple[dict, Policy]:
    student = add_student(tiny, rank=4, seed=0)
    optimizer = AdapterOptimizer(student)
    return distil(student, optimizer, rollouts, diagnoses, replace(SMALL, **settings), 0, demos), student


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
    assert without.pop("hinted") > large.pop("hinted")
    assert without == pytest.approx(large, rel=1e-4)  # a rollout without a hint counts for nothing else


@pytest.mark.parametrize("divergence", ["jsd", "forward_kl", "reverse_kl"])
def test_the_student_moves_to_its_teacher(tiny: Policy, rollouts: list[Rollout], divergence: str) -> None:
    student = add_student(tiny, rank=4, seed=0)
    optimizer = AdapterOptimizer(student)
    config, diagnoses = replace(SMALL, divergence=divergence), [r.diagnoses for r in oracle(rollouts)]
    losses = [distil(student, optimizer, rollouts, diagnoses, config, update)["loss"] for update in range(12)]
    assert losses[-1] < 0.7 * losses[0], losses


def moved(tiny: Policy, *, ema: bool = False) -> tuple[Policy, AdapterOptimizer]:
    """A student that is not the frozen agent any more."""
    student = add_student(tiny, rank=4, seed=0, ema=ema)
    optimizer = AdapterOptimizer(student)
    with torch.no_grad():
        for p in optimizer.weights.values():
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.numel()))
    return student, optimizer


@pytest.mark.parametrize("teacher", ["frozen", "ema", "live"])
@pytest.mark.parametrize("arm", ["oracle_hero", "hero_grpo"])
def test_checkpointing_changes_no_gradient(
    tiny: Policy, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch, teacher: str, arm: str
) -> None:
    """In float64, over trees long enough for our attention's blocks, with the KL to the frozen agent in between."""
    found = []
    tiny.model.double()
    pair = [replace(r, task_id=rollouts[0].task_id) for r in (replace(rollouts[0], reward=1.0), rollouts[1])]
    diagnoses = [r.diagnoses for r in oracle(pair)]
    for wanted in (False, True):
        student, optimizer = moved(tiny, ema=teacher == "ema")  # B = 0 would hide half of the gradient
        kept = lambda lr, own=optimizer: found.append([p.grad.clone() for p in own.weights.values()]) or 0.0  # noqa: E731
        monkeypatch.setattr(optimizer, "step", kept)
        settings = {"arm": arm, "group": 2, "teacher": teacher, "gradient_checkpointing": wanted}
        settings |= {"kl": 0.1} if arm == "hero_grpo" else {}
        distil(student, optimizer, pair, diagnoses, replace(SMALL, **settings), update=9)
    plain, saving = found
    assert all(p.dtype == torch.float64 for p in plain) and any(p.abs().max() > 1e-6 for p in plain)
    for a, b in zip(plain, saving, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_checkpointing_ends_with_its_pass_and_turns_no_dropout_on(tiny: Policy) -> None:
    student = add_student(tiny, rank=4, seed=0)
    with checkpointing(student, True):
        assert {type(m).__name__ for m in student.model.modules() if m.training} == {"LlamaDecoderLayer"}
    assert not any(m.training for m in student.model.modules())
    with checkpointing(student, False):
        assert not any(m.training for m in student.model.modules())


# --- the other arms --------------------------------------------------------------------------------------------------
def test_grpo_makes_the_better_rollout_likelier(tiny: Policy, rollouts: list[Rollout]) -> None:
    good, bad = replace(rollouts[0], reward=1.0), replace(rollouts[1], task_id=rollouts[0].task_id, reward=0.0)
    student = add_student(tiny, rank=4, seed=0)
    pair = [with_own_logprobs(student, r) for r in (good, bad)]
    before = [total(student, r) for r in pair]
    optimizer = AdapterOptimizer(student)
    config = replace(SMALL, arm="grpo", group=2)
    result = distil(student, optimizer, pair, [[None] * len(r.turns) for r in pair], config, update=9)
    assert result["hinted"] == 0 and result["tokens_teaching"] == 0 and result["tokens_training"] > 0
    after = [total(student, r) for r in pair]
    assert after[0] - before[0] > after[1] - before[1]


def token_logprobs(policy: Policy, rollout: Rollout) -> Tensor:
    """(N,) nats, of all action tokens of a rollout."""
    with torch.no_grad():
        return forward(policy, [student_tree(policy, rollout, [True] * len(rollout.turns))]).logprobs


def total(policy: Policy, rollout: Rollout) -> float:
    return token_logprobs(policy, rollout).sum().item()


def with_own_logprobs(policy: Policy, rollout: Rollout) -> Rollout:
    values = token_logprobs(policy, rollout).tolist()
    turns = []
    for turn in rollout.turns:
        own, values = values[: len(turn.token_ids)], values[len(turn.token_ids) :]
        turns.append(replace(turn, logprobs=tuple(own)))
    return replace(rollout, turns=tuple(turns))


def test_without_contrast_grpo_changes_nothing(tiny: Policy, tmp_path: Path) -> None:
    train(tiny, replace(SMALL, arm="grpo", group=2, updates=1), tmp_path)
    row = metrics(tmp_path).iloc[0]
    assert row["no_contrast"] == 1 and row["loss"] == 0 and row["grad_norm"] == 0


def test_the_mix_is_the_weighted_sum_of_its_parts(tiny: Policy, rollouts: list[Rollout]) -> None:
    pair = [replace(rollouts[0], reward=1.0), replace(rollouts[1], task_id=rollouts[0].task_id)]
    pair = [with_own_logprobs(tiny, r) for r in pair]
    diagnoses = [r.diagnoses for r in oracle(pair)]
    losses = {
        (arm, mix): one_update(tiny, pair, diagnoses, arm=arm, group=2, mix=mix)[0]["loss"]
        for arm, mix in (("oracle_hero", 0.5), ("grpo", 0.5), ("hero_grpo", 0.25))
    }
    whole = 0.75 * losses["oracle_hero", 0.5] + 0.25 * losses["grpo", 0.5]
    assert losses["hero_grpo", 0.25] == pytest.approx(whole, rel=1e-3, abs=1e-5)


@pytest.fixture
def contrast(rollouts: list[Rollout]) -> list[Rollout]:
    """A success and a failure at one task, and a rollout of another task, which has no contrast."""
    task = rollouts[0].task_id
    return [replace(rollouts[0], reward=1.0), replace(rollouts[1], task_id=task, reward=0.0), rollouts[2]]


def n_tokens(rollout: Rollout) -> int:
    return sum(len(turn.token_ids) for turn in rollout.turns)


@pytest.mark.parametrize("arm", ["grpo", "hero_grpo"])
@pytest.mark.parametrize("max_tokens", [1, 100_000])
def test_the_mean_of_grpo_is_over_the_rollouts_with_contrast(
    tiny: Policy, contrast: list[Rollout], arm: str, max_tokens: int
) -> None:
    """By hand: the student has not moved, so every ratio is 1 and a token's loss is minus its advantage, 1 or -1."""
    won, lost, plain = (with_own_logprobs(tiny, r) for r in contrast)
    expected = (n_tokens(lost) - n_tokens(won)) / (n_tokens(lost) + n_tokens(won))
    given = [won, lost, plain], [r.diagnoses for r in oracle(contrast)]
    mix = {"mix": 1.0} if arm == "hero_grpo" else {}
    result, _ = one_update(tiny, *given, arm=arm, group=2, max_tokens=max_tokens, **mix)
    assert expected != 0 and result["loss"] == pytest.approx(expected, abs=1e-4)


def test_the_mix_without_any_contrast_is_its_share_of_the_teacher(tiny: Policy, rollouts: list[Rollout]) -> None:
    diagnoses = [r.diagnoses for r in oracle(rollouts)]
    teacher, _ = one_update(tiny, rollouts, diagnoses)
    mixed, _ = one_update(tiny, rollouts, diagnoses, arm="hero_grpo", group=2, mix=0.25)
    assert mixed["loss"] == pytest.approx(0.75 * teacher["loss"], rel=1e-4) and mixed["loss"] > 0


@pytest.mark.parametrize("max_tokens", [1, 100_000])
@pytest.mark.parametrize("arm", ["grpo", "hero_grpo"])
def test_the_kl_anchors_every_token_of_every_rollout(
    tiny: Policy, contrast: list[Rollout], monkeypatch: pytest.MonkeyPatch, arm: str, max_tokens: int
) -> None:
    """Also those of a rollout without hint and contrast; without it there is no pass."""
    diagnoses = [*[r.diagnoses for r in oracle(contrast[:2])], [None] * len(contrast[2].turns)]
    passes: list[int] = []
    monkeypatch.setattr("hero_mini.distil.forward", lambda *of: passes.append(len(of[1])) or forward(*of))

    def update(kl: float) -> tuple[float, int]:
        student, optimizer = moved(tiny)
        passes.clear()
        mix = {"mix": 0.25} if arm == "hero_grpo" else {}
        config = replace(SMALL, arm=arm, group=2, kl=kl, max_tokens=max_tokens, **mix)
        return distil(student, optimizer, contrast, diagnoses, config, update=9)["loss"], sum(passes)

    without, before = update(0.0)
    anchored, after = update(0.3)
    assert before == (2 if arm == "grpo" else 4)  # trees of the student, and of its teacher where there is one
    student, _ = moved(tiny)
    now, reference = (torch.cat([token_logprobs(p, r) for r in contrast]) for p in (student, tiny))
    share = {"grpo": 1.0, "hero_grpo": 0.25}[arm]
    added = 0.3 * share * kl_estimate(now, reference).mean().item()
    assert anchored - without == pytest.approx(added, rel=1e-3, abs=1e-6) and added > 0.001
    assert after - before == 4  # the third one of the student, three of the reference


def test_without_contrast_the_kl_still_pulls_back(tiny: Policy, rollouts: list[Rollout]) -> None:
    student, optimizer = moved(tiny)
    nothing = [[None] * len(r.turns) for r in rollouts]
    config = replace(SMALL, arm="grpo", group=2, kl=1.0)
    losses = [distil(student, optimizer, rollouts, nothing, config, update)["loss"] for update in range(8)]
    assert losses[-1] < 0.8 * losses[0], losses


def dealt(
    tiny: Policy, rollouts: Sequence[Rollout], monkeypatch: pytest.MonkeyPatch, **settings
) -> list[list[tuple[Rollout, float]]]:
    """Per optimiser step of an update, its rollouts and their advantages."""
    steps: list[list[tuple[Rollout, float]]] = []

    def noted(student: Policy, lessons: Sequence[Lesson], *_: object) -> None:
        steps.append([(one.rollout, one.advantage) for one in lessons])

    monkeypatch.setattr("hero_mini.distil._descend", noted)
    monkeypatch.setattr(AdapterOptimizer, "step", lambda *_: 0.0)
    one_update(tiny, rollouts, [r.diagnoses for r in oracle(rollouts)], **settings)
    return steps


@pytest.mark.parametrize("steps, expected", [(1, 1), (3, 3), (9, 5)])
@pytest.mark.parametrize("arm", ["grpo", "hero_grpo", "oracle_hero"])
def test_a_group_is_dealt_into_one_step(
    tiny: Policy, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch, arm: str, steps: int, expected: int
) -> None:
    many = [
        replace(rollouts[k % 3], task_id=f"retail/train/{task}", repeat=k, reward=float(k < 1 + task % 2))
        for task in range(5)
        for k in range(3)
    ]
    found = dealt(tiny, many, monkeypatch, arm=arm, group=3, steps=steps)
    assert len(found) == expected
    for step in found:
        assert sum(advantage for _, advantage in step) == pytest.approx(0)
        ids = [rollout.task_id for rollout, _ in step]
        assert all(ids.count(name) == 3 for name in ids)
    assert sorted(r.task_id for step in found for r, _ in step) == sorted(r.task_id for r in many)


@pytest.mark.parametrize("steps", [1, 4, 6, 99])
def test_single_rollouts_are_dealt_as_they_always_were(
    tiny: Policy, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Written down once more, because the committed studies have to come out again."""
    many = [replace(rollouts[task % 3], task_id=f"retail/train/{task}") for task in range(14)]
    cards = list(many)
    rng(SMALL.seed, "deal", 0).shuffle(cards)
    expected = [cards[step::steps] for step in range(min(steps, 14))]
    assert [[r for r, _ in step] for step in dealt(tiny, many, monkeypatch, steps=steps)] == expected


def test_steps_share_the_rollouts(tiny: Policy, rollouts: list[Rollout]) -> None:
    diagnoses = [r.diagnoses for r in oracle(rollouts)]
    once, _ = one_update(tiny, rollouts, diagnoses)
    thrice, _ = one_update(tiny, rollouts, diagnoses, steps=3)
    more, _ = one_update(tiny, rollouts, diagnoses, steps=9)
    assert once["tokens_training"] == thrice["tokens_training"] and thrice["loss"] != once["loss"]
    assert more["tokens_training"] == once["tokens_training"]  # never more steps than rollouts


def test_hint_density(tiny: Policy, rollouts: list[Rollout]) -> None:
    diagnoses = diagnosed(rollouts)
    turns = sum(len(r.turns) for r in rollouts)
    blamed = sum(d is not None and d.verdict != "necessary" for of in diagnoses for d in of)
    given = sum(d is not None for of in diagnoses for d in of)
    share = {
        hints: one_update(tiny, rollouts, diagnoses, hints=hints)[0]["hinted"] for hints in ("all", "given", "blamed")
    }
    assert share == pytest.approx({"all": 1.0, "given": given / turns, "blamed": blamed / turns})


def test_a_diagnosis_without_confidence_does_not_train(tiny: Policy, rollouts: list[Rollout]) -> None:
    sure = (0.4, *[0.9] * 10)  # of the first turn, and of the others
    diagnoses = [[replace(d, confidence=c) for d, c in zip(r.diagnoses, sure, strict=False)] for r in oracle(rollouts)]
    turns = sum(len(r.turns) for r in rollouts)
    share = {
        c: one_update(tiny, rollouts, diagnoses, arm="hero", min_confidence=c)[0]["hinted"]
        for c in (0.0, 0.8, 0.9, 0.95)
    }
    later = (turns - len(rollouts)) / turns  # all turns but the first ones
    assert share == pytest.approx({0.0: 1.0, 0.8: later, 0.9: later, 0.95: 0.0})


def test_without_corrections_the_teacher_reads_verdict_and_cause_alone(tiny: Policy, rollouts: list[Rollout]) -> None:
    diagnoses = [r.diagnoses for r in oracle(rollouts)]
    blame = [[replace(d, better=None) for d in of] for of in diagnoses]
    assert any(d.better for of in diagnoses for d in of)
    kept, dropped, same = (
        one_update(tiny, rollouts, given, corrections=how)[0]
        for given, how in ((diagnoses, "kept"), (diagnoses, "dropped"), (blame, "kept"))
    )
    assert dropped == pytest.approx(same) and dropped["tokens_teaching"] < kept["tokens_teaching"]


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm.reflector])
def test_all_hints_means_all_turns_in_every_arm(tiny: Policy, rollouts: list[Rollout], arm: str) -> None:
    """A turn without a diagnosis is taught by the observation and the outcome, also if the whole rollout has none."""
    nothing = [[None] * len(r.turns) for r in rollouts]
    settings = {"arm": arm, "group": 2} | ({"mix": 0.0} if ARMS[arm].grpo else {})  # the teacher alone
    result, _ = one_update(tiny, rollouts, nothing, hints="all", **settings)
    assert result["hinted"] == 1 and result["loss"] > 0
    observed, _ = one_update(tiny, rollouts, nothing, arm="env_feedback")
    assert result == pytest.approx(observed)


def test_learning_from_failures_only(tiny: Policy, rollouts: list[Rollout]) -> None:
    won, lost = replace(rollouts[0], reward=1.0), replace(rollouts[1], reward=0.0)
    diagnoses = [r.diagnoses for r in oracle([won, lost])]
    failures, _ = one_update(tiny, [won, lost], diagnoses, outcomes="failure")
    alone, _ = one_update(tiny, [lost], diagnoses[1:])
    assert failures.pop("hinted") == len(lost.turns) / (len(won.turns) + len(lost.turns)) < alone.pop("hinted") == 1
    assert failures == pytest.approx(alone, rel=1e-4)
    nothing, _ = one_update(tiny, [won], diagnoses[:1], outcomes="failure")
    assert nothing["loss"] == 0 and nothing["tokens_training"] == 0


def test_a_demonstration_is_never_ones_own(tiny: Policy, rollouts: list[Rollout]) -> None:
    won = replace(rollouts[0], reward=1.0)
    lost = replace(rollouts[1], task_id=won.task_id, turns=rollouts[1].turns[:1])
    for source in ("expert", "sibling"):
        first, second = demonstrations(tiny, [won, lost], replace(SMALL, arm="full_demo", group=2, demo=source))
        assert first.success and first.task_id == won.task_id and first != won
        assert second == won if source == "sibling" else second.success and second != won


@pytest.fixture
def perfect(tiny: Policy) -> Rollout:
    """The expert's actions as an agent samples them: their log-probabilities are not the script's."""
    return with_own_logprobs(tiny, expert_run(tiny, "retail", "retail/train/0"))


def test_who_acts_like_the_expert_has_no_demonstration(tiny: Policy, perfect: Rollout) -> None:
    expert = expert_run(tiny, "retail", perfect.task_id)
    assert perfect.turns != expert.turns and perfect.actions == expert.actions
    twin = replace(perfect, repeat=1, turns=expert.turns)
    detour = replace(perfect, repeat=2, turns=(*perfect.turns[:1], *perfect.turns))
    given = [perfect, twin, detour]
    assert sibling(perfect, given, seed=0) == detour and sibling(perfect, [perfect, twin], seed=0) is None
    assert {sibling(detour, given, seed).repeat for seed in range(10)} == {0, 1}
    config = replace(SMALL, arm="full_demo", group=3)
    assert demonstrations(tiny, given, config) == [None, None, expert]
    assert demonstrations(tiny, [perfect, twin], replace(config, demo="sibling")) == [None, None]
    demos = demonstrations(tiny, given, replace(config, demo="sibling"))
    assert demos[:2] == [detour, detour] and demos[2] in (perfect, twin)
    assert demo_shares(demos, given) == {"sibling_demos": 1, "no_demo": 0}
    assert demo_shares([None, perfect, expert], given) == {"sibling_demos": 0.5, "no_demo": pytest.approx(1 / 3)}
    assert demo_shares([None], given[:1]) == {"sibling_demos": 0, "no_demo": 1}


def test_without_a_demonstration_a_rollout_is_not_taught(
    tiny: Policy, rollouts: list[Rollout], perfect: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"arm": "full_demo", "tasks": 2, "updates": 1}
    episodes = {"both": [rollouts[1], perfect], "neither": [perfect, perfect]}
    for name, own in episodes.items():
        monkeypatch.setattr(hero_mini.train, "collect", lambda *_, own=own, **__: own)
        train(tiny, replace(SMALL, **settings), tmp_path / name)
    both, neither = (metrics(tmp_path / name).iloc[0] for name in episodes)
    other = len(rollouts[1].turns)
    assert both["hinted"] == pytest.approx(other / (other + len(perfect.turns)))
    assert both["no_demo"] == 0.5 and both["sibling_demos"] == 0 and both["grad_norm"] > 0
    assert neither["no_demo"] == 1 and (neither[["hinted", "loss", "grad_norm", "tokens_training"]] == 0).all()
    demos = demonstrations(tiny, [rollouts[1]], replace(SMALL, **settings))
    alone, _ = one_update(tiny, [rollouts[1]], [()], demos, **settings)
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-4)


@pytest.mark.parametrize("arm", ["hero", "oracle_hero", "env_feedback", "full_demo", "shuffled_hero"])
def test_an_episode_that_fills_the_context_ends_no_run(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    """What no longer fits is not diagnosed and no hint; the rest teaches."""
    found: list[Rollout] = []

    def kept(*which, **how) -> list[Rollout]:
        found.extend(collect(*which, **how | {"max_action_tokens": 8}))
        return found

    monkeypatch.setattr(hero_mini.train, "collect", kept)
    tiny.model.config.max_position_embeddings = 1500
    train(tiny, replace(SMALL, arm=arm, updates=1, max_turns=30), tmp_path)
    assert any(rollout.context_full for rollout in found)
    assert metrics(tmp_path)["hinted"][0] < 1


def test_a_failed_expert_gives_no_demonstration(tiny: Policy, rollouts: list[Rollout], monkeypatch) -> None:
    failed = replace(expert_run(tiny, "retail", rollouts[0].task_id), reward=0.0)
    monkeypatch.setattr("hero_mini.demos.expert_run", lambda *_: failed)
    assert demonstrations(tiny, rollouts[:1], TrainConfig(arm="full_demo")) == [None]


def test_the_arm_with_demonstrations_asks_for_them(tiny: Policy, rollouts: list[Rollout]) -> None:
    with pytest.raises(HeroError, match="pass demos="):
        one_update(tiny, rollouts, [[None] * len(r.turns) for r in rollouts], arm="full_demo")


def test_the_budget_ends_a_run(tiny: Policy, tmp_path: Path) -> None:
    config = replace(SMALL, arm="oracle_hero", updates=3, budget=5)
    train(tiny, config, tmp_path)
    assert metrics(tmp_path)["env_turns"].tolist() == [4, 8]
    assert adapter(tmp_path)


def test_grpo_needs_a_group() -> None:
    with pytest.raises(HeroError, match="set group to 2"):
        TrainConfig(arm="grpo")
    with pytest.raises(HeroError, match="compares successes with failures; set outcomes to all"):
        TrainConfig(arm="grpo", group=2, outcomes="failure")
