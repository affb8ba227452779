"""The studies: lists of runs, and what is done for a run. `study` works them off.

Every arm is compared at the same budget of turns in the environment, whatever it costs in other respects: a training
command names the budget of the preset, and so many updates that nothing else ends it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hero_mini.config import WARMUPS, Sizes, TrainConfig, sizes
from hero_mini.envs import MINI
from hero_mini.errors import check_known

Setting = tuple[str, str | int | float]
OWN_LR = {"grpo": 1e-3}  # of the arms that reach the highest validation success of `grid_retail` not at the default


@dataclass(frozen=True)
class Step:
    """One command of a run, and the table that it leaves in the run's folder."""

    arguments: tuple[str, ...]  # of `python -m hero_mini`
    file: Path
    suffix: str  # of the study's table which takes the rows of the file
    env: str  # the environment they are about, if they are about one

    @property
    def key(self) -> str:
        """The command without the place of the run's folder."""
        return " ".join(self.arguments).replace(str(self.file.parent), ".")


@dataclass(frozen=True)
class Job:
    """One run: an arm trained from one seed (the arm "base" is not trained), then evaluated on held-out tasks."""

    arm: str
    seed: int
    settings: tuple[Setting, ...] = ()  # options of `train` that differ from its defaults and from the preset
    env: str = "retail"
    tests: tuple[str, ...] = ("retail",)  # environments it is evaluated on
    split: str = "test"
    ability: bool = False  # whether its general ability is measured too
    growth: bool = False  # whether the masses of page 07 are measured after each update
    k: int = 1  # rollouts per held-out task
    model: str = "default"  # see `models.load_policy`

    @property
    def variant(self) -> str:
        """The settings in words, empty for the defaults."""
        return " ".join(f"{name}={value}" for name, value in self.settings)

    @property
    def name(self) -> str:
        """The name of the run's folder; without the tests, so that studies with other tests share the training."""
        return "-".join([self.arm, self.env, *(f"{name}={value}" for name, value in self.settings), str(self.seed)])

    def steps(self, folder: Path, size: Sizes) -> list[Step]:
        """What is done for it, one command after the other, in a folder of its own."""
        who = model = () if self.model == "default" else ("--model", self.model)
        seed, label = ("--seed", str(self.seed)), ("--label", self.arm)
        found = []
        if self.arm != "base":
            what = ("--arm", self.arm, "--env", self.env, *seed, *self._options(size))
            train = ("train", *who, *what, "--out", str(folder))
            found.append(Step(train, folder / "metrics.csv", "_curves", self.env))
            who = (*who, "--adapter", str(folder / "adapter"))
        several, often = (f"-k{self.k}", ("--k", str(self.k))) if self.k > 1 else ("", ())
        for env in self.tests:
            file = folder / f"eval-{env}-{self.split}{several}.csv"
            where = ("--env", env, "--split", self.split, "--n", str(size.eval_tasks), *often)
            found.append(Step(("eval", *who, *where, *seed, *label, "--out", str(file)), file, "", env))
        if self.ability:
            file = folder / "ability.csv"
            found.append(Step(("ability", *who, *label, *seed, "--out", str(file)), file, "_ability", ""))
        if self.growth:
            file, n = folder / "growth.csv", max(2, size.eval_tasks // 8)
            grow = ("growth", *model, "--run", str(folder), "--n", str(n), "--out", str(file))
            found.append(Step(grow, file, "_growth", self.env))
        return found

    def _options(self, size: Sizes) -> list[str]:
        """Budget, tasks and settings of a training as options."""
        asked = {"budget": size.budget, "tasks": size.tasks, **dict(self.settings)}
        rollouts = int(asked["tasks"]) * int(asked.get("group", 1))
        asked.setdefault("updates", math.ceil(int(asked["budget"]) / rollouts))  # since a rollout has at least one turn
        return [text for name, value in asked.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def _seeds(n: int) -> range:
    """Those of results, from 1 on: seed 0 has chosen settings (`_grid_retail`), and its adapters begin with the very
    matrix that the warm-ups began with."""
    return range(1, n + 1)


def _hero_retail(size: Sizes) -> list[Job]:
    return [_run(arm, seed, (), size) for seed in _seeds(size.seeds) for arm in ("base", "hero", "shuffled_hero")]


def _headline(size: Sizes) -> list[tuple[str, tuple[Setting, ...]]]:
    """The arms of the main comparison, and what differs from their defaults."""
    plain = ("base", "hero", "shuffled_hero", "env_feedback", "full_demo")
    return [*((arm, ()) for arm in plain), ("grpo", _groups(size, 4))]


def _run(arm: str, seed: int, settings: tuple[Setting, ...], size: Sizes) -> Job:
    """A run in retail, at the arm's own learning rate.

    One of the main comparison gets more rollouts per held-out task, in every study, since studies share their runs.
    """
    k = size.headline_k if (arm, settings) in _headline(size) else 1
    return Job(arm, seed, _at_own_lr(arm, settings), k=k)


def _at_own_lr(arm: str, settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    return (*settings, ("lr", OWN_LR[arm])) if arm in OWN_LR else settings


def _retail(size: Sizes) -> list[Job]:
    measured = ("base", "hero", "full_demo")  # of which general ability says something
    return [
        replace(_run(arm, seed, settings, size), ability=arm in measured)
        for seed in _seeds(size.headline_seeds)
        for arm, settings in _headline(size)
        if arm != "shuffled_hero" or seed <= size.seeds  # a control, with as many seeds as an ablation
    ]


def _groups(size: Sizes, group: int) -> tuple[Setting, ...]:
    """Several rollouts per task, and as many rollouts per update as without groups."""
    return ("group", group), ("tasks", max(1, size.tasks // group))


def _ablations_retail(size: Sizes) -> list[Job]:
    changes: list[tuple[str, tuple[Setting, ...]]] = [
        ("base", ()),
        ("hero", ()),
        ("diagnosis_only", ()),  # reflection without the observation
        ("env_feedback", ()),  # the observation without reflection
        ("oracle_hero", ()),  # another reflector
        ("hero", (("hints", "blamed"),)),
        ("hero", (("corrections", "dropped"),)),
        ("hero", (("min_confidence", 0.8),)),
        ("hero", (("outcomes", "failure"),)),
        ("hero", (("teacher", "ema"),)),
        ("hero", (("teacher", "live"),)),
        ("hero", (("divergence", "forward_kl"),)),
        ("hero", (("divergence", "reverse_kl"),)),
        ("full_demo", (("demo", "sibling"), *_groups(size, 4))),
        ("hero_grpo", _groups(size, 4)),
    ]
    return [_run(arm, seed, settings, size) for seed in _seeds(size.seeds) for arm, settings in changes]


def _groups_retail(size: Sizes) -> list[Job]:
    sizes = [("base", ()), ("hero", ()), *((arm, _groups(size, g)) for arm in ("hero", "grpo") for g in (2, 4, 8))]
    return [_run(arm, seed, settings, size) for seed in _seeds(size.seeds) for arm, settings in sizes]


def _worlds(size: Sizes) -> list[Job]:
    """Only the evaluations that a claim needs: they cost more than the training. First HERO, then the other arms where
    the paper tests them: on the shop, and on the airline after retail. No learning rate was searched here: retail's."""
    hero = [
        job
        for seed in _seeds(size.seeds)
        for job in (
            Job("base", seed, tests=MINI),
            Job("hero", seed, env="webshop", tests=("webshop",)),
            Job("hero", seed, tests=MINI),
        )
    ]
    hero += [Job("hero", seed, env="airline", tests=("airline",)) for seed in _seeds(size.seeds)]
    return hero + [
        Job(arm, seed, _at_own_lr(arm, settings), env=env, tests=(test,))
        for seed in _seeds(size.seeds)
        for env, test in (("webshop", "webshop"), ("retail", "airline"))
        for arm, settings in _headline(size)
        if arm not in ("base", "hero", "shuffled_hero")
    ]


def _no_demos(size: Sizes) -> list[Job]:
    """The masses of page 07 are measured where the agent gets worse; of one seed, since it takes long."""
    return [replace(job, growth=job.arm == "full_demo" and job.seed == 1) for job in _no_hints(size)]


def _no_hints(size: Sizes) -> list[Job]:
    return [Job(arm, seed) for seed in _seeds(size.seeds) for arm in ("base", "hero", "full_demo")]


def _grid_retail(size: Sizes) -> list[Job]:
    """The same learning rates for every arm, so that none is compared at a rate that suits another.

    GRPO's best was the highest of them, so it got one more.
    """
    arms = [("hero", ()), ("env_feedback", ()), ("full_demo", ()), ("grpo", _groups(size, 4))]
    rates = [() if lr == TrainConfig.lr else (("lr", lr),) for lr in (2.5e-4, 5e-4, 1e-3)]  # the default goes unnamed
    grid = [("base", ()), *((arm, (*settings, *rate)) for arm, settings in arms for rate in rates)]
    grid += [("grpo", (*_groups(size, 4), ("lr", 2e-3)))]
    return [Job(arm, 0, settings, split="validation") for arm, settings in grid]


STUDIES: dict[str, Callable[[Sizes], list[Job]]] = {
    "hero_retail": _hero_retail,  # does HERO help, and do shuffled diagnoses not?
    "retail": _retail,  # every arm
    "ablations_retail": _ablations_retail,  # one setting changed at a time
    "groups_retail": _groups_retail,  # rollouts per task
    "worlds": _worlds,  # HERO on each world, from retail to the others, and the other arms
    "grid_retail": _grid_retail,  # settings of every arm, chosen on the validation split
    "no_demos": _no_demos,  # is it the warm-up that lets a demonstration help?
    "no_hints": _no_hints,  # and a diagnosis?
}

# which they start from, unless told otherwise
MODELS = {study: study if study in WARMUPS else "default" for study in STUDIES}


def jobs(name: str, preset: str, model: str | None = None) -> list[Job]:
    """The runs of a study, with its own model by default. raises HeroError: unknown name or preset"""
    check_known("study", name, STUDIES)
    return [replace(job, model=model or MODELS[name]) for job in STUDIES[name](sizes(preset))]
