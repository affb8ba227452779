"""Upstream's WebShop as Python objects: loaded from its folder, seeded, searched without Java, and forked.

Upstream is princeton-nlp/WebShop (Yao et al. 2022). None of its code or data is here.
"""

from __future__ import annotations

import copy
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from hero_mini.envs.webshop import best
from hero_mini.errors import HeroError, check_known
from hero_mini.seeds import rng

GET = """to get it, clone https://github.com/princeton-nlp/WebShop (code: MIT, at first for academic use only, so read \
its LICENSE.md), run its ./setup.sh -d small, which fetches product data taken from Amazon's pages (none of it comes \
with hero_mini), install the libraries that its requirements.txt names, in versions for this Python, and set \
WEBSHOP_HOME to the folder; Java and pyserini are only needed with search="lucene\""""
SEARCHES = ("bm25", "lucene")


@cache
def load(home: str, search: str, human_goals: bool) -> Any:
    """The WebAgentTextEnv of the folder `home`, in its mode "text" with all products of its data, once per process.

    Upstream draws prices and price limits while it loads, so it is seeded here: a goal is the same in every process.
    raises HeroError: no such search, no WebShop in the folder, or something that it needs is missing
    """
    check_known("search", search, SEARCHES)
    if not (Path(home) / "web_agent_site/envs/web_agent_text_env.py").is_file():
        raise HeroError(f"the real WebShop is not {f'in the folder {home!r}' if home else 'installed'}; {GET}")
    try:
        with _importing(home, without_java=search == "bm25"), seeded("load"):
            module = import_module("web_agent_site.envs.web_agent_text_env")
            made = module.WebAgentTextEnv(observation_mode="text", human_goals=human_goals)
    except (ImportError, OSError) as problem:  # OSError: a language model of spaCy, or a file of data
        raise HeroError(f"the WebShop in {home!r} cannot be loaded ({problem}); {GET}") from problem
    if search == "bm25":
        made.server.search_engine = Bm25(made.server.all_products)
    return made


@contextmanager
def _importing(home: str, *, without_java: bool) -> Iterator[None]:
    """Upstream's modules come from `home`; without Java, an empty searcher stands where pyserini's would start it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "web_agent_site"]:
        del sys.modules[name]  # of another folder, or with the other search
    stub = ModuleType("pyserini.search.lucene")
    stub.LuceneSearcher = lambda folder: None
    names = ("pyserini", "pyserini.search", "pyserini.search.lucene") if without_java else ()
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names, stub))
    sys.path.insert(0, home)
    try:
        yield
    finally:
        sys.path.remove(home)
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


class Bm25:
    """BM25 with the two methods that upstream calls on pyserini's searcher: `search(text, k)` and `doc(docid)`.

    It reads what upstream's index holds (search_engine/convert_product_file_format.py) with pyserini's k1 = 0.9 and
    b = 0.4. Words are neither stemmed nor left out, unlike there, so that results are not Lucene's.
    """

    def __init__(self, products: Iterable[dict[str, Any]]):
        import bm25s  # here, so that loading the package stays quick

        self.ids: list[str] = []
        texts = []
        for product in products:
            options = (f"{name} {' '.join(values)}" for name, values in product["options"].items())
            parts = (product["Title"], product["Description"], *product["BulletPoints"][:1], *options)
            self.ids.append(product["asin"])
            texts.append(_tokens(" ".join(str(part) for part in parts)))
        self.index = bm25s.BM25(k1=0.9, b=0.4)
        self.index.index(texts, show_progress=False)

    def search(self, text: str, k: int = 10) -> list[SimpleNamespace]:
        """The best `k` products that share a word with the text, each with its `docid`; ties in upstream's order."""
        return [SimpleNamespace(docid=self.ids[i]) for i in best(self.index, _tokens(text), k)]

    def doc(self, docid: str) -> SimpleNamespace:
        """A product's document, whose `raw()` is JSON with its `id`."""
        return SimpleNamespace(raw=lambda: json.dumps({"id": docid}))


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@contextmanager
def seeded(*name: str | int) -> Iterator[None]:
    """Python's global random numbers, which upstream draws from, are those of this name; put back afterwards."""
    state = random.getstate()
    random.setstate(rng(0, "webshop-real", *name).getstate())
    try:
        yield
    finally:
        random.setstate(state)


def fork(upstream: Any, sessions: dict[str, Any]) -> Any:
    """A WebAgentTextEnv with sessions and a browser of its own; products, goals, and search are shared."""
    other, browser, server = copy.copy(upstream), copy.copy(upstream.browser), copy.copy(upstream.server)
    server.user_sessions = sessions
    other.server, other.browser, browser.server = server, browser, server
    other.prev_obs, other.prev_actions = list(upstream.prev_obs), list(upstream.prev_actions)
    return other
