"""The real WebShop through our protocol: against a fake of WebAgentTextEnv with upstream's methods and habits.

The fake follows upstream's web_agent_text_env.py in what an adapter can notice: a reader of actions that ignores what
it cannot read, searches on every page, first words that are no search and may crash, sessions that go on where they
were left, prices and price limits from the global random numbers, and a page that does not show the chosen options.
Its pages are JSON instead of HTML. One test plays the real one; it needs WEBSHOP_HOME.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import product as combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_webshop import HOSTILE

from hero_mini import envs
from hero_mini.envs import Task, parse_action
from hero_mini.envs.base import MAX_ACTION_CHARS, VERDICTS
from hero_mini.envs.webshop import NO_RESULTS, total
from hero_mini.envs.webshop_catalogue import INVALID
from hero_mini.envs.webshop_real import RealWebShop, judge
from hero_mini.envs.webshop_upstream import Bm25, load
from hero_mini.errors import HeroError
from hero_mini.evaluate import floors
from hero_mini.models import Policy
from hero_mini.reflect import oracle
from hero_mini.rollout import Rollout, play

KINDS = {"lamp": "home", "jacket": "fashion", "shampoo": "beauty"}
FINISHES = ["heavy duty", "easy clean", "long lasting"]
BASE = "http://127.0.0.1:3000"


# --- the fake --------------------------------------------------------------------------------------------------------
def catalogue() -> list[dict]:
    """60 products: 20 of each kind, with one of three attributes; 30 ways to choose colour and size."""
    made = []
    for i in range(60):
        kind, finish = list(KINDS)[i % 3], FINISHES[(i // 3) % 3]
        made.append(
            {
                "asin": f"B{i:09d}",
                "category": KINDS[kind],
                "query": kind,
                "name": f"Brand{i} {kind.title()} [{finish}], {'pure ' * (i == 0)}No. {i}",
                "Title": f"Brand{i} {kind.title()} [{finish}], {'pure ' * (i == 0)}No. {i}",
                "Description": f"A {kind}.",
                "BulletPoints": [f"It is {finish}.", "Washable."],
                "Attributes": [finish, "washable"],
                "options": {
                    "color": ["red", "blue", "deep | sea", "gold", "pure"],
                    "size": ["s", "m", "l", "x-large", "8 [wide]", "9"],
                },
                "pricing": [10.0 + i, 30.0 + i],
            }
        )
    return made


class Searcher:
    """A search by number of shared words, with pyserini's interface."""

    def __init__(self, products: list[dict]):
        self.words = {p["asin"]: set(re.findall(r"\w+", p["Title"].lower())) for p in products}

    def search(self, text: str, k: int) -> list[SimpleNamespace]:
        shared = {asin: len(words & set(re.findall(r"\w+", text))) for asin, words in self.words.items()}
        return [SimpleNamespace(docid=a) for a in sorted(shared, key=lambda a: -shared[a])[:k] if shared[a]]

    def doc(self, docid: str) -> SimpleNamespace:
        return SimpleNamespace(raw=lambda: json.dumps({"id": docid}))


