"""Mini WebShop: search, result pages, item pages with options, one final purchase with a graded reward.

Kept from WebShop: the actions search[keywords] and click[value], BM25 over title, texts and options, paged results,
item pages with Description and Features, a reward at the purchase only. Ours: short pages and ids (a whole episode is
about 500 tokens), the wish is said once, an action that is not possible is answered instead of ignored, options match
exactly, a search is made on the search page only, and one without results leaves the agent there. `webshop_rules`
has the whole list, checked by running the shop.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from inspect import Signature
from typing import TYPE_CHECKING

from hero_mini.envs import webshop_script as script
from hero_mini.envs.base import BRACKETED, Action, parse_action, signatures
from hero_mini.envs.webshop_catalogue import (
    BACK,
    BUY,
    DESCRIPTION,
    FEATURES,
    INVALID,
    NEXT,
    PER_PAGE,
    PREV,
    Goal,
    Product,
    make_task,
    path,
)
from hero_mini.envs.worlds import Generated

if TYPE_CHECKING:
    from bm25s import BM25

SYSTEM_PROMPT = """Web shop agent. Buy the product that has both attributes and the options, at most at the price.
search[keywords] on the search page, else click[id, option or button]. Features lists all attributes. Buy Now ends."""

MAX_RESULTS = 9
NO_RESULTS = "0 results"
SEARCH_PAGE = "Search page."
PARTS = ("type", "attributes", "options", "price", "of")  # of the reward, see `reward_parts`
TYPE_REWARD = (0.0, 0.1, 0.5, 1.0)  # by how much of department, shelf and kind is shared


class Refused(Exception):
    """An action that changed nothing; its text is the error."""


class WebShop(Generated):
    """One shopping episode at a time. See `hero_mini.envs.base` for the protocol.

    strict_upstream: as the real WebShop, it shows the page again without a word if an action is not possible (`info`
    still tells: not valid, the error, nothing changed), and a search is carried out on every page
    """

    name = "webshop"
    system_prompt = SYSTEM_PROMPT
    endings = (str(script.click(BUY)),)
    make_task = staticmethod(make_task)

    def __init__(self, max_turns: int = 10, strict_upstream: bool = False):
        super().__init__(max_turns)
        self.strict_upstream = strict_upstream

    # -- the episode --------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        """Start `options["task"]` (a Task or its id); without one, the train task at place `seed`."""
        self.task = task = self.chosen_task(seed, options)
        self.goal: Goal = task.world["goal"]
        self.products: dict[str, Product] = {product.id: product for product in task.world["shop"]}
        self.engine = _engine([product.text for product in task.world["shop"]])
        self.turn = 0
        self.done = False
        # Where the agent stands
        self.page = "search"  # search, results, item, description, features, bought
        self.results: list[str] = []  # ids that the last search found
        self.number = 0  # of the results page, from 0
        self.item: Product | None = None
        self.chosen: dict[str, str] = {}
        # What the agent has been shown so far: the expert and a corrected action may use nothing else.
        self.pages_seen = 0  # of the last search
        self.opened: set[str] = set()  # ids whose item page was seen
        self.featured: set[str] = set()  # ids whose Features were seen
        self.calls: set[tuple] = set()
        return f"{task.instruction}\n{SEARCH_PAGE}", {"role": "user", "turn": 0}

    def clone(self) -> WebShop:
        """An independent copy of the episode, to look at what another action would have done."""
        other = copy.copy(self)
        other.results, other.chosen = list(self.results), dict(self.chosen)
        other.opened, other.featured, other.calls = set(self.opened), set(self.featured), set(self.calls)
        return other

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        self.check_running()
        parsed = parse_action(action)
        before, better = self.clone(), self.expert()
        call = (*self.place(), str(parsed))
        repeated = call in self.calls
        self.calls.add(call)
        self.turn += 1
        error, parts, reward = None, dict.fromkeys(PARTS, 0.0), 0.0
        try:
            observation = self._act(parsed)
        except Refused as refusal:
            error = str(refusal)
            observation = self.show() if self.strict_upstream and error == INVALID else error
        terminated = self.page == "bought"
        if terminated:
            parts = reward_parts(self.goal, self.item, self.chosen)
            reward = total(parts)
            observation = f"Thank you for shopping with us! Your score: {reward:.2f}"
        truncated = not terminated and self.turn >= self.max_turns
        self.done = terminated or truncated
        info = {
            "role": "tool",
            "action": {"name": parsed.name, "arguments": parsed.arguments},
            "valid": error != INVALID,
            "changed": self.place() != before.place(),
            "error": error,
            "repeated": repeated,
            "turn": self.turn,
            "reward_parts": parts,
            "oracle": script.judge(before, self, parsed, error, better),
        }
        return observation, reward, terminated, truncated, info

    def place(self) -> tuple:
        """All that a click or a search can change, in a comparable form."""
        item = self.item.id if self.item else None
        return self.page, tuple(self.results), self.number, item, tuple(sorted(self.chosen.items()))

    def signatures(self) -> dict[str, Signature]:
        """How its two actions are called; nobody hears a message here, so `respond` is none."""
        return signatures({tool: {argument: str} for tool, argument in BRACKETED.items()})

    # -- the scripted agents --------------------------------------------------------------------------------------

    def _expert(self) -> Action:
        return script.expert(self)

    def _habit(self, draw: random.Random, best: Action) -> Action:
        return script.habit(self, draw, best)

    def _admissible(self) -> list[str]:
        return script.admissible(self)

    # -- the pages ----------------------------------------------------------------------------------------------

    def on_page(self) -> list[str]:
        """The ids of this page of results."""
        return self.results[self.number * PER_PAGE : (self.number + 1) * PER_PAGE]

    def n_pages(self) -> int:
        return -(-len(self.results) // PER_PAGE)

    def buttons(self) -> list[str]:
        """What can be clicked besides products and option values."""
        if self.page == "results":
            more = [PREV] * (self.number > 0) + [NEXT] * (self.number + 1 < self.n_pages())
            return [BACK, *more]
        if self.page == "item":
            return [BACK, PREV, DESCRIPTION, FEATURES, BUY]
        return [BACK, PREV] if self.page in ("description", "features") else []

    def values(self) -> dict[str, str]:
        """The option values that can be clicked, with the name of their option."""
        options = self.item.options if self.page == "item" else {}
        return {value: name for name, values in options.items() for value in values}

    def clickable(self) -> list[str]:
        """Everything that `click[...]` takes on this page."""
        return [*(self.on_page() if self.page == "results" else []), *self.values(), *self.buttons()]

    def show(self) -> str:
        """The page as text."""
        if self.page == "search":
            return SEARCH_PAGE
        lines = {"results": self._results, "item": self._item}.get(self.page, self._texts)()
        return "\n".join([*lines, " ".join(f"[{button}]" for button in self.buttons())])

    def _results(self) -> list[str]:
        found = [self.products[id] for id in self.on_page()]
        return [f"Page {self.number + 1} of {self.n_pages()}", *(f"{p.id} {p.title} ${p.price}" for p in found)]

    def _item(self) -> list[str]:
        offered = [f"{name}: {', '.join(values)}" for name, values in self.item.options.items()]
        return [f"{self.item.id} {self.item.title} ${self.item.price}", *offered, *[self._choice()] * bool(self.chosen)]

    def _choice(self) -> str:
        return "Chosen: " + ", ".join(f"{name} {value}" for name, value in self.chosen.items())

    def _texts(self) -> list[str]:
        if self.page == "description":
            return [self.item.description]
        return [f"Features of {self.item.id}: {', '.join(self.item.attributes)}"]

    # -- the actions --------------------------------------------------------------------------------------------

    def _act(self, action: Action) -> str:
        """Carry out a parsed action; returns the next page as text. raises Refused: nothing was changed"""
        said = next(iter(action.arguments.values()), None)
        if action.error is not None or not isinstance(said, str) or not said.strip():
            raise Refused(INVALID)
        if action == Action("search", {"keywords": said}) and (self.page == "search" or self.strict_upstream):
            return self._search(said)
        offered = {thing.lower(): thing for thing in self.clickable()}
        if action == Action("click", {"value": said}) and said.strip().lower() in offered:
            return self._click(offered[said.strip().lower()])
        raise Refused(INVALID)

    def _search(self, keywords: str) -> str:
        found = self.engine(keywords)
        if not found:
            raise Refused(NO_RESULTS)
        ids = list(self.products)
        self.results, self.pages_seen = [ids[i] for i in found], 0
        return self._turn_to(0)

    def _turn_to(self, number: int) -> str:
        self.page, self.number, self.item, self.chosen = "results", number, None, {}
        self.pages_seen = max(self.pages_seen, number + 1)
        return self.show()

    def _click(self, thing: str) -> str:
        if thing == BACK:
            self.page, self.results, self.number, self.item, self.chosen = "search", [], 0, None, {}
        elif thing in (PREV, NEXT) and self.page in ("results", "item"):
            return self._turn_to(self.number + {NEXT: 1, PREV: -(self.page == "results")}[thing])
        elif thing == PREV:
            self.page = "item"
        elif thing == BUY:
            self.page = "bought"
            return ""
        elif thing in (DESCRIPTION, FEATURES):
            self.page = thing.lower()
            if thing == FEATURES:
                self.featured.add(self.item.id)
        elif thing in self.values():
            name = self.values()[thing]
            self.chosen = {option: thing if option == name else self.chosen.get(option) for option in self.item.options}
            self.chosen = {option: value for option, value in self.chosen.items() if value is not None}
            return self._choice()
        else:
            self.page, self.item = "item", self.products[thing]
            self.opened.add(thing)
        return self.show()


def reward_parts(goal: Goal, product: Product, chosen: dict[str, str]) -> dict[str, float]:
    """The parts of WebShop's reward: type in {1, .5, .1, 0}, numbers of matches, and `of`, how many could match.

    type is ours in how it is found: by how much of department, shelf and kind is shared (upstream parses the titles).
    """
    same = [ours == theirs for ours, theirs in zip(path(product.kind), path(goal.kind), strict=True)]
    shared = (same + [False]).index(False)
    return {
        "type": TYPE_REWARD[shared],
        "attributes": float(len(set(goal.attributes) & set(product.attributes))),
        "options": float(sum(chosen.get(name) == value for name, value in goal.options.items())),
        "price": float(product.price <= goal.limit),
        "of": float(len(goal.attributes) + len(goal.options) + 1),
    }


def total(parts: dict[str, float]) -> float:
    """r_type · (attributes + options + price) / (their number); 1.0 is success."""
    return parts["type"] * (parts["attributes"] + parts["options"] + parts["price"]) / parts["of"]


def _engine(texts: Sequence[str]) -> Callable[[str], list[int]]:
    """A BM25 search over `texts`: keywords to the positions of at most MAX_RESULTS texts, the best first.

    Texts with the same score stay in their order; one that shares no word is not found.
    """
    import bm25s  # here, so that loading the package stays quick

    def words(text: str) -> list[str]:
        return re.findall(r"[\w-]+", text.lower())  # "x-large" is one word, and so not "large"

    index = bm25s.BM25()
    index.index([words(text) for text in texts], show_progress=False)

    return lambda keywords: best(index, words(keywords), MAX_RESULTS)


def best(index: BM25, words: Sequence[str], k: int) -> list[int]:
    """The positions of the at most `k` texts that match words best; ties in the order of the texts."""
    known = [word for word in words if word in index.vocab_dict]
    if not known:
        return []
    scores = index.get_scores(known)  # (texts,)
    return [int(i) for i in (-scores).argsort(kind="stable")[:k] if scores[i] > 0]
