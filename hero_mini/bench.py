"""What the design saves, measured on this machine and written to figures/data/bench.csv.

Machines differ and drift, so every figure is a ratio: the two things compared take turns, pair by pair, and the median
stands with the smallest and the largest pair. The work is real: retail episodes, the teacher's own trees, one update
of the student. Scripted episodes stand in where the number of turns must not depend on how well the policy acts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle, islice
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hero_mini import envs
from hero_mini.config import TrainConfig, WarmupConfig
from hero_mini.distil import distil
from hero_mini.lora import AdapterOptimizer, add_student, student_weights
from hero_mini.models import Policy, load_policy
from hero_mini.reflect import oracle
from hero_mini.rollout import Rollout, collect, segments
from hero_mini.seeds import rng
from hero_mini.tables import write_table
from hero_mini.teacher import student_tree, teacher_tree
from hero_mini.tree import Tree, logprobs
from hero_mini.warmup import scripted_episode

PAIRS = 3
MEMORY_GB = 6.0  # the peak may not pass this
GEMM = 2048  # rows and columns of the square matrices that set the machine's pace


@dataclass(frozen=True)
class Row:
    """One figure; low and high are the smallest and the largest pair."""

    name: str
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: Sequence[float]) -> Row:
        return cls(name, *(round(f(values), 3) for f in (statistics.median, min, max)))


def main(out: Path, quick: bool = False) -> list[Row]:
    """Measure everything and write `out`; minutes on two cores. quick: fewer turns and tasks, the same code."""
    policy = load_policy()
    steps: list[Callable[[], Row]] = [
        *(lambda turns=turns: one_pass_teacher(policy, turns) for turns in ((2, 4, 8) if quick else (2, 4, 8, 16, 32))),
        lambda: cached_rollouts(policy, 8 if quick else 16),
        lambda: training_utilisation(policy, 4 if quick else 16),
        peak_memory,
    ]
    rows = [step() for step in tqdm(steps, desc="bench")]
    command = "python -m hero_mini bench --preset quick" if quick else "make bench"  # `smoke` is as quick
    write_table(out, pd.DataFrame([asdict(row) for row in rows]).assign(command=command), command=command)
    return rows


# --- the figures -----------------------------------------------------------------------------------------------------
def one_pass_teacher(policy: Policy, turns: int) -> Row:
    """Seconds to score a rollout turn by turn, each turn with its whole past, over seconds in one pass."""
    episodes = scripted_rollouts(policy, 8)
    acted = islice(cycle(chain.from_iterable(episode.turns for episode in episodes)), turns)
    rollout = replace(episodes[0], turns=tuple(acted))
    tree, nodes = teacher_tree(policy, rollout, "hero", oracle([rollout])[0].diagnoses)
    paths = [alone(tree, node) for node in nodes if node is not None]
    seconds = interleaved(lambda: [logprobs(policy, [path]) for path in paths], lambda: logprobs(policy, [tree]))
    return Row.of(f"one_pass_teacher_{turns}_turns", [by_turn / at_once for by_turn, at_once in seconds])


def cached_rollouts(policy: Policy, tasks: int) -> Row:
    """Seconds to generate the same episodes with `generate`, every turn from scratch, over seconds with our cache."""

    def act() -> list[Rollout]:
        return collect(policy, "retail", envs.make("retail").tasks("train", tasks), seed=0, batch_size=tasks)

    rollouts = act()
    seconds = interleaved(lambda: regenerate(policy, rollouts), act)
    return Row.of("cached_rollouts", [scratch / cached for scratch, cached in seconds])


def training_utilisation(policy: Policy, tasks: int) -> Row:
    """Model FLOP utilisation of an update: its necessary operations per second over those of a large product."""
    config = TrainConfig(arm="oracle_hero")
    rollouts = scripted_rollouts(policy, tasks)
    diagnoses = [reflection.diagnoses for reflection in oracle(rollouts)]
    student = add_student(policy, rank=config.rank, seed=0)
    optimizer = AdapterOptimizer(student)
    needed = sum(update_operations(student, rollouts, diagnoses))

    square, repeats = torch.randn(GEMM, GEMM, device=policy.device, dtype=policy.dtype), 32
    seconds = interleaved(
        lambda: [square @ square for _ in range(repeats)],
        lambda: distil(student, optimizer, rollouts, diagnoses, config, update=0),
    )
    pace = repeats * 2 * GEMM**3  # operations of the products
    return Row.of("training_flop_utilisation", [(needed / update) / (pace / gemm) for gemm, update in seconds])


def peak_memory() -> Row:
    """The most memory this process has held so far, over the 6 GB that it may hold."""
    return Row.of("peak_memory_of_6_GB", [peak_bytes() / (MEMORY_GB * 1e9)])


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    import resource  # not on Windows
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- what they compare -----------------------------------------------------------------------------------------------
def interleaved(
    first: Callable[[], object], second: Callable[[], object], pairs: int = PAIRS
) -> list[tuple[float, float]]:
    """Seconds of both, taking turns; the second runs once before that, unmeasured, so that its memory is there."""

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    second()
    return [(seconds(first), seconds(second)) for _ in range(pairs)]


def scripted_rollouts(policy: Policy, tasks: int) -> list[Rollout]:
    """Episodes of the agent with bad habits, as the warm-up sees them."""
    draw, config = rng(0, "bench"), WarmupConfig()
    every = envs.make("retail").tasks("warmup", tasks)
    return [scripted_episode(policy, task, draw, config).rollout for task in every]


def alone(tree: Tree, number: int) -> Tree:
    """One path from root to node as a tree of its own, with the node's tokens scored."""
    node, above = tree.nodes[number], tree.nodes[number].parent
    past: list[int] = []
    while above is not None:
        past = [*tree.nodes[above].ids, *past]
        above = tree.nodes[above].parent
    return Tree.chain([(past, False), (node.ids, True)])


