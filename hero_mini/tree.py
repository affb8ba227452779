"""Trees of token segments, scored in one forward pass.

A rollout's turns share their past. Scoring every turn as a sequence of its own encodes that past again and again:
T turns cost about T²/2 of them. Here the trajectory is the trunk of a tree, and what only one turn's teacher may see
(a diagnosis, then the action to be scored) is a branch that leaves the trunk at that turn's decision point:

    system ─ user ─ action ─ tool ─ action ─ tool ─ action          trunk
               │               │               │
               └ hint ─ action └ hint ─ action └ hint ─ action      branches; the actions are scored

A token sees its node's ancestors and what comes before it in its own node, and its position is its depth along that
path: exactly what it would see and be if its path stood alone. So the pass gives each path's log-probabilities at
the cost of the tree's tokens, T of them instead of T²/2. All of it is an attention mask and a row of position ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hero_mini.errors import HeroError

if TYPE_CHECKING:
    from hero_mini.models import Policy


@dataclass(frozen=True)
class Node:
    """A segment of tokens in its tree. Slots count the tree's tokens in the order the nodes were added."""

    ids: tuple[int, ...]
    parent: int | None
    scored: bool
    label: str
    start: int  # slot of the first token
    depth: int  # position id of the first token: the number of tokens on the path above it
    before: int  # slot of the token that the first one continues from; -1 at the root

    @property
    def end(self) -> int:
        """The number of tokens on the path to its last token."""
        return self.depth + len(self.ids)


class Tree:
    """Segments of token ids; each sees its ancestors in full and itself causally.

    >>> tree = Tree()
    >>> trunk = tree.add([5, 6, 7])
    >>> for action in ([8, 9], [8, 10]):
    ...     _ = tree.add(action, trunk, scored=True)
    >>> len(tree), [(node.start, node.depth, node.before) for node in tree.nodes]
    (7, [(0, 0, -1), (3, 3, 2), (5, 3, 2)])
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, ids: Sequence[int], parent: int | None = None, scored: bool = False, label: str = "") -> int:
        """Append a segment after its parent and return its number.

        scored: whether its tokens' probabilities are asked for, an end-of-turn token like any other
        label: what messages call the segment, such as "turn 3"
        raises ValueError: the parent is not in the tree, or a scored segment is empty or has nothing before it
        """
        if parent is None:
            depth, before = 0, -1
        elif 0 <= parent < len(self.nodes):
            above = self.nodes[parent]
            depth = above.end
            before = above.start + len(above.ids) - 1 if above.ids else above.before
        else:
            raise ValueError(f"parent {parent} is not one of the tree's {len(self.nodes)} nodes")
        if scored and (not ids or before < 0):
            raise ValueError("a scored segment needs tokens of its own and at least one token before it")
        self.nodes.append(Node(tuple(ids), parent, scored, label, len(self), depth, before))
        return len(self.nodes) - 1

    @classmethod
    def chain(cls, segments: Sequence[tuple[Sequence[int], bool]]) -> Tree:
        """A tree without branches from (ids, scored) pairs; node k is segment k."""
        tree = cls()
        for k, (ids, scored) in enumerate(segments):
            tree.add(ids, k - 1 if k else None, scored)
        return tree

    def __len__(self) -> int:
        """Number of tokens."""
        return self.nodes[-1].start + len(self.nodes[-1].ids) if self.nodes else 0


@dataclass(frozen=True)
class Scored:
    """The scored tokens of a batch of trees, N in all, ordered by tree, node and place in the node."""

    logits: Tensor  # (N, V) float32, of the distribution that each token was drawn from
    ids: Tensor  # (N,) the tokens
    tree: Tensor  # (N,) index into the trees passed in
    node: Tensor  # (N,) node number in that tree

    @cached_property
    def logprobs(self) -> Tensor:
        """(N,) natural-log probability of each token."""
        return -cross_entropy(self.logits, self.ids, reduction="none")


def forward(policy: Policy | nn.Module, trees: Sequence[Tree]) -> Scored:
    """One pass over all trees at once, a row each; differentiable unless the caller turns gradients off.

    The vocabulary projection, a fifth of the default model's work, runs for the scored tokens only.
    raises HeroError: a path is longer than the model's context (nothing is ever cut off)
    raises ValueError: a tree has no tokens
    """
    model = policy if isinstance(policy, nn.Module) else policy.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # a PEFT model wraps its base
    for index, tree in enumerate(trees):
        _check(tree, index, base.config.max_position_embeddings)

    ids, position, mask = (part.to(base.device) for part in layout(trees, base.dtype))
    row, slot, before, number = (index.to(base.device) for index in _scored_tokens(trees))
    hidden = base.get_decoder()(
        input_ids=ids, position_ids=position, attention_mask=mask, use_cache=False
    ).last_hidden_state  # (B, S, H)
    logits = base.get_output_embeddings()(hidden[row, before])  # (N, V)
    return Scored(logits.float(), ids[row, slot], row, number)


def layout(trees: Sequence[Tree], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, S), position ids (B, S) and additive attention mask (B, 1, S, S) of right-padded rows.

    Parents come before children, so a token sees the slots up to its own whose node is on its path. Padding is one
    more node, alone on its path: no row of the mask is empty (a softmax over nothing is not a number).
    A tree without branches gets the same mask; plain causal attention was measured to be no faster there.
    """
    rows, slots, pad = len(trees), max(map(len, trees)), max(len(tree.nodes) for tree in trees)
    ids, position = torch.zeros(2, rows, slots, dtype=torch.long)
    mask = torch.full((rows, 1, slots, slots), torch.finfo(dtype).min, dtype=dtype)
    causal = torch.ones(slots, slots, dtype=torch.bool).tril()
    for row, tree in enumerate(trees):
        lengths = torch.tensor([len(node.ids) for node in tree.nodes])
        shift = torch.tensor([node.depth - node.start for node in tree.nodes])  # position minus slot, per node
        ids[row, : len(tree)] = torch.tensor([token for node in tree.nodes for token in node.ids])
        position[row, : len(tree)] = torch.arange(len(tree)) + shift.repeat_interleave(lengths)

        path = torch.eye(pad + 1, dtype=torch.bool)  # (nodes, nodes): who sees whom
        for number, node in enumerate(tree.nodes):
            if node.parent is not None:
                path[number] |= path[node.parent]
        owner = torch.full((slots,), pad)  # the node of each slot
        owner[: len(tree)] = torch.arange(len(tree.nodes)).repeat_interleave(lengths)
        mask[row, 0].masked_fill_(path[owner][:, owner] & causal, 0)
    return ids, position, mask


