"""Where the full-demo teacher's demonstrations come from: a complete successful run of the same task, never one's own.

HERO does not say where it takes them from [?]; the source is a switch and its share is reported (our choice).
"""

from __future__ import annotations

from collections.abc import Sequence

from hero_mini import envs
from hero_mini.config import TrainConfig
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, play
from hero_mini.runtime import rng

EXPERT_TURNS = 100  # a demonstration is complete, however few turns the student has


def expert_run(policy: Policy, env: str, task_id: str) -> Rollout:
    """The scripted expert's run of a task, from its first turn to its success."""
    world = envs.make(env, max_turns=EXPERT_TURNS)
    return play(policy, world, world.task_named(task_id), lambda e: str(e.expert()))


def siblings(rollout: Rollout, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The other successful rollouts of the same task."""
    return [r for r in rollouts if r.task_id == rollout.task_id and r.success and r.turns != rollout.turns]


def demonstrations(policy: Policy, rollouts: Sequence[Rollout], config: TrainConfig) -> list[Rollout]:
    """A demonstration for every rollout of an update.

    With `config.demo` "sibling", another successful rollout of the same task, and the expert's where there is none.
    """
    found = []
    for rollout in rollouts:
        if config.demo == "sibling" and (others := siblings(rollout, rollouts)):
            found.append(rng(config.seed, "sibling", rollout.task_id, rollout.repeat).choice(others))
        else:
            found.append(expert_run(policy, rollout.env, rollout.task_id))
    return found
