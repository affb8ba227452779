"""Mini WebShop: its tasks, its pages, its reward against a second opinion, and hostile text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from worlds import HOSTILE, Step, assert_harmless, bad_habits, episode, expert, random_admissible

from hero_mini import nb
from hero_mini.envs import SPLITS, Task, parse_action
from hero_mini.envs import webshop_pages as pages
from hero_mini.envs.base import MAX_ACTION_CHARS
from hero_mini.envs.webshop import NO_RESULTS, SEARCH_PAGE, WebShop, reward_parts, total
from hero_mini.envs.webshop_catalogue import BACK, BUY, FAMILIES, INVALID, SHELF, Product, make_task, wishes
from hero_mini.envs.webshop_script import wish
from hero_mini.reflect import oracle, parse_reflection
from hero_mini.rollout import Rollout, Turn


@cache
def tasks(n: int, split: str = "train", seed: int = 0) -> list[Task]:
    return WebShop().tasks(split, n, seed)


def of_family(family: str) -> Task:
    return next(task for task in tasks(60) if task.family == family)


def at(task: Task, *actions: str, **settings) -> WebShop:
    env = WebShop(**settings)
    env.reset(options={"task": task})
    for action in actions:
        env.step(action)
    return env


def on_item(task: Task) -> WebShop:
    """An episode in which the expert has just opened its first product."""
    env = at(task, max_turns=50)
    while env.page != "item":
        env.step(expert(env))
    return env


# --- tasks -----------------------------------------------------------------------------------------------------------
def test_splits_share_no_wish_and_no_product() -> None:
    goals: dict[str, set] = {split: set() for split in SPLITS}
    brands: dict[str, set] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for task in (*tasks(100, split), *tasks(30, split, 3)):
            goal = task.world["goal"]
            assert (goal.kind, frozenset(goal.attributes)) in {(k, frozenset(pair)) for k, pair in wishes(split)}
            goals[split].add((goal.kind, frozenset(goal.attributes)))
            brands[split] |= {product.brand for product in task.world["shop"]}
    for a in SPLITS:
        assert len(goals[a]) > 50
        assert all(a == b or not (goals[a] & goals[b] or brands[a] & brands[b]) for b in SPLITS)


# --- reward ----------------------------------------------------------------------------------------------------------
def second_opinion(task: Task, steps: list[Step]) -> float:
    """The reward from the texts of the episode: the item page that was shown last, and the clicks after it."""
    if not steps[-1][3]:
        return 0.0
    goal, item, chosen = task.world["goal"], None, {}
    by_id = {product.id: product for product in task.world["shop"]}
    for action, observation, _, _, info in steps[:-1]:
        if info["error"] is not None:
            continue
        if observation == SEARCH_PAGE or observation.startswith("Page "):
            item, chosen = None, {}
        elif (shown := re.match(r"(B\d\d) ", observation)) and (item is None or item.id != shown[1]):
            item, chosen = by_id[shown[1]], {}
        elif item is not None and observation.startswith("Chosen"):
            value = action[len("click[") : -1]
            chosen = {**chosen, next(n for n, values in item.options.items() if value in values): value}
    if item.kind == goal.kind:
        kind = 1.0
    elif SHELF[item.kind] is SHELF[goal.kind]:
        kind = 0.5
    else:
        kind = 0.1 if SHELF[item.kind].department == SHELF[goal.kind].department else 0.0
    hits = [a in item.attributes for a in goal.attributes]
    hits += [chosen.get(name) == value for name, value in goal.options.items()]
    hits.append(item.price <= goal.limit)
    return kind * sum(hits) / len(hits)


def test_reward_equals_a_second_opinion() -> None:
    seen = Counter()
    for task in tasks(100):
        for act in (bad_habits(task.index, 0.4), bad_habits(task.index, 0.8), random_admissible(task.index)):
            _, steps, _ = episode(task, act, max_turns=15)
            assert steps[-1][2] == second_opinion(task, steps), task.id
            assert all(reward == 0.0 for _, _, reward, _, _ in steps[:-1])
            seen[steps[-1][2]] += 1
    assert seen[0.0] and seen[1.0] and len(seen) >= 6, seen


def product(**changes) -> Product:
    made = Product("B10", "Nord", "hiking boots", 50, ("waterproof", "wide"), ("waterproof", "wide"), {})
    return replace(made, **changes)


@pytest.mark.parametrize(
    "bought, chosen, score",
    [
        (product(), {"size": "9", "color": "navy"}, 1.0),
        (product(price=61), {"size": "9", "color": "navy"}, 4 / 5),
        (product(price=60), {"size": "9", "color": "navy"}, 1.0),  # the limit itself is fine
        (product(attributes=("waterproof", "vegan")), {"size": "9", "color": "navy"}, 4 / 5),
        (product(), {"size": "9"}, 4 / 5),
        (product(), {"size": "10", "color": "nav"}, 3 / 5),  # exact, not fuzzy
        (product(), {}, 3 / 5),
        (product(kind="sandals"), {"size": "9", "color": "navy"}, 0.5),
        (product(kind="hoodie", attributes=("slim", "warm")), {"color": "navy"}, 0.1 * 2 / 5),
        (product(kind="kettle"), {"size": "9", "color": "navy"}, 0.0),
    ],
)
def test_reward_by_hand(bought: Product, chosen: dict, score: float) -> None:
    goal = replace(
        make_task("train", 0).world["goal"],
        kind="hiking boots",
        attributes=("waterproof", "wide"),
        options={"color": "navy", "size": "9"},
        limit=60,
    )
    assert total(reward_parts(goal, bought, chosen)) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("cause", ["over the price", "option missing", "other attribute"])
def test_every_twin_fails_for_its_own_reason(cause: str) -> None:
    """The expert's wish leads to each twin; who buys it hears why it was not the right one."""
    for task in tasks(20):
        env = at(task)
        env.step(expert(env))
        found = False
        for id in env.results:
            branch = env.clone()
            branch.page, branch.item = "item", branch.products[id]
            branch.opened.add(id)
            for value in env.goal.options.values():
                branch.step(f"click[{value}]")
            _, reward, terminated, _, info = branch.step(f"click[{BUY}]")
            assert terminated and (reward == 1.0) == (info["oracle"]["verdict"] == "necessary")
            found = found or info["oracle"]["cause"] == cause
        assert found, task.id


