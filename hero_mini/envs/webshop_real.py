"""The real WebShop: upstream's WebAgentTextEnv (princeton-nlp/WebShop) behind our text protocol (see `base`).

Products, goals, pages, and the reward are upstream's own (`webshop_upstream` loads them). Ours: two more spellings of
an action, episodes that cannot disturb each other, and a word in `info` about actions that upstream ignores.

Upstream's habits to know: a search is carried out on every page; its mode "text" does not show which options were
chosen; an option that was not asked for may count, so that the reward can exceed 1, which is no success there either.
"""

from __future__ import annotations

import copy
import os
import random
import re
from collections.abc import Callable
from inspect import Signature
from typing import Any, Literal, Self

from hero_mini.envs import webshop_script as script
from hero_mini.envs.base import (
    BRACKETED,
    MAX_ACTION_CHARS,
    Action,
    Task,
    Verdict,
    check_text,
    parse_action,
    signatures,
)
from hero_mini.envs.webshop import NO_RESULTS, PARTS
from hero_mini.envs.webshop_catalogue import BACK, BUY, INVALID, NEXT, PREV
from hero_mini.envs.webshop_upstream import fork, load, seeded
from hero_mini.envs.worlds import Listed
from hero_mini.errors import HeroError

SYSTEM_PROMPT = """You shop on a web site. Every turn is one action: search[keywords], or click[value] with a product \
number, an option or a button of the page. The product must have every attribute and option that the instruction asks \
for, and cost no more than its limit. Choose the options first: click[Buy Now] ends the episode."""

GOALS = {"test": slice(500), "validation": slice(500, 1500), "train": slice(1500, None)}  # baseline_models/env.py
NAVIGATION = {BACK.lower(), PREV.lower(), NEXT.lower()}
SHORTCUTS = {"<r>", "<a>", "<c>", "<q>"}  # first words that are no search to upstream's engine.py; some crash it
NOTHING = "nothing"  # an action that upstream ignores


