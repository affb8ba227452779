"""What mini WebShop pays for and what it asks for, found out by buying everything: answers to `webshop_rules`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hero_mini.envs.webshop import WebShop, reward_parts, total
from hero_mini.envs.webshop_catalogue import BACK, BUY, Product, path
from hero_mini.envs.webshop_checks import OTHER, Pages, after, yes
from hero_mini.envs.webshop_script import flaw
from hero_mini.errors import HeroError

FORMULA = "r_type · (attributes + options + [price ≤ limit]) / (attributes and options wanted + 1)"


# --- the reward ------------------------------------------------------------------------------------------------------
def final(pages: Pages) -> str:
    env, _, _, terminated, _ = after(pages["buying"], f"click[{BUY}]")
    try:
        env.step(f"click[{BACK}]")
    except HeroError:
        return yes(terminated)
    return "no"


def early_reward(pages: Pages) -> str:
    return f"{sum(after(env, str(env.expert()))[2] for page, env in pages.items() if page != 'buying'):g}"


def _purchases(pages: Pages) -> Iterator[tuple[Product, dict[str, str], float, dict]]:
    """Every product of the shop, bought without options and with those of the wish; the reward and the info."""
    env = pages["item"]
    for product in env.products.values():
        offered = {name: value for name, value in env.goal.options.items() if value in product.options.get(name, ())}
        for chosen in ({}, offered):
            buying = env.clone()
            buying.item, buying.chosen = product, chosen
            _, _, reward, _, info = after(buying, f"click[{BUY}]")
            yield product, chosen, reward, info


def formula(pages: Pages) -> str:
    goal = pages["item"].goal
    for product, chosen, reward, info in _purchases(pages):
        hits = sum(a in product.attributes for a in goal.attributes) + len(chosen) + (product.price <= goal.limit)
        wanted = info["reward_parts"]["type"] * hits / (len(goal.attributes) + len(goal.options) + 1)
        if not math.isclose(reward, wanted):
            return OTHER
    return FORMULA


def type_levels(pages: Pages) -> str:
    return ", ".join(f"{level:g}" for level in sorted({info["reward_parts"]["type"] for *_, info in _purchases(pages)}))


def type_source(pages: Pages) -> str:
    """Whether the level grows with each part of the path from department to kind that is shared, and with no other."""
    levels: dict[int, set[float]] = {}
    for product, _, _, info in _purchases(pages):
        same = [ours == wanted for ours, wanted in zip(path(product.kind), path(pages["item"].goal.kind), strict=True)]
        levels.setdefault((same + [False]).index(False), set()).add(info["reward_parts"]["type"])
    by_depth = [level for depth in sorted(levels) for level in levels[depth]]
    grows = len(by_depth) == len(levels) and by_depth == sorted(set(by_depth))
    return "department, shelf and kind" if grows else OTHER


def success(pages: Pages) -> str:
    """The reward of the purchases that the oracle has no fault to find with, and of no other."""
    rewards: dict[bool, set[float]] = {True: set(), False: set()}
    for _, _, reward, info in _purchases(pages):
        rewards[info["oracle"]["verdict"] == "necessary"].add(reward)
    return "reward 1" if rewards[True] == {1.0} and max(rewards[False]) < 1 else OTHER


def parts(pages: Pages) -> str:
    return yes(all(total(info["reward_parts"]) == reward for *_, reward, info in _purchases(pages)))


def at_the_limit(pages: Pages) -> str:
    env = pages["buying"]
    prices = [replace(env.item, price=env.goal.limit + more) for more in (0, 1)]
    fine = [reward_parts(env.goal, product, env.chosen)["price"] for product in prices]
    return "is fine, a dollar more is not" if fine == [1.0, 0.0] else OTHER


# --- goals -----------------------------------------------------------------------------------------------------------
def fuzzy_options(pages: Pages) -> str:
    env = pages["item"]
    goal = replace(env.goal, options={"size": "large"})
    return yes(reward_parts(goal, env.item, {"size": "x-large"})["options"] > 0)


def made_again(pages: Pages) -> str:
    task = pages["search"].task
    return "the same" if WebShop().task_named(task.id) == task else "others"


def out_of_reach(pages: Pages) -> str:
    env = pages["buying"]
    return "none" if after(env, f"click[{BUY}]")[2] == 1.0 else env.task.id


def own_shop(pages: Pages) -> str:
    task = pages["search"].task
    other = WebShop().make_task(task.split, task.index + 1)
    return "one per task" if task.world["shop"] != other.world["shop"] else "one for all tasks"


def twins(pages: Pages) -> str | None:
    """What is wrong with the products of the wanted kind, if exactly one of them is right."""
    env = pages["item"]
    flaws = [flaw(env, product) for product in env.products.values() if product.kind == env.goal.kind]
    return ", ".join(sorted(set(flaws) - {""})) if flaws.count("") == 1 else None


def judgement(pages: Pages) -> str:
    return ", ".join(after(pages["item"], f"click[{BACK}]")[-1]["oracle"])
