"""Steps 3 and 4, score and distil: the student moves towards its teacher, along its reward (GRPO), or both.

The teacher's pass and the student's pass go over the same groups of rollouts, so that their (N, V) logits exist for
one group at a time; the weights of the loss make the sum over groups equal to the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from hero_mini.config import ARMS, TrainConfig
from hero_mini.errors import HeroError
from hero_mini.grpo import advantages, kl_estimate, surrogate
from hero_mini.lora import AdapterOptimizer, as_teacher, checkpointing
from hero_mini.losses import token_divergence, token_weights
from hero_mini.models import Policy
from hero_mini.parallel import share, totals
from hero_mini.reflect import Diagnosis, outcome
from hero_mini.rollout import Rollout
from hero_mini.seeds import rng
from hero_mini.teacher import add_trunk, teacher_tree
from hero_mini.tree import Scored, Tree, batches, forward


@dataclass(frozen=True)
class Lesson:
    """What one rollout has to teach."""

    rollout: Rollout
    student: Tree
    teacher: Tree | None  # None: no turn has a hint
    hinted: frozenset[int]  # nodes of the student's tree whose tokens are compared with the teacher's
    advantage: float  # 0 without contrast, and in arms without GRPO


def distil(
    student: Policy,
    optimizer: AdapterOptimizer,
    rollouts: Sequence[Rollout],
    diagnoses: Sequence[Sequence[Diagnosis | None]],
    config: TrainConfig,
    update: int,
    demos: Sequence[Rollout | None] | None = None,
) -> dict[str, float]:
    """At most `config.steps` optimiser steps on the rollouts of one update; returns losses, gradient norm and counts.

    All rollouts of a task are dealt into the same step: GRPO's advantages add up to 0 within a task alone.
    diagnoses: per rollout, per turn; demos: per rollout, for the context full_demo; None: this one is not taught
    raises HeroError: the arm full_demo without `demos`
    """
    if demos is None and ARMS[config.arm].context == "full_demo":
        raise HeroError(f"arm {config.arm} needs a demonstration, or None, for every rollout; pass demos=")
    found = [
        lesson(student, rollout, diagnoses[i], demos[i] if demos else None, advantage, config)
        for i, (rollout, advantage) in enumerate(zip(rollouts, _advantages(rollouts, config), strict=True))
    ]
    result = {"loss": 0.0, "kl_teacher": 0.0, "tokens_teaching": 0, "tokens_training": 0}
    norm, steps = 0.0, 1
    found = [one for one in found if one.hinted or one.advantage or _anchored(config)]
    found = [one for one in found if config.outcomes in ("all", outcome(one.rollout))]
    hinted = sum(len(one.hinted) for one in found) / sum(len(r.turns) for r in rollouts)
    if found:
        tasks = _by_task(found)
        rng(config.seed, "deal", update).shuffle(tasks)
        steps = min(config.steps, len(tasks))
        for step in range(steps):
            _descend(student, list(chain.from_iterable(tasks[step::steps])), config, result)
            done = update * config.steps + step
            warm = min(1.0, (done + 1) / (3 * config.steps))  # Adam's first steps are large whatever the gradient
            norm += optimizer.step(config.lr * warm)
    result = totals(result) | {"grad_norm": norm, "hinted": hinted}
    return result | {name: result[name] / steps for name in ("loss", "kl_teacher", "grad_norm")}


def lesson(
    student: Policy,
    rollout: Rollout,
    diagnoses: Sequence[Diagnosis | None],
    demo: Rollout | None,
    advantage: float,
    config: TrainConfig,
) -> Lesson:
    """The two trees of one rollout: as the student saw it, and as the arm's teacher sees it.

    With `config.hints` "all", the teacher of a turn without a diagnosis reads the observation and the outcome alone. In
    the arm full_demo, a rollout without a demonstration has no hint. Nor has what would not fit into the context.
    """
    context, nodes, told = ARMS[config.arm].context, [None] * len(rollout.turns), None
    if context == "full_demo" and demo is None:
        context = None
    if context is not None:
        diagnoses = heeded(diagnoses, config)
        every = config.hints == "all"
        told, nodes = teacher_tree(student, rollout, context, diagnoses, demo, always=every, fitting=True)
    scored = [node is not None or advantage != 0 or _anchored(config) for node in nodes]
    own = Tree()
    actions = add_trunk(student, own, rollout, scored=scored).actions
    hinted = frozenset(action for action, node in zip(actions, nodes, strict=True) if node is not None)
    return Lesson(rollout, own, told if hinted else None, hinted, advantage)


def heeded(diagnoses: Sequence[Diagnosis | None], config: TrainConfig) -> list[Diagnosis | None]:
    """The diagnoses as the teacher reads them: without those that `config` leaves out."""
    kept = [d if d and d.confidence >= config.min_confidence else None for d in diagnoses]
    if config.hints == "blamed":
        kept = [d if d and d.verdict != "necessary" else None for d in kept]
    if config.corrections == "dropped":
        kept = [d and replace(d, better=None) for d in kept]
    return kept


def _advantages(rollouts: Sequence[Rollout], config: TrainConfig) -> list[float]:
    if not config.grpo_share:
        return [0.0] * len(rollouts)
    return advantages([r.reward for r in rollouts], [r.task_id for r in rollouts], config.advantage)


def _anchored(config: TrainConfig) -> bool:
    """Whether GRPO's KL holds all rollouts near the frozen agent, those without hint and advantage, too."""
    return config.grpo_share > 0 and config.kl > 0


