"""Our environments in TRL: `to_trl` makes what its GRPOTrainer takes as `environment_factory`.

    Retail = to_trl("retail")
    data = datasets.Dataset.from_list(rows("retail", "train", 64))
    trainer = trl.GRPOTrainer(model, train_dataset=data, environment_factory=Retail, args=...)

What TRL does with it (trl/trainer/grpo_trainer.py, 1.10 to 1.16): it makes an instance per rollout and uses it again,
hands the row of the data set to `reset`, appends the text that comes back to the last user message, shows every other
public method to the model as a tool, and takes the reward of the rollout from `get_reward`. A reward function of one's
own finds the instances as `environments`. Text without a tool call ends a rollout there, so a message to the user is
the tool `respond`; the WebShops have no user and so no such tool.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial, reduce
from inspect import Parameter, Signature
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hero_mini.envs import Env, make
from hero_mini.errors import HeroError

RESPOND = "Send a message to the user, who answers."


class TrlEnv:
    """One rollout at a time; `to_trl` makes subclasses that have a public method per tool of an environment."""

    _make: Callable[[], Env]

    def __init__(self) -> None:
        self._env = self._make()
        self._done = True  # until the first reset
        self._reward = 0.0

    def reset(self, task: str | None = None, **columns: Any) -> str:
        """Start the task with this id and return what the agent hears first; other columns of the row are not used.

        raises HeroError: the row names no task, or one that does not exist
        """
        if task is None:  # one drawn here would differ between the rollouts that GRPO compares
            raise HeroError(f"the row has no task; make the data set from rows({self._env.name!r}, split, n)")
        opener, _ = self._env.reset(options={"task": task})
        self._done, self._reward = False, 0.0
        return opener

    def get_reward(self) -> float:
        """The episode's reward so far: 0.0 until it has ended well."""
        return self._reward

    def _act(self, tool: str, arguments: dict[str, Any]) -> str:
        """Take a turn; TRL shows the model an exception as {"error": its text}."""
        if self._done:
            raise HeroError("the episode is over")
        action = json.dumps({"name": tool, "arguments": arguments})
        observation, self._reward, terminated, truncated, _ = self._env.step(action)
        self._done = terminated or truncated
        return observation


def to_trl(env: str | Callable[..., Env], **settings: Any) -> type[TrlEnv]:
    """A class for TRL's `environment_factory`, with the environment's own tools as typed methods.

    env: a name that `envs.make` knows, or a class that fulfils `envs.Env`; settings: as for `envs.make`
    raises HeroError: unknown name, or the real TauBench or WebShop is not installed
    """
    fresh = partial(_maker(env), **settings)
    example = fresh()
    methods = {tool: _method(tool, signature) for tool, signature in example.signatures().items()}
    name = "".join(word.capitalize() for word in example.name.split("-"))
    about = f"The environment {example.name} for TRL; see `hero_mini.to_trl`."
    return type(name, (TrlEnv,), {"_make": staticmethod(fresh), "__doc__": about} | methods)


def rows(env: str | Callable[..., Env], split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` tasks of a split as rows for a data set: `prompt`, to which `reset` adds the user's words, and `task`.

    env: as for `to_trl`
    raises HeroError: unknown name or split, or the real TauBench or WebShop is not installed
    """
    example = _maker(env)()
    prompt = [{"role": "system", "content": example.system_prompt}, {"role": "user", "content": ""}]
    return [{"prompt": prompt, "task": task.id} for task in example.tasks(split, n, seed)]


def _maker(env: str | Callable[..., Env]) -> Callable[..., Env]:
    return env if callable(env) else partial(make, env)


def _method(tool: str, signature: Signature) -> Callable[..., str]:
    """A method that calls a tool, with the types and the docstring that transformers makes a tool's schema from.

    It takes any arguments: the environment's own answer to wrong ones is part of the task.
    """

    def call(self: TrlEnv, /, **arguments: Any) -> str:
        return self._act(tool, arguments)

    itself = Parameter("self", Parameter.POSITIONAL_ONLY)
    keys = [key.replace(annotation=_basic(key.annotation)) for key in signature.parameters.values()]
    call.__name__ = call.__qualname__ = tool
    call.__signature__ = Signature([itself, *keys], return_annotation=str)
    call.__annotations__ = {key.name: key.annotation for key in keys} | {"return": str}
    call.__doc__ = _docstring(tool, [key.name for key in keys])
    return call


def _basic(kind: Any) -> Any:
    """A type that transformers can describe: an object of the real TauBench's own, a pydantic model, is a dict."""
    if get_origin(kind) is list:
        return list[_basic(get_args(kind)[0])]
    if get_origin(kind) in (Union, UnionType):
        return reduce(or_, map(_basic, get_args(kind)))
    return dict if hasattr(kind, "model_fields") else kind


def _docstring(tool: str, keys: list[str]) -> str:
    """Google's style, in which transformers demands a line for every argument; names are all there is to tell.

    >>> print(_docstring("get_order_details", ["order_id"]))
    Get order details.
    <BLANKLINE>
    Args:
        order_id: The order id.
    <BLANKLINE>
    Returns:
        What the environment answers.
    """
    about = RESPOND if tool == "respond" else f"{tool.replace('_', ' ').capitalize()}."
    lines = [f"    {key}: The {key.replace('_', ' ')}." for key in keys]
    arguments = ["Args:", *lines, ""] if keys else []
    return "\n".join([about, "", *arguments, "Returns:", "    What the environment answers."])
