"""Mini WebShop against the real one, rule by rule: a rule is a question, and the mini answers it by being run.

The real one's answers are words of ours for what upstream does (princeton-nlp/WebShop: web_agent_text_env.py in its
mode "text", engine.py, goal.py, the templates, and its search index), also where we chose not to copy it: fuzzy
matching of options, price limits that no seed fixes, goals that no purchase fulfils.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hero_mini.envs import webshop_checks as checks
from hero_mini.envs import webshop_purchases as purchases
from hero_mini.envs.base import SPLITS
from hero_mini.envs.webshop import WebShop
from hero_mini.envs.webshop_catalogue import BACK, BUY, DESCRIPTION, FEATURES, PREV


@dataclass(frozen=True)
class Rule:
    """A question about the shop, and how the two shops answer it."""

    what: str  # "action", "page", "reward" or "goal"
    rule: str  # the question
    real: str | None  # upstream's answer; None: it has no such thing
    mini: Callable[[checks.Pages], object]  # finds out the mini's answer; None: it has no such thing


def answers(n_tasks: int) -> Iterator[tuple[str, str, str | None, str | None]]:
    """what, rule, the mini's answer and upstream's, one rule after the other.

    n_tasks: of each split, on which the mini is asked; answers that differ stand beside each other
    """
    visits = [checks.visit(task) for split in SPLITS for task in WebShop().tasks(split, n_tasks)]
    for rule in RULES:
        found = {str(answer) for pages in visits if (answer := rule.mini(pages)) is not None}
        yield rule.what, rule.rule, " or ".join(sorted(found)) or None, rule.real


SILENT = "the page again, nothing changes"
BUTTONS = (BACK, PREV, DESCRIPTION, FEATURES, "Reviews", BUY)
RULES = [
    Rule("action", "what the agent can do", "search[keywords], click[value]", checks.actions),
    Rule("action", "other spellings of it", None, checks.spellings),
    Rule("action", "capital letters of a click matter", "no", checks.capitals),
    Rule("action", "words behind the brackets", "passed over", checks.behind_the_brackets),
    Rule("action", "what is not possible", SILENT, checks.impossible),
    Rule("action", "what is not possible, strict_upstream", SILENT, partial(checks.impossible, strict=True)),
    Rule("action", "a search elsewhere than on the search page", "carried out", checks.search_elsewhere),
    Rule("action", "a search elsewhere, strict_upstream", "carried out", partial(checks.search_elsewhere, strict=True)),
    Rule("action", "the clicks that are told to be possible", "all that the page takes", checks.told_clicks),
    Rule("action", "turns at most", "no limit", lambda pages: WebShop().max_turns),
    Rule("page", "the texts that a search reads", "title, description, the first feature, options", checks.searched),
    Rule("page", "words are stemmed", "yes", checks.stemmed),
    Rule("page", "how results are ranked", "BM25", checks.ranking),
    Rule("page", "results of a search at most", "50", lambda pages: len(pages["search"].engine("ships"))),
    Rule("page", "results on a page", "10", lambda pages: len(pages["results"].on_page())),
    Rule("page", "a line of the results", "id, title, price", checks.result_line),
    Rule("page", "Next > and < Prev turn the pages", "yes", checks.turning),
    Rule("page", "a search without results", "an empty page of results", checks.no_results),
    Rule("page", "an item page shows", "title, price, rating, options", checks.item_page),
    *(Rule("page", "a button of the item page", name, partial(checks.button, name=name)) for name in BUTTONS),
    Rule("page", "< Prev leads from a text to its item, from there to its results", "yes", checks.way_back),
    Rule("page", "a second value of an option", "replaces the first", checks.second_value),
    Rule("page", "the chosen values are shown", "no", checks.shown_values),
    Rule("page", "the chosen values after leaving the item", "forgotten", checks.left_values),
    Rule("page", "the wish is shown", "on every page", checks.shown_wish),
    Rule("reward", "Buy Now ends the episode", "yes", purchases.final),
    Rule("reward", "reward before the purchase", "0", purchases.early_reward),
    Rule("reward", "reward of the purchase", purchases.FORMULA, purchases.formula),
    Rule("reward", "the levels of r_type", "0, 0.1, 0.5, 1", purchases.type_levels),
    Rule("reward", "what r_type depends on", "query, category and nouns of the title", purchases.type_source),
    Rule("reward", "a price at the limit", "is fine, a dollar more is not", purchases.at_the_limit),
    Rule("reward", "success", "reward 1", purchases.success),
    Rule("reward", "its parts are told in info", "no", purchases.parts),
    Rule("reward", "x-large counts where large is wanted", "yes", purchases.fuzzy_options),
    Rule("goal", "price limits when a task is made again", "others", purchases.made_again),
    Rule("goal", "goals that no purchase fulfils", "6.6 % of the synthetic ones", purchases.out_of_reach),
    Rule("goal", "products of a shop", "1000 or more", lambda pages: len(pages["search"].products)),
    Rule("goal", "shops", "one for all tasks", purchases.own_shop),
    Rule("goal", "near twins of the right product, by design", None, purchases.twins),
    Rule("goal", "the judgement of a turn", None, purchases.judgement),
]
