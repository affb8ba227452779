"""Environments by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from inspect import signature

from hero_mini.envs.airline import Airline
from hero_mini.envs.base import SPLITS, Action, Env, Task, parse_action
from hero_mini.envs.retail import Retail
from hero_mini.envs.tau2 import Tau2Env
from hero_mini.envs.webshop import WebShop
from hero_mini.envs.webshop_real import RealWebShop
from hero_mini.errors import check_known

ENVS: dict[str, Callable[..., Env]] = {
    "retail": Retail,
    "airline": Airline,
    "webshop": WebShop,
    "tau2-retail": partial(Tau2Env, "retail"),
    "tau2-airline": partial(Tau2Env, "airline"),
    "webshop-real": RealWebShop,
}
MINI = ("retail", "airline", "webshop")


def make(name: str, **settings) -> Env:
    """A fresh environment.

    settings: max_turns, the agent's turns in an episode (10 by default, 30 in the real TauBench, 15 in the real
    WebShop); webshop also takes strict_upstream, the real TauBench a user (see `tau2_user`), the real WebShop an
    upstream, a search, and human_goals (see `RealWebShop`)
    raises HeroError: unknown name or setting, or the real TauBench or WebShop is not installed
    """
    check_known("environment", name, ENVS)
    for setting in settings:
        check_known(f"setting of {name}", setting, signature(ENVS[name]).parameters)
    return ENVS[name](**settings)


def turn_limit(name: str) -> int:
    """The agent's turns in an episode, unless told otherwise: see `make`. raises HeroError: unknown name"""
    check_known("environment", name, ENVS)
    return signature(ENVS[name]).parameters["max_turns"].default


def edition(name: str) -> str:
    """Eight hex digits that change with the tasks of a mini world: numbers from other tasks do not compare."""
    tasks = [asdict(task) for split in ("train", "test") for task in make(name).tasks(split, 20)]
    return hashlib.sha256(json.dumps(tasks, sort_keys=True).encode()).hexdigest()[:8]


__all__ = ["ENVS", "MINI", "SPLITS", "Action", "Env", "Task", "edition", "make", "parse_action", "turn_limit"]