class FakeServer:
    def __init__(self, human_goals: bool | None = False, make_searcher: Callable = Searcher):
        self.all_products = catalogue()
        self.product_item_dict = {p["asin"]: p for p in self.all_products}
        self.product_prices = {p["asin"]: random.uniform(*p["pricing"]) for p in self.all_products}
        self.search_engine = make_searcher(self.all_products)
        self.goals = [
            self._goal(p, chosen) for p in self.all_products for chosen in combinations(*p["options"].values())
        ]
        if human_goals:
            self.goals = [{**goal, "goal_options": list(goal["goal_options"].values())} for goal in self.goals[:700]]
        random.seed(233)
        random.shuffle(self.goals)
        self.user_sessions: dict[str, dict] = {}

    def _goal(self, p: dict, chosen: tuple[str, ...]) -> dict:
        limit = max(random.sample([10.0 * i for i in range(1, 99) if 10 * i > self.product_prices[p["asin"]]][:4], 2))
        wish = (
            f"Find me {p['Attributes'][0]} {p['query']}, {' '.join(chosen)}, and price lower than {limit:.2f} dollars"
        )
        options = dict(zip(p["options"], chosen, strict=True))
        known = {key: p[key] for key in ("asin", "category", "query", "name")}
        return {
            **known,
            "instruction_text": wish,
            "attributes": p["Attributes"][:1],
            "price_upper": limit,
            "goal_options": options,
        }

    def receive(self, session_id: str, url: str | None, session_int: int | None = None, **asked) -> tuple:
        status = {"reward": 0.0, "done": False}
        if session_id not in self.user_sessions:
            number = session_int if session_int is not None else random.randrange(len(self.goals))
            self.user_sessions[session_id] = {"goal": self.goals[number], "done": False}
        session = self.user_sessions[session_id]
        if not asked:
            fresh = {"keywords": None, "page": None, "asin": None, "asins": set(), "options": {}}
            session.update(fresh, actions=defaultdict(int))
            head = ["WebShop", "Instruction:", session["goal"]["instruction_text"], "Search"]
            return page(head, ["search"], search_bar=True), f"{BASE}/{session_id}", status
        if "keywords" in asked:
            return *self._results(session_id, asked["keywords"], asked.get("page", 1)), status
        name, here = asked["clickable_name"].lower(), page_name(url)
        if name == "buy now":
            return *self._done(session_id, status), status
        if name == "back to search":
            return self.receive(session_id, url)
        if name in ("next >", "< prev") and here == "search_results":
            turned = session["page"] + (1 if name == "next >" else -1)
            return *self._results(session_id, session["keywords"], turned), status
        if name == "< prev" and here == "item_page":
            return *self._results(session_id, session["keywords"], session["page"]), status
        if name in ("description", "features", "reviews"):
            return *self._sub_page(session_id, name), status
        if asked["text_to_clickable"][name] == "product-link":
            session["asin"] = name.upper()
            session["asins"].add(session["asin"])
        elif asked["text_to_clickable"][name] != "btn":
            session["options"][asked["text_to_clickable"][name]] = name
        return *self._item(session_id), status

    def _results(self, session_id: str, keywords: list[str], number: int, nobody_set_this=None) -> tuple[str, str]:
        session = self.user_sessions[session_id]
        session.update(page=number, keywords=keywords, asin=None, options={})
        if keywords[0] == "<r>":
            found = random.sample(self.all_products, k=50)
        elif keywords[0] == "<a>":
            found = [p for p in self.all_products if p["asin"] in nobody_set_this[" ".join(keywords[1:])]]
        elif keywords[0] == "<c>":
            found = [p for p in self.all_products if p["category"] == keywords[1].strip()]
        elif keywords[0] == "<q>":
            found = [p for p in self.all_products if p["query"] == " ".join(keywords[1:]).strip()]
        else:
            hits = self.search_engine.search(" ".join(keywords), k=50)
            docs = [self.search_engine.doc(hit.docid) for hit in hits]
            found = [self.product_item_dict[json.loads(doc.raw())["id"]] for doc in docs]
        shown = found[(number - 1) * 10 : number * 10]
        buttons = ["Back to Search", *["< Prev"] * (number > 1), *["Next >"] * (number * 10 < len(found))]
        lines = [text for p in shown for text in (p["asin"], p["Title"], str(p["pricing"]))]
        head = ["Instruction:", session["goal"]["instruction_text"], f"Page {number} (Total results: {len(found)})"]
        url = f"{BASE}/search_results/{session_id}/{'+'.join(keywords)}/{number}"
        return page([*head, *buttons, *lines], buttons, products=[p["asin"] for p in shown]), url

    def _item(self, session_id: str) -> tuple[str, str]:
        session = self.user_sessions[session_id]
        p = self.product_item_dict[session["asin"]]
        options = {value: name for name, values in p["options"].items() for value in values}
        buttons = ["Back to Search", "< Prev", "Description", "Features", "Reviews", "Buy Now"]
        url = f"{BASE}/item_page/{session_id}/{self._path(session)}/{json.dumps(session['options'])}"
        return page(
            [session["goal"]["instruction_text"], p["Title"], *options, *buttons], buttons, options=options
        ), url

    def _sub_page(self, session_id: str, name: str) -> tuple[str, str]:
        session = self.user_sessions[session_id]
        texts = {"description": ["A text."], "features": self.product_item_dict[session["asin"]]["BulletPoints"]}
        url = f"{BASE}/item_sub_page/{session_id}/{self._path(session)}/{name.title()}/{session['options']}"
        buttons = ["Back to Search", "< Prev"]
        return page([*buttons, *texts.get(name, ["No reviews"])], buttons), url

    def _path(self, session: dict) -> str:
        return f"{session['asin']}/{'+'.join(session['keywords'])}/{session['page']}"

    def _done(self, session_id: str, status: dict) -> tuple[str, str]:
        session = self.user_sessions[session_id]
        goal, bought = session["goal"], self.product_item_dict[session["asin"]]
        asked = list(goal["goal_options"].values()) if isinstance(goal["goal_options"], dict) else goal["goal_options"]
        kind = 1.0 if bought["query"] == goal["query"] else 0.5
        attributes = sum(attribute in bought["Attributes"] for attribute in goal["attributes"])
        chosen = session["options"].values()
        options = sum(value in asked or value in bought["Title"].lower().split() for value in chosen)
        price = self.product_prices[session["asin"]] <= goal["price_upper"]
        parts = len(goal["attributes"]) + len(asked) + 1
        told = {"r_type": kind, "r_att": attributes / len(goal["attributes"]), "r_price": price}
        if asked:
            told["r_option"] = options / len(asked)
        reward = kind * (attributes + options + price) / parts
        session.update(verbose_info=told, done=True, reward=reward)
        status.update(reward=reward, done=True)
        url = f"{BASE}/done/{session_id}/{session['asin']}/{session['options']}"
        return page(["Thank you for shopping with us!", "Your score", str(reward)], []), url


