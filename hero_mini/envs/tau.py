"""What the mini TauBench domains share: the episode, the calls, the reward and the scripted user.

Kept from tau-bench: tools that enforce neither authentication nor a yes nor the policy, writes that cannot be undone,
transfer of what is out of scope, reward 0/1 from the final database against a replay of the gold actions, required
outputs as whole tokens. Ours: short ids and texts, and a transfer is written into the database with the user it is for.

A domain is a subclass with a method `_<tool>` per tool, a generator of tasks, and a `tau_script.Script`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
from inspect import Signature
from typing import Any, Self

from hero_mini.envs.base import STOP, Action, parse_action, said, signatures
from hero_mini.envs.tau_script import ENDINGS, TRANSFER, Script, asks_yes, judge
from hero_mini.envs.worlds import Generated


class ToolError(Exception):
    """The tool's own refusal; its text is the observation, verbatim as in tau-bench."""


class Tau(Generated):
    """One episode at a time. See `hero_mini.envs.base` for the protocol."""

    name: str
    system_prompt: str
    endings = ENDINGS
    tools: dict[str, tuple[str, ...]]  # name -> required arguments, in the order of the real tools
    writes: tuple[str, ...]  # the tools that do the user's work
    numbers: frozenset[str] = frozenset()  # arguments that are whole numbers
    lists: dict[str, tuple[str, ...]]  # arguments that are lists of strings -> keys of objects that are accepted too
    refusals: tuple[str, ...]  # a part of each error with which a tool answers a call that fits its signature
    identity_question: re.Pattern[str]  # what a message must contain, in lower case, for the user to say who they are
    script: Script

    # -- the episode --------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        """Start `options["task"]` (a Task or its id); without one, the train task at place `seed`."""
        self.task = task = self.chosen_task(seed, options)
        self.db = copy.deepcopy(task.world["db"])
        self.turn = 0
        self.done = False
        self.spoken: list[str] = []
        # What the agent has been told so far: the expert and the judgement of a turn may use nothing else.
        self.identity_known = bool(task.world["opener_identity"])
        self.listed: list[str] = []  # the user's orders or reservations, once the user is found
        self.read: set[str] = set()  # what else has been looked up
        self.confirmed = False
        self.wrote = False
        self.calls: set[str] = set()
        return task.world["opener"], {"role": "user", "turn": 0}

    def clone(self) -> Self:
        """An independent copy of the episode, to look at what another action would have done."""
        other = copy.copy(self)
        other.db = copy.deepcopy(self.db)
        other.spoken, other.listed = list(self.spoken), list(self.listed)
        other.read, other.calls = set(self.read), set(self.calls)
        return other

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        self.check_running()
        parsed = self._read_action(action)
        before, better = self.clone(), self.expert()
        repeated = str(parsed) in self.calls
        self.calls.add(str(parsed))
        self.turn += 1
        role, error, changed, terminated = "tool", parsed.error, False, False
        if error is None and parsed.name == "respond":
            role, observation = "user", self._user(str(parsed.arguments.get("content", "")))
            terminated = observation == STOP
        elif error is None:
            try:
                observation = self._call(parsed)
                changed = self.db != before.db
                terminated = parsed.name == TRANSFER
            except ToolError as refusal:
                error = str(refusal)
        if error is not None:
            observation = error
        truncated = not terminated and self.turn >= self.max_turns
        self.done = terminated or truncated
        parts = self.reward_parts() if terminated else {"database": 0.0, "outputs": 0.0}
        reward = float(all(parts.values())) if terminated else 0.0
        verdict, cause = judge(before, self, parsed, error, better, observation)
        info = {
            "role": role,
            "action": {"name": parsed.name, "arguments": parsed.arguments},
            "valid": parsed.error is None and self.refusal(parsed) is None,
            "changed": changed,
            "error": error,
            "repeated": repeated,
            "turn": self.turn,
            "reward_parts": parts,
            "oracle": {
                "verdict": verdict,
                "cause": cause,
                "better": None if verdict == "necessary" else str(better),
            },
        }
        return observation, reward, terminated, truncated, info

    def reward_parts(self) -> dict[str, float]:
        """1.0 or 0.0 each: the final database equals the gold replay's, and every required output was said."""
        gold = type(self)()
        gold.reset(options={"task": self.task})
        for action in self.task.gold:
            gold._call(action)
        return {
            "database": float(_hash(gold.db) == _hash(self.db)),
            "outputs": float(said(self.task.outputs, " ".join(self.spoken))),
        }

    # -- the scripted agents --------------------------------------------------------------------------------------

    def _expert(self) -> Action:
        """From what the agent has been told so far; goodbye after any write, right or wrong."""
        return self.script.expert(self)

    def _habit(self, draw: random.Random, best: Action) -> Action:
        habits = self.script.habits(self, draw)
        return draw.choices([a for _, a in habits], weights=[w for w, _ in habits])[0]

    def _admissible(self) -> list[str]:
        """Well-formed actions on what has been seen so far."""
        return [str(action) for action in self.script.admissible(self)]

    # -- the scripted user --------------------------------------------------------------------------------------

    def _user(self, text: str) -> str:
        """A state machine: gives the identity when asked, answers a proposal, stops once the work is done."""
        world, low = self.task.world, text.lower()
        self.spoken.append(text)
        if self.wrote or self._settles(text):
            return STOP
        if asks_yes(low):
            if self._wanted(text):
                self.confirmed = True
                return "Yes, please."
            return "No, that is not what I want."
        if self.identity_question.search(low):
            self.identity_known = True
            return world["identity_reply"]
        return f"Not yet. {world['request']}"

    def _settles(self, text: str) -> bool:
        """Whether this message ends the conversation without a write."""
        raise NotImplementedError

    def _wanted(self, text: str) -> bool:
        """Whether this proposal is what the user wants."""
        raise NotImplementedError

    # -- the calls ----------------------------------------------------------------------------------------------

    def _read_action(self, text: str) -> Action:
        """Parse an action; a number becomes an int, and an object in a list of strings the words it is made of."""
        parsed = parse_action(text)
        return Action(parsed.name, {k: self._plain(k, v) for k, v in parsed.arguments.items()}, parsed.error)

    def _plain(self, key: str, value: Any) -> Any:
        if key in self.numbers and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,5}", value):
            return int(value)
        if isinstance(value, list) and (keys := self.lists.get(key)):
            return [" ".join(str(e[k]) for k in keys) if _has(e, keys) else e for e in value]
        return value

    def _call(self, action: Action) -> str:
        if (problem := self.refusal(action)) is not None:
            raise ToolError(problem)
        result = getattr(self, f"_{action.name}")(**action.arguments)
        self.wrote = self.wrote or action.name in self.writes
        return result

    def refusal(self, action: Action) -> str | None:
        """The error of a call whose arguments do not fit the tool's signature, or None."""
        if action.name == "respond":
            return None
        if action.name not in self.tools:
            return f"Unknown action {action.name[:40]}"
        wanted = self.tools[action.name]
        for key in action.arguments:
            if key not in wanted:
                return f"Error: {action.name} got an unexpected argument {key[:40]}"
        for key in wanted:
            if key not in action.arguments:
                return f"Error: {action.name} needs the argument {key}"
            if not self._fits(key, action.arguments[key]):
                return f"Error: the argument {key} has the wrong type"
        return None

    def _fits(self, key: str, value: Any) -> bool:
        if key in self.lists:
            return isinstance(value, list) and all(isinstance(v, str) for v in value)
        if key in self.numbers:
            return type(value) is int and abs(value) < 100_000  # a bool is no number
        return isinstance(value, str)

    def signatures(self) -> dict[str, Signature]:
        """How each tool is called; a message to the user, `respond`, is one of them."""
        kinds = dict.fromkeys(self.numbers, int) | dict.fromkeys(self.lists, list[str])
        tools = {tool: {key: kinds.get(key, str) for key in wanted} for tool, wanted in self.tools.items()}
        return signatures(tools | {"respond": {"content": str}})

    def _transfer_to_human_agents(self, summary: str) -> str:
        self.db["transferred"] = self.task.world["user_id"] if self.listed else "nobody"
        return "Transfer successful"


def _has(value: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)


def _hash(db: dict) -> str:
    return hashlib.sha256(json.dumps(db, sort_keys=True).encode()).hexdigest()
