"""Attention for trees on a CPU: it reads only the keys that are seen, and repeats none.

The kernels of a CPU go through a whole (T, S) mask, masked or not; in a tree of turns most of it is masked. So long
inputs are cut into blocks of queries, and each block meets the keys that some query in it sees: half of them for
plain causal text, fewer where branches do not see their siblings. Within a block two matrix products around a softmax
are used: the backward pass of torch's fused kernel was measured to take twice as long on a CPU. Grouped-query models
such as SmolLM2 (9 query heads on 3 key/value heads) need no copies of keys and values: a group's heads share a product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

NAME = "hero_tree"  # among transformers' implementations
BLOCK = 256  # queries


class Block(NamedTuple):
    """Consecutive queries of one row of the batch (of all rows, if they share a mask) and the keys they see."""

    rows: slice
    number: int  # the queries from number * BLOCK on
    keys: Tensor  # (K,) indices
    mask: Tensor  # (queries, K), additive


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention in the form transformers asks for.

    query: (B, Hq, T, D);  key, value: (B, Hkv, S, D), Hq a multiple of Hkv
    attention_mask: additive or boolean (True: seen), (B or 1, 1, T, S), not edited in place after its first use;
        None means causal, with the queries at the start of the keys; a single query sees all of them
    returns (B, T, Hq, D)
    """
    batch, heads, queries, width = query.shape
    causal = attention_mask is None and queries > 1 and is_causal is not False
    if causal:
        key, value = key[:, :, :queries], value[:, :, :queries]

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        if grouped and mask is not None and query.device.type == "cuda":
            # no fused kernel there takes a mask and grouped heads; the plain one would keep all (T, S) scores
            group = query.shape[1] // key.shape[1]
            key, value, grouped = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1), False
        return scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale=scaling, enable_gqa=grouped)

    if attention_mask is not None and queries >= BLOCK and query.device.type == "cpu" and not dropout:
        scale = width**-0.5 if scaling is None else scaling
        spans = query.split(BLOCK, dim=2)
        parts: list[list[Tensor]] = []  # a list for every row of the mask
        for rows, number, keys, mask in blocks(attention_mask):
            if number == 0:
                parts.append([])
            seen = (states[rows].index_select(2, keys) for states in (key, value))
            parts[-1].append(block_attention(spans[number][rows], *seen, mask, scale))
        out = torch.cat([torch.cat(row, dim=2) for row in parts])
    elif queries == 1:  # one new token each: a group's heads become queries, which all share one mask
        out = attend(query.reshape(batch, key.shape[1], -1, width), key, value, attention_mask)
    else:
        out = attend(query, key, value, attention_mask)
    return out.reshape(batch, heads, queries, width).transpose(1, 2).contiguous(), None


def block_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of one block, query (B, Hq, n, D) on key and value (B, Hkv, K, D), with one mask (n, K) for all."""
    batch, heads, _, width = query.shape
    group = heads // key.shape[1]  # query heads per key/value head: they stand below each other in one product
    query, key, value = (states.reshape(batch * key.shape[1], -1, width) for states in (query, key, value))
    bias = mask.to(query.dtype).clamp(min=torch.finfo(query.dtype).min)  # bf16 has no number for float32's lowest
    scores = torch.baddbmm(bias.repeat(group, 1), query, key.mT, alpha=scale)
    return (scores.softmax(-1) @ value).reshape(batch, heads, -1, width)


def blocks(mask: Tensor) -> list[Block]:
    """The blocks of a mask (B or 1, 1, T, S); kept on the mask, because every layer asks for them."""
    if not hasattr(mask, "hero_blocks"):
        found = []
        if mask.dtype == torch.bool:
            seen, bias = mask, torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        else:
            seen, bias = mask > torch.finfo(mask.dtype).min / 2, mask
        for row in range(len(mask)):
            rows = slice(row, row + 1) if len(mask) > 1 else slice(0, None)
            for number, part in enumerate(seen[row, 0].split(BLOCK)):
                some = part.any(dim=0)
                some[0] |= ~some.any()  # a block of padding sees nothing, and a softmax needs something
                keys = some.nonzero().squeeze(1)
                queries = slice(number * BLOCK, number * BLOCK + len(part))
                found.append(Block(rows, number, keys, bias[row, 0, queries].index_select(1, keys)))
        mask.hero_blocks = found  # type: ignore[attr-defined]
    return mask.hero_blocks  # type: ignore[attr-defined]


def register() -> str:
    """Make the function known to transformers, with the masks of "sdpa"; returns its name."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return NAME
