"""The warm-up: three skills a 135M model lacks and the paper's 4B model has, taught on tasks of their own.

1. Acting: imitate a scripted agent with bad habits, so that the base agent has room to improve on purpose.
2. Reflecting: write the oracle's diagnosis of every turn once the episode is over.
3. Reading a context literally: every kind of context in equal shares, with targets drawn from the *same* bad-habit
   policy and filtered by nothing but what the context says. A hint "Better: X" is followed by X, whatever X is worth;
   "necessary" beside an answer is followed by an action that gets this answer, whatever it is worth. Teaching this with
   the expert's actions would turn any context into a switch to the expert; the shuffled control would show it.

All of this is our choice: the paper's model needs no warm-up.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from tqdm.auto import tqdm

from hero_mini import envs
from hero_mini.config import ADAPTERS, WARMUPS, WarmupConfig
from hero_mini.envs.base import Action, Task, task_id
from hero_mini.errors import HeroError, first_line
from hero_mini.files import (
    UNFIT,
    alone,
    atomic_save,
    check_adapter_folder,
    check_out,
    load_saved,
    read_json,
    whole_folder,
)
from hero_mini.lora import AdapterOptimizer, add_student, load_student, student_weights
from hero_mini.models import WARMUP_FILE, Policy
from hero_mini.reflect import Diagnosis, ask_about, oracle
from hero_mini.rollout import Rollout, collect, play
from hero_mini.seeds import rng
from hero_mini.teacher import add_branch, add_trunk, privileged_text
from hero_mini.tree import Tree, batches, forward

CHECKPOINT_EVERY = 20  # optimiser steps
MAX_DRAWS = 12  # tries to draw an action that fits a context before the example is dropped


@dataclass(frozen=True)
class Episode:
    """A rollout with the environment as it stood before each turn, to ask what else could have happened."""

    rollout: Rollout
    states: tuple[envs.Env, ...]
    own: bool = False  # sampled by the model itself; else by the scripted agent


def scripted_episode(policy: Policy, task: Task, draw: random.Random, config: WarmupConfig) -> Episode:
    """One episode of the bad-habit agent, as if the model had sampled it."""
    env = envs.make(task.id.split("/")[0], max_turns=config.max_turns)
    rollout = play(policy, env, task, lambda env: str(env.scripted(draw, config.skill)), seed=config.seed)
    return Episode(rollout, _states(rollout, config))


def own_episodes(policy: Policy, indices: Sequence[int], config: WarmupConfig) -> dict[int, Episode]:
    """The episodes with these numbers, sampled by the policy as it is now."""
    found = {}
    for name in dict.fromkeys(config.envs):
        mine = [index for index in indices if config.envs[index % len(config.envs)] == name]
        if mine:
            tasks = [_task(index, config) for index in mine]
            rollouts = collect(policy, name, tasks, seed=config.seed, max_turns=config.max_turns)
            found |= {i: Episode(r, _states(r, config), own=True) for i, r in zip(mine, rollouts, strict=True)}
    return found


def _states(rollout: Rollout, config: WarmupConfig) -> tuple[envs.Env, ...]:
    """The environment as it stood before each turn, found by taking the actions again."""
    env = envs.make(rollout.env, max_turns=config.max_turns)
    env.reset(seed=rollout.seed, options={"task": env.task_named(rollout.task_id)})
    states = []
    for turn in rollout.turns:
        states.append(env.clone())
        env.step(turn.action)
    return tuple(states)


def _task(index: int, config: WarmupConfig) -> Task:
    """The task of an episode; a later stage, with another seed, meets new ones."""
    name = config.envs[index % len(config.envs)]
    return envs.make(name).task_named(task_id(name, "warmup", index, config.seed))


@dataclass(frozen=True)
class Example:
    """A tree with a weight per scored node."""

    tree: Tree
    weights: dict[int, float]


def episode_example(
    policy: Policy, episode: Episode, draw: random.Random, config: WarmupConfig, *, branches: bool
) -> Example:
    """Acting at every turn, reflecting at the end and, with `branches`, one example of each local context.

    A turn teaches the expert's action and a bad habit, in the shares of `config.skill`, whatever was done: what the
    scripted agent did stands on the trunk, the rest on branches. So a state always tells what is best there, and the
    episodes themselves may hold more mistakes than are taught, or be the model's own: states after mistakes are where
    it will often have to act, and whose turns it will have to judge (DAgger, Ross et al. 2011).
    """
    rollout = episode.rollout
    tree = Tree()
    trunk = add_trunk(policy, tree, rollout, scored=[not episode.own] * len(rollout.turns))
    weights = {}
    for state, turn, decision, node in zip(episode.states, rollout.turns, trunk.decisions, trunk.actions, strict=True):
        done, best = None if episode.own else turn.action, str(state.expert())
        habit = str(state.scripted(draw, 0.0)) if done in (None, best) else done
        for action, share in ((best, config.skill), (habit, 1 - config.skill)):
            if action == done:
                weights[node] = weights.get(node, 0.0) + share  # a habit may be the best action
            else:
                ids = [*policy.encode(action), policy.eos_id]
                weights[tree.add(ids, tree.add(policy.header(), decision), scored=True)] = share
    last = rollout.turns[-1]
    here, between = trunk.end, policy.message(last.next_role, last.next_observation)
    (reflection,) = oracle([rollout])
    for t, diagnosis in enumerate(reflection.diagnoses):
        asked = tree.add(between + ask_about(policy, rollout, t), here)
        here = tree.add([*policy.encode(diagnosis.hint), policy.eos_id], asked, scored=True)
        weights[here] = config.reflection_weight
        between = policy.newline
    for context in ("diagnosis_only", "env_feedback", "hero") if branches else ():
        t = draw.randrange(len(rollout.turns))
        example = literal_example(context, episode, t, draw, config)
        if example is not None:
            text, target = example
            ids = [*policy.encode(str(target)), policy.eos_id]
            (node,) = add_branch(policy, tree, trunk.decisions[t], text, [ids])
            weights[node] = 1.0
    return Example(tree, weights)


def literal_example(
    context: str, episode: Episode, t: int, draw: random.Random, config: WarmupConfig
) -> tuple[str, Action] | None:
    """A privileged context about turn `t` and an action that obeys its words; None if none was found.

    The action always comes from the bad-habit policy. Verdict, observation, outcome and correction are drawn
    independently of how good it is.
    """
    state, turn = episode.states[t], episode.rollout.turns[t]

    def sample(skill: float = config.skill) -> tuple[Action, str, dict]:
        action = state.scripted(draw, skill)
        observation, _, _, _, info = state.clone().step(str(action))
        return action, observation, info

    action, observation, info = sample()
    result = draw.choice(("success", "failure"))
    about = replace(turn, next_observation=observation)
    if context == "env_feedback":
        text = privileged_text(context, about, result, None)
        if result == "success":
            return text, action
        for _ in range(MAX_DRAWS):  # a failure after an error: anything that does not get this error
            other, answer, _ = sample()
            if info["error"] is None or answer != observation:
                return text, other
        return None
    if draw.random() < 0.4:  # the action was right, whatever it was
        text = privileged_text(context, about, result, Diagnosis("necessary"))
        return text, action if context == "hero" else sample()[0]
    judged = chain([info], (sample(skill=0.0)[2] for _ in range(MAX_DRAWS)))  # a good action gets a bad habit's blame
    blame = next((f["oracle"] for f in judged if f["oracle"]["verdict"] != "necessary"), None)
    if blame is None:
        return None
    blamed = Diagnosis(blame["verdict"], blame["cause"])
    named = draw.random() < 0.6  # with a correction: it is followed; without: the same diagnosis is avoided
    for _ in range(MAX_DRAWS):
        other, answer, facts = sample()
        same = (facts["oracle"]["verdict"], facts["oracle"]["cause"]) == (blamed.verdict, blamed.cause)
        if str(other) != str(action) and (named or not same):
            diagnosis = replace(blamed, better=str(other)) if named else blamed
            return privileged_text(context, about, result, diagnosis), other
    return None


def demo_example(policy: Policy, task: Task, draw: random.Random, config: WarmupConfig) -> Example | None:
    """A successful bad-habit episode as a demonstration, followed step by step on its own path."""
    for _ in range(MAX_DRAWS):
        rollout = scripted_episode(policy, task, draw, config).rollout
        if rollout.success:
            tree = Tree()
            trunk = add_trunk(policy, tree, rollout, scored=[True] * len(rollout.turns), demo=rollout)
            return Example(tree, {node: 1.0 for node in trunk.actions})
    return None


def examples(policy: Policy, step: int, config: WarmupConfig, own: Mapping[int, Episode]) -> list[Example]:
    """All trees of one optimiser step, drawn from generators named after the episode; own: the model's own episodes."""
    first = step * config.batch
    found = []
    for index in range(first, first + config.batch):
        task, draw, here = _task(index, config), rng(config.seed, "warmup", index), config.at(index)
        episode = own.get(index) or scripted_episode(policy, task, draw, replace(here, skill=config.trunk_skill))
        branches, demonstrated = (bool(n) and index % n == 0 for n in (config.branch_every, config.demo_every))
        found.append(episode_example(policy, episode, draw, here, branches=branches))
        if demonstrated:
            demo = demo_example(policy, task, draw, here)
            found += [] if demo is None else [demo]
    return found


