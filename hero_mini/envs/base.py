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
from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Any, Literal, Protocol, get_args

from hero_mini.errors import HeroError, check_known, check_whole

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
