"""The arms, the settings of training and warm-up, the presets: the one place for their defaults. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path

from hero_mini import envs
from hero_mini.errors import HeroError, check_known

ADAPTERS = Path(__file__).resolve().parent / "adapters"  # shipped: warm-ups of the embedded model
WARMUPS = {"default": "warmup"} | {name: name for name in ("worlds", "no_demos", "no_hints")}  # of the embedded model
TEMPERATURE = 1.0  # of sampled actions, in training and evaluation: the policy itself, neither sharpened nor flattened


def model_for(model: str, env: str) -> str:
    """The embedded model that knows a world: "default" has learnt retail alone, so elsewhere it stands for "worlds".

    raises HeroError: unknown world

    >>> model_for("default", "retail"), model_for("default", "webshop"), model_for("no_demos", "webshop")
    ('default', 'worlds', 'no_demos')
    """
    check_known("env", env, envs.ENVS)
    return "worlds" if model == "default" and env in envs.MINI and env != "retail" else model


@dataclass(frozen=True)
class Arm:
    """What distinguishes one way of training from another."""

    context: str | None  # the teacher's privileged context, see `teacher.CONTEXTS`; None: no teacher
    reflector: str | None = None  # where diagnoses come from: "self" or "oracle"
    shuffled: bool = False  # control: the same diagnoses dealt out at random over turns and rollouts
    grpo: bool = False  # the group-relative reward is part of the loss


ARMS: dict[str, Arm] = {
    "hero": Arm("hero", "self"),
    "oracle_hero": Arm("hero", "oracle"),
    "shuffled_hero": Arm("hero", "self", shuffled=True),
    "diagnosis_only": Arm("diagnosis_only", "self"),
    "env_feedback": Arm("env_feedback"),
    "full_demo": Arm("full_demo"),
    "grpo": Arm(None, grpo=True),
    "hero_grpo": Arm("hero", "self", grpo=True),
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on. The paper gives none of these values: all are our choice."""

    arm: str = "hero"
    env: str = "retail"
    seed: int = 0
    updates: int = 6
    tasks: int = 24  # per update
    group: int = 1  # rollouts per task, G of the paper; GRPO needs at least 2
    budget: int | None = None  # turns in the environment after which no further update starts
    max_turns: int = 10  # of an episode; the real benchmarks allow more, see `envs.turn_limit`
    max_action_tokens: int = 96
    batch_size: int = 64  # episodes in one cache while rolling out and reflecting
    temperature: float = TEMPERATURE
    lr: float = 5e-4  # of the adapter; rises over the first three updates, then stays
    steps: int = 6  # optimiser steps per update, each on its share of the rollouts
    rank: int = 16
    divergence: str = "jsd"
    weight: float = 0.5  # of the teacher in the JSD's mixture
    top_k: int | None = None  # None: the full vocabulary
    outcomes: str = "all"  # rollouts that train: "all", or those that ended in "success" or "failure"
    hints: str = "given"  # turns that train: "given" a hint, only the "blamed", or "all": the rest by what came back
    min_confidence: float = 0.0  # of a diagnosis; one that its reflector gave less probability is left empty
    corrections: str = "kept"  # in a diagnosis; or "dropped": the teacher reads verdict and cause alone
    teacher: str = "frozen"  # or "ema", or "live"
    ema_decay: float = 0.95  # per update
    demo: str = "expert"  # of full_demo; or "sibling": another success on the same task where there is one
    advantage: str = "group_std"  # of GRPO; or "group_mean"
    clip: float = 0.2  # of GRPO's probability ratio
    kl: float = 0.0  # weight of GRPO's KL to the frozen agent, a mean over all action tokens
    mix: float = 0.5  # GRPO's share where a teacher and the reward are mixed
    max_tokens: int = 4096  # padded tokens per forward pass
    gradient_checkpointing: bool = False  # less memory, slower: see `lora.checkpointing`

    def __post_init__(self) -> None:
        _check_kinds(self)
        for name, known in CHOICES.items():
            check_known(name, getattr(self, name), known)
        _check_ranges(self, TRAIN_RANGES)
        set_here = [name for name in READ_BY if getattr(self, name) != getattr(TrainConfig, name)]
        if unread := [name for name in set_here if not READ_BY[name](self, ARMS[self.arm])]:
            raise HeroError(f"arm {self.arm} makes no use of {', '.join(unread)} here; leave it at its default")
        if ARMS[self.arm].grpo and self.group < 2:
            raise HeroError(f"arm {self.arm} compares rollouts of the same task; set group to 2 or more")
        if self.demo == "sibling" and self.group < 2:
            raise HeroError("demo is sibling, the agent's other rollout of the same task; set group to 2 or more")
        if ARMS[self.arm].grpo and self.outcomes != "all":
            raise HeroError(f"arm {self.arm} compares successes with failures; set outcomes to all")

    @property
    def grpo_share(self) -> float:
        """GRPO's share of the loss: 0 without it, 1 without a teacher."""
        arm = ARMS[self.arm]
        return 0.0 if not arm.grpo else 1.0 if arm.context is None else self.mix

    @property
    def rollout_settings(self) -> dict[str, float]:
        """How an agent acts in training, as arguments of `rollout.collect`."""
        return {name: getattr(self, name) for name in ("temperature", "max_turns", "max_action_tokens", "batch_size")}


