"""How mini WebShop takes actions and what its pages hold, found out by running it: answers to `webshop_rules`.

Every function takes the pages of a task (see `visit`) and returns what the shop does there, in the table's words.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from hero_mini.envs.base import Task
from hero_mini.envs.webshop import WebShop
from hero_mini.envs.webshop_catalogue import BACK, BUY, DESCRIPTION, FEATURES, NEXT, PREV
from hero_mini.envs.webshop_script import wish

Pages = dict[str, WebShop]  # a task's episode when the expert first stands on: search, results, item; before it buys
NOWHERE = "qqq"  # a word that no shop has
OTHER = "something else"


def visit(task: Task) -> Pages:
    """The pages of the expert's episode."""
    env, pages = start(task), {}
    while not env.done:
        action = str(env.expert())
        pages.setdefault("buying" if action in env.endings else env.page, env.clone())
        env.step(action)
    return pages


def start(task: Task) -> WebShop:
    env = WebShop(max_turns=100)
    env.reset(options={"task": task})
    return env


def after(env: WebShop, *actions: str, strict: bool = False) -> tuple[WebShop, str, float, bool, dict]:
    """A copy of the episode after these actions; observation, reward, terminated and info of the last one."""
    other = env.clone()
    other.strict_upstream = strict
    observation, reward, terminated, _, info = [other.step(action) for action in actions][-1]
    return other, observation, reward, terminated, info


def valid(env: WebShop, action: str) -> bool:
    return after(env, action)[-1]["valid"]


def yes(holds: bool) -> str:
    return "yes" if holds else "no"


# --- actions ---------------------------------------------------------------------------------------------------------
def actions(pages: Pages) -> str:
    """Each is tried with a word that would do something there."""
    tried = {"search[keywords]": (pages["search"], f"search[{pages['search'].goal.kind}]")}
    tried |= {f"{name}[value]": (pages["item"], f"{name}[{BACK}]") for name in ("click", "press", "choose", "think")}
    tried |= {"plain text": (pages["item"], BACK)}
    return ", ".join(name for name, (env, text) in tried.items() if after(env, text)[-1]["changed"])


def spellings(pages: Pages) -> str | None:
    tried = {"JSON": f'{{"name": "click", "arguments": {{"value": "{BACK}"}}}}', "a call": f"click(value='{BACK}')"}
    return ", ".join(name for name, text in tried.items() if after(pages["item"], text)[-1]["changed"]) or None


def capitals(pages: Pages) -> str:
    return yes(not valid(pages["item"], f"click[{BACK.upper()}]"))


def behind_the_brackets(pages: Pages) -> str:
    return "passed over" if valid(pages["item"], f"click[{BACK}] now") else "make it no action"


def impossible(pages: Pages, *, strict: bool = False) -> str:
    """On every page, clicks on what is not there and texts that are no action."""
    found = set()
    for env in pages.values():
        for text in ("click[nothing]", "buy it", f"press[{BUY}]", f"click[{NEXT if env.page == 'item' else BUY}]"):
            then, observation, _, _, info = after(env, text, strict=strict)
            still = (then.place(), info["changed"], info["valid"]) == (env.place(), False, False)
            found.add(("the page again" if observation == env.show() else observation) + ", nothing changes" * still)
    return " or ".join(sorted(found))


def search_elsewhere(pages: Pages, *, strict: bool = False) -> str:
    """Whether a search shows the same results from every other page as from the search page."""
    words = f"search[{pages['search'].goal.kind}]"
    wanted = after(pages["search"], words)[1]
    tried = [after(env, words, strict=strict) for page, env in pages.items() if page != "search"]
    done = {info["valid"] and observation == wanted for _, observation, _, _, info in tried}
    return {(True,): "carried out", (False,): "not possible"}.get(tuple(done), OTHER)


def told_clicks(pages: Pages) -> str:
    """The admissible clicks, against all products, values and buttons that there are."""
    for env in (env for page, env in pages.items() if page != "search"):
        values = {v for p in env.products.values() for options in p.options.values() for v in options}
        every = {f"click[{thing}]" for thing in (*env.products, *values, BACK, PREV, NEXT, DESCRIPTION, FEATURES, BUY)}
        if {click for click in every if valid(env, click)} != set(env.admissible()):
            return OTHER
    return "all that the page takes"


