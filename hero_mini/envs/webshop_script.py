"""The scripted side of mini WebShop: the expert, the judgement of a turn (the oracle), and the bad habits.

The expert and its corrections use only the wish and the pages that the agent has been shown, so that a corrected action
never contains a fact the agent could not have known. The verdicts look at the outcome as well: that is hindsight. The
bad habits are the behaviour that the warm-up teaches on purpose.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from hero_mini.envs.base import Action
from hero_mini.envs.webshop_catalogue import (
    BACK,
    BUY,
    DESCRIPTION,
    FEATURES,
    INVALID,
    NEXT,
    PER_PAGE,
    PREV,
    Product,
)

if TYPE_CHECKING:
    from hero_mini.envs.webshop import WebShop


GUESS = "B00"  # an id that no product has: a bad habit guesses the same one each time, since a random one is mere noise


def search(keywords: str) -> Action:
    return Action("search", {"keywords": keywords})


def click(value: str) -> Action:
    return Action("click", {"value": value})


def wish(env: WebShop) -> str:
    """The words that the expert searches for."""
    return " ".join((*env.goal.attributes, env.goal.kind))


def fit(env: WebShop, product: Product) -> Literal["yes", "maybe", "no"]:
    """Whether a product can be the right one, from the pages shown so far.

    A title shows both attributes, or one: then Features tells the other. The options stand on the item page.
    """
    goal = env.goal
    if product.kind != goal.kind or product.price > goal.limit:
        return "no"
    if product.id in env.opened and any(v not in product.options.get(name, ()) for name, v in goal.options.items()):
        return "no"
    complete = product.id in env.featured or len(product.titled) == len(product.attributes)
    known = set(product.attributes if complete else product.titled)
    if set(goal.attributes) <= known:
        return "yes"
    return "no" if complete or not known & set(goal.attributes) else "maybe"


def expert(env: WebShop) -> Action:
    """The best next action given what the agent has been shown (our choice; it solves every task)."""
    if env.page == "search":
        return search(wish(env))
    if env.page == "results":
        return _browse(env)
    if env.page != "item":
        return click(PREV)
    suits = fit(env, env.item)
    if suits == "no":
        return click(PREV)
    if suits == "maybe":
        return click(FEATURES)
    for name, value in env.goal.options.items():
        if env.chosen.get(name) != value:
            return click(value)
    return click(BUY)


def _browse(env: WebShop) -> Action:
    """On the results: open the most promising product shown, turn to its page, or look at a page not seen yet."""
    shown = env.results[: env.pages_seen * PER_PAGE]
    hopes = [id for hope in ("yes", "maybe") for id in shown if fit(env, env.products[id]) == hope]
    if not hopes:
        return click(NEXT if env.number + 1 < env.n_pages() else BACK)
    page = shown.index(hopes[0]) // PER_PAGE
    return click(hopes[0] if page == env.number else PREV if page < env.number else NEXT)


def judge(before: WebShop, after: WebShop, action: Action, error: str | None, better: Action) -> dict:
    """The oracle's diagnosis of one turn: verdict, cause, and the expert's action where the turn was not necessary."""
    verdict, cause = _verdict(before, after, action, error, better)
    return {"verdict": verdict, "cause": cause, "better": None if verdict == "necessary" else str(better)}


def _verdict(before: WebShop, after: WebShop, action: Action, error: str | None, better: Action) -> tuple[str, str]:
    if error == INVALID:
        wordless = not str(action.arguments.get("keywords", "")).strip()
        searching = "no words to search for" if wordless else "no search box here"
        causes = {"search": searching, "click": "not on this page"}
        return "invalid", causes.get(action.name, "not an action")
    if error is not None:
        return "failed", error
    if str(action).lower() == str(better).lower():
        return "necessary", ""
    if action.name == "search":
        if before.item is not None and not flaw(before, before.item):  # where strict_upstream searches on every page
            return "unnecessary", "left the right product"
        if after.results == before.results:
            return "unnecessary", "the same results"
        found = any(not flaw(after, after.products[id]) for id in after.results)
        return ("necessary", "") if found else ("failed", "nothing found that fits")
    if after.page == "bought":
        unlike = flaw(before, before.item) or _unchosen(before)
        return ("harmful", unlike) if unlike else ("necessary", "")
    if before.page == "results" and after.page == "item":
        promising = not flaw(after, after.item) or fit(before, after.item) == "yes"
        return ("necessary", "") if promising else ("unnecessary", flaw(after, after.item))
    value = action.arguments["value"].strip().lower()
    if value in before.values():
        return _option_verdict(before, value)
    leaves = before.item is not None and not flaw(before, before.item) and value in (BACK.lower(), PREV.lower())
    return "unnecessary", "left the right product" if leaves else "page not needed"


def _option_verdict(env: WebShop, value: str) -> tuple[str, str]:
    name = env.values()[value]
    if flaw(env, env.item):
        return "unnecessary", "wrong product"
    if env.chosen.get(name) == value:
        return "unnecessary", "already chosen"
    if name not in env.goal.options:
        return "unnecessary", "option not asked for"
    return ("necessary", "") if env.goal.options[name] == value else ("harmful", "wrong option")


def flaw(env: WebShop, product: Product) -> str:
    """What keeps a product from being the right one; empty if nothing does."""
    goal = env.goal
    if product.kind != goal.kind:
        return "other kind of product"
    if not set(goal.attributes) <= set(product.attributes):
        return "other attribute"
    if product.price > goal.limit:
        return "over the price"
    missing = any(value not in product.options[name] for name, value in goal.options.items())
    return "option missing" if missing else ""


def _unchosen(env: WebShop) -> str:
    right = all(env.chosen.get(name) == value for name, value in env.goal.options.items())
    return "" if right else "option not chosen"


# --- the bad habits --------------------------------------------------------------------------------------------------
def habit(env: WebShop, draw: random.Random, best: Action) -> Action:
    """A bad habit that applies on this page, and is not the best action."""
    habits = {"search": _searching, "results": _browsing, "item": _choosing}.get(env.page, _reading)(env, draw)
    others = [(weight, action) for weight, action in habits if action != best]
    return draw.choices([a for _, a in others], weights=[w for w, _ in others])[0]


def _searching(env: WebShop, draw: random.Random) -> list[tuple[float, Action]]:
    """Vague words, words that no product has, searches for half of the wish, clicks where nothing can be clicked."""
    value = draw.choice(list(env.goal.options.values()))
    return [
        (1.5, search(draw.choice(("something nice", "a gift", "the best one", "good deal")))),
        (0.7, search(f"{draw.choice(env.goal.attributes)} {value}")),
        (0.7, search(env.goal.kind)),
        (1.0, click(GUESS)),
        (0.7, click(env.goal.kind)),
        (0.5, click(BUY)),
    ]


def _browsing(env: WebShop, draw: random.Random) -> list[tuple[float, Action]]:
    """Opens a twin, searches or buys where that is not possible, turns pages for nothing, guesses ids."""
    value = draw.choice(list(env.goal.options.values()))
    return [
        (3.0, click(draw.choice(env.on_page()))),
        (0.7, search(wish(env))),
        (0.7, click(GUESS)),
        (0.7, click(value)),
        (0.7, click(BUY)),
        (0.3, click(BACK)),
        (0.7, click(NEXT)),
    ]


def _choosing(env: WebShop, draw: random.Random) -> list[tuple[float, Action]]:
    """Buys too early, or a twin; takes another option, clicks again, reads what is not needed, leaves."""
    wanted = draw.choice(list(env.goal.options.values()))
    twin = fit(env, env.item) == "no"
    return [
        (4.0 if twin else 1.2, click(BUY)),
        (1.5 if twin else 0.3, click(wanted)),
        (1.2, click(draw.choice(list(env.values())))),
        *[(1.0, click(value)) for value in env.chosen.values()],
        (0.7, click(draw.choice(env.results))),
        (0.7, click(DESCRIPTION)),
        (0.7, click(FEATURES)),
        (0.5, search(wish(env))),
        (0.3, click(BACK)),
        (0.3, click(PREV)),
    ]


def _reading(env: WebShop, draw: random.Random) -> list[tuple[float, Action]]:
    """On Description and Features: buys or chooses where that is not possible, goes back to the start."""
    return [
        (1.0, click(BUY)),
        (1.0, click(draw.choice(list(env.goal.options.values())))),
        (0.7, click(FEATURES)),
        (0.3, click(BACK)),
    ]


def admissible(env: WebShop) -> list[str]:
    """Every click that this page offers, or searches in the words of the wish, for the random floor (our choice)."""
    if env.page == "search":
        return [str(search(words)) for words in (wish(env), env.goal.kind, *env.goal.attributes)]
    return [str(click(thing)) for thing in env.clickable()]
