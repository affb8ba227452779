"""Our attention against transformers' own "sdpa", on every kind of mask a policy meets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hero_mini import attention
from hero_mini.attention import blocks, tree_attention
from hero_mini.models import Policy

MASKED = torch.finfo(torch.float32).min


def tree_masks() -> Tensor:
    """(2, 1, 9, 9): siblings 4..6 and 7..8 on a trunk of four; and a chain of six that ends in padding."""
    seen = torch.ones(2, 9, 9).tril().bool()
    seen[0, 7:, 4:7] = False
    seen[1, 6:] = False
    seen[1, 6:, 6:] = torch.ones(3, 3).tril().bool()
    return torch.zeros(2, 1, 9, 9).masked_fill(~seen[:, None], MASKED)


@pytest.fixture(params=[2, 4, 128], ids=lambda size: f"block{size}")
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks shorter than the sequence, one that ends ragged, and one that is longer."""
    monkeypatch.setattr(attention, "BLOCK", request.param)
    return request.param


def test_a_padded_row_has_numbers_in_bf16(block: int) -> None:
    query, key, value = (torch.ones(1, 1, 200, 8, dtype=torch.bfloat16) for _ in range(3))
    seen = torch.ones(200, 200).tril().bool()[None, None]
    seen[..., :140] = False  # padding on the left, longer than a block
    assert tree_attention(torch.nn.Module(), query, key, value, seen)[0].isfinite().all()


@pytest.mark.parametrize("mask", ["tree", "shared tree", "boolean tree", "causal", "left padding"])
def test_equals_sdpa(tiny: Policy, block: int, mask: str) -> None:
    """Logits and the gradients of all weights."""
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    given = {
        "tree": tree_masks(),
        "shared tree": tree_masks()[:1],
        "boolean tree": tree_masks() == 0,
        "causal": None,
        "left padding": torch.tensor([[1] * 9, [0] * 3 + [1] * 6]),  # 2-D: transformers makes the 4-D mask
    }[mask]

    results = {}
    for name in ("sdpa", attention.NAME):
        tiny.model.set_attn_implementation(name)
        tiny.model.zero_grad()
        logits = tiny.model(ids, attention_mask=given).logits[:, 4:]
        logits.logsumexp(-1).sum().backward()
        results[name] = [logits.detach(), *(weight.grad.clone() for weight in tiny.model.parameters())]
    for ours, theirs in zip(results[attention.NAME], results["sdpa"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_repeated_keys_stand_where_grouped_heads_look_for_them() -> None:
    """What a GPU does with a mask and grouped heads (see `attend`), on a CPU, which needs no such detour."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, 8, generator=draw) for heads in (6, 2, 2))
    grouped = scaled_dot_product_attention(query, key, value, tree_masks(), enable_gqa=True)
    repeated = scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), tree_masks()
    )
    torch.testing.assert_close(repeated, grouped)


def test_a_cache_changes_nothing(tiny: Policy, block: int) -> None:
    """A chunk, then token by token, on the cache of what came before: the logits of one pass."""
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = tiny.model(ids).logits
        state = tiny.model(ids[:, :4], use_cache=True)
        for start, end in ((4, 9), (9, 10), (10, 11), (11, 12)):
            state = tiny.model(ids[:, start:end], past_key_values=state.past_key_values, use_cache=True)
            torch.testing.assert_close(state.logits, whole[:, start:end], atol=1e-5, rtol=1e-5)


def test_unseen_keys_are_not_read(block: int) -> None:
    """Not even a NaN in a key reaches a block of queries that do not see it, as it would through an added mask."""
    query, key = torch.ones(1, 4, 9, 8), torch.ones(1, 2, 9, 8)
    key[:, :, 8] = torch.nan  # seen by the last query alone
    out, _ = tree_attention(torch.nn.Module(), query, key, key, tree_masks()[:1])
    first_blind = 8 // block * block if 9 >= 2 * block else 0
    assert not out[:, :first_blind].isnan().any() and out[:, 8].isnan().all()


def test_blocks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 5)
    found = blocks(tree_masks())
    assert [(b.rows.start, b.number, b.keys.tolist()) for b in found] == [
        (0, 0, [0, 1, 2, 3, 4]),
        (0, 1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (1, 0, [0, 1, 2, 3, 4]),
        (1, 1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ]
    monkeypatch.setattr(attention, "BLOCK", 7)
    assert blocks(tree_masks())[1].keys.tolist() == [0, 1, 2, 3, 7, 8]  # the second sibling, without the first
    nothing = blocks(torch.full((1, 1, 3, 5), MASKED))
    assert [b.keys.tolist() for b in nothing] == [[0]]


def test_by_hand() -> None:
    """One group of two heads, two keys: the weights are a softmax that fits on a slip of paper."""
    query = torch.tensor([[[[1.0]], [[0.0]]]])  # (1, 2 heads, 1 token, 1)
    key, value = torch.tensor([[[[0.0], [1.0]]]]), torch.tensor([[[[0.0], [1.0]]]])
    out, _ = tree_attention(torch.nn.Module(), query, key, value, torch.zeros(1, 1, 1, 2), scaling=1.0)
    assert out.flatten().tolist() == pytest.approx([torch.e / (1 + torch.e), 0.5], abs=1e-6)