def regenerate(policy: Policy, rollouts: Sequence[Rollout]) -> list[list[list[int]]]:
    """The episodes' own tokens again, by transformers' `generate`: one batch per turn, each row its whole context.

    returns per turn and row the tokens that came out, filled up with the end of turn
    """
    spoken = []
    layouts = [[ids for ids, _ in segments(policy, rollout)] for rollout in rollouts]
    for turn in range(max(len(rollout.turns) for rollout in rollouts)):
        live = [parts for parts, rollout in zip(layouts, rollouts, strict=True) if turn < len(rollout.turns)]
        contexts = [list(chain.from_iterable(parts[: 2 * turn + 1])) for parts in live]
        actions = [parts[2 * turn + 1] for parts in live]
        width, longest = max(map(len, contexts)), max(map(len, actions))
        ids = torch.tensor([[policy.eos_id] * (width - len(context)) + context for context in contexts])
        seen = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in contexts])

        def said(row: int, so_far: Tensor, actions: list[list[int]] = actions, width: int = width) -> list[int]:
            place = len(so_far) - width
            return [actions[row][place] if place < len(actions[row]) else policy.eos_id]

        new = policy.model.generate(
            ids.to(policy.device), attention_mask=seen.to(policy.device), max_new_tokens=longest, do_sample=False,
            prefix_allowed_tokens_fn=said, eos_token_id=policy.eos_id, pad_token_id=policy.eos_id,
        )  # fmt: skip
        spoken.append(new[:, width:].tolist())
    return spoken


def update_operations(
    student: Policy, rollouts: Sequence[Rollout], diagnoses: Sequence[Sequence]
) -> tuple[float, float]:
    """Floating-point operations an update cannot do without: in products with weights, and in attention.

    Teacher forward, student forward and backward. A product costs 2 per weight and token, attention 4 per layer,
    width, token and token it sees. The way back costs the same again for frozen weights (gradients of their inputs
    alone) and twice that for the adapter and for attention. Padding, masked attention and the loss count as nothing.
    """
    base, config = student.model.get_base_model(), student.model.config
    adapter = sum(weight.numel() for weight in student_weights(student.model).values())
    layers = sum(weight.numel() for weight in base.get_decoder().layers.parameters()) - adapter
    head = base.get_output_embeddings().weight.numel()
    width = config.num_hidden_layers * base.get_decoder().layers[0].self_attn.q_proj.out_features

    products = attention = 0.0
    for rollout, of_turns in zip(rollouts, diagnoses, strict=True):
        taught, nodes = teacher_tree(student, rollout, "hero", of_turns)
        trained = student_tree(student, rollout, [node is not None for node in nodes])
        products += 2 * (layers * len(taught) + head * scored_tokens(taught))
        products += 4 * (layers * len(trained) + head * scored_tokens(trained)) + 6 * adapter * len(trained)
        attention += width * (4 * seen_pairs(taught) + 12 * seen_pairs(trained))
    return products, attention


def scored_tokens(tree: Tree) -> int:
    return sum(len(node.ids) for node in tree.nodes if node.scored)


def seen_pairs(tree: Tree) -> int:
    """How many (token, token it sees) there are."""
    return sum(len(node.ids) * node.depth + len(node.ids) * (len(node.ids) + 1) // 2 for node in tree.nodes)