def page(texts: list[str], buttons: list[str], products=(), options: dict | None = None, search_bar=False) -> str:
    """A page as JSON, in the place of HTML: its texts, and what kind of thing (or which option) each clickable is."""
    clickables = {b.lower(): "btn" for b in buttons} | {p.lower(): "product-link" for p in products} | (options or {})
    return json.dumps({"texts": texts, "clickables": clickables, "search_bar": search_bar})


def page_name(url: str) -> str:
    return next((name for name in ("search_results", "item_page", "item_sub_page", "done") if name in url), "")


class FakeBrowser:
    def __init__(self, server: FakeServer):
        self.server, self.current_url, self.page_source, self.session_id = server, None, None, None

    def get(self, url: str, session_id: str, session_int: int | None) -> None:
        self.session_id = session_id
        self.page_source, _, _ = self.server.receive(session_id, self.current_url, session_int=session_int)
        self.current_url = url

    def _ask(self, **asked) -> dict:
        self.page_source, self.current_url, status = self.server.receive(self.session_id, self.current_url, **asked)
        return status

    def click(self, name: str, text_to_clickable: dict) -> dict:
        return self._ask(clickable_name=name, text_to_clickable=text_to_clickable)

    def search(self, keywords: str) -> dict:
        return self._ask(keywords=keywords.split(" "))


class FakeEnv:
    def __init__(self, observation_mode: str = "text", server: FakeServer | None = None, human_goals=None, **settings):
        assert observation_mode == "text"
        self.server = server or FakeServer(human_goals, **settings)
        self.browser = FakeBrowser(self.server)
        self.reset()

    def reset(self, session: int | None = None) -> tuple[str, None]:
        self.session = "".join(random.choices("abcdefghij", k=10)) if session is None else str(session)
        self.browser.get(f"{BASE}/{self.session}", self.session, session)
        self.prev_obs, self.prev_actions = [self.observation], []
        return self.observation, None

    @property
    def observation(self) -> str:
        return " [SEP] ".join(json.loads(self.browser.page_source)["texts"])

    def get_available_actions(self) -> dict:
        shown = json.loads(self.browser.page_source)
        self.text_to_clickable = shown["clickables"]
        return {"has_search_bar": shown["search_bar"], "clickables": list(self.text_to_clickable)}

    def step(self, action: str) -> tuple[str, float, bool, None]:
        self.get_available_actions()
        found = re.match(r"(.+)\[(.+)\]", action)
        name, value = (found[1], found[2].lower()) if found else (action, None)
        status = {"reward": 0, "done": False}
        if name == "search" and value:
            status = self.browser.search(value)
        elif name == "click" and value in self.text_to_clickable and value != "search":
            status = self.browser.click(value, self.text_to_clickable)
        self.prev_obs.append(self.observation)
        self.prev_actions.append(action)
        return self.observation, status["reward"], status["done"], None


class Unread:
    """In the place of pyserini's searcher: made with the index folder, never asked."""

    def __init__(self, products: list[dict]):
        from pyserini.search.lucene import LuceneSearcher

        LuceneSearcher("indexes")


MODULE = """
from pyserini.search.lucene import LuceneSearcher
from test_webshop_real import FakeEnv, Unread

class WebAgentTextEnv(FakeEnv):
    def __init__(self, **settings):
        super().__init__(**settings, make_searcher=Unread)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like upstream's, set as WEBSHOP_HOME; pyserini is not installed."""
    monkeypatch.setitem(sys.modules, "pyserini", None)
    monkeypatch.setenv("WEBSHOP_HOME", str(tmp_path))
    (tmp_path / "web_agent_site/envs").mkdir(parents=True)
    (tmp_path / "web_agent_site/__init__.py").write_text("")
    (tmp_path / "web_agent_site/envs/__init__.py").write_text("from .web_agent_text_env import WebAgentTextEnv\n")
    (tmp_path / "web_agent_site/envs/web_agent_text_env.py").write_text(MODULE)
    return tmp_path