# --- the pages -------------------------------------------------------------------------------------------------------
def test_pages_as_the_agent_reads_them() -> None:
    """A whole session, click by click."""
    task = of_family("features")
    env, goal = at(task), task.world["goal"]
    observation = env.step(f"search[{wish(env)}]")[0]
    assert observation.startswith("Page 1 of ") and len(env.on_page()) == 3
    assert observation.endswith("[Back to Search] [Next >]")
    second = env.step("click[Next >]")[0]
    assert second.startswith("Page 2 of ") and "[< Prev]" in second
    assert env.step("click[< Prev]")[0] == observation
    env = on_item(task)
    item = env.show()
    assert item.splitlines()[0] == f"{env.item.id} {env.item.title} ${env.item.price}"
    assert goal.attributes[1] not in env.item.title
    features = env.step("click[Features]")[0]
    assert features == f"Features of {env.item.id}: {', '.join(env.item.attributes)}\n[Back to Search] [< Prev]"
    assert env.step("click[< Prev]")[0] == item
    assert env.item.kind.capitalize() in env.step("click[description]")[0]
    env.step("click[< Prev]")
    (name, values), *_ = env.item.options.items()
    assert env.step(f"click[{values[0]}]")[0] == f"Chosen: {name} {values[0]}"
    assert env.step(f"click[{values[1]}]")[0] == f"Chosen: {name} {values[1]}"
    assert not env.step(f"click[{values[1]}]")[4]["changed"]
    env.step("click[Features]")
    assert f"Chosen: {name} {values[1]}" in env.step("click[< Prev]")[0]  # a look at the Features forgets nothing
    assert env.step(f"click[{BACK}]")[0] == SEARCH_PAGE and env.chosen == {}


def test_impossible_clicks_are_answered_and_change_nothing() -> None:
    task = of_family("plain")
    reading = on_item(task)
    reading.step("click[Features]")
    for env, impossible in [
        (at(task), ["click[Buy Now]", "click[Search]", "click[B10]"]),
        (at(task, f"search[{wish(at(task))}]"), ["click[Buy Now]", "click[< Prev]", "click[black]", "search[boots]"]),
        (on_item(task), ["click[Next >]", "click[hiking]", "search[boots]", "buy"]),
        (reading, ["click[Features]", "click[Buy Now]", "search[boots]"]),
    ]:
        for action in impossible:
            place = env.place()
            observation, reward, terminated, _, info = env.step(action)
            assert observation == info["error"] == INVALID and not info["valid"] and not info["changed"]
            assert (reward, terminated) == (0.0, False) and env.place() == place
            assert info["oracle"]["verdict"] == "invalid" and info["oracle"]["better"] == expert(env)


def test_a_search_without_results_leaves_the_search_page() -> None:
    env = at(tasks(1)[0])
    observation, _, _, _, info = env.step("search[qwertz]")
    assert observation == info["error"] == NO_RESULTS and info["valid"] and not info["changed"]
    assert info["oracle"]["verdict"] == "failed" and env.page == "search"
    assert env.step("search[qwertz]")[4]["repeated"]


