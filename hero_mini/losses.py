"""Step 4 of the loop, distil: how far the student is from its teacher on its own tokens, and HERO's mean over them.

Everything here works on *packed* action tokens: the N scored tokens of some rollouts, one after the other, no padding,
V vocabulary entries each. With p the student, q the teacher (on one token) and w the weight, all in nats:

    name         divergence                                              slope d/d log p_v
    forward_kl   KL(q || p) = sum q (log q - log p)                      -q
    reverse_kl   KL(p || q) = sum p (log p - log q)                      p (log p - log q + 1)
    jsd          w KL(q || m) + (1-w) KL(p || m),  m = w q + (1-w) p     (1-w) p (log p - log m)

The JSD is the generalised one of GKD (Agarwal et al., arXiv 2306.13649), the weight sits on the teacher: near w = 0 it
acts like w forward_kl, near w = 1 like (1-w) reverse_kl; w = 0.5 is the usual JSD, at most log 2. HERO names JSD; its
weight, the full vocabulary and the mean over rollouts are our choice.

`distil` uses `token_divergence` and `token_weights`. The rest is for page 05: no arm corrects for a student that has
moved, or sees the divergence through the sampled tokens alone.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hero_mini.errors import nearest

Divergence = Literal["jsd", "forward_kl", "reverse_kl"]

CHUNK = 2**18  # log-probabilities handled at once: a few rows of a 49k vocabulary, small enough for a core's cache


def token_divergence(
    student: Tensor, teacher: Tensor, *, divergence: Divergence = "jsd", weight: float = 0.5, top_k: int | None = None
) -> Tensor:
    """Divergence between student and teacher on every token, (N,) in nats; the table above defines each name.

    student, teacher: (N, V) log-probabilities on the same tokens; gradient flows through student only. Any float type:
        the arithmetic and the result are at least float32 (take log_softmax in float32 even of bf16 logits)
    weight: the jsd's w, between 0 and 1; the two KLs have no use for it
    top_k: compare the student's k likeliest tokens and one bucket for all others (SDPO, arXiv 2601.20802); never more
        than the full divergence (data processing), and equal to it for k = V
    raises ValueError: unknown name, weight or top_k out of range, shapes differ, NaN, or logits instead of log_softmax

    A probability of zero is fine: the jsd stays finite, a KL is infinite exactly where its definition says so.

    >>> student, teacher = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> [round(token_divergence(student, teacher, divergence=d).item(), 4) for d in ("reverse_kl", "forward_kl", "jsd")]
    [0.1927, 0.2231, 0.0507]
    """
    names = get_args(Divergence)
    if divergence not in names:
        near = nearest(str(divergence).lower(), names)
        raise ValueError(f"unknown divergence {divergence!r}{near}; choose from {', '.join(names)}")
    if student.ndim != 2 or student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher must both be (tokens, vocabulary), not {shapes}")
    if not 0 < weight < 1:
        raise ValueError(f"weight must lie between 0 and 1, both excluded, not {weight}")
    if top_k is not None and not 1 <= top_k <= student.shape[1]:
        raise ValueError(f"top_k must lie in 1..{student.shape[1]} (the vocabulary), not {top_k}")
    for who, logp in (("student", student), ("teacher", teacher)):
        if logp.numel() and not logp.detach().amax() <= 1e-3:  # NaN fails this too; the margin is for rounding
            raise ValueError(f"{who} holds NaN or a value above 0: log-probabilities (log_softmax) are needed")
    return _TokenDivergence.apply(student, teacher.detach(), divergence, weight, top_k)


class _TokenDivergence(torch.autograd.Function):
    """The table at the top, a few rows at a time, with its slopes written out instead of recorded.

    For a (512, 49152) jsd with its gradient, one core needs half the time of the same three lines left to autograd
    (a quarter under glibc's own memory settings), and 0.1 to 0.2 GB instead of 0.6 or more: autograd's intermediates,
    (N, V) each, all live at once and travel through main memory.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, divergence: Divergence, weight: float, top_k: int | None):
        n, vocabulary = student.shape
        dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
        value = student.new_empty(n, dtype=dtype)  # (N,)
        slope = torch.empty_like(student) if ctx.needs_input_grad[0] else None  # (N, V)
        rows = max(1, CHUNK // max(1, vocabulary))
        for start in range(0, n, rows):
            here = slice(start, start + rows)
            s, t = student[here].to(dtype), teacher[here].to(dtype)  # (rows, V)
            if top_k is None or top_k == vocabulary:
                value[here], chunk_slope = _value_and_slope(s, t, divergence, weight)
            else:
                top = s.topk(top_k, sorted=False).indices  # (rows, K)
                s_bucket, t_bucket = _bucket(s, top), _bucket(t, top)  # (rows, K+1)
                value[here], bucket_slope = _value_and_slope(s_bucket, t_bucket, divergence, weight)
                # A token of the tail moves log p_tail by its share of the tail; a top token moves only itself.
                share = (s - s_bucket[:, -1:].clamp(min=torch.finfo(dtype).min)).exp()  # (rows, V), 0 in an empty tail
                chunk_slope = share.mul_(bucket_slope[:, -1:]).scatter_(-1, top, bucket_slope[:, :-1])
            if slope is not None:
                slope[here] = chunk_slope
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return grad.to(slope.dtype)[:, None] * slope, None, None, None, None


def _value_and_slope(s: Tensor, t: Tensor, divergence: Divergence, weight: float) -> tuple[Tensor, Tensor]:
    """(rows,) divergence and (rows, V) its derivative with respect to the student's log-probabilities.

    s, t: (rows, V) log-probabilities of student and teacher
    """
    if divergence == "forward_kl":
        q = t.exp()
        return (q * (t - s)).masked_fill_(q == 0, 0).sum(-1), -q  # the mask: 0 log 0 = 0
    if divergence == "reverse_kl":
        p = s.exp()
        excess = (p * (s - t)).masked_fill_(p == 0, 0)
        return excess.sum(-1), excess + p
    floor = math.log(torch.finfo(s.dtype).tiny)  # float32: e^-87; raising smaller probabilities to it moves nothing
    s, t = s.clamp(min=floor), t.clamp(min=floor)
    p, q = s.exp(), t.exp()
    m = torch.lerp(p, q, weight).log_()  # log of w q + (1-w) p
    excess = p * (s - m)
    return weight * (q * (t - m)).sum(-1) + (1 - weight) * excess.sum(-1), (1 - weight) * excess


def _bucket(logp: Tensor, top: Tensor) -> Tensor:
    """(rows, K+1): the log-probabilities of the tokens in top, then that of all others together.

    The tail is summed, not taken as log(1 - top): of a student that is sure, 1 - top keeps no correct digit.
    """
    tail = logp.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logp.gather(-1, top), tail], -1)


