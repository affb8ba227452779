"""Where the full-demo teacher's demonstrations come from: a complete successful run of the same task, never one's own.

HERO does not say where it takes them from [?]; the source is a switch and its share is reported (our choice). Runs with
the same actions are one run here: whoever sampled it, its text would tell the rollout nothing but what it did.
"""

from __future__ import annotations

from collections.abc import Sequence

from hero_mini import envs
from hero_mini.config import TrainConfig
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, play
from hero_mini.seeds import rng

EXPERT_TURNS = 100  # a demonstration is complete, however few turns the student has


def expert_run(policy: Policy, env: str, task_id: str) -> Rollout:
    """The scripted expert's run of a task, from its first turn to its success."""
    world = envs.make(env, max_turns=EXPERT_TURNS)
    return play(policy, world, world.task_named(task_id), lambda e: str(e.expert()))


def sibling(rollout: Rollout, rollouts: Sequence[Rollout], seed: int) -> Rollout | None:
    """One of the successful rollouts of the same task with other actions, drawn; None if there is none."""
    others = [r for r in rollouts if r.task_id == rollout.task_id and r.success and r.actions != rollout.actions]
    return rng(seed, "sibling", rollout.task_id, rollout.repeat).choice(others) if others else None


def demonstrations(policy: Policy, rollouts: Sequence[Rollout], config: TrainConfig) -> list[Rollout | None]:
    """A demonstration for every rollout of an update; None for one that acts just like the expert, or if that fails.

    With `config.demo` "sibling", another successful rollout of the same task, and the expert's where there is none.
    """
    found: list[Rollout | None] = []
    for rollout in rollouts:
        if config.demo == "sibling" and (other := sibling(rollout, rollouts, config.seed)):
            found.append(other)
        else:
            expert = expert_run(policy, rollout.env, rollout.task_id)
            found.append(expert if expert.success and expert.actions != rollout.actions else None)
    return found


def demo_shares(demos: Sequence[Rollout | None], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """For the log: which share of the demonstrations is the agent's own, and which share of the rollouts has none."""
    given = [demo for demo in demos if demo is not None]
    own = sum(demo in rollouts for demo in given)
    return {"sibling_demos": own / max(1, len(given)), "no_demo": (len(demos) - len(given)) / len(rollouts)}