def _by_task(lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    """The lessons of each task together, tasks in the order in which they first come up."""
    found: dict[str, list[Lesson]] = {}
    for one in lessons:
        found.setdefault(one.rollout.task_id, []).append(one)
    return list(found.values())


def _action_tokens(lessons: Sequence[Lesson]) -> int:
    return sum(len(turn.token_ids) for one in lessons for turn in one.rollout.turns)


def _descend(student: Policy, lessons: Sequence[Lesson], config: TrainConfig, result: dict[str, float]) -> None:
    """Gather this process's share of the gradient of one optimiser step, and add its numbers to `result`."""
    taught = sum(bool(one.hinted) for one in lessons)
    credited = _action_tokens([one for one in lessons if one.advantage])
    for group in share(list(batches([one.teacher or one.student for one in lessons], config.max_tokens))):
        chosen = [lessons[i] for i in group]
        told = [one for one in chosen if one.teacher is not None]
        target = None
        if told:
            with as_teacher(student, config.teacher) as teacher, torch.no_grad():
                target = forward(teacher, [one.teacher for one in told])
        with checkpointing(student, config.gradient_checkpointing):
            scored = forward(student, [one.student for one in chosen])
        loss = scored.logprobs.new_zeros(())
        if target is not None:
            divergence, gap = _distillation(scored, target, chosen, taught, config)
            loss = loss + (1 - config.grpo_share) * divergence
            result["kl_teacher"] += gap
        if credited:
            loss = loss + config.grpo_share * _credit(scored, chosen, config) / credited
        if _anchored(config):
            loss = loss + config.grpo_share * config.kl * _drift(student, scored, chosen) / _action_tokens(lessons)
        loss.backward()
        result["loss"] += loss.item()
        result["tokens_teaching"] += sum(len(one.teacher) for one in told)
        result["tokens_training"] += sum(len(one.student) for one in chosen)


def _distillation(
    scored: Scored, target: Scored, lessons: Sequence[Lesson], taught: int, config: TrainConfig
) -> tuple[Tensor, float]:
    """HERO's loss on the hinted tokens of a group, and the mean of log pi_S - log pi_T on the sampled ones, in nats.

    The latter is no estimate of KL(student || teacher): the teacher has read what came of the tokens.
    """
    places = zip(scored.tree.tolist(), scored.node.tolist(), strict=True)
    hinted = torch.tensor([node in lessons[row].hinted for row, node in places], device=scored.ids.device)
    if not torch.equal(scored.ids[hinted], target.ids):
        raise AssertionError("student and teacher must score the same token ids")
    if not scored.logprobs.isfinite().all():
        raise HeroError(
            "the student's probabilities are no numbers any more: set a lower lr, in a new folder, or dtype to float32"
        )
    divergence = token_divergence(
        scored.logits[hinted].log_softmax(-1),
        target.logits.log_softmax(-1),
        divergence=config.divergence,
        weight=config.weight,
        top_k=config.top_k,
    )  # (N,) nats
    weights = token_weights(scored.node[hinted], scored.tree[hinted], n_rollouts=taught)
    gap = (weights * (scored.logprobs.detach()[hinted] - target.logprobs)).sum().item()
    return (weights * divergence).sum(), gap


def _credit(scored: Scored, lessons: Sequence[Lesson], config: TrainConfig) -> Tensor:
    """The GRPO surrogate summed over a group's action tokens; rollouts without an advantage add nothing."""
    device = scored.ids.device
    advantage = torch.tensor([one.advantage for one in lessons], device=device)[scored.tree]  # (N,)
    mine = torch.tensor([one.advantage != 0 for one in lessons], device=device)[scored.tree]  # (N,) bool
    now = scored.logprobs[mine]
    sampled = torch.tensor([lp for one in lessons if one.advantage for t in one.rollout.turns for lp in t.logprobs])
    return surrogate(now, sampled.to(now), advantage[mine], config.clip).sum()


def _drift(student: Policy, scored: Scored, lessons: Sequence[Lesson]) -> Tensor:
    """The estimate of KL(student || frozen agent) summed over all action tokens of a group, in nats."""
    with as_teacher(student, "frozen") as reference, torch.no_grad():
        anchor = forward(reference, [one.student for one in lessons]).logprobs
    return kl_estimate(scored.logprobs, anchor).sum()