def token_weights(turn: Tensor, rollout: Tensor, hinted: Tensor | None = None, n_rollouts: int | None = None) -> Tensor:
    """What every token counts, (N,) float32, so that HERO's loss is `(weights * divergence).sum()`.

    A hinted token weighs 1 / (tokens of its turn x hinted turns of its rollout x rollouts with a hinted turn), which is
    `1/|T+| sum 1/|a_t|` of the paper, averaged over rollouts; any other token weighs 0. The weights sum to 1 (or to 0).

    turn, rollout: (N,) integers naming each token's turn (counted within its rollout) and rollout; any order
    hinted: (N,) bool, True on every token of a turn with a non-empty hint; None means that all turns have one
    n_rollouts: rollouts with a hinted turn in the whole batch; None counts the ones given here. Micro-batches of whole
        rollouts that pass the batch's number add up to the whole batch's loss; rollouts cut in two do so when the
        weights are made once for the batch and then cut with it
    raises ValueError: shapes differ, a turn is hinted in part, or n_rollouts is smaller than the rollouts given
    """
    hinted = torch.ones_like(turn, dtype=torch.bool) if hinted is None else hinted.bool()
    if turn.ndim != 1 or not turn.shape == rollout.shape == hinted.shape:
        raise ValueError("turn, rollout and hinted must be flat and equally long, one entry per token")
    if not hinted.any():
        return torch.zeros_like(turn, dtype=torch.float32)
    turns, turn_of, tokens = torch.stack([rollout, turn]).unique(dim=1, return_inverse=True, return_counts=True)
    hinted_tokens = torch.zeros_like(tokens).index_add_(0, turn_of, hinted.long())  # (turns,)
    if ((hinted_tokens > 0) & (hinted_tokens < tokens)).any():
        raise ValueError("hinted must be the same for all tokens of a turn")
    rollouts, rollout_of = turns[0].unique(return_inverse=True)
    hinted_turns = torch.zeros_like(rollouts).index_add_(0, rollout_of, (hinted_tokens > 0).long())  # (rollouts,)
    here = int((hinted_turns > 0).sum())
    if n_rollouts is not None and n_rollouts < here:
        raise ValueError(f"n_rollouts counts the whole batch, but is {n_rollouts} with {here} hinted rollouts given")
    share = (tokens * hinted_turns[rollout_of] * (n_rollouts or here))[turn_of]  # (N,), the product of the docstring
    return torch.where(hinted, 1.0 / share, 0.0)


