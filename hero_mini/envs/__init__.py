"""Environments by name."""

from __future__ import annotations

from hero_mini.envs.airline import Airline
from hero_mini.envs.base import SPLITS, Action, Env, Task, parse_action
from hero_mini.envs.retail import Retail
from hero_mini.envs.webshop import WebShop
from hero_mini.runtime import HeroError, nearest

ENVS: dict[str, type] = {"retail": Retail, "airline": Airline, "webshop": WebShop}


def make(name: str, **settings) -> Env:
    """A fresh environment.

    settings: max_turns, the agent's turns in an episode (10 by default); webshop also takes strict_upstream
    raises HeroError: unknown name
    """
    if name not in ENVS:
        raise HeroError(f"unknown environment {name!r}{nearest(name, ENVS)}; there are: {', '.join(ENVS)}")
    return ENVS[name](**settings)


__all__ = ["ENVS", "SPLITS", "Action", "Env", "Task", "make", "parse_action"]
