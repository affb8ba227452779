"""Claims come from data alone: values, verdicts and the tables of the texts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hero_mini import claims as claimed
from hero_mini import report, results
from hero_mini.errors import HeroError
from hero_mini.studies import OWN_LR


def test_a_missing_value_is_a_dash() -> None:
    table = report.turns_table(agents(0.0).assign(agent="base", success=0.0, wasted=1))
    assert "| base | – | 8.0 |" in report.markdown(table)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(claimed, "DATA", tmp_path)
    return tmp_path


def agents(gain: float) -> pd.DataFrame:
    rows = [
        {
            "run": f"{arm}-{seed}",
            "arm": arm,
            "variant": "",
            "trained_on": "retail",
            "env": "retail",
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


def written(path: Path, *parts: pd.DataFrame) -> None:
    """A study's table of these rows, every run with a name of its own."""
    rows = pd.concat(parts)
    who = [rows[name].astype(str) for name in ("arm", "variant", "trained_on", "seed")]
    rows.assign(run=who[0].str.cat(who[1:], "-")).to_csv(path, index=False)


def test_without_data_every_claim_is_open(data):
    claims = claimed.claims_table()
    assert list(claims.columns) == claimed.COLUMNS
    assert set(claims["verdict"]) == {"not run yet"}


def test_a_gain_is_found_and_the_missing_arm_stays_open(data):
    agents(0.4).to_csv(data / "hero_retail.csv", index=False)
    claims = claimed.claims_table().set_index("claim_id")
    assert claims.loc["base_success_retail", "ours"] == 0.3
    assert claims.loc["hero_beats_base_retail", ["ours", "verdict", "n_seeds", "n_tasks"]].tolist() == [
        0.4,
        "reproduced",
        3,
        40,
    ]
    assert claims.loc["hero_fewer_turns_retail", "verdict"] == "reproduced"
    assert claims.loc["shuffled_no_gain_retail", "verdict"] == "not run yet"


def test_a_loss_is_no_gain_and_an_aim_no_prediction(data):
    agents(-0.2).to_csv(data / "hero_retail.csv", index=False)
    verdicts = claimed.claims_table().set_index("claim_id")["verdict"]
    assert verdicts["hero_beats_base_retail"] == "not reproduced" and verdicts["base_success_retail"] == "aim met"


def test_no_gain_is_not_reproduced(data):
    agents(0.0).to_csv(data / "hero_retail.csv", index=False)
    assert claimed.claims_table().set_index("claim_id").loc["hero_beats_base_retail", "verdict"] == "no direction shown"


def test_an_arm_has_to_beat_both_of_its_parts(data):
    rows = [agents(0.4)]
    for arm, gain in (("diagnosis_only", 0.1), ("env_feedback", 0.3)):
        rows.append(agents(gain).query("arm == 'hero'").assign(arm=arm))
    failed = agents(0.2).query("arm == 'hero'").assign(variant="outcomes=failure")
    written(data / "ablations_retail.csv", *rows, failed)
    claims = claimed.claims_table().set_index("claim_id")["ours"]
    assert claims["reflection_plus_observation_beats_either"] == 0.1
    assert claims["learns_from_failures_only"] == 0.2
    written(data / "ablations_retail.csv", rows[0], rows[1][rows[1]["seed"] == 0], rows[2])
    both = claimed.claims_table().set_index("claim_id").loc["reflection_plus_observation_beats_either"]
    assert both["n_seeds"] == 1 and both["verdict"].endswith("one seed"), "the seeds that all three have"


def test_transfer_is_read_where_it_was_not_trained(data):
    base, trained = (agents(0.4).query(f"arm == '{arm}'") for arm in ("base", "hero"))
    rows = [base.assign(env=env) for env in ("retail", "airline", "webshop")]
    weak = agents(0.1).query("arm == 'hero'")
    rows += [trained.assign(trained_on="airline", env="airline"), weak.assign(env="airline")]
    written(data / "worlds.csv", *rows)
    claims = claimed.claims_table().set_index("claim_id")["ours"]
    assert claims["hero_beats_base_airline"] == 0.4 and claims["transfer_airline"] == 0.1
    assert claims["base_success_airline"] == 0.3 and claims["hero_beats_base_webshop"] == ""


def test_groups_are_how_grpo_is_meant(data):
    grpo = agents(0.1).query("arm == 'hero'").assign(arm="grpo", variant=f"group=4 tasks=6 lr={OWN_LR['grpo']}")
    pairs = agents(0.3).query("arm == 'hero'").assign(arm="grpo", variant="group=2 tasks=12")
    written(data / "retail.csv", agents(0.4), grpo, pairs)
    claims = claimed.claims_table().set_index("claim_id")["ours"]
    assert claims["hero_beats_grpo_tight_budget_retail"] == 0.3


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda rows: rows.drop(columns="variant"), "no column variant"),
        (lambda rows: rows.assign(arm=rows["arm"].where(rows["seed"] > 0)), "rows without an arm"),
        (lambda rows: pd.concat([rows, rows[:1]]), "rows of the same run twice"),
        (lambda rows: rows.assign(success="x"), "values of success that are no numbers"),
    ],
)
def test_a_damaged_table_makes_no_claim(data, damage, why):
    damage(agents(0.4)).to_csv(data / "retail.csv", index=False)
    with pytest.raises(HeroError, match=why):
        claimed.claims_table()


