"""What every environment shares: tasks, the four spellings of an action, and the text-in/text-out protocol.

    env.tasks(split, n) -> tasks          env.system_prompt: str       env.admissible() -> list[str] | None
    env.reset(options={"task": task}) -> (observation, info)
    env.step(action: str)             -> (observation, reward, terminated, truncated, info)

The five-tuple is Gymnasium's. An action is the model's text; it is parsed, never evaluated. A step's `info` has

    role: "user" or "tool", who answers         action: {"name", "arguments"}, as it was read
    valid: whether it could be carried out      error: the error in the answer, or None
    changed: whether it changed anything        repeated: whether it was done before in this episode
    turn: how many were taken, from 1           reward_parts: what the reward is made of, in numbers
    oracle: {"verdict", "cause", "better"}, the judgement of the turn; `better` is an action in words, or None where the
        turn was necessary, or where nobody knows the best action (the real benchmarks)
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Any, Literal, Protocol, get_args

from hero_mini.runtime import HeroError, check_known, check_whole, rng

Verdict = Literal["necessary", "unnecessary", "invalid", "failed", "harmful"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
SPLITS = ("warmup", "train", "validation", "test")
STOP = "###STOP###"  # the scripted user's last word, as in tau-bench
MAX_ACTION_CHARS = 2000  # longer text is answered with an error instead of being parsed
BRACKETED = {"search": "keywords", "click": "value"}  # WebShop's actions, and what their one argument is called
MAX_DEPTH = 8  # levels of lists and objects in an action's JSON


@dataclass(frozen=True)
class Task:
    """One problem: `gold` is what the final database must equal, as tool calls to replay on a fresh one."""

    id: str  # "retail/test/17"
    split: str
    index: int
    family: str
    instruction: str  # what the scripted user wants, in words
    gold: tuple[Action, ...]
    outputs: tuple[str, ...] = ()  # strings the agent must say, as whole tokens
    world: dict[str, Any] = field(default_factory=dict, repr=False)  # the private database and the user's slots


def task_id(env: str, split: str, index: int, seed: int) -> str:
    """The name of a task, "<env>/<split>/<index>"; "@<seed>" stands behind it for a seed other than 0.

    raises HeroError: unknown split, or an index or a seed that no task has
    """
    check_whole(0, index=index, seed=seed)
    check_known("split", split, SPLITS)
    return f"{env}/{split}/{index}" + (f"@{seed}" if seed else "")


@dataclass(frozen=True)
class Action:
    """A parsed action. `respond` with `content` is a message to the user, as in tau-bench."""

    name: str
    arguments: dict[str, Any]
    error: str | None = None  # set when the text looks like a tool call that cannot be read

    def __str__(self) -> str:
        """The call spelling `tool(arg='x')`; for a message, its text; for WebShop's two actions, brackets.

        JSON where the arguments are more than a call can spell, such as a list of objects.

        >>> str(Action("get_order_details", {"order_id": "#W1234"})), str(Action("click", {"value": "Buy Now"}))
        ("get_order_details(order_id='#W1234')", 'click[Buy Now]')
        """
        if self.arguments.keys() == {BRACKETED.get(self.name)}:
            return f"{self.name}[{self.arguments[BRACKETED[self.name]]}]"
        if self.name == "respond":
            return str(self.arguments.get("content", ""))
        call = f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"
        if parse_action(call).error is None:
            return call
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


class Env(Protocol):
    """One episode at a time; cheap to construct, so a batch holds one environment per row."""

    name: str
    max_turns: int  # of the agent in an episode
    system_prompt: str
    endings: tuple[str, ...]  # the actions that close an episode; a task may have one of its own besides

    def tasks(self, split: str, n: int, seed: int = 0) -> list[Task]: ...
    def task_named(self, task_id: str) -> Task: ...
    def in_split(self, task_id: str, split: str) -> bool: ...
    def clone(self) -> Env: ...
    def signatures(self) -> dict[str, Signature]: ...
    def expert(self) -> Action: ...
    def scripted(self, draw: random.Random, skill: float) -> Action: ...
    def admissible(self) -> list[str] | None: ...
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]: ...
    def step(self, action: str) -> tuple[str, float, bool, bool, dict]: ...


def signatures(tools: dict[str, dict[str, type]]) -> dict[str, Signature]:
    """How each tool is called, from the types of its arguments; all are needed, and every tool answers in text.

    >>> print(signatures({"click": {"value": str}})["click"])
    (*, value: str) -> str
    """
    return {
        tool: Signature(
            [Parameter(key, Parameter.KEYWORD_ONLY, annotation=kind) for key, kind in kinds.items()],
            return_annotation=str,
        )
        for tool, kinds in tools.items()
    }


class World:
    """What all worlds share: a limit of turns, and which task is played."""

    name: str
    task_named: Callable[[str], Task]

    def __init__(self, max_turns: int):
        check_whole(1, max_turns=max_turns)
        self.max_turns = max_turns
        self.task: Task | None = None

    def chosen_task(self, seed: int | None, options: dict | None) -> Task:
        """`options["task"]` (a Task or its id); without one, the train task at place `seed`."""
        for option in options or {}:
            check_known("option", option, ["task"])
        task = (options or {}).get("task")
        if task is None:
            task = f"{self.name}/train/{seed or 0}"
        if isinstance(task, Task) and task.id.startswith(f"{self.name}/"):
            return task
        return self.task_named(str(getattr(task, "id", task)))  # which refuses a task of another world


class Generated(World):
    """What the worlds with generated tasks share: endless splits, and the ids of their tasks."""

    make_task: Callable[[str, int, int], Task]  # split, index, seed

    def __init__(self, max_turns: int = 10):
        super().__init__(max_turns)

    def tasks(self, split: str, n: int, seed: int = 0) -> list[Task]:
        """The first `n` tasks of a split; every split is endless, and no user (or wish) stands in two of them.

        raises HeroError: unknown split, or no whole number, or a negative one
        """
        check_whole(0, n=n)
        return [self.make_task(split, index, seed) for index in range(n)]

    def task_named(self, task_id: str) -> Task:
        """The task with this id: "<env>/<split>/<index>", with "@<seed>" behind it for a seed other than 0."""
        found = re.fullmatch(rf"{self.name}/(\w+)/(\d{{1,19}})(?:@(\d{{1,19}}))?", str(task_id))
        if found is None:
            raise HeroError(
                f"{task_id!r} is no task of {self.name}; write {self.name}/<split>/<index>, such as {self.name}/test/0"
            )
        return self.make_task(found[1], int(found[2]), int(found[3] or 0))

    def in_split(self, task_id: str, split: str) -> bool:
        """Whether the task with this id is one of the split."""
        return task_id.startswith(f"{self.name}/{split}/")


class Listed(World):
    """What the real benchmarks share: upstream's splits, each a list of numbers, of which a task has one."""

    def numbers(self) -> Mapping[str, Sequence[str | int]]:
        """The numbers of upstream's tasks by split, in upstream's order."""
        raise NotImplementedError

    def numbered(self, number: str | int) -> Task:
        """The task with one of these numbers; its id is "<env>/<number>"."""
        raise NotImplementedError

    def tasks(self, split: str, n: int, seed: int = 0) -> list[Task]:
        """The first `n` tasks of upstream's split, or all there are; a seed other than 0 shuffles them.

        raises HeroError: the benchmark has no such split, or no task in it; a number out of range
        """
        check_whole(0, n=n, seed=seed)
        splits = self.numbers()
        check_known(f"split of {self.name}", split, splits)
        if not splits[split]:
            loaded = sum(map(len, splits.values()))
            raise HeroError(f"{self.name} loaded only {loaded} tasks, which leaves none for {split}; load more of them")
        numbers = list(splits[split])
        if seed:
            rng(seed, self.name, "shuffle").shuffle(numbers)
        return [self.numbered(number) for number in numbers[:n]]

    def task_named(self, task_id: str) -> Task:
        """A task by upstream's number, "<env>/<number>", or by its place, "<env>/<split>/<place>[@<seed>]".

        Places go round, so that training never runs out of tasks.
        raises HeroError: there is no such task
        """
        splits = self.numbers()
        every = [number for numbers in splits.values() for number in numbers]
        if (named := {f"{self.name}/{number}": number for number in every}.get(str(task_id))) is not None:
            return self.numbered(named)
        found = re.fullmatch(rf"{self.name}/({'|'.join(splits)})/(\d{{1,19}})(?:@(\d{{1,19}}))?", str(task_id))
        if found is None:
            raise HeroError(
                f"{task_id!r} is no task of {self.name}; write {self.name}/<number>, such as {self.name}/{every[0]}"
            )
        tasks = self.tasks(found[1], len(splits[found[1]]), int(found[3] or 0))
        return tasks[int(found[2]) % len(tasks)]

    def chosen_task(self, seed: int | None, options: dict | None) -> Task:
        """See `World.chosen_task`; upstream's own copy of the task."""
        return self.task_named(super().chosen_task(seed, options).id)

    def in_split(self, task_id: str, split: str) -> bool:
        """Whether the task with this id is one of the split."""
        world, _, number = task_id.partition("/")
        return world == self.name and number in map(str, self.numbers().get(split, ()))