@pytest.fixture(scope="module")
def upstream() -> FakeEnv:
    state = random.getstate()
    random.seed(0)
    made = FakeEnv()
    random.setstate(state)
    return made


@pytest.fixture
def env(upstream: FakeEnv) -> RealWebShop:
    return RealWebShop(upstream=upstream, max_turns=1000)


def started(env: RealWebShop, *actions: str, task: str = "webshop-real/0") -> RealWebShop:
    env.reset(options={"task": task})
    for action in actions:
        assert env.step(action)[4]["valid"], action
    return env


def walk(env: RealWebShop, task: Task | str) -> list[tuple]:
    """The first observation and the expert's steps."""
    steps = [env.reset(options={"task": task})]
    while not env.done:
        steps.append(env.step(str(env.expert())))
    return steps


def opened(env: RealWebShop) -> RealWebShop:
    """At the item page of the goal's product."""
    env.reset(options={"task": "webshop-real/0"})
    while "click[buy now]" not in env.admissible():
        env.step(str(env.expert()))
    return env


def goal(env: RealWebShop) -> dict:
    return env.upstream.server.goals[int(env.task.id.split("/")[1])]


# --- tasks -----------------------------------------------------------------------------------------------------------
def test_the_splits_are_upstreams(env: RealWebShop) -> None:
    assert {split: len(env.tasks(split, 9999)) for split in ("test", "validation", "train")} == {
        "test": 500,
        "validation": 1000,
        "train": 300,
    }
    firsts = [env.tasks(split, 2) for split in ("test", "validation", "train")]
    assert [task.id.split("/")[1] for tasks in firsts for task in tasks] == ["0", "1", "500", "501", "1500", "1501"]
    task = firsts[1][1]
    assert (task.split, task.index, task.family in KINDS.values()) == ("validation", 1, True)
    assert task.instruction == env.upstream.server.goals[501]["instruction_text"]


def test_tasks_by_number_and_by_place(env: RealWebShop) -> None:
    tasks = env.tasks("train", 300)
    assert env.task_named("webshop-real/1503") == env.task_named("webshop-real/train/3") == tasks[3]
    assert env.task_named("webshop-real/train/303") == tasks[3]
    shuffled = env.tasks("train", 300, seed=2)
    assert shuffled != tasks and sorted(t.index for t in shuffled) == list(range(300))
    assert env.task_named("webshop-real/train/3@2") == shuffled[3] == env.tasks("train", 4, seed=2)[3]
    assert env.in_split(tasks[3].id, "train") and not env.in_split(tasks[3].id, "test")
    assert not env.in_split("webshop/train/3", "train")


@pytest.mark.parametrize("wrong", ["webshop-real/1800", "webshop-real/-1", "webshop-real/eval/1", "webshop/test/0", ""])
def test_no_such_task(env: RealWebShop, wrong: str) -> None:
    with pytest.raises(HeroError, match="no task of webshop-real; write webshop-real/<number>, such as webshop-real/0"):
        env.reset(options={"task": wrong})


def test_no_such_split(env: RealWebShop) -> None:
    with pytest.raises(HeroError, match="unknown split of webshop-real 'tests'.*did you mean 'test'"):
        env.tasks("tests", 1)
    few = RealWebShop(upstream=lambda: FakeEnv(human_goals=True))
    assert len(few.tasks("test", 999)) == 500 and len(few.tasks("validation", 999)) == 200
    with pytest.raises(HeroError, match="only 700 tasks, which leaves none for train"):
        few.reset()


# --- the same task, the same episode ---------------------------------------------------------------------------------
def test_the_same_task_is_the_same_episode() -> None:
    """Whatever the global random numbers were; and they go on as if nothing had happened."""
    episodes = []
    for seed in (1, 2):
        random.seed(seed)
        expected = random.Random(seed).random()
        env = RealWebShop(upstream=FakeEnv)
        episodes.append([walk(env, task) for task in ("webshop-real/7", "webshop-real/7", "webshop-real/train/1")])
        assert random.random() == expected
    assert episodes[0] == episodes[1] and episodes[0][0] == episodes[0][1]


