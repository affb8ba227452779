"""Batched sampling: many dialogues share one forward pass per step, whatever each of them is doing.

A dialogue is a Python generator: it yields the token ids it adds to its context, and is sent the policy's answer to
them. So an episode reads from top to bottom like one conversation, while `converse` drives a whole batch of them: a row
that is still speaking gets one more token, a row whose environment has answered gets the whole observation, in the same
pass. Nobody waits. When a dialogue returns, the next one takes over its cache row.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from hero_mini.cache import Cache
from hero_mini.config import TrainConfig
from hero_mini.errors import HeroError, check_whole
from hero_mini.models import Policy
from hero_mini.seeds import rng

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The log-probabilities that are kept do not depend on it."""

    temperature: float = 1.0
    top_p: float = 1.0  # draw from the smallest set of tokens with at least this mass
    greedy: bool = False  # take the likeliest token instead
    max_tokens: int = TrainConfig.max_action_tokens  # an answer ends with the end-of-turn token, or is cut here

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(value := getattr(self, name), Real):
                raise HeroError(f"{name} is {value!r}; it must be a number")
        check_whole(1, max_tokens=self.max_tokens)
        if not 1e-3 <= self.temperature <= 1e3:
            raise HeroError(f"temperature is {self.temperature}; it must be from 0.001 to 1000 (or use greedy=True)")
        if not 0 < self.top_p <= 1:
            raise HeroError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class Answer:
    """What the policy said: its token ids, the end of turn included if it was drawn, and log pi of each in nats."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass
class Usage:
    """What sampling cost. One object can count several calls."""

    encoded: int = 0  # tokens that went through the model
    generated: int = 0  # tokens drawn
    steps: int = 0  # forward passes
    seconds: float = 0.0


Dialogue = Generator[list[int], Answer, T]


@dataclass
class Row:
    """A dialogue in its cache row."""

    place: int  # its place in the results
    dialogue: Dialogue[Any]
    draw: random.Random
    chunk: list[int]  # token ids to encode next
    ids: list[int] = field(default_factory=list)  # the answer so far
    logprobs: list[float] = field(default_factory=list)


def converse(
    policy: Policy,
    dialogues: Sequence[Callable[[], Dialogue[T]]],
    draws: Sequence[random.Random],
    *,
    shared: Sequence[int],
    sampling: Sampling,
    batch_size: int = TrainConfig.batch_size,
    usage: Usage | None = None,
    progress: str = "",
) -> list[T]:
    """Run all dialogues, at most `batch_size` at a time, and give back what each returned, in their order.

    draws: the random numbers of each dialogue, its own, so that its tokens do not depend on its neighbours
    shared: token ids that every dialogue's first chunk begins with (but is longer than); encoded once for all
    progress: what a progress bar says that it counts; empty: no bar
    raises HeroError: batch_size below 1, or a context outgrows the model's positions
    """
    check_whole(1, batch_size=batch_size)
    started, usage = time.perf_counter(), usage if usage is not None else Usage()
    banned = banned_ids(policy)
    upcoming = (begin(place, *pair, shared) for place, pair in enumerate(zip(dialogues, draws, strict=True)))
    rows: list[Row | None] = [row for _, row in zip(range(batch_size), upcoming, strict=False)]
    cache = Cache(policy.model, len(rows))
    if shared and rows:
        cache.share(shared)
        usage.encoded += len(shared)
    results: dict[int, T] = {}
    with tqdm(total=len(dialogues), disable=not progress, desc=progress) as bar:
        while speaking := {i: row for i, row in enumerate(rows) if row is not None}:
            # 1. one forward pass over whatever is new
            logits = cache.append({i: row.chunk for i, row in speaking.items()})  # (rows, V)
            usage.encoded += sum(len(row.chunk) for row in speaking.values())
            usage.steps += 1
            # 2. one token each
            tokens, logprobs = draw_tokens(logits, [row.draw.random() for row in speaking.values()], sampling, banned)
            usage.generated += len(tokens)
            # 3. whoever has finished its answer hears the other side, or leaves its place to the next dialogue
            for (i, row), token, logprob in zip(speaking.items(), tokens, logprobs, strict=True):
                row.ids.append(token)
                row.logprobs.append(logprob)
                row.chunk = [token]
                if token != policy.eos_id and len(row.ids) < sampling.max_tokens:
                    continue
                try:
                    row.chunk += row.dialogue.send(Answer(tuple(row.ids), tuple(row.logprobs)))
                    row.ids, row.logprobs = [], []
                except StopIteration as end:
                    results[row.place] = end.value
                    bar.update()
                    rows[i] = next(upcoming, None)
                    cache.restart(i)
            # 4. drop the rows of finished dialogues, once a quarter of the cache is theirs
            left = [i for i, row in enumerate(rows) if row is not None]
            if left and len(rows) - len(left) >= len(rows) / 4:
                cache.keep(left)
                rows = [rows[i] for i in left]
    usage.seconds += time.perf_counter() - started
    return [results[place] for place in range(len(dialogues))]


def begin(place: int, dialogue: Callable[[], Dialogue[T]], draw: random.Random, shared: Sequence[int]) -> Row:
    """Start a dialogue; its first chunk loses the tokens that the cache has already."""
    started = dialogue()
    chunk = next(started)
    if len(chunk) <= len(shared) or chunk[: len(shared)] != list(shared):
        raise HeroError(f"dialogue {place} does not begin with the tokens that all are said to share")
    return Row(place, started, draw, chunk[len(shared) :])


def banned_ids(policy: Policy) -> Tensor:
    """Token ids that are never drawn: control tokens other than the end of turn, and ids without a token."""
    unused = range(len(policy.tokenizer), policy.model.config.vocab_size)
    return torch.tensor([*policy.special_ids, *unused], dtype=torch.long, device=policy.device)


def draw_tokens(
    logits: Tensor, uniforms: Sequence[float], sampling: Sampling, banned: Tensor
) -> tuple[list[int], list[float]]:
    """One token per row, and its log-probability in nats at temperature 1 with nothing banned.

    logits: (B, V) float32; uniforms: a number in [0, 1) per row, which decides its token (inverse cumulative sum)
    raises HeroError: the logits are no numbers
    """
    logprobs = logits.log_softmax(dim=-1)
    if logprobs.isnan().any():
        raise HeroError(
            "the model's probabilities are no numbers any more: train again with a lower lr, or dtype float32"
        )
    allowed = logprobs.index_fill(1, banned, -torch.inf)
    if sampling.greedy:
        tokens = allowed.argmax(dim=-1)
    else:
        probs = torch.softmax(allowed / sampling.temperature, dim=-1)
        if sampling.top_p < 1:
            probs = nucleus(probs, sampling.top_p)
        edges = probs.cumsum(dim=-1)
        total = edges[:, -1:]
        target = torch.tensor(uniforms, device=logits.device)[:, None] * total
        target = target.minimum(total.nextafter(torch.zeros_like(total)))  # rounding must not reach past the last token
        tokens = torch.searchsorted(edges, target, right=True)[:, 0]
    return tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens with mass >= top_p, zero elsewhere (Holtzman et al. 2020); not renormalised.

    >>> nucleus(torch.tensor([[0.5, 0.1, 0.25, 0.15]]), 0.7)
    tensor([[0.5000, 0.0000, 0.2500, 0.0000]])
    """
    k = 64  # sorting the whole vocabulary would cost more than the model
    while True:
        top, ids = probs.topk(min(k, probs.shape[1]), dim=-1)  # (B, k)
        kept = top.cumsum(dim=-1) - top < top_p
        if k >= probs.shape[1] or not kept[:, -1].any():
            return torch.zeros_like(probs).scatter(1, ids, top * kept)
        k *= 8


def complete(
    policy: Policy,
    prefixes: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    batch_size: int = TrainConfig.batch_size,
) -> list[str]:
    """The likeliest answer, token by token, to each prefix (token ids that end with a header), as text."""

    def dialogue(prefix: Sequence[int]) -> Dialogue[str]:
        answer = yield list(prefix)
        return policy.decode(answer.ids)

    shared = os.path.commonprefix([list(p)[:-1] for p in prefixes])
    return converse(
        policy,
        [lambda prefix=prefix: dialogue(prefix) for prefix in prefixes],
        [rng(0, "complete", i) for i in range(len(prefixes))],
        shared=shared,
        sampling=Sampling(greedy=True, max_tokens=max_tokens),
        batch_size=batch_size,
    )
