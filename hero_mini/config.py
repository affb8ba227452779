"""The arms, the settings of a training run and the presets: the one place for their defaults. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from hero_mini import envs
from hero_mini.runtime import HeroError, nearest


@dataclass(frozen=True)
class Arm:
    """What distinguishes one way of training from another."""

    context: str  # the teacher's privileged context, see `teacher.CONTEXTS`
    reflector: str  # where diagnoses come from: "self" or "oracle"
    shuffled: bool = False  # control: the same diagnoses dealt out at random over turns and rollouts


ARMS: dict[str, Arm] = {
    "hero": Arm("hero", "self"),
    "oracle_hero": Arm("hero", "oracle"),
    "shuffled_hero": Arm("hero", "self", shuffled=True),
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on. The paper gives none of these values: all are our choice."""

    arm: str = "hero"
    env: str = "retail"
    seed: int = 0
    updates: int = 16
    tasks: int = 16  # tasks per update, each rolled out once (G = 1)
    max_turns: int = 10
    temperature: float = 1.0
    lr: float = 5e-4  # of the adapter; constant after three steps of warm-up
    rank: int = 16
    divergence: str = "jsd"
    weight: float = 0.5  # of the teacher in the JSD's mixture
    top_k: int | None = None  # None: the full vocabulary
    teacher: str = "frozen"  # or "ema", or "live"
    ema_decay: float = 0.95  # per update
    max_tokens: int = 4096  # padded tokens per forward pass

    def __post_init__(self) -> None:
        for name, known in {"arm": ARMS, "env": envs.ENVS, "teacher": ("frozen", "ema", "live")}.items():
            value = getattr(self, name)
            if value not in known:
                raise HeroError(f"unknown {name} {value!r}{nearest(value, known)}; there are: {', '.join(known)}")
        for name in ("updates", "tasks", "max_turns", "rank", "lr", "temperature"):
            if getattr(self, name) <= 0:
                raise HeroError(f"{name} is {getattr(self, name)}; it has to be above 0")


@dataclass(frozen=True)
class Sizes:
    """How much a notebook or a command does."""

    rollouts: int  # rollouts (or tasks, on the command line) that are looked at, reflected on and scored
    updates: int  # updates of a training run
    tasks: int  # tasks per update
    eval_tasks: int  # held-out tasks of an evaluation
    seeds: int  # training runs


SIZES = {
    "smoke": Sizes(rollouts=4, updates=1, tasks=2, eval_tasks=4, seeds=1),
    "quick": Sizes(rollouts=32, updates=6, tasks=12, eval_tasks=60, seeds=1),
    "full": Sizes(rollouts=200, updates=12, tasks=16, eval_tasks=200, seeds=3),
}


def sizes(preset: str) -> Sizes:
    """raises HeroError: unknown preset"""
    if preset not in SIZES:
        raise HeroError(f"unknown preset {preset!r}{nearest(preset, SIZES)}; there are: {', '.join(SIZES)}")
    return SIZES[preset]