def test_environments_on_one_upstream_do_not_meet(upstream: FakeEnv) -> None:
    before = copy.deepcopy(upstream.server.user_sessions), upstream.browser.current_url, list(upstream.prev_actions)
    one, other = (RealWebShop(upstream=upstream) for _ in range(2))
    alone = walk(one, "webshop-real/3")
    steps = [one.reset(options={"task": "webshop-real/3"})]
    started(other, "search[lamp]", task="webshop-real/3")
    while not one.done:
        steps.append(one.step(str(one.expert())))
        other.step("click[b000000003]")
        other.step("click[< prev]")
    assert steps == alone
    assert before == (upstream.server.user_sessions, upstream.browser.current_url, upstream.prev_actions)
    assert one.upstream.server.all_products is other.upstream.server.all_products


def test_a_clone_is_independent_and_exact(env: RealWebShop) -> None:
    env.reset(options={"task": "webshop-real/5"})
    for action in ("search[jacket]", "click[next >]", "click[b000000031]", "click[red]", "click[description]"):
        before = (env.upstream.observation, env.upstream.browser.current_url, env.turn, set(env.calls))
        copies = [env.clone(), env.clone()]
        copies[0].step("search[lamp]")
        copies[0].step("click[b000000003]")
        copies[0].step("click[blue]")
        copies[0].step("click[buy now]")
        assert before == (env.upstream.observation, env.upstream.browser.current_url, env.turn, env.calls)
        assert copies[1].step(action) == env.step(action)
    assert RealWebShop(upstream=env.upstream).clone().task is None


# --- rewards and verdicts --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("human", [False, True])
def test_the_expert_is_paid_in_full(human: bool) -> None:
    env = RealWebShop(upstream=lambda: FakeEnv(human_goals=human), max_turns=40)
    paid = []
    for task in env.tasks("test", 12):
        *earlier, (_, reward, terminated, truncated, info) = walk(env, task)[1:]
        assert all(step[1:3] == (0.0, False) and not any(step[4]["reward_parts"].values()) for step in earlier)
        assert (terminated, truncated) == (True, False) and total(info["reward_parts"]) == reward
        wide = "8 [wide]" in str(goal(env)["goal_options"])  # upstream cannot read a click on it
        assert (reward == 1.0) is not wide
        paid.append(reward)
        assert all(step[4]["oracle"]["verdict"] == "necessary" for step in earlier)
    assert paid.count(1.0) >= 6


@pytest.mark.parametrize("options", ["all", "one wrong", "none"])
@pytest.mark.parametrize("wrong", ["", "kind", "attribute", "price"])
def test_a_purchase_tells_what_it_lacked(env: RealWebShop, wrong: str, options: str) -> None:
    """The first flaw is the cause; the parts make up the reward, which is upstream's."""
    server = env.upstream.server

    def fits(p: dict, goal: dict) -> bool:
        kind, attribute = p["query"] == goal["query"], goal["attributes"][0] in p["Attributes"]
        price = server.product_prices[p["asin"]] <= goal["price_upper"]
        return (kind, attribute, price) == (wrong != "kind", wrong != "attribute", wrong != "price")

    number, asked, bought = next(
        (number, goal, p)
        for number, goal in enumerate(server.goals)
        if "8 [wide]" not in goal["goal_options"].values()
        for p in server.all_products
        if fits(p, goal)
    )
    env.reset(options={"task": f"webshop-real/{number}"})
    colour, size = asked["goal_options"].values()
    chosen = {"all": [colour, size], "one wrong": [colour, "s" if size != "s" else "m"], "none": []}[options]
    env.step(f"search[{bought['name'].split(' [')[0]}]")
    for value in (bought["asin"], *chosen):
        assert env.step(f"click[{value}]")[4]["valid"]
    _, reward, terminated, _, info = env.step("click[Buy Now]")
    causes = {"kind": "other kind of product", "attribute": "other attribute", "price": "over the price"}
    cause = causes.get(wrong, "" if options == "all" else "option not matched")
    assert terminated and reward == pytest.approx(total(info["reward_parts"]))
    assert info["oracle"] == {"verdict": "harmful" if cause else "necessary", "cause": cause, "better": None}
    assert (reward == 1.0) is (cause == "")
    assert info["reward_parts"]["options"] == {"all": 2, "one wrong": 1, "none": 0}[options]
    assert info["reward_parts"]["of"] == 4


def test_a_reward_above_one_is_left_as_it_is(upstream: FakeEnv) -> None:
    """Upstream counts a chosen option that stands in the title, though nobody asked for it."""
    server = copy.copy(upstream.server)
    server.goals = [{**goal, "goal_options": {}} for goal in server.goals if goal["asin"] == "B000000000"]
    env = RealWebShop(upstream=FakeEnv(server=server))
    started(env, "search[brand0 lamp]", "click[b000000000]", "click[pure]")
    _, reward, _, _, info = env.step("click[buy now]")
    assert reward == 1.5 and info["oracle"]["verdict"] == "necessary"
    assert Rollout("webshop-real", "t", 0, "", (), reward, True, False).success is False


