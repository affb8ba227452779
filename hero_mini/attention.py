"""Grouped-query attention that does not repeat keys and values.

SmolLM2 has 9 query heads on 3 key/value heads. transformers' "sdpa" copies every key and value three times before
masked attention; on a CPU that copy costs more than the attention itself when a few new tokens meet a long cache.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

GROUPED = "hero_grouped"


def grouped_attention(
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
    attention_mask: additive or boolean, (B or 1, 1, T, S); None means causal, with the queries at the start of the keys
    returns (B, T, Hq, D)
    """
    batch, heads, queries, width = query.shape
    causal = attention_mask is None and queries > 1 and is_causal is not False
    if causal:
        key, value = key[:, :, :queries], value[:, :, :queries]
    if queries == 1 and not causal:  # one new token each: a group's heads become positions, which all share one mask
        query = query.reshape(batch, key.shape[1], -1, width)
    out = scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, causal, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.reshape(batch, heads, queries, width).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the function known to transformers, with the masks of "sdpa"; returns its name."""
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return GROUPED