CHOICES: dict[str, Collection[str]] = {
    "arm": ARMS,
    "env": envs.ENVS,
    "divergence": ("jsd", "forward_kl", "reverse_kl"),
    "outcomes": ("all", "success", "failure"),
    "hints": ("given", "blamed", "all"),
    "corrections": ("kept", "dropped"),
    "teacher": ("frozen", "ema", "live"),
    "demo": ("expert", "sibling"),
    "advantage": ("group_std", "group_mean"),
}


@dataclass(frozen=True)
class WarmupConfig:
    """What the warm-up teaches and for how long: all our choice, the paper's model needs none."""

    envs: tuple[str, ...] = ("retail",)  # worlds, in turn
    start: str | None = None  # folder of an adapter to go on from; None: a fresh one
    episodes: int = 1300  # tasks of the warmup splits, one scripted episode each
    batch: int = 2  # episodes per optimiser step
    skill: float = 0.65  # share of expert actions in the scripted agent; the rest are bad habits
    skills: tuple[float, ...] = ()  # the same per entry of `envs`, where worlds differ; empty: `skill` for all
    trunk_skill: float = 0.65  # the same share in the episodes themselves, whose states are the ones taught in
    own_every: int = 0  # every so many episodes one that the model samples itself: states it gets into; 0: none
    max_turns: int = 10
    branch_every: int = 1  # every so many episodes one with an example of each local context; 0: none
    demo_every: int = 13  # and one with a demonstration, which is about six scored turns; 0: none
    reflection_weight: float = 2.0  # weight of a reflection token against an action token
    rank: int = 16
    lr: float = 1e-3  # peak, after five steps
    lr_fall: float = 0.9  # share of the peak that the learning rate loses, linearly, until the end
    max_tokens: int = 1200  # padded tokens per forward pass
    seed: int = 0

    def __post_init__(self) -> None:
        _check_kinds(self)
        for env in self.envs:
            check_known("env", env, envs.ENVS)
        if not self.envs:
            raise HeroError("envs is empty; name at least one world")
        _check_ranges(self, WARMUP_RANGES)
        if self.episodes < self.batch:
            raise HeroError(f"{self.episodes} episodes make no step of {self.batch}; ask for more, or set batch lower")
        if len(self.skills) not in (0, len(self.envs)):
            raise HeroError(f"{len(self.skills)} skills for {len(self.envs)} envs; give one for each, in their order")
        for every in ("own_every", "branch_every", "demo_every"):
            if getattr(self, every) > 1 and math.gcd(getattr(self, every), len(self.envs)) > 1:
                raise HeroError(f"{every} shares a divisor with the number of envs: some worlds would never come up")

    def at(self, index: int) -> WarmupConfig:
        """The settings of one episode: those of its world."""
        return replace(self, skill=self.skills[index % len(self.envs)]) if self.skills else self