_BRACKETS = re.compile(rf"({'|'.join(BRACKETED)})\[(.+)\]", re.DOTALL)
_CALL = re.compile(r"([A-Za-z_]\w*)\((.*)\)", re.DOTALL)
_STRING = r"'[^'\\]*'|\"[^\"\\]*\""
_ARGUMENT = re.compile(
    rf"\s*(\w+)\s*=\s*(?:({_STRING})|(\[\s*(?:(?:{_STRING})\s*(?:,\s*(?:{_STRING})\s*)*)?\])|(-?\d+(?:\.\d+)?))\s*(?:,|$)"
)


def check_text(action: object) -> None:
    """raises HeroError: an action is no text"""
    if not isinstance(action, str):
        raise HeroError(f'an action is a text, such as "click[Buy Now]", and not {action!r}')


def parse_action(text: str) -> Action:
    """Read an action in any of its four spellings: JSON, a call, brackets, or plain text (a message to the user).

    >>> parse_action("cancel_pending_order(order_id='#W1', reason='ordered by mistake')").arguments["reason"]
    'ordered by mistake'
    >>> parse_action('{"name": "think", "arguments": {"thought": "hm"}}').name
    'think'
    >>> parse_action("What is your email?")
    Action(name='respond', arguments={'content': 'What is your email?'}, error=None)
    >>> parse_action("search[red shoes]")
    Action(name='search', arguments={'keywords': 'red shoes'}, error=None)
    >>> parse_action("f(x=)").error
    'Error: the arguments of f could not be read'

    raises HeroError: no text
    """
    check_text(text)
    if len(text) > MAX_ACTION_CHARS:
        return Action("", {}, f"Error: action longer than {MAX_ACTION_CHARS} characters")
    text = text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>").strip()  # as Qwen wraps its calls
    if not text:
        return Action("", {}, "Error: empty action")
    if any("\ud800" <= c <= "\udfff" for c in text):  # nothing that can be written down
        return Action("", {}, "Error: half a character in the action")
    if text.startswith("{"):
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", {})
            json.dumps(call, ensure_ascii=False, allow_nan=False).encode()  # no NaN and no half of a character
        except (ValueError, KeyError, TypeError, RecursionError):
            call = None
        if call is None or _deeper(call, MAX_DEPTH):
            return Action("", {}, "Error: the JSON of the action could not be read")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return Action("", {}, "Error: the JSON of the action needs a name and arguments")
        return Action(name, arguments)
    if (found := _BRACKETS.fullmatch(text)) is not None:
        return Action(found[1], {BRACKETED[found[1]]: found[2]})
    call = _CALL.fullmatch(text)
    if call is None:
        return Action("respond", {"content": text})
    name, rest, arguments = call[1], call[2], {}
    while rest.strip():
        found = _ARGUMENT.match(rest)
        if found is None:
            return Action(name, {}, f"Error: the arguments of {name} could not be read")
        key, string, strings, number = found.groups()
        if string is not None:
            arguments[key] = string[1:-1]
        elif strings is not None:
            arguments[key] = [s[1:-1] for s in re.findall(_STRING, strings)]
        else:
            arguments[key] = number
        rest = rest[found.end() :]
    return Action(name, arguments)


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other on more than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper(v, levels - 1) for v in inner))


def said(outputs: Sequence[str], text: str) -> bool:
    """Whether every required output stands in `text` as a whole token ("10" does not match "10.5" or "210").

    >>> said(["paypal_31"], "You paid with paypal_31."), said(["paypal_3"], "You paid with paypal_31.")
    (True, False)
    """
    return all(re.search(rf"(?<![\w.]){re.escape(o)}(?!\w|\.\w)", text) for o in outputs)