# --- pages -----------------------------------------------------------------------------------------------------------
def searched(pages: Pages) -> str:
    """A word that nothing else has stands in one text of a product, and is searched for."""
    task = pages["search"].task
    first, *rest = task.world["shop"]
    texts = {
        "title": (NOWHERE, replace(first, titled=(NOWHERE,))),
        "description": ("ships", first),
        "features": (NOWHERE, replace(first, attributes=(*first.attributes, NOWHERE))),
        "options": (NOWHERE, replace(first, options={**first.options, NOWHERE: ()})),
    }
    shops = {text: (word, replace(task, world={**task.world, "shop": (p, *rest)})) for text, (word, p) in texts.items()}
    return ", ".join(text for text, (word, changed) in shops.items() if start(changed).engine(word))


def stemmed(pages: Pages) -> str:
    return yes(bool(pages["search"].engine("ships")) and bool(pages["search"].engine("ship")))


def ranking(pages: Pages) -> str:
    """BM25 in plain Python, with the usual k1 = 1.5 and b = 0.75."""
    env = pages["results"]
    docs = [re.findall(r"[\w-]+", p.text.lower()) for p in env.products.values()]
    mean, scores = sum(map(len, docs)) / len(docs), []
    for doc in docs:
        parts = []
        for word in re.findall(r"[\w-]+", wish(env)):
            n, tf = sum(word in d for d in docs), doc.count(word)
            idf = math.log(1 + (len(docs) - n + 0.5) / (n + 0.5))
            parts.append(idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(doc) / mean)))
        scores.append(round(sum(parts), 4))
    best = sorted(range(len(docs)), key=lambda i: -scores[i])[: len(env.results)]
    return "BM25" if env.results == [list(env.products)[i] for i in best] else OTHER


def result_line(pages: Pages) -> str:
    env = pages["results"]
    wanted = [f"{p.id} {p.title} ${p.price}" for p in (env.products[id] for id in env.on_page())]
    return "id, title, price" if env.show().splitlines()[1:-1] == wanted else OTHER


def turning(pages: Pages) -> str:
    """The second page goes on where the first one ends, and leads back to it."""
    env, there = pages["results"], f"click[{NEXT}]"
    second, back = after(env, there)[0], after(env, there, f"click[{PREV}]")
    both = env.on_page() + second.on_page()
    return yes(both == env.results[: len(both)] and back[1] == env.show() and not valid(env, f"click[{PREV}]"))


def no_results(pages: Pages) -> str:
    then, observation, *_ = after(pages["search"], f"search[{NOWHERE}]")
    return f"{observation}, and the page stays" if then.place() == pages["search"].place() else OTHER


def item_page(pages: Pages) -> str:
    env = pages["item"]
    item, page = env.item, env.show().lower()
    options = [text for name, values in item.options.items() for text in (name, *values)]
    parts = {
        "id": [item.id],
        "title": [item.title],
        "price": [f"${item.price}"],
        "rating": ["rating"],
        "options": options,
    }
    return ", ".join(part for part, texts in parts.items() if all(text.lower() in page for text in texts))


def button(pages: Pages, name: str) -> str | None:
    """The name itself, if the item page shows and takes it."""
    return name if f"[{name}]" in pages["item"].show() and valid(pages["item"], f"click[{name}]") else None


def way_back(pages: Pages) -> str:
    item, prev = pages["item"], f"click[{PREV}]"
    down_and_up = all(after(item, f"click[{sub}]", prev)[1] == item.show() for sub in (DESCRIPTION, FEATURES))
    up = after(item, prev)[0]
    return yes(down_and_up and (up.page, up.number) == ("results", item.number))


def _two_values(pages: Pages) -> tuple[WebShop, str, str]:
    """The item page after clicks on two values of one option; the option and the second value."""
    env = pages["item"]
    name, (first, second, *_) = next(iter(env.item.options.items()))
    return after(env, f"click[{first}]", f"click[{second}]")[0], name, second


def second_value(pages: Pages) -> str:
    env, name, second = _two_values(pages)
    return "replaces the first" if env.chosen == {name: second} else OTHER


def left_values(pages: Pages) -> str:
    env, *_ = _two_values(pages)
    return "kept" if after(env, f"click[{PREV}]", f"click[{env.item.id}]")[0].chosen else "forgotten"


def shown_values(pages: Pages) -> str:
    env, name, second = _two_values(pages)
    return yes(f"{name} {second}" in env.show())


def shown_wish(pages: Pages) -> str:
    task = pages["search"].task
    opener = WebShop().reset(options={"task": task})[0]
    later = [task.instruction in env.show() for env in pages.values()]
    return "on every page" if all(later) else "once" if task.instruction in opener and not any(later) else OTHER