def test_forgetting_shows_in_plain_text(data):
    texts = [(arm, f"t{i}", 10.0 * (1 + (arm == "hero")) + i) for arm in ("base", "hero") for i in range(4)]
    rows = pd.DataFrame(texts, columns=["arm", "item", "perplexity"]).assign(variant="", seed=0, env="")
    rows["run"] = rows["arm"]
    rows.to_csv(data / "retail_ability.csv", index=False)
    claim = claimed.claims_table().set_index("claim_id").loc["no_forgetting"]
    assert claim["ours"] > 0.5 and claim["verdict"] == "not reproduced, one seed" and claim["n_tasks"] == 4


def test_a_block_goes_between_its_markers_in_every_text_that_has_them():
    text, other = "a\n<!-- claims -->\nold\n<!-- /claims -->\nb\n", "<!-- turns -->\n<!-- /turns -->\n"
    texts = {Path("a.md"): text, Path("b.md"): text + other}
    once = report.fill(texts, {"claims": "new"})
    filled = "a\n<!-- claims -->\nnew\n<!-- /claims -->\nb\n"
    assert list(once.values()) == [filled, filled + other]
    assert report.fill(once, {"claims": "new"}) == once
    with pytest.raises(HeroError, match="no place <!-- changes --> .* in a.md, b.md"):
        report.fill(texts, {"claims": "new", "changes": "x"})


def test_turns_are_split_by_outcome():
    rows = pd.DataFrame(
        {"agent": "base", "success": [1.0, 0.0, 0.0], "turns": [6, 10, 4], "wasted": [0, 6, 3]},
    )
    (row,) = report.turns_table(rows).to_dict("records")
    assert row["turns, solved"] == 6 and row["turns, failed"] == 7
    assert row["ended early, share of failures"] == 0.5 and row["wasted turns"] == 3


def test_every_agent_has_a_row():
    rows = agents(0.2).assign(wasted=1.0)
    table = report.agents_table(rows.assign(agent=rows["arm"]))
    assert table["agent"].tolist() == ["base", "hero"]
    assert set(table["seeds"]) == {3} and table["success"][0].startswith("0.30 [")


def test_every_world_and_agent_has_a_row():
    base, hero = (agents(0.2).assign(wasted=1.0).query("arm == @arm") for arm in ("base", "hero"))
    rows = pd.concat(
        [base, base.assign(env="webshop"), hero.assign(env="webshop", trained_on="webshop").query("seed < 1")]
    )
    rows = rows.assign(agent=rows["arm"])
    table = report.worlds_table(rows)
    assert table[["tested in", "agent", "seeds"]].values.tolist() == [
        ["retail", "base", 3],
        ["webshop", "base", 3],
        ["webshop", "hero, trained on webshop", 1],
    ]
    (line,) = report.worlds_differences(rows).splitlines()  # nothing was trained in retail
    assert line.startswith("- in webshop, trained on webshop, hero − base: success +") and line.endswith("(one seed)")
    both = pd.concat([rows, rows[rows["arm"] == "hero"].assign(agent="full_demo", arm="full_demo")])
    found = [line.split(": ")[0].split(", ")[-1] for line in report.worlds_differences(both).splitlines()]
    assert found == ["full_demo − base", "hero − base", "hero − full_demo"]
    bars = report.success_table((" in ".join(name), of_agent) for name, of_agent in rows.groupby(["arm", "env"]))
    assert bars["agent"].tolist() == ["base in retail, 3 seeds", "base in webshop, 3 seeds", "hero in webshop, 1 seed"]
    assert set(bars["n"]) == {40}


def test_changes_are_compared_with_hero_and_the_base_agent():
    rows = agents(0.4)
    rows = pd.concat([rows, rows[rows["arm"] == "hero"].assign(arm="oracle_hero")]).assign(variant="")
    rows = rows.assign(agent=[results.agent(r.arm, r.variant) for r in rows.itertuples()])
    (change,) = report.changes_table(rows).to_dict("records")
    assert change["agent"] == "oracle_hero" and change["minus hero"] == "+0.000 [+0.000, +0.000]"
    assert change["minus base"].startswith("+0.400")
    assert report.changes_table(rows[rows["arm"] != "oracle_hero"]).empty


@pytest.mark.parametrize(
    "column, value, says",
    [("success", "x", "no numbers"), ("success", None, "no numbers"), ("sucess", 1.0, "no column")],
)
def test_a_damaged_table_is_one_sentence(tmp_path, column, value, says):
    rows = agents(0.1)
    if column not in rows:
        rows = rows.rename(columns={"success": column})
    rows[column] = [value, *rows[column][1:]]
    rows.to_csv(tmp_path / "retail.csv", index=False)
    with pytest.raises(HeroError, match=f"retail.csv has .*{says}"):
        results.read(tmp_path / "retail.csv")