def hero_loss(divergence: Tensor, turn: Tensor, rollout: Tensor, *, hinted: Tensor | None = None) -> Tensor:
    """HERO's loss in nats, a scalar: the mean over the tokens of a turn, then over the hinted turns of a rollout, then
    over the rollouts that have one (the paper's loss, from a secondary reading; the last mean is our choice).

    divergence: (N,) nats, from `token_divergence` or `sampled_reverse_kl`
    turn, rollout, hinted: (N,), see `token_weights`, which a loop over micro-batches uses directly
    Without any hinted turn the loss is 0 and still has a graph: backward() gives gradients of zero.
    raises ValueError: divergence is not one number per token
    """
    if divergence.shape != turn.shape:
        raise ValueError(f"divergence has shape {tuple(divergence.shape)}, but the tokens are {tuple(turn.shape)}")
    weights = token_weights(turn, rollout, hinted).to(divergence.dtype)
    return (weights * divergence.masked_fill(weights == 0, 0.0)).sum()  # 0 times infinity would be no number


def importance_clip(weights: Tensor, logp_now: Tensor, logp_sampled: Tensor, *, clip: float) -> Tensor:
    """Weights corrected for a student that has moved since it sampled: times min(pi_now / pi_sampled, clip), detached.

    weights: (N,) from `token_weights` (or any number per token); logp_now, logp_sampled: (N,) log-probabilities of the
    sampled tokens in nats; clip: largest ratio
    raises ValueError: clip is not positive, or a log-probability is NaN
    """
    if not clip > 0:
        raise ValueError(f"clip must be positive, not {clip}")
    log_ratio = (logp_now - logp_sampled).detach()
    if log_ratio.isnan().any():
        raise ValueError("the log-probabilities of the sampled tokens hold NaN")
    return weights * log_ratio.clamp(max=math.log(clip)).exp()


def sampled_reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Reverse KL seen through the sampled tokens alone, (N,) nats: right on average, in value and in gradient, of a
    teacher that has not read what came of these very tokens.

    student, teacher: (N,) log-probabilities of the tokens the *student* sampled; gradient through student only.
    It is a policy gradient with advantage A = log q - log p, held constant (SDPO, arXiv 2601.20802): the gradient is
    -A grad log p, whose mean over p is the gradient of KL(p || q). The value, -A, is a plain estimate of that KL.
    """
    gap = (student - teacher).detach()  # -A
    return gap * (1 + student - student.detach())  # the bracket is 1 and has the gradient of log p