def weighted_nll(policy: Policy, group: Sequence[Example]) -> torch.Tensor:
    """Summed weighted negative log-likelihood of the scored tokens, a scalar in nats."""
    scored = forward(policy, [e.tree for e in group])
    weights = [group[row].weights[node] for row, node in zip(scored.tree.tolist(), scored.node.tolist(), strict=True)]
    return -(scored.logprobs * torch.tensor(weights, device=scored.logprobs.device)).sum()


def check_replaceable(out: Path, config: WarmupConfig) -> None:
    """raises HeroError: `out` holds something else than a warm-up with these settings"""
    check_adapter_folder(out)
    settings, file = json.loads(json.dumps(asdict(config))), out / WARMUP_FILE
    rebuilt = config == WarmupConfig() and out == ADAPTERS / WARMUPS["default"]  # shipped without the file
    if (out / "adapter_config.json").exists() and not rebuilt and not (file.is_file() and read_json(file) == settings):
        raise HeroError(f"{out} holds an adapter that is not of a warm-up with these settings; choose a new folder")


def warm_up(policy: Policy, out: Path, config: WarmupConfig | None = None, *, progress: bool = True) -> None:
    """Teach the three skills to an adapter of `policy` and write it to the folder `out`, in bf16.

    A run that was killed goes on from its last checkpoint, beside `out`, with the numbers of an uninterrupted one.
    raises HeroError: the checkpoint is damaged or has other settings, the adapter of `config.start` does not fit, or
        `out` holds something else than this warm-up
    """
    config = config or WarmupConfig()
    out = out.resolve()
    with alone(out.with_name(f"{out.name}.lock"), f"another warm-up is made in {out}; wait for it or stop it"):
        _teach(policy, out, config, progress=progress)