def _scored_tokens(trees: Sequence[Tree]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every scored token: tree, slot, slot of the token that predicts it, and node; (N,) each."""
    parts = [torch.zeros(4, 0, dtype=torch.long)]
    for row, tree in enumerate(trees):
        for number, node in enumerate(tree.nodes):
            if node.scored:
                slot = torch.arange(node.start, node.start + len(node.ids))
                before = slot - 1
                before[0] = node.before
                parts.append(torch.stack([torch.full_like(slot, row), slot, before, torch.full_like(slot, number)]))
    row, slot, before, number = torch.cat(parts, dim=1)
    return row, slot, before, number


def _check(tree: Tree, index: int, limit: int) -> None:
    if not len(tree):
        raise ValueError(f"tree {index} has no tokens")
    for number, node in enumerate(tree.nodes):
        if node.end > limit:
            where = node.label or f"Segment {number} of tree {index}"
            raise HeroError(
                f"{where} ends at token {node.end}, past the model's context of {limit}: use shorter episodes "
                "(max_turns, max_action_tokens) or a model with a longer context."
            )


def batches(trees: Sequence[Tree], max_tokens: int) -> Iterator[list[int]]:
    """Indices of the trees in groups of similar length, each tree once, the longest first.

    max_tokens: bound on a group's padded area, rows × longest; a tree beyond it makes a group of its own
    """
    order = sorted(range(len(trees)), key=lambda index: (-len(trees[index]), index))
    while order:
        rows = max(1, max_tokens // max(1, len(trees[order[0]])))
        yield order[:rows]
        order = order[rows:]


@torch.no_grad()
def logprobs(policy: Policy | nn.Module, trees: Sequence[Tree], *, max_tokens: int = 4096) -> list[dict[int, Tensor]]:
    """For every tree and scored node, the natural-log probability of its tokens: (length,) float32."""
    found: list[dict[int, Tensor]] = [{} for _ in trees]
    for group in batches(trees, max_tokens):
        values = forward(policy, [trees[index] for index in group]).logprobs
        for index in group:
            for number, node in enumerate(trees[index].nodes):
                if node.scored:
                    found[index][number], values = values[: len(node.ids)], values[len(node.ids) :]
    return found