def test_verdicts_of_a_walk(env: RealWebShop) -> None:
    env.reset(options={"task": "webshop-real/0"})
    for action, verdict, changed, repeated in [
        ("buy it", "invalid", False, False),
        ("buy it", "invalid", False, True),
        ("click[search]", "invalid", False, False),  # the search button is no click upstream
        ("click[lamp]", "invalid", False, False),
        ("search[]", "invalid", False, False),
        ("search[zzz]", "failed", True, False),
        ("search[lamp]", "necessary", True, False),  # on the results page: upstream allows it
        ("search[LAMP]", "unnecessary", False, True),
        ("search[lamp]", "unnecessary", False, True),
        ("click[Next >]", "necessary", True, False),
        ("click[< prev]", "necessary", True, False),
        ("click[next >]", "unnecessary", True, True),
        ("click[B000000033]", "necessary", True, False),
        ("click[red]", "necessary", True, False),  # the page looks the same
        ("click[ RED ]", "unnecessary", False, False),
        ("click[red]", "unnecessary", False, True),
        ("click[8 [wide]]", "invalid", False, False),
        ("click[Features]", "necessary", True, False),
        ("click[Features]", "invalid", False, False),
        ("search[lamp]", "unnecessary", True, True),
    ]:
        before = env.upstream.observation
        observation, reward, terminated, truncated, info = env.step(action)
        said = (info["oracle"]["verdict"], info["changed"], info["repeated"])
        assert said == (verdict, changed, repeated), action
        assert info["error"] == {"invalid": INVALID, "failed": NO_RESULTS}.get(verdict)
        assert info["valid"] is (verdict != "invalid") and info["role"] == "tool"
        assert info["valid"] or observation == before  # as upstream, the page again
        assert (reward, terminated, truncated) == (0.0, False, False) and info["oracle"]["better"] is None


def test_causes_of_invalid_actions(env: RealWebShop) -> None:
    causes = {}
    for text in (
        "buy it",
        "click[buy now]",
        "search[ ]",
        "search[<r>]",
        '{"name": "click", "arguments": {"value": 3}}',
    ):
        causes[text] = started(env).step(text)[4]["oracle"]["cause"]
    words = "no words to search for"
    assert list(causes.values()) == ["not an action", "not on this page", words, words, "not an action"]
    assert judge(None, None, "", True) == ("necessary", "") and judge("x", INVALID, "", True)[0] == "invalid"


def test_turns_run_out_and_an_episode_is_over_once(upstream: FakeEnv) -> None:
    env = RealWebShop(upstream=upstream, max_turns=2)
    with pytest.raises(HeroError, match="call reset first"):
        env.step("search[lamp]")
    env.reset(seed=4)
    assert env.task == env.tasks("train", 5)[4]
    assert [env.step("search[lamp]")[1:4] for _ in range(2)] == [(0.0, False, False), (0.0, False, True)]
    with pytest.raises(HeroError, match="call reset first"):
        env.step("search[lamp]")
    with pytest.raises(HeroError, match="max_turns is 0"):
        RealWebShop(upstream=upstream, max_turns=0)


def test_it_refuses_what_the_minis_refuse(env: RealWebShop) -> None:
    for call, says in {
        lambda: env.reset(options={"tsak": "webshop-real/3"}): "did you mean 'task'",
        lambda: env.reset(options={"task": envs.make("webshop").tasks("test", 1)[0]}): "no task of webshop-real",
        lambda: env.tasks("test", -1): "n is -1",
        lambda: started(env).step(None): "an action is a text",
    }.items():
        with pytest.raises(HeroError, match=says):
            call()


# --- the spelling of actions -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, key, value",
    [("search", "keywords", "easy clean lamp"), ("click", "value", "Buy Now"), ("click", "value", "s")],
)
def test_the_spellings_are_equal(env: RealWebShop, name: str, key: str, value: str) -> None:
    opened(env)
    texts = [
        f"{name}[{value}]",
        f"  {name}[{value}]\n",
        f"{name}[{value}] as I was told",  # upstream reads no further than the bracket
        f"{name}({key}={value!r})",
        json.dumps({"name": name, "arguments": {key: value}}),
    ]
    first, *others = [env.clone().step(text) for text in texts]
    assert first[4]["valid"] and all(other == first for other in others)


