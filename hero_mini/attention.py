"""Attention for trees on a CPU: it reads only the keys that are seen, and repeats none.

The kernels of a CPU go through a whole (T, S) mask, masked or not; in a tree of turns most of it is masked. So long
inputs are cut into blocks of queries, and each block meets the keys that some query in it sees: half of them for
plain causal text, fewer where branches do not see their siblings. Grouped-query models such as SmolLM2 (9 query heads
on 3 key/value heads) need no copies of keys and values either.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

NAME = "hero_tree"  # among transformers' implementations
BLOCK = 128  # queries; 64 to 256 measure alike


class Block(NamedTuple):
    """Consecutive queries of one row of the batch (of all rows, if they share a mask) and the keys they see."""

    rows: slice
    queries: slice
    keys: Tensor  # (K,) indices
    mask: Tensor  # (1, 1, queries, K)


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
        None means causal, with the queries at the start of the keys
    returns (B, T, Hq, D)
    """
    batch, heads, queries, width = query.shape
    causal = attention_mask is None and queries > 1 and is_causal is not False
    if causal:
        key, value = key[:, :, :queries], value[:, :, :queries]

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale=scaling, enable_gqa=grouped)

    if attention_mask is not None and queries >= 2 * BLOCK and query.device.type == "cpu":
        parts: dict[int, list[Tensor]] = {}  # by row of the mask
        for rows, span, keys, mask in blocks(attention_mask):
            seen = (states[rows].index_select(2, keys) for states in (key, value))
            parts.setdefault(rows.start, []).append(attend(query[rows, :, span], *seen, mask))
        out = torch.cat([torch.cat(row, dim=2) for row in parts.values()])
    elif queries == 1:  # one new token each: a group's heads become queries, which all share one mask
        out = attend(query.reshape(batch, key.shape[1], -1, width), key, value, attention_mask)
    else:
        out = attend(query, key, value, attention_mask)
    return out.reshape(batch, heads, queries, width).transpose(1, 2).contiguous(), None


def blocks(mask: Tensor) -> list[Block]:
    """The blocks of a mask (B or 1, 1, T, S); kept on the mask, because every layer asks for them."""
    if not hasattr(mask, "hero_blocks"):
        found = []
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        for row in range(len(mask)):
            rows = slice(row, row + 1) if len(mask) > 1 else slice(0, None)
            for span in (slice(start, start + BLOCK) for start in range(0, mask.shape[2], BLOCK)):
                some = seen[row, 0, span].any(dim=0)
                some[0] |= ~some.any()  # a block of padding sees nothing, and a softmax needs something
                keys = some.nonzero().squeeze(1)
                found.append(Block(rows, span, keys, mask[row : row + 1, :, span].index_select(3, keys)))
        mask.hero_blocks = found  # type: ignore[attr-defined]
    return mask.hero_blocks  # type: ignore[attr-defined]


def register() -> str:
    """Make the function known to transformers, with the masks of "sdpa"; returns its name."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return NAME
