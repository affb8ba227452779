"""The mini worlds as Gymnasium environments of text; importing this module registers them.

import gymnasium, hero_mini.gym
env = gymnasium.make("hero_mini/Retail-v0", split="test")  # or Airline, WebShop
observation, info = env.reset(seed=17)                      # the task retail/test/17
"""

from __future__ import annotations

import string
from typing import Any

from hero_mini import envs
from hero_mini.envs import SPLITS
from hero_mini.envs.base import MAX_ACTION_CHARS
from hero_mini.errors import HeroError, check_known

try:
    import gymnasium
    from gymnasium.spaces import Text
except ImportError as problem:
    raise HeroError("Gymnasium is not installed; get it with: pip install 'hero_mini[gym]'") from problem

WORLDS = {"Retail": "retail", "Airline": "airline", "WebShop": "webshop"}  # name in Gymnasium -> name here
CHARSET = string.ascii_letters + string.digits + string.punctuation + " \n"  # more than the worlds write themselves
MAX_CHARS = 256  # of an observation; the worlds' own have less than 200
N_TASKS = 1_000_000  # an unseeded reset draws from so many tasks of the (endless) split


class TextWorld(gymnasium.Env[str, str]):
    """One episode of a mini world at a time. Observations and actions are texts; an action may be any text.

    split: where tasks come from; settings: as for `envs.make`
    raises HeroError: unknown world or split
    """

    metadata = {"render_modes": []}

    def __init__(self, name: str, split: str = "train", **settings: Any) -> None:
        check_known("mini world", name, WORLDS.values())
        check_known("split", split, SPLITS)
        self.world = envs.make(name, **settings)
        self.split = split
        self.observation_space = Text(MAX_CHARS, charset=CHARSET)
        self.action_space = Text(MAX_ACTION_CHARS, min_length=0, charset=CHARSET)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start `options["task"]` (a Task or its id), else the task at place `seed`, else one drawn at random.

        The random draws go on from the last seed. `info` has the facts of `envs.base` and the task's id, split and
        family, and the system prompt, which tells an agent the rules.
        raises HeroError: there is no such task, or no such option
        """
        super().reset(seed=seed)
        place = int(self.np_random.integers(N_TASKS)) if seed is None else seed
        chosen = dict(options or {})
        chosen["task"] = chosen.get("task") or f"{self.world.name}/{self.split}/{place}"
        observation, info = self.world.reset(options=chosen)
        return _fitting(observation), info | self._facts() | {"system_prompt": self.world.system_prompt}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a turn with the agent's text. raises HeroError: it is no text, or the episode is over"""
        observation, reward, terminated, truncated, info = self.world.step(action)
        return _fitting(observation), reward, terminated, truncated, info | self._facts()

    def _facts(self) -> dict[str, str]:
        task = self.world.task
        return {"task": task.id, "split": task.split, "family": task.family}


def _fitting(text: str) -> str:
    """An observation within its space: what an agent wrote comes back in it, and that may be anything.

    >>> _fitting("Unknown action caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    'Unknown action caf?'
    """
    return "".join(char if char in CHARSET else "?" for char in text[:MAX_CHARS])


for _title, _name in WORLDS.items():
    gymnasium.register(f"hero_mini/{_title}-v0", TextWorld, kwargs={"name": _name})
