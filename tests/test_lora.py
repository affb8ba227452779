"""The student's adapter: its start, the three teachers beside it, and an optimiser that loses nothing to bf16."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from hero_mini.errors import HeroError
from hero_mini.lora import AdapterOptimizer, Ema, add_student, as_teacher, student_weights
from hero_mini.models import Policy

IDS = torch.arange(40).reshape(2, 20)


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.model(IDS).logits


def train(student: Policy, optimizer: AdapterOptimizer, steps: int, lr: float = 0.05) -> None:
    for _ in range(steps):
        student.model(IDS, labels=IDS).loss.backward()
        optimizer.step(lr)


def as_bf16(policy: Policy) -> Policy:
    return replace(policy, model=copy.deepcopy(policy.model).to(torch.bfloat16))


def test_a_student_is_no_start_of_another(tiny: Policy) -> None:
    """Peft would put a fresh adapter in the place of the trained one."""
    with pytest.raises(HeroError, match="is a student itself; load what it learnt"):
        add_student(add_student(tiny, rank=4, seed=0), rank=4, seed=0)


@pytest.mark.parametrize("ema", [False, True])
def test_the_start_changes_nothing(tiny: Policy, ema: bool) -> None:
    before = logits(tiny)
    student = add_student(tiny, rank=4, seed=0, ema=ema)
    for who in ("frozen", "live", *["ema"] * ema):
        with as_teacher(student, who) as teacher:
            assert torch.equal(logits(teacher), before)
    assert not any(module.training for module in student.model.modules())


def test_only_the_students_adapter_is_trainable(tiny: Policy) -> None:
    student = add_student(tiny, rank=4, seed=0, ema=True)
    trainable = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert trainable == set(student_weights(student.model))
    assert len(trainable) == 2 * 7 * 2  # A and B of seven matrices in two layers


def test_the_seed_decides_the_adapter_and_leaves_the_global_generator_alone(tiny: Policy) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    a, b, c = (student_weights(add_student(tiny, rank=4, seed=s).model) for s in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_the_policy_passed_in_stays_as_it_is(tiny: Policy) -> None:
    before, names = logits(tiny), [name for name, _ in tiny.model.named_parameters()]
    first = add_student(tiny, rank=4, seed=0)
    train(first, AdapterOptimizer(first), 3)
    second = add_student(tiny, rank=4, seed=0)
    trained = logits(first)
    train(second, AdapterOptimizer(second), 3, lr=0.2)
    assert torch.equal(logits(tiny), before) and not torch.equal(trained, before)
    assert torch.equal(logits(first), trained)  # two students of one policy do not meet
    assert [name for name, _ in tiny.model.named_parameters()] == names
    shared = {p.data_ptr() for p in tiny.model.parameters()}
    assert shared <= {p.data_ptr() for p in first.model.parameters()}  # the frozen weights exist once


def test_adapter_off_is_the_base(tiny: Policy) -> None:
    before = logits(tiny)
    student = add_student(tiny, rank=4, seed=0, ema=True)
    train(student, AdapterOptimizer(student), 5)
    with as_teacher(student, "frozen") as teacher:
        assert torch.equal(logits(teacher), before)
    with as_teacher(student, "live") as teacher:
        live = logits(teacher)
    assert torch.equal(live, logits(student)) and not torch.allclose(live, before, atol=1e-2)


@pytest.mark.parametrize("who", ["frozen", "ema", "live"])
def test_a_teachers_pass_keeps_gradients_and_trainability(tiny: Policy, who: str) -> None:
    student = add_student(tiny, rank=4, seed=0, ema=True)
    student.model(IDS, labels=IDS).loss.backward()
    before = {name: p.grad.clone() for name, p in student_weights(student.model).items() if p.grad is not None}
    with pytest.raises(KeyError), as_teacher(student, who) as teacher:
        logits(teacher)
        raise KeyError  # also when something goes wrong in between
    after = student_weights(student.model)
    assert before and all(torch.equal(after[name].grad, g) for name, g in before.items())
    assert {name for name, p in student.model.named_parameters() if p.requires_grad} == set(after)
    student.model(IDS, labels=IDS).loss.backward()
    assert any(not torch.equal(after[name].grad, g) for name, g in before.items())


# --- the EMA teacher -------------------------------------------------------------------------------------------------
def test_the_ema_follows_by_the_formula(tiny: Policy) -> None:
    student = add_student(tiny, rank=4, seed=0, ema=True)
    optimizer, ema = AdapterOptimizer(student), Ema(student, decay=0.9)
    expected = {name: p.detach().clone() for name, p in student_weights(student.model).items()}
    for _ in range(4):
        train(student, optimizer, 1)
        ema.follow(optimizer)
        for name, p in student_weights(student.model).items():
            expected[name] = 0.9 * expected[name] + 0.1 * p.detach()
    every = dict(student.model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(every[name.replace(".default.", ".ema.")].detach(), value)
    with as_teacher(student, "ema") as teacher, torch.no_grad():
        between = student.model(IDS, labels=IDS).loss
        assert not torch.equal(logits(teacher), logits(tiny))
    with torch.no_grad():
        assert student.model(IDS, labels=IDS).loss < between < tiny.model(IDS, labels=IDS).loss


@pytest.mark.parametrize("decay, expected", [(0.0, "student"), (1.0, "start")])
def test_the_emas_ends(tiny: Policy, decay: float, expected: str) -> None:
    before = logits(tiny)
    student = add_student(tiny, rank=4, seed=0, ema=True)
    optimizer, ema = AdapterOptimizer(student), Ema(student, decay=decay)
    train(student, optimizer, 3)
    ema.follow(optimizer)
    with as_teacher(student, "ema") as teacher:
        torch.testing.assert_close(logits(teacher), logits(student) if expected == "student" else before)


def test_the_ema_does_not_stop_at_the_last_digit_of_bf16(tiny: Policy) -> None:
    """A bf16 number keeps 8 bits: 1 + 0.001 is 1 again, however often it is added."""
    student = add_student(as_bf16(tiny), rank=4, seed=0, ema=True)
    optimizer, ema = AdapterOptimizer(student), Ema(student, decay=0.999)
    name = next(iter(ema.averages))
    ema.averages[name].fill_(1.0)
    optimizer.masters[name].data.fill_(2.0)
    for _ in range(1000):
        ema.follow(optimizer)
    expected = 2 - 0.999**1000
    assert ema.averages[name].dtype == torch.float32
    assert ema.averages[name].mean().item() == pytest.approx(expected, abs=1e-3)
    assert ema.weights[name].dtype == torch.bfloat16
    assert ema.weights[name].float().mean().item() == pytest.approx(expected, abs=0.01)


# --- the optimiser ---------------------------------------------------------------------------------------------------
def test_small_steps_add_up_in_bf16(tiny: Policy) -> None:
    student = add_student(as_bf16(tiny), rank=4, seed=0)
    assert all(p.dtype == torch.bfloat16 for p in student_weights(student.model).values())
    optimizer = AdapterOptimizer(student)
    name, p = next((n, p) for n, p in optimizer.weights.items() if "lora_A" in n)
    with torch.no_grad():
        optimizer.masters[name].fill_(1.0)
        p.fill_(1.0)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step(1e-4)
        assert p.grad is None
    assert optimizer.masters[name].dtype == torch.float32
    assert optimizer.masters[name].mean().item() == pytest.approx(0.99, abs=1e-4)  # Adam steps by lr
    assert p.float().mean().item() == pytest.approx(0.99, abs=0.004)  # plain bf16 would still say 1


def test_gradients_are_clipped_and_their_norm_returned(tiny: Policy) -> None:
    student = add_student(tiny, rank=4, seed=0)
    optimizer = AdapterOptimizer(student)
    for p in optimizer.weights.values():
        p.grad = torch.full_like(p, 3.0)
    n = sum(p.numel() for p in optimizer.weights.values())
    assert optimizer.step(0.1) == pytest.approx(3.0 * n**0.5, rel=1e-5)
    total = sum(m.grad.square().sum() for m in optimizer.masters.values()).sqrt()
    assert total.item() == pytest.approx(1.0, rel=1e-4)


def test_a_gradient_that_is_not_finite_reaches_no_weight(tiny: Policy) -> None:
    optimizer = AdapterOptimizer(add_student(tiny, rank=4, seed=0))
    before = {name: p.detach().clone() for name, p in optimizer.weights.items()}
    next(iter(optimizer.weights.values())).grad = torch.full_like(next(iter(optimizer.weights.values())), torch.nan)
    with pytest.raises(HeroError, match="the gradient is nan"):
        optimizer.step(0.1)
    assert all(torch.equal(p, before[name]) for name, p in optimizer.weights.items())


@pytest.mark.parametrize("bf16", [False, True])
def test_state_goes_round(tiny: Policy, tmp_path: Path, bf16: bool) -> None:
    base = as_bf16(tiny) if bf16 else tiny

    def fresh(seed: int) -> tuple[Policy, AdapterOptimizer, Ema]:
        student = add_student(base, rank=4, seed=seed, ema=True)
        return student, AdapterOptimizer(student), Ema(student, decay=0.5)

    student, optimizer, ema = fresh(0)
    train(student, optimizer, 3, lr=0.02)
    ema.follow(optimizer)
    torch.save({"optimizer": optimizer.state(), "ema": ema.state()}, tmp_path / "state")
    other, resumed, ema2 = fresh(5)
    saved = torch.load(tmp_path / "state", weights_only=False)
    resumed.load_state(saved["optimizer"])
    ema2.load_state(saved["ema"])
    for a, o, e in ((student, optimizer, ema), (other, resumed, ema2)):
        train(a, o, 2)
        e.follow(o)
    for x, y in ((optimizer.masters, resumed.masters), (ema.averages, ema2.averages)):
        assert all(torch.equal(x[name], y[name]) for name in x)
    assert torch.equal(logits(student), logits(other))
    with as_teacher(student, "ema") as a, as_teacher(other, "ema") as b:
        assert torch.equal(logits(a), logits(b))


def test_the_saved_adapter_is_the_student(tiny: Policy, tmp_path: Path) -> None:
    student = add_student(tiny, rank=4, seed=0, ema=True)
    train(student, AdapterOptimizer(student), 3)
    student.model.save_pretrained(tmp_path, selected_adapters=["default"], save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny.model), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, logits(student))


def test_a_rank_beyond_the_model_s_width(tiny: Policy) -> None:
    with pytest.raises(HeroError, match="rank is 100000000, but tiny is only .* wide; set it lower"):
        add_student(tiny, rank=10**8, seed=0)
