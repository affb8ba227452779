"""Claims come from data alone: values, verdicts and the README's table."""

from __future__ import annotations

import pandas as pd
import pytest

from hero_mini import report


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DATA", tmp_path)
    return tmp_path


def agents(gain: float) -> pd.DataFrame:
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "task": f"t{t}",
            "trial": 0,
            "success": float(t % 10 < 3 + 10 * add),
            "turns": 8 - 2 * add,
        }
        for arm, add in (("base", 0.0), ("hero", gain))
        for seed in range(3)
        for t in range(40)
    ]
    return pd.DataFrame(rows)


def test_without_data_every_claim_is_open(data):
    claims = report.claims_table()
    assert list(claims.columns) == report.COLUMNS
    assert set(claims["verdict"]) == {"not run yet"}


def test_a_gain_is_found_and_the_missing_arm_stays_open(data):
    agents(0.4).to_csv(data / "hero_retail.csv", index=False)
    claims = report.claims_table().set_index("claim_id")
    assert claims.loc["base_success_retail", "ours"] == 0.3
    assert claims.loc["hero_beats_base_retail", ["ours", "verdict", "n_seeds", "n_tasks"]].tolist() == [
        0.4,
        "reproduced",
        3,
        40,
    ]
    assert claims.loc["hero_fewer_turns_retail", "verdict"] == "reproduced"
    assert claims.loc["shuffled_no_gain_retail", "verdict"] == "not run yet"


def test_no_gain_is_not_reproduced(data):
    agents(0.0).to_csv(data / "hero_retail.csv", index=False)
    assert report.claims_table().set_index("claim_id").loc["hero_beats_base_retail", "verdict"] == "not reproduced"


def test_readme_is_rendered_between_its_markers():
    text = "a\n<!-- claims -->\nold\n<!-- /claims -->\nb\n"
    once = report.render(text, "claims", "new")
    assert once == "a\n<!-- claims -->\nnew\n<!-- /claims -->\nb\n"
    assert report.render(once, "claims", "new") == once
    with pytest.raises(ValueError, match="no place"):
        report.render(text, "other", "x")


def test_turns_are_split_by_outcome():
    rows = pd.DataFrame(
        {"arm": "base", "success": [1.0, 0.0, 0.0], "turns": [6, 10, 4], "wasted": [0, 6, 3]},
    )
    (row,) = report.turns_table(rows, max_turns=10).to_dict("records")
    assert row["turns, solved"] == 6 and row["turns, failed"] == 7
    assert row["failures that ended early"] == 0.5 and row["wasted turns"] == 3


def test_a_grid_has_a_row_per_setting():
    rows = agents(0.2).assign(variant=None, wasted=1.0)
    table = report.settings_table(pd.concat([rows, rows.assign(variant="lr=0.1")]))
    assert table["agent"].tolist() == ["base", "hero", "base lr=0.1", "hero lr=0.1"]
    assert set(table["seeds"]) == {3} and table["success"][0].startswith("0.30 [")