RANGES: dict[str, Callable[[float], bool]] = {  # in words, and as a test that nan fails
    "above 0": lambda value: 0 < value < math.inf,
    "a number of 63 bits, not negative": lambda value: 0 <= value < 2**63,
    "at most a million": lambda value: value <= 1e6,
    "at most 1": lambda value: value <= 1,
    "from 0.001 to 1000": lambda value: 1e-3 <= value <= 1e3,
    "0 or more": lambda value: 0 <= value < math.inf,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "between 0 and 1": lambda value: 0 < value < 1,
}
COUNTS = "updates tasks group budget max_turns max_action_tokens batch_size steps rank top_k max_tokens"
TRAIN_RANGES = {
    "above 0": f"{COUNTS} lr clip",
    "at most a million": COUNTS,
    "at most 1": "lr",
    "from 0.001 to 1000": "temperature",
    "a number of 63 bits, not negative": "seed",
    "0 or more": "kl",
    "from 0 to 1": "min_confidence ema_decay mix",
    "between 0 and 1": "weight",
}
WARMUP_RANGES = {
    "above 0": "episodes batch max_turns rank lr max_tokens",
    "at most a million": "episodes batch max_turns rank max_tokens",
    "at most 1": "lr",
    "a number of 63 bits, not negative": "seed",
    "0 or more": "own_every branch_every demo_every reflection_weight",
    "from 0 to 1": "skill skills trunk_skill lr_fall",
}
READ_BY: dict[str, Callable[[TrainConfig, Arm], bool]] = {  # who makes use of a setting that changes the teaching
    **dict.fromkeys(("hints", "corrections"), lambda _, arm: arm.reflector is not None),
    "min_confidence": lambda _, arm: arm.reflector == "self",  # the oracle is always sure
    **dict.fromkeys(("divergence", "top_k", "teacher"), lambda _, arm: arm.context is not None),
    "weight": lambda config, arm: arm.context is not None and config.divergence == "jsd",
    "ema_decay": lambda config, arm: arm.context is not None and config.teacher == "ema",
    **dict.fromkeys(("advantage", "clip", "kl"), lambda _, arm: arm.grpo),
    "mix": lambda _, arm: arm.grpo and arm.context is not None,
    "demo": lambda _, arm: arm.context == "full_demo",
}


KINDS = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a text"),
}


def _check_kinds(config: TrainConfig | WarmupConfig) -> None:
    """NumPy's and torch's numbers become Python's. raises HeroError: a setting is of another kind than its field"""
    for field in fields(config):
        value, words = getattr(config, field.name), re.findall(r"\w+", field.type)  # such as tuple[float, ...]
        if getattr(value, "shape", None) == ():  # a number of NumPy's or torch's
            object.__setattr__(config, field.name, value := value.item())
        if words[0] == "tuple" and not isinstance(value, tuple):
            raise HeroError(f"{field.name} is {value!r}; it has to be a tuple")
        kind, what = KINDS[words[1] if words[0] == "tuple" else words[0]]
        for one in value if words[0] == "tuple" else () if value is None and "None" in words else (value,):
            if not isinstance(one, kind) or (isinstance(one, bool) and kind is not bool):
                raise HeroError(f"{field.name} is {one!r}; it has to be {what}")


def _check_ranges(config: TrainConfig | WarmupConfig, ranges: Mapping[str, str]) -> None:
    for words, names in ranges.items():
        for name in names.split():
            value = getattr(config, name)
            for one in value if isinstance(value, tuple) else () if value is None else (value,):
                if not RANGES[words](one):
                    raise HeroError(f"{name} is {one}; it has to be {words}")


@dataclass(frozen=True)
class Sizes:
    """How much a notebook or a command does."""

    rollouts: int  # rollouts (or tasks, on the command line) that are looked at, reflected on and scored
    updates: int  # updates of a training run
    tasks: int  # tasks per update
    budget: int  # turns in the environment that a training run of a study gets, instead of a number of updates
    eval_tasks: int  # held-out tasks of an evaluation
    seeds: int  # training runs of one kind
    headline_seeds: int  # training runs of each arm in the main comparison
    headline_k: int = 1  # rollouts of each of these per held-out task; all other runs have one


SIZES = {
    "smoke": Sizes(rollouts=4, updates=1, tasks=2, budget=10, eval_tasks=4, seeds=1, headline_seeds=1),
    "quick": Sizes(rollouts=12, updates=3, tasks=16, budget=380, eval_tasks=60, seeds=1, headline_seeds=1),
    "full": Sizes(
        rollouts=200, updates=5, tasks=16, budget=600, eval_tasks=200, seeds=3, headline_seeds=5, headline_k=4
    ),
}


def sizes(preset: str) -> Sizes:
    """raises HeroError: unknown preset"""
    check_known("preset", preset, SIZES)
    return SIZES[preset]
