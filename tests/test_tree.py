"""The one-pass tree against its oracle: every root-to-node path encoded as a sequence of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hero_mini.errors import HeroError
from hero_mini.tree import Tree, batches, forward, layout, logprobs

VOCABULARY = 61


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Random weights, five times larger than usual so that a wrong token in view shows far above the tolerance."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def random_tree(seed: int, nodes: int = 9) -> Tree:
    """A root, then nodes under random parents; some empty, about half of them scored."""
    rng = random.Random(seed)
    tree = Tree()
    tree.add(rng.choices(range(VOCABULARY), k=rng.randint(1, 6)))
    for _ in range(rng.randint(1, nodes)):
        ids = rng.choices(range(VOCABULARY), k=rng.choice([0, 1, 1, 3, 7]))
        tree.add(ids, rng.randrange(len(tree.nodes)), scored=bool(ids) and rng.random() < 0.6)
    return tree


def path_by_path(model: LlamaForCausalLM, tree: Tree) -> dict[int, Tensor]:
    """The oracle: for every scored node, root to node as one plain sequence, its last tokens' log-probabilities."""
    found = {}
    for number, node in enumerate(tree.nodes):
        if not node.scored:
            continue
        path, above = list(node.ids), node.parent
        while above is not None:
            path = [*tree.nodes[above].ids, *path]
            above = tree.nodes[above].parent
        logp = model(torch.tensor([path])).logits[0].log_softmax(-1)
        found[number] = logp[:-1].gather(-1, torch.tensor(path[1:])[:, None]).squeeze(-1)[-len(node.ids) :]
    return found


def assert_same(got: Sequence[dict[int, Tensor]], want: Sequence[dict[int, Tensor]], tolerance: float) -> None:
    assert [list(one) for one in got] == [list(one) for one in want]
    for one, other in zip(got, want, strict=True):
        for number in one:
            torch.testing.assert_close(one[number], other[number], atol=tolerance, rtol=0)


TREES = [random_tree(seed) for seed in range(40)]


@torch.no_grad()
def test_equals_encoding_every_path_on_its_own(model: LlamaForCausalLM) -> None:
    assert_same(logprobs(model, TREES), [path_by_path(model, tree) for tree in TREES], 1e-4)


@pytest.mark.parametrize("max_tokens", [1, 37, 100, 10_000])
def test_batch_order_and_padding_change_nothing(model: LlamaForCausalLM, max_tokens: int) -> None:
    alone = [logprobs(model, [tree])[0] for tree in TREES]
    order = random.Random(max_tokens).sample(range(len(TREES)), len(TREES))
    shuffled = logprobs(model, [TREES[index] for index in order], max_tokens=max_tokens)
    assert_same(shuffled, [alone[index] for index in order], 1e-5)


def test_siblings_do_not_see_each_other(model: LlamaForCausalLM) -> None:
    def scores(first: list[int]) -> dict[int, Tensor]:
        tree = Tree()
        root = tree.add([3, 1, 4])
        tree.add([9, *first], root, scored=True)
        branch = tree.add([2, 6], root, scored=True)
        tree.add([5, 3], branch, scored=True)
        return logprobs(model, [tree])[0]

    one, other = scores([10, 11, 12]), scores([50, 51, 52])
    assert (one[1] - other[1]).abs()[1:].min() > 1e-3  # the changed branch did change
    for number in (2, 3):
        torch.testing.assert_close(one[number], other[number], atol=1e-6, rtol=0)


def test_a_branch_does_not_change_its_trunk_and_an_ancestor_does(model: LlamaForCausalLM) -> None:
    def scores(root_ids: list[int], branch_ids: list[int]) -> dict[int, Tensor]:
        tree = Tree()
        root = tree.add(root_ids)
        tree.add(branch_ids, root)
        tree.add([7, 8], root, scored=True)
        return logprobs(model, [tree])[0]

    torch.testing.assert_close(scores([3, 1], [4])[2], scores([3, 1], [9, 9, 9])[2], atol=1e-6, rtol=0)
    assert (scores([3, 1], [4])[2] - scores([5, 1], [4])[2]).abs().min() > 1e-3