def test_search_reads_title_texts_and_options() -> None:
    env = at(of_family("features"))
    target = next(p for p in env.products.values() if len(p.titled) == 1)
    hidden = next(a for a in target.attributes if a not in target.titled)
    everything = list(env.products.values())
    found = [everything[i] for i in env.engine(f"{target.brand} {hidden} {target.kind}")]
    assert target in found
    assert all("x-large" in str(p.options) for p in (everything[i] for i in env.engine("x-large")))


def on_every_page(task: Task) -> dict[str, WebShop]:
    """An episode on the search page, a second page of results, an item with a chosen value, and its texts."""
    item = on_item(task)
    item.step(f"click[{next(iter(item.values()))}]")
    found = {"search": at(task), "results": at(task, f"search[{wish(at(task))}]", "click[Next >]"), "item": item}
    for page in ("Description", "Features"):
        found[page] = item.clone()
        found[page].step(f"click[{page}]")
    return found


def test_strict_upstream_shows_the_page_again() -> None:
    """What the agent reads is silent; what is known about the turn is not."""
    for page, env in on_every_page(of_family("plain")).items():
        for action in ("click[nothing]", "hello", "search[ ]", "x" * (MAX_ACTION_CHARS + 1), "click[Next >]"):
            if (page, action) == ("results", "click[Next >]") and "Next >" in env.buttons():
                continue
            strict, open_ = env.clone(), env.clone()
            strict.strict_upstream = True
            observation, *silent, info = strict.step(action)
            assert observation == env.show() and strict.place() == env.place(), (page, action)
            assert (info["valid"], info["changed"], info["error"]) == (False, False, INVALID)
            assert open_.step(action) == (INVALID, *silent, info)  # the mini's own rules differ in what is said alone


def test_strict_upstream_searches_on_every_page() -> None:
    task = of_family("plain")
    for page, env in on_every_page(task).items():
        words = f"search[{env.goal.kind}]"
        results = at(task, words)
        assert page == "search" or env.clone().step(words)[0] == INVALID
        strict = env.clone()
        strict.strict_upstream = True
        observation, reward, terminated, _, info = strict.step(words)
        assert observation == results.show() and strict.place() == results.place()
        assert (reward, terminated) == (0.0, False)
        assert (info["valid"], info["changed"], info["error"]) == (True, True, None)
        assert str(strict.expert()).startswith("click[B")  # the task goes on
        nothing = env.clone()
        nothing.strict_upstream = True
        observation, _, _, _, info = nothing.step("search[qwertz]")
        assert observation == info["error"] == NO_RESULTS and nothing.place() == env.place()
        assert info["valid"] and not info["changed"]


def test_strict_upstream_judges_a_search_by_what_it_gives_up() -> None:
    task = of_family("plain")
    first = f"search[{wish(at(task))}]"
    env = at(task, first, strict_upstream=True)
    judged = [env.clone().step(s)[4]["oracle"] for s in (first, f"search[{env.goal.kind}]")]
    assert (judged[0]["verdict"], judged[0]["cause"]) == ("unnecessary", "the same results")
    assert judged[1]["verdict"] == "necessary"
    env.step(str(env.expert()))
    assert env.page == "item"
    left = env.step(f"search[{env.goal.kind}]")[4]["oracle"]
    assert (left["verdict"], left["cause"], left["better"]) == (
        "unnecessary", "left the right product", f"click[{next(iter(task.world['goal'].options.values()))}]",
    )  # fmt: skip


def test_strict_upstream_episodes_hold_together() -> None:
    for task in tasks(30):
        assert episode(task, expert, strict_upstream=True)[1] == episode(task, expert)[1]
        _, steps, _ = episode(task, bad_habits(task.index, 0.4), max_turns=15, strict_upstream=True)
        assert steps[-1][2] == second_opinion(task, steps)
        for _, observation, _, _, info in steps:
            assert observation not in (INVALID, "") and (info["error"] is None or not info["changed"])
            assert info["valid"] == (info["error"] != INVALID) == (info["oracle"]["verdict"] != "invalid")


# --- what the agent is told ------------------------------------------------------------------------------------------
def test_corrections_hold_nothing_the_agent_was_not_told() -> None:
    checked = 0
    for task in tasks(100):
        for act in (bad_habits(task.index, 0.5), bad_habits(task.index, 0.8), random_admissible(task.index)):
            shown, steps, _ = episode(task, act)
            for _, observation, _, _, info in steps:
                if (better := info["oracle"]["better"]) is not None:
                    (words,) = parse_action(better).arguments.values()
                    parts = words.split() if better.startswith("search") else [words]
                    assert all(part in shown for part in parts), (task.id, better)
                    checked += 1
                shown += "\n" + observation
    assert checked > 500


