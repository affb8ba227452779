"""One loop for every arm: roll out, reflect, score, distil, log.

An arm is a choice of teacher context and of where its diagnoses come from, see `config.ARMS`. Several processes can
share the work, see `parallel`: each acts on its `share` of the tasks, and `gather` gives all of them everything.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from hero_mini import reflect
from hero_mini.config import ARMS, TrainConfig
from hero_mini.demos import demo_shares, demonstrations
from hero_mini.distil import distil
from hero_mini.lora import as_teacher
from hero_mini.models import Policy
from hero_mini.parallel import gather, share
from hero_mini.reflect import Reflection
from hero_mini.rollout import Rollout, Usage, collect
from hero_mini.run import Clock, Run
from hero_mini.seeds import rng


def train(policy: Policy, config: TrainConfig, out: str | Path, *, progress: bool = False) -> Policy:
    """Train a student of `policy` and return it; the folder `out` gets config.json, metrics.csv and adapter/, and
    the agent after every update in updates/1/, updates/2/, ...

    A run that was killed goes on after its last whole update, with the numbers of an uninterrupted run. One that was
    interrupted by hand leaves the agent of that update in adapter/, too.
    raises HeroError: `out` holds a run with another configuration, or there are more processes than tasks
    """
    with Run(policy, config, Path(out)) as run:
        arm, student = ARMS[config.arm], run.student
        bar = tqdm(range(run.updates_done, config.updates), desc=config.arm, disable=not progress)
        for update in bar:
            if run.budget_spent:
                break
            clock, usage = Clock(), {"acting": Usage(), "reflecting": Usage()}
            # 1 roll out
            own = collect(
                student,
                config.env,
                share(run.tasks(update)),
                seed=run.rollout_seed(update),
                repeats=config.group,
                usage=usage["acting"],
                **config.rollout_settings,
            )
            rollouts = gather(own)
            clock.lap("acting")
            # 2 reflect, as the agent was before training: a student that trains on actions alone forgets how
            with as_teacher(student, "frozen") as reflector:
                draw = rng(config.seed, "shuffle", update)
                reflections = reflect_on(reflector, own, config, draw, usage["reflecting"])
            clock.lap("reflecting")
            # 3 score and 4 distil
            demos = demonstrations(student, rollouts, config) if arm.context == "full_demo" else None
            step = distil(student, run.optimizer, rollouts, [r.diagnoses for r in reflections], config, update, demos)
            step |= demo_shares(demos or [], rollouts)
            clock.lap("distilling")
            # 5 log
            row = run.log(update, rollouts, reflections, step, usage, clock)
            bar.set_postfix(success=f"{row['success']:.2f}", turns=f"{row['turns']:.1f}", loss=f"{row['loss']:.3f}")
    return student


def reflect_on(
    policy: Policy, rollouts: Sequence[Rollout], config: TrainConfig, draw: random.Random, usage: Usage
) -> list[Reflection]:
    """Diagnoses of all processes' rollouts as the arm wants them; empty ones in an arm without a reflector.

    rollouts: this process's own
    """
    arm = ARMS[config.arm]
    if arm.reflector is None:
        return gather([Reflection((None,) * len(r.turns), "") for r in rollouts])
    limits = {"max_action_tokens": config.max_action_tokens, "batch_size": config.batch_size}
    own = reflect.self_reflector(policy, **limits, usage=usage)
    reflections = gather((reflect.oracle if arm.reflector == "oracle" else own)(rollouts))
    return reflect.shuffled(reflections, draw) if arm.shuffled else reflections