class RealWebShop(Listed):
    """One shopping episode of the real WebShop. See `hero_mini.envs.base` for the protocol.

    max_turns: our choice; upstream's baselines stop after 100
    upstream: a WebAgentTextEnv, or a function that makes one (under our seed); by default the one of the folder
    WEBSHOP_HOME, loaded once per process. It is only copied: every episode has a session of its own.
    search: of the one from WEBSHOP_HOME, "bm25" (ours, no Java) or "lucene" (upstream's, as in published results)
    human_goals: of that one too, wishes that people wrote, as in the paper, instead of upstream's synthetic default
    raises HeroError: WEBSHOP_HOME is missing or cannot be loaded, or `upstream` is something else
    """

    name = "webshop-real"
    system_prompt = SYSTEM_PROMPT
    endings = (str(script.click(BUY)),)

    def __init__(
        self,
        max_turns: int = 15,
        upstream: Any | Callable[[], Any] | None = None,
        search: Literal["bm25", "lucene"] = "bm25",
        human_goals: bool = False,
    ):
        super().__init__(max_turns)
        if upstream is None:
            upstream = load(os.environ.get("WEBSHOP_HOME", ""), search, human_goals)
        elif callable(upstream):
            with seeded("load"):
                upstream = upstream()
        upstream = getattr(upstream, "unwrapped", upstream)  # gym.make puts wrappers around it
        for needed in ("server", "browser", "get_available_actions"):
            if not hasattr(upstream, needed):
                raise HeroError(f"{type(upstream).__name__} is no WebAgentTextEnv of WebShop: it has no {needed}")
        self.upstream = fork(upstream, {})
        self.calls: set[str] = set()  # what was done so far, a click with its page

    # -- tasks --------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, range]:
        """The numbers of upstream's goals by split; which are whose is from its baseline_models/env.py."""
        return {split: range(len(self.upstream.server.goals))[part] for split, part in GOALS.items()}

    def numbered(self, number: int) -> Task:
        """The task of the goal with this number."""
        goal = self.upstream.server.goals[number]
        split, numbers = next((split, numbers) for split, numbers in self.numbers().items() if number in numbers)
        place = numbers.index(number)
        return Task(f"{self.name}/{number}", split, place, goal["category"], goal["instruction_text"], gold=())

    # -- the episode --------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        """Start `options["task"]` (a Task or its id); without one, the train task at place `seed`."""
        self.task = self.chosen_task(seed, options)
        self.upstream.server.user_sessions.clear()  # upstream would go on with an earlier episode of this goal
        self.turn, self.done = 0, False
        self.calls = set()
        with seeded(self.task.id, 0):
            observation, *_ = self.upstream.reset(session=int(self.task.id.split("/")[1]))
        return observation, {"role": "user", "turn": 0}

    def clone(self) -> Self:
        """An independent copy of the episode, to look at what another action would have done.

        It is exact: all that an episode changes is its session, its browser, and its history (upstream's
        web_agent_text_env.py), and these are copied; the rest is shared and only read.
        """
        other = copy.copy(self)
        other.upstream = fork(self.upstream, copy.deepcopy(self.upstream.server.user_sessions))
        other.calls = set(self.calls)
        return other

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Carry out an action; the reward is upstream's, at the purchase only, and 1.0 is success."""
        self.check_running()
        check_text(action)
        parsed = read(action.encode(errors="replace").decode())
        sent, problem = spell(parsed, self._offered())
        place = self.upstream.browser.current_url  # keywords, results page, product, options: all a turn can change
        searched = problem is None and parsed.name == "search"
        call = sent.lower() if searched else f"{place} {sent or parsed}"
        repeated = call in self.calls
        self.calls.add(call)
        self.turn += 1
        with seeded(self.task.id, self.turn):
            observation, reward, terminated, *_ = self.upstream.step(sent or NOTHING)
        changed, parts = self.upstream.browser.current_url != place, self.reward_parts()
        empty = searched and self._offered().keys() <= NAVIGATION
        error = INVALID if problem else NO_RESULTS if empty else None
        flaw = self._flaw(parts) if terminated and reward < 1 else ""
        verdict, cause = judge(problem, error, flaw, changed and not repeated)
        truncated = not terminated and self.turn >= self.max_turns
        self.done = terminated or truncated
        info = {
            "role": "tool",
            "action": {"name": parsed.name, "arguments": parsed.arguments},
            "valid": problem is None,
            "changed": changed,
            "error": error,
            "repeated": repeated,
            "turn": self.turn,
            "reward_parts": parts,
            "oracle": {"verdict": verdict, "cause": cause, "better": None},
        }
        return observation, float(reward), terminated, truncated, info

    def reward_parts(self) -> dict[str, float]:
        """Upstream's parts of the reward in the words of `webshop.reward_parts`; all 0 before the purchase.

        Upstream tells shares, here they are numbers; it tells nothing of options where the goal asks for none.
        """
        goal, told = self._session()["goal"], self._session().get("verbose_info")
        if told is None:
            return dict.fromkeys(PARTS, 0.0)
        attributes, options = len(goal["attributes"]), len(goal["goal_options"])
        matched = round(told["r_att"] * attributes), round(told.get("r_option", 0) * options)
        values = (told["r_type"], *matched, told.get("r_price", 0), attributes + options + 1)
        return {part: float(value) for part, value in zip(PARTS, values, strict=True)}

    def _flaw(self, parts: dict[str, float]) -> str:
        """What a purchase lacked: the first of its flaws, in the order of the mini WebShop."""
        if parts["type"] < 1:
            return "other kind of product"
        if parts["attributes"] < len(self._session()["goal"]["attributes"]):
            return "other attribute"
        return "option not matched" if parts["price"] else "over the price"

    def _session(self) -> dict[str, Any]:
        return self.upstream.server.user_sessions[self.upstream.session]

    def _offered(self) -> dict[str, str]:
        """What can be clicked: in small letters, and as upstream spells it (it cannot read a click on a bracket)."""
        texts = self.upstream.get_available_actions()["clickables"]
        return {text.strip().lower(): text for text in texts if text != "search" and not {"[", "\n"} & set(text)}

    def signatures(self) -> dict[str, Signature]:
        """How its two actions are called, as in the mini WebShop."""
        return signatures({tool: {argument: str} for tool, argument in BRACKETED.items()})

    # -- the scripted agents ------------------------------------------------------------------------------------

    def _admissible(self) -> list[str]:
        """Every click that this page offers; on the search page, the searches of upstream's baselines."""
        if not self.upstream.get_available_actions()["has_search_bar"]:
            return [str(script.click(text)) for text in self._offered().values()]
        goal = self._session()["goal"]
        texts = [goal["query"], *(f"{attribute} {goal['query']}" for attribute in goal["attributes"])]
        return [str(script.search(_words(text))) for text in (*texts, goal["instruction_text"])]

    def _expert(self) -> Action:
        """The way to the product that the goal was made from: a ceiling to report beside the floors (our choice).

        It knows the product's number, as no agent can, so it corrects nobody. Products beyond the results shown, and
        the few synthetic goals that no purchase fulfils, stay out of its reach.
        """
        session, offered = self._session(), self._offered()
        goal = session["goal"]
        if self.upstream.get_available_actions()["has_search_bar"]:
            return script.search(_words(goal["name"])[: MAX_ACTION_CHARS // 2])
        if goal["asin"].lower() in offered:
            return script.click(offered[goal["asin"].lower()])
        if session["asin"] != goal["asin"] or BUY.lower() not in offered:
            return script.click(NEXT if NEXT.lower() in offered else BACK)
        asked = goal["goal_options"]
        wanted = [value.lower() for value in (asked.values() if isinstance(asked, dict) else asked)]
        return script.click(next((v for v in wanted if v in offered and v not in session["options"].values()), BUY))

    def _habit(self, draw: random.Random, best: Action) -> Action:
        """A random admissible action, which may be the best one."""
        return parse_action(draw.choice(self._admissible()))


def read(text: str) -> Action:
    """An action as upstream reads it, with whatever stands behind the brackets; or as JSON or a call.

    >>> str(read("click[Buy Now] please")), str(read("click(value='Buy Now')"))
    ('click[Buy Now]', 'click[Buy Now]')
    """
    if len(text) <= MAX_ACTION_CHARS:
        text = text.strip()
        found = re.match(r"(.+)\[(.+)\]", text)
        if found and found[1] in BRACKETED:
            return Action(found[1], {BRACKETED[found[1]]: found[2]})
        if text.endswith("]"):
            return Action("respond", {"content": text})  # `parse_action` would read some that upstream ignores
    return parse_action(text)


def spell(action: Action, offered: dict[str, str]) -> tuple[str, str | None]:
    """An action in upstream's spelling and None, or an empty text and why it cannot be carried out."""
    value = action.arguments.get(BRACKETED.get(action.name, ""))
    if action.error is not None or not isinstance(value, str) or len(action.arguments) != 1:
        return "", "not an action"
    if action.name == "click":
        text = offered.get(value.strip().lower())
        return ("", "not on this page") if text is None else (str(script.click(text)), None)
    words = _words(value)
    if not words or words.lower().split()[0] in SHORTCUTS:
        return "", "no words to search for"
    return str(script.search(words)), None


def judge(problem: str | None, error: str | None, flaw: str, new: bool) -> tuple[Verdict, str]:
    """A turn's verdict and cause from facts alone, so that opening the wrong product passes as necessary.

    problem: why it could not be carried out; error: why it found nothing; flaw: what the purchase lacked; new: it
    changed the page and had not been done there before
    """
    if problem is not None:
        return "invalid", problem
    if error is not None:
        return "failed", error
    if flaw:
        return "harmful", flaw
    return ("necessary", "") if new else ("unnecessary", "nothing new")


def _words(text: str) -> str:
    """Keywords that upstream can read: brackets and control characters are blanks."""
    return " ".join(re.sub(r"[\[\]\x00-\x1f\x7f]", " ", text).split())