def test_the_expert_cannot_see_behind_the_pages() -> None:
    """Where the pages shown are the same, the expert does the same, whatever a hidden page would say."""
    compared = 0
    for task in tasks(150):
        shop = task.world["shop"]
        altered = tuple(p if len(p.titled) == 2 else replace(p, attributes=(p.titled[0], "other")) for p in shop)
        if altered == shop:
            continue
        env, other = at(task), at(replace(task, world={**task.world, "shop": altered}))
        other.engine = env.engine
        while env.page != "features":
            assert env.show() == other.show() and env.expert() == other.expert()
            env.step(expert(env)), other.step(expert(other))
            compared += 1
        assert env.show() != other.show()
        env.step(expert(env)), other.step(expert(other))
        assert env.expert() != other.expert()
    assert compared > 20


def test_reflections_on_search_and_click_read_back() -> None:
    turns, env = [], at(tasks(1)[0])
    for action in ("search[qwertz]", "click[Buy Now]", "hello", expert(env)):
        observation, _, _, _, info = env.step(action)
        turns.append(Turn("tool", "", action, (1,), (0.0,), "tool", observation, info))
    (reflection,) = oracle([Rollout("webshop", "t", 0, "", tuple(turns), 0.0, False, True)])
    assert parse_reflection(reflection.text, [t.action for t in turns]).diagnoses == reflection.diagnoses
    assert reflection.diagnoses[1].better == str(expert(at(tasks(1)[0])))


# --- spelling and hostile text ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_answered(text: str) -> None:
    for env in (at(tasks(1)[0]), on_item(tasks(1)[0])):
        assert_harmless(env, text)
        assert_harmless(env, text)
    assert "<script" not in pages.strip_html(tasks(1)[0], [text, f"<script>{text}</script>", f"search[{text}<script>]"])


@pytest.mark.parametrize("action", ["search(red shoes)", "search(query='x')", '{"name": "search", "arguments": {}}'])
def test_a_search_that_cannot_be_read_is_shown(action: str) -> None:
    assert "Invalid action!" in pages.strip_html(tasks(1)[0], [action])


def test_too_long_is_invalid() -> None:
    env = at(tasks(1)[0])
    long = f"search[{env.goal.kind} " + "x" * MAX_ACTION_CHARS
    assert env.step(long[: MAX_ACTION_CHARS - 1] + "]")[4]["error"] is None
    assert at(tasks(1)[0]).step(long + "]")[0] == INVALID


def test_a_search_that_is_none_is_told_from_one_in_the_wrong_place() -> None:
    causes = [at(tasks(1)[0]).step(text)[4]["oracle"]["cause"] for text in ("search[ ]", "search[", "click[x]")]
    assert causes == ["no words to search for", "not an action", "not on this page"]
    assert on_item(tasks(1)[0]).step("search[lamp]")[4]["oracle"]["cause"] == "no search box here"
    strict = at(tasks(1)[0], "search[lamp]", strict_upstream=True)
    assert strict.step("search[ ]")[4]["oracle"]["cause"] == "no words to search for", "there is a box on every page"


# --- what people see -------------------------------------------------------------------------------------------------
def test_the_strip_shows_every_page() -> None:
    for family in FAMILIES:
        task = of_family(family)
        actions = pages.expert_actions(task)
        html = pages.strip_html(task, actions)
        assert html.count("mini WebShop") == len(actions) + 1 and html.count("● necessary") == len(actions)
        assert html.count("outline:3px") == len(actions)  # every action can be found on its page
        assert "Your score: 1.00" in html and html.count("<div") == html.count("</div>")
        text = pages.strip_text(task, actions)
        assert all(action in text for action in actions) and "Your score: 1.00" in text
    assert pages.strip_html(task, []).count("mini WebShop") == 1


def test_by_hand_in_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a live kernel there are buttons that work; without one the static strip is shown."""
    shown: list = []
    monkeypatch.setattr(nb, "display", lambda *things, **_: shown.extend(things))
    task = of_family("plain")
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    nb.shop(task)
    assert "Your score: 1.00" in shown[0]["text/html"] and "Your score: 1.00" in shown[0]["text/plain"]
    monkeypatch.setenv("JPY_SESSION_NAME", "here")
    nb.shop(task)
    row, buttons, again = shown[1].children
    first = row.children[0].value
    buttons.children[0].value = wish(at(task))  # typed, then Enter
    assert "products found" in row.children[0].value
    for action in pages.expert_actions(task)[1:]:
        next(b for b in buttons.children if b.description == action).click()
    assert "Your score: 1.00" in row.children[0].value and buttons.children == ()
    again.click()
    assert row.children[0].value == first