def _teach(policy: Policy, out: Path, config: WarmupConfig, *, progress: bool) -> None:
    """See `warm_up`."""
    check_replaceable(out, config)
    checkpoint, remedy = out.with_name(f"{out.name}.checkpoint"), "delete it, and the warm-up starts afresh"
    check_out(checkpoint)
    student = add_student(policy, rank=config.rank, seed=config.seed)
    if config.start:
        load_student(student, config.start)
    optimizer = AdapterOptimizer(student)
    first, steps = 0, config.episodes // config.batch
    if checkpoint.exists():
        saved = load_saved(checkpoint, remedy)
        try:
            if saved["config"] != asdict(config):
                raise HeroError(f"{checkpoint} belongs to a warm-up with other settings; {remedy}")
            first = int(saved["step"])
            optimizer.load_state(saved["optimizer"])
        except UNFIT as problem:
            why = first_line(problem)
            raise HeroError(f"{checkpoint} is no checkpoint of this warm-up ({why}); {remedy}") from problem
    bar = tqdm(range(first, steps), desc="warm-up", initial=first, total=steps, disable=not progress)
    own: dict[int, Episode] = {}
    for step in bar:
        if config.own_every and step % CHECKPOINT_EVERY == 0:  # also where a killed run goes on
            coming = range(step * config.batch, min(step + CHECKPOINT_EVERY, steps) * config.batch)
            own = own_episodes(student, [index for index in coming if index % config.own_every == 0], config)
        batch = examples(student, step, config, own)
        total = sum(sum(len(e.tree.nodes[n].ids) * w for n, w in e.weights.items()) for e in batch)
        loss = 0.0
        for group in batches([e.tree for e in batch], config.max_tokens):
            share = weighted_nll(student, [batch[i] for i in group]) / total
            share.backward()
            loss += share.item()
        optimizer.step(config.lr * min((step + 1) / 5, 1 - config.lr_fall * step / steps))
        bar.set_postfix(nll=f"{loss:.3f}")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            atomic_save(checkpoint, {"config": asdict(config), "step": step + 1, "optimizer": optimizer.state()})
    weights = {name: p.bfloat16() for name, p in student_weights(student.model).items()}
    with whole_folder(out) as folder:
        student.model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)  # else peft asks the hub
        (folder / WARMUP_FILE).write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