@pytest.mark.parametrize(
    "text, carried_out",
    [
        ("click[buy now] now", True),
        ("click[FEATURES]", True),
        ("search[lamp]\nclick[red]", True),
        ("search[lamp] or search[jacket]", False),
        ("search[lamp\njacket]", False),
        ("search[a [b]]", False),
        ("I think search[lamp]", False),
        ("Click[red]", False),
        ("click[8 [wide]]", False),
    ],
)
def test_in_brackets_an_action_is_read_as_upstream_reads_it(env: RealWebShop, text: str, carried_out: bool) -> None:
    theirs = opened(env).clone().upstream
    observation, reward, done, _ = theirs.step(text)
    mine = env.step(text)
    assert mine[:3] == (observation, reward, done) and mine[4]["valid"] is carried_out
    assert env.upstream.browser.current_url == theirs.browser.current_url


@pytest.mark.parametrize("where", ["search", "results", "item", "sub page"])
def test_admissible_actions_are_carried_out(env: RealWebShop, where: str) -> None:
    places = {"search": [], "results": ["search[lamp]"], "item": ["search[lamp]", "click[b000000000]"]}
    started(env, *places.get(where, [*places["item"], "click[features]"]))
    allowed = env.admissible()
    assert allowed and "click[search]" not in allowed
    for text in allowed:
        assert str(parse_action(text)) == text
        info = env.clone().step(text)[4]
        assert info["valid"] and (info["changed"] or text == "click[back to search]"), text
    assert str(env.scripted(random.Random(0), 1.0)) == str(env.expert())
    assert str(env.scripted(random.Random(0), 0.0)) in allowed


MORE_HOSTILE = [
    "search[<r>]",
    "search[ <A>  anything]",
    "search[<c>]",
    "search[<q> lamp]",
    '{"name": "search", "arguments": {"keywords": "<a>"}}',
    '{"name": "search", "arguments": {"keywords": "a\\u0000[b]\\n<c>"}}',
    '{"name": "search", "arguments": {"keywords": "[]"}}',
    "search[search_results item_page item_sub_page done]",
    "search[\ud800 half a character]",
    "search[\u2028\x85\u00a0]",
    "search[" + "[" * 1900 + "]",
    "click[search]",
    "click[item_page]",
    "search[" + "lamp " * 390 + "]",
    "###STOP###",
]


@pytest.mark.parametrize("where", ["search", "results", "item", "sub page"])
def test_hostile_text_is_answered(env: RealWebShop, where: str) -> None:
    places = {"search": [], "results": ["search[lamp]"], "item": ["search[lamp]", "click[b000000000]"]}
    started(env, *places.get(where, [*places["item"], "click[features]"]))
    before = env.upstream.observation
    for text in [*HOSTILE, *MORE_HOSTILE]:
        played = env.clone()
        observation, reward, terminated, truncated, info = played.step(text)
        bought = where == "item" and text == "click[Buy Now] now"
        assert terminated is bought and not truncated and info["oracle"]["verdict"] in VERDICTS, text[:80]
        assert bought or reward == 0.0
        assert info["valid"] or (observation == before and not info["changed"]), text[:80]
        json.dumps([observation, info], allow_nan=False).encode()
        assert bought or played.step("search[lamp]")[4]["valid"]
        assert len(text) <= MAX_ACTION_CHARS or not info["valid"]


@pytest.mark.parametrize("text", ["search[<a> x]", "search[<c>]"])
def test_upstream_alone_would_stop_there(upstream: FakeEnv, text: str) -> None:
    with pytest.raises((TypeError, IndexError)):
        copy.deepcopy(upstream).step(text)


# --- the folder of upstream ------------------------------------------------------------------------------------------
def test_it_is_made_from_its_folder_without_java(home: Path) -> None:
    random.seed(9)
    path = list(sys.path)
    env = envs.make("webshop-real")
    assert sys.path == path and sys.modules["pyserini"] is None and "pyserini.search" not in sys.modules
    assert isinstance(env.upstream.server.search_engine, Bm25)
    assert envs.make("webshop-real", max_turns=3).upstream.server.goals is env.upstream.server.goals  # loaded once
    assert walk(env, "webshop-real/1")[-1][4]["turn"] > 3
    random.seed(10)
    load.cache_clear()
    assert envs.make("webshop-real").tasks("test", 50) == env.tasks("test", 50)
    assert len(envs.make("webshop-real", human_goals=True).upstream.server.goals) == 700


def test_floors_by_one_call(home: Path) -> None:
    table = floors("webshop-real", n_tasks=5, max_turns=20).set_index("agent")
    assert list(table.index) == ["do nothing", "random admissible", "expert"]
    assert table.loc["do nothing", "success"] == 0.0 and table.loc["expert", "success"] >= 0.6


