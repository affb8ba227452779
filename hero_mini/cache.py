"""One key-value cache for a whole batch of episodes: every token is encoded once.

A cache row holds one context. Its tokens stand in slots 0 .. length-1 without holes, so a token's slot is its position
and "may be seen" is simply "slot <= position". Rows grow at their own pace: one forward pass takes any mixture of new
tokens (one more token of an action here, a whole observation there) as one flat sequence without padding, and only the
attention has to know which token belongs to which row. All rows begin with the same tokens (the system prompt), whose
keys are multiplied once for all rows instead of once per row (Juravsky et al. 2024, "Hydragen").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from hero_mini.errors import HeroError

ATTENTION = "hero_rows"  # our attention's name among transformers' implementations
FIRST_SLOTS = 256


@dataclass(frozen=True)
class Step:
    """Where the T new tokens of one forward pass belong; they are flat, row after row."""

    cache: Cache
    rows: Tensor  # (T,) cache row of each token
    slots: Tensor  # (T,) slot in that row, which is also its position
    spans: list[tuple[int, int, int, Tensor]]  # rows with more: row, first token, end, mask (group * new, seen)
    alone: Tensor  # (A,) rows with one new token
    alone_tokens: Tensor  # (R,) where it stands in the flat sequence; 0 for the other rows of the cache
    alone_mask: Tensor  # (R, 1, 1, width - shared) added to the scores: hides the slots behind each row's end


class Cache:
    """Keys and values of `rows` contexts, grown by doubling (any model with transformers' attention interface)."""

    def __init__(self, model: PreTrainedModel, rows: int):
        config = model.config
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # (layers, rows, key heads, slots, head size); zeros, because 0 * nan behind a row's end would be nan
        self.keys = torch.zeros(
            config.num_hidden_layers, rows, heads, FIRST_SLOTS, size, dtype=model.dtype, device=model.device
        )
        self.values = torch.zeros_like(self.keys)
        self.model = model
        self.group = config.num_attention_heads // heads  # query heads that share a key head
        self.lengths = [0] * rows
        self.shared = 0  # the first slots, equal in all rows

    def share(self, ids: Sequence[int]) -> None:
        """Encode the tokens with which every row begins, once; only on an empty cache."""
        self.append({0: ids})
        self.keys[:, 1:, :, : len(ids)] = self.keys[:, :1, :, : len(ids)]
        self.values[:, 1:, :, : len(ids)] = self.values[:, :1, :, : len(ids)]
        self.lengths = [len(ids)] * len(self.lengths)
        self.shared = len(ids)

    def restart(self, row: int) -> None:
        """Make room for a new context in this row: only the shared tokens stay."""
        self.lengths[row] = self.shared

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows; row rows[i] becomes row i."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.lengths = [self.lengths[r] for r in rows]

    @torch.no_grad()
    def append(self, chunks: Mapping[int, Sequence[int]]) -> Tensor:
        """Encode new tokens of some rows in one forward pass.

        chunks: row -> its new token ids, at least one
        returns: (len(chunks), V) float32 logits of the token after each chunk, in the order of `chunks`
        """
        step, last = self._plan(chunks)
        ids = torch.tensor([[i for chunk in chunks.values() for i in chunk]], device=self.keys.device)  # (1, T)
        with attending(self.model):
            logits = self.model(
                input_ids=ids, position_ids=step.slots[None], use_cache=False, logits_to_keep=last, step=step
            ).logits
        for row, chunk in chunks.items():
            self.lengths[row] += len(chunk)
        return logits[0].float()

    def _plan(self, chunks: Mapping[int, Sequence[int]]) -> tuple[Step, Tensor]:
        """The step, and where each row's last new token stands in it, (len(chunks),)."""
        device = self.keys.device
        rows, slots, spans, last, alone = [], [], [], [], {}
        for row, chunk in chunks.items():
            begin, end = len(rows), len(rows) + len(chunk)
            seen = self.lengths[row] + len(chunk)
            rows += [row] * len(chunk)
            slots += range(self.lengths[row], seen)
            last.append(end - 1)
            if len(chunk) == 1:
                alone[row] = begin
            else:
                later = torch.ones(len(chunk), seen, dtype=torch.bool, device=device).triu(seen - len(chunk) + 1)
                spans.append((row, begin, end, hiding(later, self.keys.dtype).repeat(self.group, 1)))
        limit = self.model.config.max_position_embeddings
        if max(slots) >= limit:
            raise HeroError(
                f"a context of {max(slots) + 1} tokens does not fit into the model's {limit} positions; "
                "allow fewer turns or shorter actions, or take a model with a longer context"
            )
        self._grow(max(slots) + 1)
        ends = torch.tensor([length if row in alone else 0 for row, length in enumerate(self.lengths)], device=device)
        width = max([self.shared, *(self.lengths[row] + 1 for row in alone)])
        behind = torch.arange(self.shared, width, device=device) > ends[:, None]  # (R, width - shared)
        step = Step(
            self,
            torch.tensor(rows, device=device),
            torch.tensor(slots, device=device),
            spans,
            torch.tensor(list(alone), dtype=torch.long, device=device),
            torch.tensor([alone.get(row, 0) for row in range(len(self.lengths))], device=device),
            hiding(behind, torch.float32)[:, None, None],
        )
        return step, torch.tensor(last, device=device)

    def _grow(self, needed: int) -> None:
        slots = self.keys.shape[3]
        while slots < needed:
            slots *= 2
        if slots > self.keys.shape[3]:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_zeros(*old.shape[:3], slots, old.shape[4])
                new[:, :, :, : old.shape[3]] = old
                setattr(self, name, new)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, step: Step, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention of one layer for the flat tokens of a step, after writing their keys and values into the cache.

    query: (1, heads, T, size); key, value: (1, key heads, T, size); returns (1, T, heads, size)
    """
    keys, values = step.cache.keys[module.layer_idx], step.cache.values[module.layer_idx]  # (R, key heads, S, size)
    keys[step.rows, :, step.slots] = key[0].transpose(0, 1)
    values[step.rows, :, step.slots] = value[0].transpose(0, 1)
    _, heads, tokens, size = query.shape
    group = step.cache.group
    query = query[0].unflatten(0, (-1, group))  # (key heads, group, T, size)
    out = torch.empty(tokens, keys.shape[1], group, size, dtype=query.dtype, device=query.device)
    for row, begin, end, mask in step.spans:
        mine = scaled_dot_product_attention(
            query[:, :, begin:end].flatten(1, 2)[None],  # the group is laid out as further queries
            keys[row : row + 1, :, : mask.shape[1]],
            values[row : row + 1, :, : mask.shape[1]],
            attn_mask=mask,
            scale=scaling,
        )
        out[begin:end] = mine[0].unflatten(1, (group, -1)).permute(2, 0, 1, 3)
    if len(step.alone):
        tokens_alone = step.alone_tokens[step.alone]
        out[tokens_alone] = attend_alone(query[:, :, step.alone_tokens] * scaling, keys, values, step)[step.alone]
    return out.view(1, tokens, heads, size), None


def attend_alone(query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
    """One query per row: scores on the shared tokens are one matrix product for all rows, then each row's own tokens.

    query: (key heads, group, R, size), scaled; keys, values: (R, key heads, S, size)
    returns (R, key heads, group, size)
    """
    shared, width = step.cache.shared, step.cache.shared + step.alone_mask.shape[-1]
    flat = query.flatten(1, 2)  # (key heads, group * R, size)
    common = (flat @ keys[0, :, :shared].transpose(1, 2)).unflatten(1, query.shape[1:3]).permute(2, 0, 1, 3)
    # keys first: with the three queries of a group first, the bf16 product takes three times as long
    own = (keys[:, :, shared:width] @ query.permute(2, 0, 3, 1)).transpose(2, 3)  # (R, key heads, group, own)
    scores = torch.cat([common, own + step.alone_mask], dim=-1)  # float32: the mask is
    weights = scores.softmax(dim=-1).to(query.dtype)
    common = weights[..., :shared].permute(1, 2, 0, 3).flatten(1, 2) @ values[0, :, :shared]
    own = weights[..., shared:] @ values[:, :, shared:width]
    return common.unflatten(1, query.shape[1:3]).permute(2, 0, 1, 3) + own


def hiding(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive attention mask from a boolean one (True: may not be seen)."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode and with `attend` as its attention, for the duration of one step."""
    training, before = model.training, model.config._attn_implementation
    model.eval()
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.train(training)
        model.config._attn_implementation = before
