"""The fidelity table of mini WebShop: every rule that it keeps from the real one, with a check that is run on the spot.

The rules are those of the real environment (Yao et al. 2022 and its code) and of what we chose not to copy from it:
fuzzy matching of options, price limits that no seed fixes, goals that no purchase fulfils.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd

from hero_mini.envs.base import SPLITS, Action, Task
from hero_mini.envs.webshop import TYPE_REWARD, WebShop, reward_parts, total
from hero_mini.envs.webshop_catalogue import BACK, BUY, DESCRIPTION, FEATURES, INVALID, PER_PAGE, PREV, path
from hero_mini.envs.webshop_script import flaw
from hero_mini.runtime import HeroError


def fidelity(n_tasks: int = 10) -> pd.DataFrame:
    """A row per rule: the rule, how it was checked, whether it held on the first `n_tasks` tasks of every split."""
    tasks = [task for split in SPLITS for task in WebShop().tasks(split, n_tasks)]
    rows = [(rule, how, all(check(task) for task in tasks)) for rule, how, check in RULES]
    return pd.DataFrame(rows, columns=["rule", "checked", "holds"])


def _start(task: Task, **settings) -> WebShop:
    env = WebShop(max_turns=100, **settings)
    env.reset(options={"task": task})
    return env


def _walk(task: Task) -> Iterator[tuple[WebShop, Action, tuple]]:
    """The expert's episode: the environment before each action, the action, and what `step` returned."""
    env, done = _start(task), False
    while not done:
        before, action = env.clone(), env.expert()
        result = env.step(str(action))
        yield before, action, result
        done = result[2] or result[3]


def _two_actions(task: Task) -> bool:
    texts = ("buy it", "press[Buy Now]", "search", "click[]", "search[ ]", f"type[{task.instruction}]")
    return all(_start(task).step(text)[0] == INVALID for text in texts)


def _reads_everything(task: Task) -> bool:
    """All words of a product together find it, and every single one finds something."""
    env = _start(task)
    for product in list(env.products.values())[:PER_PAGE]:
        words = (product.title, *product.attributes, *(v for values in product.options.values() for v in values))
        found = [list(env.products)[i] for i in env.engine(" ".join(words))]
        alone = all(env.engine(word) for word in " ".join(words).lower().split())
        if product.id not in found[:PER_PAGE] or not alone:
            return False
    return True


def _result_pages(task: Task) -> bool:
    env = _start(task)
    text = env.step(str(env.expert()))[0]
    shown = [env.products[id] for id in env.on_page()]
    lines = all(f"{p.id} {p.title} ${p.price}" in text for p in shown)
    return lines and len(shown) <= PER_PAGE and f"of {env.n_pages()}" in text and all(len(p.id) == 3 for p in shown)


def _item_pages(task: Task) -> bool:
    item = next(before for before, _, _ in _walk(task) if before.page == "item")
    options = all(value in item.show() for values in item.item.options.values() for value in values)
    return options and all(f"[{button}]" in item.show() for button in (BACK, PREV, DESCRIPTION, FEATURES, BUY))


def _final(task: Task) -> bool:
    *_, (before, action, (_, _, terminated, _, _)) = _walk(task)
    env = before.clone()
    env.step(str(action))
    try:
        env.step(str(action))
    except HeroError:
        return terminated and action == Action("click", {"value": BUY})
    return False


def _only_at_purchase(task: Task) -> bool:
    *earlier, last = [(reward, terminated) for _, _, (_, reward, terminated, _, _) in _walk(task)]
    return last == (1.0, True) and all(step == (0.0, False) for step in earlier)


def _formula(task: Task) -> bool:
    """Every product of the shop, without options and with those of the wish."""
    goal = task.world["goal"]
    for product in task.world["shop"]:
        offered = {n: v for n, v in goal.options.items() if v in product.options.get(n, ())}
        for chosen in ({}, offered):
            depth = sum(path(product.kind)[: i + 1] == path(goal.kind)[: i + 1] for i in range(3))
            matches = (
                sum(a in product.attributes for a in goal.attributes) + len(chosen) + (product.price <= goal.limit)
            )
            want = (0, 0.1, 0.5, 1)[depth] * matches / (len(goal.attributes) + len(goal.options) + 1)
            parts = reward_parts(goal, product, chosen)
            if total(parts) != want or parts["type"] not in TYPE_REWARD:
                return False
    return True


def _parts(task: Task) -> bool:
    *_, (_, _, (_, reward, _, _, info)) = _walk(task)
    return total(info["reward_parts"]) == reward


def _admissible(task: Task) -> bool:
    for before, _, _ in _walk(task):
        allowed = set(before.admissible())
        others = {f"click[{id}]" for id in before.products} | {f"click[{b}]" for b in (BUY, DESCRIPTION)}
        if not all(before.clone().step(action)[4]["valid"] for action in allowed):
            return False
        if any(before.clone().step(action)[4]["valid"] for action in sorted(others - allowed)):
            return False
    return True


def _twins(task: Task) -> bool:
    env = _start(task)
    flaws = [flaw(env, p) for p in env.products.values() if p.kind == env.goal.kind]
    return flaws.count("") == 1 and {"", "other attribute", "over the price", "option missing"} == set(flaws)


def _strict(task: Task) -> bool:
    for before, _, _ in _walk(task):
        before.strict_upstream = True
        page, place = before.show(), before.place()
        if before.step("click[nothing]")[0] != page or before.place() != place:
            return False
    return True


def _exact(task: Task) -> bool:
    goal = replace(task.world["goal"], options={"size": "large"})
    product = next(p for p in task.world["shop"] if p.kind == goal.kind)
    return [reward_parts(goal, product, {"size": s})["options"] for s in ("large", "x-large")] == [1.0, 0.0]


def _seeded(task: Task) -> bool:
    return WebShop().task_named(task.id) == task


def _solvable(task: Task) -> bool:
    return [result[1] for _, _, result in _walk(task)][-1] == 1.0


RULES: list[tuple[str, str, Callable[[Task], bool]]] = [
    ("the actions are search[keywords] and click[value], nothing else", "six other texts are invalid", _two_actions),
    ("BM25 over title, text and options", "a product's own words find it on the first page", _reads_everything),
    ("paged results with id, title and price", "the text of the first page", _result_pages),
    ("item page with options, Description, Features, Buy Now", "the text of the item page", _item_pages),
    ("Buy Now is final", "no step after it", _final),
    ("reward at the purchase only; success is reward 1", "every step of the expert", _only_at_purchase),
    ("r_type · (attributes + options + [price ≤ limit]) / all", "computed again for every product", _formula),
    ("the parts of the reward are told", "info['reward_parts'] gives the reward", _parts),
    ("a page has its admissible actions", "they are valid, other clicks are not", _admissible),
    ("60-150 products", "counted", lambda task: 60 <= len(task.world["shop"]) <= 150),
    ("near twins: other attribute, over the price, option missing", "one product fits, all three occur", _twins),
    ("strict_upstream: an impossible action is a silent no-op", "on every page of the expert", _strict),
    ("not copied: fuzzy options", "x-large is not large", _exact),
    ("not copied: price limits without a seed", "the task made again is the same", _seeded),
    ("not copied: goals that cannot be fulfilled", "the expert's reward is 1", _solvable),
]