def test_gradient_equals_the_gradient_path_by_path(model: LlamaForCausalLM) -> None:
    trees = TREES[:8]

    def gradient(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    weights = torch.linspace(-1, 2, sum(len(n.ids) for tree in trees for n in tree.nodes if n.scored))
    want = gradient(torch.cat([one for tree in trees for one in path_by_path(model, tree).values()]) @ weights)
    for got, expected in zip(gradient(forward(model, trees).logprobs @ weights), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_end_of_turn_is_scored_like_any_token(model: LlamaForCausalLM) -> None:
    end_of_turn = VOCABULARY - 1
    tree = Tree.chain([([1, 2, 3], False), ([4, 5, end_of_turn], True), ([6], False)])
    scored = forward(model, [tree])
    assert scored.ids.tolist() == [4, 5, end_of_turn]
    logp = model(torch.tensor([[1, 2, 3, 4, 5, end_of_turn, 6]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(scored.logits.log_softmax(-1), logp[2:5], atol=1e-4, rtol=0)


def test_scored_tokens_come_in_order_of_tree_node_and_place(model: LlamaForCausalLM) -> None:
    scored = forward(model, TREES)
    expected = [
        (row, number, token)
        for row, tree in enumerate(TREES) for number, node in enumerate(tree.nodes) if node.scored for token in node.ids
    ]  # fmt: skip
    assert list(zip(scored.tree.tolist(), scored.node.tolist(), scored.ids.tolist(), strict=True)) == expected
    assert scored.logits.shape == (len(expected), VOCABULARY) and scored.logits.dtype == torch.float32


def test_positions_are_depths_and_every_mask_row_is_open(model: LlamaForCausalLM) -> None:
    tree, short = Tree(), Tree.chain([([1], False)])
    root = tree.add([1, 2])
    gap = tree.add([], root)
    tree.add([3, 4], gap, scored=True)
    tree.add([5], root, scored=True)
    _, position, mask = layout([tree, short], torch.float32)
    assert position[0].tolist() == [0, 1, 2, 3, 2]
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1],
    ]  # fmt: skip
    assert (mask == 0).any(-1).all()
    forward(model, [short, tree]).logprobs.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    model.zero_grad()


def test_an_adapter_takes_part_and_nothing_scored_is_no_error() -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    adapted = get_peft_model(LlamaForCausalLM(config).eval(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    tree = Tree.chain([([1, 2], False), ([3, 4], True)])
    forward(adapted, [tree]).logprobs.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_B" in n)
    assert logprobs(adapted, [Tree.chain([([1, 2], False)])]) == [{}]


def test_bfloat16_stays_finite_and_gives_float32(model: LlamaForCausalLM) -> None:
    torch.manual_seed(2)
    half = LlamaForCausalLM(model.config).to(torch.bfloat16).eval()
    scored = forward(half, TREES)
    assert scored.logits.dtype == torch.float32 and scored.logprobs.isfinite().all()


@pytest.mark.parametrize("max_tokens", [1, 25, 90, 1000])
def test_batches_hold_every_tree_once_within_the_area(max_tokens: int) -> None:
    groups = list(batches(TREES, max_tokens))
    assert sorted(index for group in groups for index in group) == list(range(len(TREES)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(TREES[index]) for index in group) <= max_tokens
    assert groups == list(batches(TREES, max_tokens))
    assert list(batches([], max_tokens)) == []


def test_too_long_a_path_is_refused_by_name_and_a_wide_tree_is_not(model: LlamaForCausalLM) -> None:
    tree = Tree()
    root = tree.add([1] * 100, label="system prompt")
    for _ in range(4):
        tree.add([2] * 28, root, scored=True)
    assert len(tree) > model.config.max_position_embeddings and len(logprobs(model, [tree])[0]) == 4
    tree.add([3] * 29, root, scored=True, label="turn 5")
    with pytest.raises(HeroError, match="turn 5 ends at token 129, past the model's context of 128"):
        forward(model, [tree])


def test_what_cannot_be_scored_is_refused(model: LlamaForCausalLM) -> None:
    tree = Tree()
    with pytest.raises(ValueError, match="at least one token before it"):
        tree.add([1], scored=True)
    tree.add([1])
    with pytest.raises(ValueError, match="tokens of its own"):
        tree.add([], 0, scored=True)
    with pytest.raises(ValueError, match="parent 1 is not one of the tree's 1 nodes"):
        tree.add([1], 1)
    with pytest.raises(ValueError, match="tree 1 has no tokens"):
        forward(model, [tree, Tree()])
