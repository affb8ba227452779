"""The divergences against hand-computed cases, a plain-Python oracle and finite differences; HERO's mean of them."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from typing import get_args

import pytest
import torch
from torch import Tensor

from hero_mini.losses import (
    CHUNK,
    Divergence,
    hero_loss,
    importance_clip,
    sampled_reverse_kl,
    token_divergence,
    token_weights,
)

NAMES = get_args(Divergence)
EVERY = pytest.mark.parametrize("divergence", NAMES)
INF = math.inf


def random_logp(n: int, v: int, *, seed: int, spread: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(n, v) log-probabilities; a larger spread makes surer distributions."""
    noise = torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (spread * noise).log_softmax(-1).to(dtype)


def pair(n: int = 7, v: int = 11, *, spread: float = 2.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Student (a leaf that wants its gradient) and teacher."""
    student, teacher = (random_logp(n, v, seed=seed, spread=spread, dtype=dtype) for seed in (1, 2))
    return student.requires_grad_(), teacher


def kl(p: list[float], q: list[float]) -> float:
    """KL(p || q) from its definition, in plain Python."""
    return math.fsum(a * math.log(a / b) if b else INF for a, b in zip(p, q, strict=True) if a)


def oracle(student: list[float], teacher: list[float], divergence: str, weight: float, top_k: int | None) -> float:
    """The divergence of two lists of probabilities, in plain Python."""
    if top_k is not None:
        order = sorted(range(len(student)), key=lambda v: -student[v])
        top, rest = order[:top_k], order[top_k:]
        student, teacher = ([x[v] for v in top] + [math.fsum(x[v] for v in rest)] for x in (student, teacher))
    if divergence == "forward_kl":
        return kl(teacher, student)
    if divergence == "reverse_kl":
        return kl(student, teacher)
    mix = [weight * q + (1 - weight) * p for p, q in zip(student, teacher, strict=True)]
    return weight * kl(teacher, mix) + (1 - weight) * kl(student, mix)


# --- what each name means --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("divergence", "weight", "nats"),
    [
        ("reverse_kl", 0.5, 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)),  # 0.1927
        ("forward_kl", 0.5, 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)),  # 0.2231
        ("jsd", 0.5, 0.050672),  # m = [.65, .35]: 1/2 * 0.047155 of the teacher + 1/2 * 0.054188 of the student
        ("jsd", 0.25, 0.039580),  # m = [.725, .275]: 1/4 * 0.113137 of the teacher + 3/4 * 0.015061 of the student
    ],
)
def test_the_hand_case_tells_the_divergences_apart(divergence: Divergence, weight: float, nats: float) -> None:
    student, teacher = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    value = token_divergence(student, teacher, divergence=divergence, weight=weight)
    assert value.item() == pytest.approx(nats, abs=2e-6)


def test_jsd_between_certainties_is_log_two() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
    assert token_divergence(student, teacher).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("weight", "limit"), [(1e-6, "forward_kl"), (1 - 1e-6, "reverse_kl")])
def test_jsd_weight_sits_on_the_teacher(weight: float, limit: Divergence) -> None:
    student, teacher = pair()
    scaled = token_divergence(student, teacher, weight=weight) / min(weight, 1 - weight)
    torch.testing.assert_close(scaled, token_divergence(student, teacher, divergence=limit), rtol=1e-3, atol=0)


@EVERY
@pytest.mark.parametrize("weight", [0.5, 0.2])
@pytest.mark.parametrize("top_k", [None, 1, 4, 10])
def test_equals_the_plain_python_oracle(divergence: Divergence, weight: float, top_k: int | None) -> None:
    student, teacher = pair()
    got = token_divergence(student, teacher, divergence=divergence, weight=weight, top_k=top_k)
    rows = zip(student.exp().tolist(), teacher.exp().tolist(), strict=True)
    expected = [oracle(p, q, divergence, weight, top_k) for p, q in rows]
    assert got.tolist() == pytest.approx(expected, rel=1e-9)


@EVERY
def test_equal_distributions_have_no_divergence_and_no_pull(divergence: Divergence) -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    student = logits.log_softmax(-1)
    value = token_divergence(student, student.detach(), divergence=divergence)
    value.sum().backward()
    assert value.abs().max() < 1e-14 and logits.grad.abs().max() < 1e-14


# --- gradients -------------------------------------------------------------------------------------------------------
@EVERY
@pytest.mark.parametrize("top_k", [None, 3])
def test_gradient_is_that_of_finite_differences(divergence: Divergence, top_k: int | None) -> None:
    student, teacher = pair(4, 6)
    options = {"divergence": divergence, "weight": 0.3, "top_k": top_k}
    assert torch.autograd.gradcheck(lambda s: token_divergence(s, teacher, **options), (student,))
    assert torch.autograd.gradcheck(lambda z: token_divergence(z.log_softmax(-1), teacher, **options), (student,))


@EVERY
@pytest.mark.parametrize("top_k", [None, 3])
def test_gradient_stops_at_the_teacher(divergence: Divergence, top_k: int | None) -> None:
    student, teacher = pair()
    teacher.requires_grad_()
    token_divergence(student, teacher, divergence=divergence, top_k=top_k).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert not token_divergence(student.detach(), teacher, divergence=divergence, top_k=top_k).requires_grad


@EVERY
def test_following_the_gradient_leads_to_the_teacher(divergence: Divergence) -> None:
    teacher = random_logp(1, 5, seed=3)
    logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    for _ in range(500):
        loss = token_divergence(logits.log_softmax(-1), teacher, divergence=divergence).sum()
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - slope).detach().requires_grad_()
    torch.testing.assert_close(logits.softmax(-1), teacher.exp(), rtol=0, atol=1e-3)


def test_the_sampled_surrogate_has_the_exact_value_and_gradient_on_average() -> None:
    logits, teacher = random_logp(1, 6, seed=4).requires_grad_(), random_logp(1, 6, seed=5)
    student = logits.log_softmax(-1)
    exact = token_divergence(student, teacher, divergence="reverse_kl").sum()
    # every token of the tiny vocabulary is "sampled" once and counts as often as the student would sample it
    sampled = (student.detach().exp() * sampled_reverse_kl(student, teacher)).sum()
    torch.testing.assert_close(sampled, exact)
    slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (sampled, exact)]
    torch.testing.assert_close(*slopes)


def test_the_sampled_surrogate_raises_what_the_teacher_prefers() -> None:
    student = torch.tensor([0.5, 0.5]).log().requires_grad_()
    teacher = torch.tensor([0.8, 0.2]).log().requires_grad_()
    sampled_reverse_kl(student, teacher).sum().backward()
    # the gradient is minus the advantage, log(.8/.5) and log(.2/.5); descent turns it round
    assert student.grad.tolist() == pytest.approx([-math.log(1.6), -math.log(0.4)])
    assert teacher.grad is None


# --- top-k and the tail ----------------------------------------------------------------------------------------------
@EVERY
def test_top_k_and_tail_never_exceed_the_full_divergence(divergence: Divergence) -> None:
    student, teacher = pair(200, 12)
    full = token_divergence(student, teacher, divergence=divergence)
    for k in range(1, 12):  # data processing: merging tokens into a bucket can only hide differences
        assert (token_divergence(student, teacher, divergence=divergence, top_k=k) <= full + 1e-12).all()
    assert torch.equal(token_divergence(student, teacher, divergence=divergence, top_k=12), full)


@EVERY
def test_one_token_in_the_tail_loses_nothing(divergence: Divergence) -> None:
    student, teacher = pair()
    torch.testing.assert_close(
        token_divergence(student, teacher, divergence=divergence, top_k=10),
        token_divergence(student, teacher, divergence=divergence),
    )


@EVERY
def test_the_tail_of_a_sure_student_keeps_its_digits_in_float32(divergence: Divergence) -> None:
    logits = torch.tensor([[0.0, -25.0, -26.0, -27.0]], requires_grad=True)  # tail 2e-11: 1 - top is 0 in float32
    teacher = random_logp(1, 4, seed=6, spread=1.0)
    slopes, values = [], []
    for dtype in (torch.float32, torch.float64):
        student = logits.to(dtype).log_softmax(-1)
        values.append(token_divergence(student, teacher.to(dtype), divergence=divergence, top_k=1).double())
        slopes.append(torch.autograd.grad(values[-1].sum(), logits)[0])
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-9)


# --- numbers at the edge ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_zero_probabilities_are_exact(top_k: int | None) -> None:
    student = torch.tensor([[math.log(0.8), math.log(0.2), -INF, -INF]], requires_grad=True)
    teacher = torch.tensor([[math.log(0.5), math.log(0.5), -INF, -INF]])
    for divergence in NAMES:
        expected = oracle([0.8, 0.2, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], divergence, 0.5, top_k)
        value = token_divergence(student, teacher, divergence=divergence, top_k=top_k)
        (slope,) = torch.autograd.grad(value.sum(), student)
        assert value.item() == pytest.approx(expected, rel=1e-5)
        assert slope.isfinite().all() and (slope[0, 2:] == 0).all()


def test_what_only_one_of_them_excludes_is_infinite_for_one_kl_and_finite_for_jsd() -> None:
    half, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert token_divergence(sure, half, divergence="forward_kl").item() == INF
    assert token_divergence(sure, half, divergence="reverse_kl").item() == pytest.approx(math.log(2))
    assert token_divergence(half, sure, divergence="reverse_kl").item() == INF
    assert token_divergence(half, sure, divergence="forward_kl").item() == pytest.approx(math.log(2))
    jsd = 0.5 * math.log(1 / 0.75) + 0.25 * math.log(0.5 / 0.75) + 0.25 * math.log(2)
    assert token_divergence(half, sure).item() == pytest.approx(jsd)
    assert token_divergence(sure, half).item() == pytest.approx(jsd)


@EVERY
@pytest.mark.parametrize("spread", [1.0, 30.0])  # 30: probabilities down to e^-150, which float32 cannot hold
def test_float32_stays_near_float64(divergence: Divergence, spread: float) -> None:
    student, teacher = pair(20, 300, spread=spread)
    exact = token_divergence(student, teacher, divergence=divergence)
    (exact_slope,) = torch.autograd.grad(exact.sum(), student)
    single = student.detach().float().requires_grad_()
    value = token_divergence(single, teacher.float(), divergence=divergence)
    (slope,) = torch.autograd.grad(value.sum(), single)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=1e-6)


@EVERY
@pytest.mark.parametrize("top_k", [None, 5])
def test_bf16_inputs_are_computed_in_float32(divergence: Divergence, top_k: int | None) -> None:
    student, teacher = pair(6, 40, dtype=torch.bfloat16)
    value = token_divergence(student, teacher, divergence=divergence, top_k=top_k)
    value.sum().backward()
    raised = token_divergence(student.detach().float(), teacher.float(), divergence=divergence, top_k=top_k)
    assert value.dtype == torch.float32 and torch.equal(value, raised)
    assert student.grad.dtype == torch.bfloat16


# --- chunks, order, repetition ---------------------------------------------------------------------------------------
@EVERY
@pytest.mark.parametrize("top_k", [None, 5])
def test_a_token_does_not_depend_on_its_neighbours(
    divergence: Divergence, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair(23, 50)
    options = {"divergence": divergence, "top_k": top_k}
    upstream = torch.linspace(-1, 1, 23, dtype=torch.float64)

    def run(order: Tensor) -> tuple[Tensor, Tensor]:
        value = token_divergence(student[order], teacher[order], **options)
        return value, torch.autograd.grad(value, student, upstream[order])[0]

    assert 23 * 50 < CHUNK  # one chunk here, chunks of three rows below
    value, slope = run(torch.arange(23))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    shuffled = run(order)
    monkeypatch.setattr("hero_mini.losses.CHUNK", 3 * 50)
    chunked = run(torch.arange(23))
    torch.testing.assert_close(shuffled[0], value[order], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(shuffled[1], slope, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(chunked[0], value, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(chunked[1], slope, rtol=1e-12, atol=1e-15)


@EVERY
def test_two_runs_are_bit_equal(divergence: Divergence) -> None:
    def run() -> tuple[Tensor, Tensor]:
        student, teacher = pair(40, 8000, dtype=torch.float32)  # more than one chunk
        value = token_divergence(student, teacher, divergence=divergence, top_k=50)
        loss = hero_loss(value, torch.arange(40) // 9, torch.arange(40) // 27)
        return loss, torch.autograd.grad(loss, student)[0]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@EVERY
def test_a_micro_batch_may_be_empty(divergence: Divergence) -> None:
    student, none = torch.empty(0, 9, requires_grad=True), torch.empty(0, dtype=torch.long)
    loss = hero_loss(token_divergence(student, torch.empty(0, 9), divergence=divergence), none, none)
    loss.backward()
    assert loss.item() == 0 and student.grad.shape == (0, 9)


# --- HERO's mean -----------------------------------------------------------------------------------------------------
# rollout 0: turn 0 (2 tokens, hinted), turn 1 (1 token, no hint), turn 2 (1 token, hinted); rollout 1: one hinted turn
# of 4 tokens; rollout 2: one turn without a hint
TURN = torch.tensor([0, 0, 1, 2, 0, 0, 0, 0, 0])
ROLLOUT = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
HINTED = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
VALUES = torch.tensor([1.0, 3.0, 100.0, 4.0, 1.0, 2.0, 3.0, 10.0, 100.0])


def random_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """turn, rollout, hinted of a batch of five rollouts, in order."""
    rng = random.Random(seed)
    rows = [
        (turn, rollout, hint)
        for rollout in range(5)
        for turn in range(rng.randint(1, 4))
        for hint in [rng.random() < 0.6]
        for _ in range(rng.randint(1, 6))
    ]
    turn, rollout, hinted = zip(*rows, strict=True)
    return torch.tensor(turn), torch.tensor(rollout), torch.tensor(hinted)


def test_hand_computed_mean_over_tokens_turns_and_rollouts() -> None:
    # rollout 0: ((1 + 3)/2 + 4)/2 = 3; rollout 1: (1 + 2 + 3 + 10)/4 = 4; rollout 2 has no say
    assert hero_loss(VALUES, TURN, ROLLOUT, hinted=HINTED).item() == pytest.approx((3 + 4) / 2)
    weights = token_weights(TURN, ROLLOUT, HINTED)
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 8, 0, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 0])
    # without `hinted` all turns count: ((2 + 100 + 4)/3 + 4 + 100)/3
    assert hero_loss(VALUES, TURN, ROLLOUT).item() == pytest.approx((106 / 3 + 104) / 3)
    # a turn without a hint has no say, whatever its tokens have
    assert hero_loss(VALUES.masked_fill(~HINTED, torch.inf), TURN, ROLLOUT, hinted=HINTED).item() == pytest.approx(3.5)


@pytest.mark.parametrize("seed", range(5))
def test_mean_equals_nested_plain_python_means(seed: int) -> None:
    turn, rollout, hinted = random_batch(seed)
    values = torch.rand(len(turn), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tree: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for t, r, h, x in zip(turn.tolist(), rollout.tolist(), hinted.tolist(), values.tolist(), strict=True):
        if h:
            tree[r][t].append(x)

    def mean(xs: list[float]) -> float:
        return sum(xs) / len(xs)

    expected = mean([mean([mean(tokens) for tokens in turns.values()]) for turns in tree.values()])
    assert hero_loss(values, turn, rollout, hinted=hinted).item() == pytest.approx(expected, rel=1e-6)


def test_order_of_tokens_and_names_of_rollouts_change_nothing() -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    weights = token_weights(TURN, ROLLOUT, HINTED)
    assert torch.equal(token_weights(TURN[order], ROLLOUT[order], HINTED[order]), weights[order])
    assert torch.equal(token_weights(TURN + 7, 1000 - 3 * ROLLOUT, HINTED), weights)


@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_add_up_to_the_batch(seed: int) -> None:
    turn, rollout, hinted = random_batch(seed)
    student, teacher = random_logp(len(turn), 13, seed=1).requires_grad_(), random_logp(len(turn), 13, seed=2)
    whole = hero_loss(token_divergence(student, teacher), turn, rollout, hinted=hinted)
    (whole_slope,) = torch.autograd.grad(whole, student)
    n_rollouts = len(rollout[hinted].unique())
    by_rollout, by_cut = 0.0, 0.0
    for part in [(rollout == 3), (rollout == 0) | (rollout == 4), (rollout == 1) | (rollout == 2)]:  # whole rollouts
        weights = token_weights(turn[part], rollout[part], hinted[part], n_rollouts)
        loss = (weights * token_divergence(student[part], teacher[part])).sum()
        loss.backward()
        by_rollout += loss.item()
    assert by_rollout == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(student.grad, whole_slope, rtol=1e-6, atol=1e-12)
    weights = token_weights(turn, rollout, hinted)  # made once, then cut anywhere
    for part in torch.arange(len(turn)).split(4):
        by_cut += (weights[part] * token_divergence(student[part], teacher[part])).sum().item()
    assert by_cut == pytest.approx(whole.item(), rel=1e-6)


def test_no_hint_means_no_loss_and_no_gradient() -> None:
    student, teacher = pair(9)
    loss = hero_loss(token_divergence(student, teacher), TURN, ROLLOUT, hinted=torch.zeros(9, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and (student.grad == 0).all()


def test_only_tokens_of_hinted_turns_get_a_gradient() -> None:
    student, teacher = pair(9)
    hero_loss(token_divergence(student, teacher), TURN, ROLLOUT, hinted=HINTED).backward()
    assert torch.equal(student.grad.abs().sum(-1) > 0, HINTED)


def test_a_long_turn_weighs_no_more_than_a_short_one() -> None:
    turn = torch.tensor([0] * 50 + [1])
    weights = token_weights(turn, torch.zeros_like(turn))
    assert weights[:50].sum().item() == pytest.approx(0.5) and weights[50].item() == 0.5


# --- importance ratio ------------------------------------------------------------------------------------------------
def test_importance_ratio_is_clipped_above_and_detached() -> None:
    now = torch.tensor([0.6, 0.1, 0.5, 0.9]).log().requires_grad_()
    sampled = torch.tensor([0.2, 0.2, 0.5, 0.0]).log()  # ratios 3, 1/2, 1 and infinite
    weights = torch.tensor([1.0, 1.0, 0.5, 2.0])
    clipped = importance_clip(weights, now, sampled, clip=2.0)
    assert clipped.tolist() == pytest.approx([2.0, 0.5, 0.5, 4.0])
    assert not clipped.requires_grad
    same = importance_clip(weights, sampled[:3].new_zeros(4), sampled[:3].new_zeros(4), clip=2.0)
    assert torch.equal(same, weights)  # a student that has not moved is not corrected


# --- input that cannot be meant --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "jds"}, "unknown divergence 'jds' .*did you mean 'jsd'"),
        ({"divergence": "Forward-KL"}, "did you mean 'forward_kl'"),
        ({"divergence": "revkl"}, "did you mean 'reverse_kl'"),
        ({"divergence": 0.5}, "choose from jsd, forward_kl, reverse_kl"),
        ({"weight": 0.0}, "weight must lie between 0 and 1"),
        ({"weight": 1.0}, "weight must lie between 0 and 1"),
        ({"weight": math.nan}, "weight must lie between 0 and 1"),
        ({"top_k": 0}, r"top_k must lie in 1\.\.11"),
        ({"top_k": 12}, r"top_k must lie in 1\.\.11"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_divergence(*pair(), **options)


@EVERY
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_nan_and_logits_are_refused(divergence: Divergence, who: str) -> None:
    for bad in (math.nan, 3.0, INF):
        inputs = dict(zip(("student", "teacher"), (x.detach().clone() for x in pair()), strict=True))
        inputs[who][2, 5] = bad
        with pytest.raises(ValueError, match=f"{who} holds NaN or a value above 0"):
            token_divergence(**inputs, divergence=divergence)


def test_shapes_that_do_not_fit_are_refused() -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match=r"\(7, 11\) and \(6, 11\)"):
        token_divergence(student, teacher[:6])
    with pytest.raises(ValueError, match="tokens, vocabulary"):
        token_divergence(student[None], teacher[None])
    with pytest.raises(ValueError, match="equally long"):
        token_weights(TURN, ROLLOUT[:-1])
    with pytest.raises(ValueError, match="equally long"):
        token_weights(TURN, ROLLOUT, HINTED[:-1])
    with pytest.raises(ValueError, match="divergence has"):
        hero_loss(VALUES[:1], TURN, ROLLOUT)


def test_weights_that_cannot_be_are_refused() -> None:
    half_hinted = HINTED.clone()
    half_hinted[0] = False
    with pytest.raises(ValueError, match="same for all tokens of a turn"):
        token_weights(TURN, ROLLOUT, half_hinted)
    with pytest.raises(ValueError, match="n_rollouts"):
        token_weights(TURN, ROLLOUT, HINTED, n_rollouts=1)
    for clip in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="clip must be positive"):
            importance_clip(VALUES, VALUES, VALUES, clip=clip)
    with pytest.raises(ValueError, match="NaN"):
        importance_clip(VALUES, VALUES * math.nan, VALUES, clip=2.0)