def test_without_the_folder_the_error_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "clone https://github.com/princeton-nlp/WebShop .*LICENSE.md.*setup.sh.*Amazon.*set WEBSHOP_HOME"
    monkeypatch.delenv("WEBSHOP_HOME", raising=False)
    with pytest.raises(HeroError, match=f"WebShop is not installed; .*{says}"):
        envs.make("webshop-real")
    monkeypatch.setenv("WEBSHOP_HOME", str(tmp_path))
    with pytest.raises(HeroError, match=f"is not in the folder '{tmp_path}'; .*{says}"):
        envs.make("webshop-real")


@pytest.mark.parametrize(
    "code, says",
    [
        ("import a_library_that_is_missing", "No module named 'a_library_that_is_missing'"),
        ("open('no such data.json')", "No such file.*no such data.json"),
        ("raise OSError(\"[E050] Can't find model 'en_core_web_lg'\")", "en_core_web_lg"),
    ],
)
def test_a_folder_that_cannot_be_loaded(home: Path, code: str, says: str) -> None:
    (home / "web_agent_site/envs/web_agent_text_env.py").write_text(code)
    with pytest.raises(HeroError, match=f"cannot be loaded .*{says}.*to get it, clone"):
        envs.make("webshop-real")


def test_the_choice_of_a_search(home: Path) -> None:
    with pytest.raises(HeroError, match="unknown search 'lucen'.*did you mean 'lucene'"):
        envs.make("webshop-real", search="lucen")
    envs.make("webshop-real")
    with pytest.raises(HeroError, match="cannot be loaded .*pyserini"):  # not the stand-in of the load before
        envs.make("webshop-real", search="lucene")


@pytest.mark.parametrize("wrong", [3, lambda: None, SimpleNamespace(server=1, browser=2)])
def test_something_else_is_no_upstream(wrong: object) -> None:
    with pytest.raises(HeroError, match="is no WebAgentTextEnv of WebShop: it has no "):
        RealWebShop(upstream=wrong)


def test_wrappers_of_gym_are_taken_off(upstream: FakeEnv) -> None:
    env = RealWebShop(upstream=SimpleNamespace(unwrapped=upstream))
    assert walk(env, "webshop-real/2") == walk(RealWebShop(upstream=upstream), "webshop-real/2")


def test_nothing_is_loaded_before_it_is_needed() -> None:
    code = "import sys, hero_mini.envs; sys.exit(bool({'bm25s', 'torch', 'web_agent_site'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_bm25_reads_title_text_and_options() -> None:
    products = catalogue()
    products[7]["Description"] += " Handmade."
    products[8]["options"]["scent"] = ["vanilla"]
    products[9]["BulletPoints"] = []
    engine = Bm25(products)

    def found(text: str, k: int = 50) -> list[str]:
        return [json.loads(engine.doc(hit.docid).raw())["id"] for hit in engine.search(text, k=k)]

    assert found("brand12 lamp", 1) == ["B000000012"]
    assert found("HANDMADE") == ["B000000007"] and found("vanilla") == ["B000000008"]
    assert found("nonesuch") == found("") == found("\x00 <>") == []
    assert found("lamp", 3) == found("lamp")[:3] and len(found("lamp")) == 20


# --- the policy acts, the real one -----------------------------------------------------------------------------------
def test_a_scripted_rollout_reads_like_any_other(tiny: Policy, env: RealWebShop) -> None:
    rollout = play(tiny, env, env.tasks("test", 1)[0], lambda e: str(e.expert()))
    assert rollout.env == "webshop-real" and Rollout.from_json(rollout.to_json()) == rollout
    assert len(oracle([rollout])[0].diagnoses) == len(rollout.turns)


@pytest.mark.skipif(not os.environ.get("WEBSHOP_HOME"), reason="WEBSHOP_HOME is not set")
def test_the_real_one() -> None:
    env = envs.make("webshop-real", max_turns=30)
    tasks = env.tasks("test", 10)
    assert len({task.instruction for task in tasks}) == 10
    first = walk(env, tasks[0])
    assert first == walk(envs.make("webshop-real", max_turns=30), tasks[0].id)
    rewards = [walk(env, task)[-1][1] for task in tasks]
    assert sum(reward == 1.0 for reward in rewards) >= 5, rewards
    for text in [*HOSTILE, *MORE_HOSTILE]:
        env.reset(options={"task": tasks[0]})
        assert env.step(text)[1:3] == (0.0, False)
    env.reset(options={"task": tasks[0]})
    for action in ("search[shoes]", str(env.expert())):
        assert env.clone().step(action) == env.step(action)
