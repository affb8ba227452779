"""One loop for every arm: roll out, reflect, score, distil, log.

An arm is a choice of teacher context and of where its diagnoses come from, see `config.ARMS`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from hero_mini import reflect
from hero_mini.config import ARMS, Arm, TrainConfig
from hero_mini.lora import AdapterOptimizer, as_teacher
from hero_mini.losses import token_divergence, token_weights
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, Reflection
from hero_mini.rollout import Rollout, Usage, collect
from hero_mini.run import Clock, Run
from hero_mini.runtime import rng
from hero_mini.teacher import student_tree, teacher_tree
from hero_mini.tree import batches, forward


def train(policy: Policy, config: TrainConfig, out: str | Path, *, progress: bool = False) -> Policy:
    """Train a student of `policy` and return it; the folder `out` gets config.json, metrics.csv and adapter/.

    A run that was killed goes on after its last whole update, with the numbers of an uninterrupted run.
    raises HeroError: `out` holds a run with another configuration
    """
    run = Run(policy, config, Path(out))
    arm, student = ARMS[config.arm], run.student
    bar = tqdm(range(run.updates_done, config.updates), desc=config.arm, disable=not progress)
    for update in bar:
        clock, usage = Clock(), {"acting": Usage(), "reflecting": Usage()}
        # 1 roll out
        rollouts = collect(
            student,
            config.env,
            run.tasks(update),
            seed=run.rollout_seed(update),
            temperature=config.temperature,
            max_turns=config.max_turns,
            usage=usage["acting"],
        )
        clock.lap("acting")
        # 2 reflect, as the agent was before training: a student that trains on actions alone forgets how
        with as_teacher(student, "frozen") as reflector:
            reflections = reflect_on(reflector, rollouts, arm, rng(config.seed, "shuffle", update), usage["reflecting"])
        clock.lap("reflecting")
        # 3 score and 4 distil
        step = distil(student, run.optimizer, rollouts, [r.diagnoses for r in reflections], config, update)
        clock.lap("distilling")
        # 5 log
        row = run.log(update, rollouts, reflections, step, usage, clock)
        bar.set_postfix(success=f"{row['success']:.2f}", turns=f"{row['turns']:.1f}", loss=f"{row['loss']:.3f}")
    run.finish()
    return student


def reflect_on(
    policy: Policy, rollouts: Sequence[Rollout], arm: Arm, draw: random.Random, usage: Usage
) -> list[Reflection]:
    """Diagnoses of finished rollouts as the arm wants them."""
    reflector = reflect.oracle if arm.reflector == "oracle" else reflect.self_reflector(policy, usage=usage)
    reflections = reflector(rollouts)
    return reflect.shuffled(reflections, draw) if arm.shuffled else reflections


def distil(
    student: Policy,
    optimizer: AdapterOptimizer,
    rollouts: Sequence[Rollout],
    diagnoses: Sequence[Sequence[Diagnosis | None]],
    config: TrainConfig,
    update: int,
) -> dict[str, float]:
    """One optimiser step towards the teacher on the turns with a hint; returns loss, gradient norm and counts.

    The teacher's pass and the student's pass go over the same groups of rollouts, so that their (N, V) logits exist
    for one group at a time; the weights of the loss make the sum over groups equal to the loss of the whole batch.
    """
    context = ARMS[config.arm].context
    built = [teacher_tree(student, r, context, d) for r, d in zip(rollouts, diagnoses, strict=True)]
    hinted = [i for i, (_, nodes) in enumerate(built) if any(n is not None for n in nodes)]
    result = {"loss": 0.0, "kl_teacher": 0.0, "grad_norm": 0.0, "tokens_teaching": 0, "tokens_training": 0}
    for group in batches([built[i][0] for i in hinted], config.max_tokens):
        indices = [hinted[g] for g in group]
        with as_teacher(student, config.teacher) as teacher, torch.no_grad():
            target = forward(teacher, [built[i][0] for i in indices])
        trees = [student_tree(student, rollouts[i], [n is not None for n in built[i][1]]) for i in indices]
        scored = forward(student, trees)
        if not torch.equal(scored.ids, target.ids):
            raise AssertionError("student and teacher must score the same token ids")
        divergence = token_divergence(
            scored.logits.log_softmax(-1),
            target.logits.log_softmax(-1),
            divergence=config.divergence,
            weight=config.weight,
            top_k=config.top_k,
        )  # (N,) nats
        weights = token_weights(scored.node, scored.tree, n_rollouts=len(hinted))
        loss = (weights * divergence).sum()
        loss.backward()
        result["loss"] += loss.item()
        result["kl_teacher"] += (weights * (scored.logprobs.detach() - target.logprobs)).sum().item()
        result["tokens_teaching"] += sum(len(built[i][0]) for i in indices)
        result["tokens_training"] += sum(map(len, trees))
    if hinted:
        warm = min(1.0, (update + 1) / 3)  # Adam's first steps are large whatever the gradient
        result["grad_norm"] = optimizer.step(config.lr * warm)
    return result
