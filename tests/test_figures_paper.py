"""The paper's tables and figures: numbers by hand, against SciPy, with missing arms and seeds, and the page itself."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from statistics import NormalDist

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hero_mini import bootstrap, claims, compare, efficiency, figures, figures_paper, nb, paper, results
from hero_mini.config import ARMS, SIZES
from hero_mini.errors import HeroError
from hero_mini.studies import OWN_LR, STUDIES

PAGE = Path(__file__).parent.parent / "notebooks" / "08_paper_figures.ipynb"
GAIN = {"base": 0.0, "hero": 0.25, "full_demo": -0.2}
OWN = f"lr={OWN_LR['grpo']}"  # how a table names what the figures leave out


def outcomes(
    arm: str, variant: str = "", seeds: int = 2, tasks: int = 12, *, env: str = "retail", trained_on: str = "retail"
) -> pd.DataFrame:
    """Held-out rows of one agent, made up."""
    draw = np.random.default_rng([len(arm), len(variant)])
    rows = pd.DataFrame([(s, f"t{t}") for s in range(seeds) for t in range(tasks)], columns=["seed", "task"])
    won = draw.random(len(rows)) < 0.4 + GAIN.get(arm, 0.1)
    return rows.assign(
        run=[f"{arm}-{trained_on}-{variant}-{s}" for s in rows["seed"]],
        arm=arm,
        variant=variant,
        trained_on=trained_on,
        env=env,
        trial=0,
        success=won.astype(float),
        turns=draw.integers(3, 10, len(rows)),
        repeated=draw.integers(0, 3, len(rows)),
        errors=draw.integers(0, 3, len(rows)),
    )


def curve(arm: str, variant: str = "", seeds: int = 2, updates: int = 3, *, env: str = "retail") -> pd.DataFrame:
    """Training rows of one agent, made up."""
    draw = np.random.default_rng([len(arm), len(variant), 1])
    rows = pd.DataFrame([(s, u) for s in range(seeds) for u in range(updates)], columns=["seed", "update"])
    alone = "group" not in variant
    return rows.assign(
        run=[f"{arm}-{env}-{variant}-{s}" for s in rows["seed"]],
        arm=arm,
        variant=variant,
        trained_on=env,
        env=env,
        success=draw.random(len(rows)),
        turns=draw.uniform(4, 9, len(rows)),
        no_contrast=1.0 if alone else draw.random(len(rows)),
        env_turns=(rows["update"] + 1) * (100 if alone else 120) + rows["seed"],
    )


def through_csv(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    rows.to_csv(folder / "rows.csv", index=False)
    return results.read(folder / "rows.csv")


@pytest.fixture
def rows(tmp_path) -> pd.DataFrame:
    agents = [("base", ""), ("hero", ""), ("hero", "teacher=ema"), ("grpo", f"group=4 tasks=6 {OWN}")]
    return through_csv(pd.concat([outcomes(*agent) for agent in agents]), tmp_path)


# --- numbers ---------------------------------------------------------------------------------------------------------
def test_an_agent_is_an_arm_with_what_differs(rows, tmp_path):
    assert list(rows["agent"].unique()) == ["base", "hero", "hero, teacher=ema", "grpo, G=4"]
    only_defaults = through_csv(outcomes("base"), tmp_path)  # a column of empty cells is read as text
    assert set(only_defaults["agent"]) == {"base"} and set(only_defaults["variant"]) == {""}


def test_an_effect_is_the_paired_difference(rows):
    of = dict(tuple(rows.groupby("agent")))
    found = compare.effect(of["hero"], of["base"], "success")
    gaps = bootstrap.by_task(of["hero"], "success") - bootstrap.by_task(of["base"], "success")
    assert (found["value"], found["low"], found["high"]) == bootstrap.interval(gaps)
    assert (found["n_seeds"], found["n_tasks"]) == (2, 12)
    assert np.mean(found["seeds"]) == pytest.approx(found["value"])


def test_only_what_both_have_is_compared(rows):
    of = dict(tuple(rows.groupby("agent")))
    hero, ema, base = of["hero"], of["hero, teacher=ema"], of["base"]
    first = compare.effect(hero[hero["seed"] == 0], base, "turns")
    assert first["n_seeds"] == 1 and first == compare.effect(hero[hero["seed"] == 0], base[base["seed"] == 0], "turns")
    assert compare.effect(hero, base[base["seed"] == 0], "turns")["n_seeds"] == 2  # base is not trained
    assert compare.effect(hero, ema[ema["seed"] == 0], "turns")["n_seeds"] == 1  # one training run stays one
    assert compare.effect(hero, base[base["task"] != "t3"], "turns")["n_tasks"] == 11
    assert compare.effect(hero, base.assign(task=base["task"] + "x"), "turns") is None


def test_pairs_without_data_are_left_out(rows):
    table = compare.effects(rows, [("hero", "base"), ("hero", "full_demo"), ("grpo, G=4", "base")], ("success",))
    assert list(table["comparison"]) == ["hero − base", "grpo, G=4 − base"]
    nothing = compare.effects(rows.iloc[:0], [("hero", "base")])
    assert nothing.empty and list(nothing.columns) == list(table.columns)
    assert compare.sentences(nothing) == []


def test_two_base_agents_stand_side_by_side_and_are_never_mixed(rows):
    other = rows.assign(success=1.0)
    table = compare.side_by_side({"one": rows, "two": other}, [("hero", "base"), ("full_demo", "base")], ("success",))
    assert list(table["comparison"]) == ["hero − base, one", "hero − base, two"]
    assert table["value"].tolist() == [compare.effects(rows, [("hero", "base")])["value"][0], 0.0]


def test_a_sentence_says_no_more_than_its_interval():
    table = pd.DataFrame(
        [("a − b", "success", 0.1, 0.02, 0.2, 1), ("a − b", "turns", -1.5, -3, 0.2, 1)],
        columns=["comparison", "number", "value", "low", "high", "n_seeds"],
    )
    assert compare.sentences(table) == [
        "a − b: success +0.100 [+0.020, +0.200], higher; turns -1.50 [-3.00, +0.20], no direction is shown (one seed)"
    ]
    assert compare.direction(float("nan"), float("nan")) == "no direction is shown"


def test_the_smallest_visible_difference_is_seen_four_times_of_five():
    table = compare.visible(pd.DataFrame({"low": [-1.96 * 0.5], "high": [1.96 * 0.5]}))
    assert table["se"].item() == pytest.approx(0.5, rel=1e-4)
    assert table["smallest"].item() == pytest.approx(1.4, abs=0.01)
    estimates = NormalDist(table["smallest"].item(), 0.5)
    assert 1 - estimates.cdf(1.96 * 0.5) == pytest.approx(0.8, abs=1e-3)


def test_intervals_over_seeds_are_students():
    assert compare.T975[1:] == pytest.approx(stats.t.ppf(0.975, range(1, 10)), abs=1e-3)
    values = [0.2, 0.5, 0.3, 0.4]
    mean, low, high = compare.over_seeds(values)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, mean, stats.sem(values)), abs=1e-3)
    assert np.isnan(compare.over_seeds([0.3])[1:]).all()
    assert np.isfinite(compare.over_seeds(np.arange(14))).all()


def test_success_belongs_to_the_turns_spent_before(tmp_path):
    curves = curve("hero").assign(success=[0.0, 0.2, 0.4, 0.0, 0.4, 0.8], env_turns=[100, 200, 300, 50, 100, 150])
    found = efficiency.spent(through_csv(curves, tmp_path))
    assert found["spent"].tolist() == [0, 100, 200, 0, 50, 100]
    budget, runs = efficiency.at_budget(found)
    assert budget == 100
    assert runs["end"].tolist() == pytest.approx([0.2, 0.8])
    assert runs["way"].tolist() == pytest.approx([0.1, 0.4])
    none_spent = efficiency.at_budget(found[found["update"] == 0])
    assert none_spent[0] == 0 and none_spent[1]["way"].tolist() == [0.0, 0.0]


def test_runs_of_unequal_length_are_compared_seed_by_seed():
    runs = [(0, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)), (1, (0.2, 0.4, 0.1)), (2, (0.5,))]
    rows = pd.DataFrame([{"seed": s, "update": u, "success": v} for s, values in runs for u, v in enumerate(values)])
    moved = efficiency.course(rows.sample(frac=1, random_state=0), "success")
    assert moved["whole"].round(6).tolist() == [0.5, -0.1, 0.0]
    assert moved["late"].round(6).tolist()[:2] == [0.2, -0.3] and pd.isna(moved.loc[2, "late"])
    curves = rows.assign(arm="hero", agent="hero", spent=rows["update"] * 100, env_turns=rows["update"] * 100)
    (ax,) = figures.learning_curves(curves[curves["seed"] < 2], ("success",)).axes
    assert [len(line.get_xdata()) for line in ax.get_lines()] == [6, 6, 3]  # the mean as far as both go
    (left, _) = figures_paper.budget_figure(curves[curves["seed"] < 2]).axes
    assert [len(line.get_xdata()) for line in left.get_lines()] == [6, 3, 3]


def test_groups_are_read_from_the_variant(tmp_path):
    agents = [("base", ""), ("hero", ""), ("grpo", f"group=8 tasks=3 {OWN}"), ("grpo", f"group=2 tasks=12 {OWN}")]
    rows = through_csv(pd.concat([outcomes(*a) for a in (*agents, ("hero", "teacher=ema"))]), tmp_path)
    table = efficiency.groups(rows)
    assert table[["arm", "G"]].to_numpy().tolist() == [["hero", 1], ["grpo", 2], ["grpo", 8]]
    assert table["value"][0] == rows[rows["agent"] == "hero"]["success"].mean()
    shares = efficiency.contrast(through_csv(pd.concat([curve(*a) for a in agents[1:]]), tmp_path))
    assert shares["value"][0] == 1.0 and shares["low"].between(0, 1).all()


def test_a_run_counts_once_whichever_tables_hold_it(tmp_path):
    """hero_retail before retail; the validation split of the grid, and tables of another base agent, stay out."""
    base, hero, other = outcomes("base"), outcomes("hero", seeds=3), outcomes("hero", "teacher=ema")
    other["task"] = "retail/validation/" + other["task"]
    tables = {
        "hero_retail": [base, hero[hero["seed"] < 2]],
        "retail": [base.assign(success=2.0), hero.assign(success=2.0)],  # the first table counts, run by run
        "worlds": [outcomes("base", env="airline"), outcomes("hero", env="airline")],
        "grid_retail": [other],
    }
    for name, parts in tables.items():
        pd.concat(parts).to_csv(tmp_path / f"{name}.csv", index=False)
    rows = results.read_all(tmp_path)
    assert not rows.duplicated(["run", "env", "task", "trial"]).any() and set(rows["agent"]) == {"base", "hero"}
    found = rows.groupby(["run", "env"])["table"].agg(set).astype(str).to_dict()
    assert found["hero-retail--1", "retail"] == "{'hero_retail'}" and found["hero-retail--2", "retail"] == "{'retail'}"
    assert found["base-retail--0", "airline"] == "{'worlds'}" and len(rows) == 2 * 24 + 3 * 12 + 24
    about = {"hero_retail": ("old", "2026-01-01"), "retail": ("new", "2026-01-02"), "worlds": ("new", "2026-01-01")}
    for name, (adapter, date) in about.items():
        told = {"adapter": adapter} if adapter == "old" else {"settings": {"adapter": adapter, "lr": 1}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"date": date} | told))
    assert set(results.read_all(tmp_path)["table"]) == {"retail", "worlds"}
    (tmp_path / "hero_retail.json").write_text(json.dumps({"date": "2026-01-01", "adapter": "new"}))
    told = {"adapter": "new", "lr": 1, "budget": 600}
    for name in ("retail", "worlds"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"date": "2026-01-02", "settings": told}))
    assert set(results.read_all(tmp_path)["table"]) == {"retail", "worlds"}, (
        "how the older one was trained is not known"
    )
    pd.concat([*tables["worlds"], outcomes("base").assign(success=3.0)]).to_csv(tmp_path / "worlds.csv", index=False)
    told = {"date": "2026-01-03", "settings": {"model": "worlds", "adapter": "third"}}
    (tmp_path / "worlds.json").write_text(json.dumps(told))
    rows = results.read_all(tmp_path)
    assert set(rows["table"]) == {"retail", "worlds"}, "each model has a newest table of its own"
    assert rows["success"].max() == 2.0 and set(rows["env"]) == {"retail", "airline"}, "in retail the default one acts"
    assert results.read_all(tmp_path / "nothing").empty and results.alike(tmp_path / "nothing") == []


def test_a_table_that_has_lost_its_twin_is_no_silent_gap(tmp_path):
    for name in ("retail", "worlds"):
        outcomes("base").to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "worlds.json").write_text('{"date": "2026-01-01"}')
    with pytest.raises(HeroError, match="retail.csv was made: its .json is not there"):
        results.read_all(tmp_path)


def test_an_agent_is_compared_where_it_was_trained():
    agents = [("base", "retail"), ("hero", "retail"), ("hero", "airline"), ("hero", "webshop")]
    rows = pd.concat([outcomes(arm, env="airline", trained_on=where) for arm, where in agents])
    own, away = results.in_world(rows, "airline"), results.in_world(rows, "airline", "retail")
    assert set(own["arm"] + own["trained_on"]) == {"baseretail", "heroairline"}
    assert set(away["arm"] + away["trained_on"]) == {"baseretail", "heroretail"}
    assert results.in_world(rows, "webshop").empty
    assert set(paper.TRAINED_ON) == set(paper.PAPER["env"])


def test_the_papers_numbers():
    wide = paper.PAPER.pivot(index=["model", "env"], columns="arm", values="success")
    assert (wide["hero"] > wide["grpo"]).all() and len(wide) == 6
    assert paper.quoted("4B", "retail", "grpo") == "33.3 %, 13.4 turns"
    assert paper.quoted("30B", "airline", "hero") == "35.5 %"


# --- figures ---------------------------------------------------------------------------------------------------------
def test_figures_draw_what_is_there(rows, tmp_path):
    pairs = [("hero", "base"), ("grpo, G=4", "base"), ("hero", "grpo, G=4")]
    table = compare.visible(compare.effects(rows, pairs))
    one_seed = compare.effects(rows[rows["seed"] == 0], pairs[:1], ("turns",))
    curves = efficiency.spent(
        through_csv(pd.concat([curve("hero"), curve("grpo", f"group=4 tasks=6 {OWN}", seeds=1)]), tmp_path)
    )
    alone = curves[curves["agent"] == "hero"]
    levels, shares = efficiency.groups(rows), efficiency.contrast(curves)
    shown = {"success": "success", "turns": "turns"}
    for fig in (
        figures_paper.effects_figure(table.assign(paper=[0.01, *[np.nan] * 5]), shown),
        figures_paper.effects_figure(one_seed, {"turns": "turns"}),
        figures_paper.budget_figure(curves),
        figures_paper.budget_figure(alone),
        figures_paper.groups_figure(levels, shares, (0.4, 0.3, 0.5)),
        figures_paper.groups_figure(levels[:1], shares[:0], None),
        figures_paper.seeds_figure(curves, tested=rows),
        figures_paper.seeds_figure(alone[alone["update"] == 0], ("success",)),
    ):
        assert figures.render(fig) == figures.render(fig)


def test_a_difference_has_its_numbers_and_a_tick_per_seed(rows):
    table = compare.effects(rows, [("hero", "base"), ("grpo, G=4", "base")])
    left, right = figures_paper.effects_figure(table, {"success": "success", "turns": "turns"}).axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["hero − base  (2 × 12)", "grpo, G=4 − base  (2 × 12)"]
    ticks = [line for line in right.get_lines() if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in ticks] == [2, 2]
    assert {text.get_text() for text in left.texts} == {f"{v:+.2f}" for v in table[::2]["value"]}


# --- the page --------------------------------------------------------------------------------------------------------
def made_up(folder: Path, keep) -> None:
    """Every study's tables, of the jobs that `keep` accepts."""
    folder.mkdir(parents=True)
    for name in ("hero_retail", "retail", "ablations_retail", "groups_retail", "worlds", "no_demos", "no_hints"):
        jobs = [job for job in STUDIES[name](SIZES["full"]) if keep(job) and job.seed <= 1]
        tested = [outcomes(job.arm, job.variant, env=env, trained_on=job.env) for job in jobs for env in job.tests]
        trained = [curve(job.arm, job.variant, env=job.env) for job in jobs if job.arm != "base"]
        for suffix, rows in (("", tested), ("_curves", trained)):
            if rows:
                pd.concat(rows).to_csv(folder / f"{name}{suffix}.csv", index=False)


def run_page(tmp_path: Path, monkeypatch) -> str:
    """All code cells in this process, with tmp_path/figures/data; returns what was said and shown, as plain text."""
    said: list[str] = []
    monkeypatch.setattr(nb, "_put", lambda kind, content, plain, metadata=None: said.append(plain))
    monkeypatch.setattr(nb, "show", lambda fig, *, alt, name: said.append(f"Figure {name.name}: {alt}"))
    for module in (compare, efficiency, claims):
        monkeypatch.setattr(module, "interval", partial(bootstrap.interval, n=40))
    space: dict = {}
    for cell in nbformat.read(PAGE, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        if "raises-exception" in cell.metadata.get("tags", []):
            with pytest.raises(HeroError, match="group to 2 or more"):
                exec(cell.source, space)
            continue
        exec(cell.source, space)
        if "data" in space and "moved" not in space:
            space |= {"data": tmp_path / "figures" / "data", "moved": True}
    return "\n".join(said)


def test_the_page_without_data_names_every_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "figures" / "data").mkdir(parents=True)
    said = run_page(tmp_path, monkeypatch)
    for name in ("retail", "ablations_retail", "groups_retail", "worlds", "no_demos", "no_hints"):
        assert f"`figures/data/{name}.csv`. It is written by `python -m hero_mini study {name}`" in said
    assert said.count("Figure 08_") == said.count("Figure 08_pipeline:") == 1  # the pipeline needs no data
    counts = re.findall(r"(\d+) claims? of [^:]+: (\d+) not run yet\.", said)
    assert len(counts) == 5 and all(n == unknown for n, unknown in counts)
    assert sum(int(n) for n, _ in counts) == len(claims.CLAIMS)
    assert "not yet." not in capsys.readouterr().out  # all exercises are correct as they stand


def test_the_page_with_some_data_leaves_out_the_rest(tmp_path, monkeypatch):
    made_up(tmp_path / "figures" / "data", lambda job: job.arm in ("base", "hero") and not job.settings)
    for file in ("retail.csv", "retail_curves.csv"):
        (tmp_path / "figures" / "data" / file).unlink()
    said = run_page(tmp_path, monkeypatch)
    assert "From `figures/data/hero_retail.csv`" in said and "**Not there yet**: `figures/data/retail.csv`" in said
    assert "hero − base: success" in said and "Not measured yet: full_demo − base" in said
    assert "grpo, G=4 − base:" not in said
    rows = [line.split() for line in said.splitlines() if line.split()[2:3] == ["hero"] and "×" in line]
    assert [" ".join(row[:6]) for row in rows] == [
        f"{tested} {trained} hero 2 × 12"
        for tested, trained in (
            ("retail", "retail"), ("airline", "retail"), ("airline", "airline"), ("webshop", "webshop"),
        )
    ]  # fmt: skip
    assert not re.search(r"\bnan\b", said), "what has no value is said in words"


def test_the_page_with_all_data(tmp_path, monkeypatch):
    made_up(tmp_path / "figures" / "data", lambda job: True)
    ability = [(a, s, f"i{i}", "fact", 1.0, np.nan) for a in ("base", "hero") for s in (0, 1) for i in range(4)]
    ability += [(a, s, "text", "text", np.nan, 10.0) for a in ("base", "hero") for s in (0, 1)]
    columns = ["arm", "seed", "item", "kind", "correct", "perplexity"]
    ability = pd.DataFrame(ability, columns=columns)
    ability = ability.assign(run=ability["arm"] + ability["seed"].astype(str), env="", variant="", trained_on="retail")
    data = tmp_path / "figures" / "data"
    ability.to_csv(data / "retail_ability.csv", index=False)
    grid = pd.concat([outcomes(j.arm, j.variant, seeds=1) for j in STUDIES["grid_retail"](SIZES["full"])])
    grid.assign(task="retail/validation/" + grid["task"]).to_csv(data / "grid_retail.csv", index=False)
    (data / "traps_retail").mkdir()
    (data / "probe_retail").mkdir()
    edges = [("hero", r, t, t % 2 == 0, 1.0 - t) for r in range(4) for t in (1, 2)]
    edges = pd.DataFrame(edges, columns=["probe", "rollout", "turn", "good", "edge"])
    edges.to_csv(data / "probe_retail" / "edge.csv", index=False)
    contexts = ("hero", "full_demo", "env_feedback")
    call = pd.DataFrame([(c, t, 0.1, "f(a)", w, "failed") for c in contexts for t, w in enumerate("f(a)")])
    call.columns = ["context", "token", "edge", "action", "text", "said"]
    leaks = pd.DataFrame(0.1, index=[0], columns="named other difference low high share of_divergence".split())
    quote = leaks[["difference", "low", "high"]].assign(action="wrong")
    tables = {"credit": call, "leakage": leaks.assign(context="hero"), "anchoring": quote}
    for name, table in tables.items():
        table.to_csv(data / "traps_retail" / f"{name}.csv", index=False)
    said = run_page(tmp_path, monkeypatch)
    assert re.search(r"Highest success: hero at \S+, env_feedback at \S+, full_demo at \S+, grpo at \S+\. At", said)
    assert "Not there yet" not in said and "Not measured yet" not in said
    for figure in (
        "main_retail",
        "main_airline",
        "main_webshop",
        "transfer_airline",
        "transfer_webshop",
        "ablation",
        "reflector",
        "budget",
        "groups",
        "ability",
        "credit_0",
        "edge",
        "shuffled",
        "curves",
        "power",
    ):
        assert f"Figure 08_{figure}: " in said, figure
    assert "hero − base: correct +0.000 [+0.000, +0.000], no direction is shown" in said


def test_an_arm_looks_the_same_in_every_figure() -> None:
    looks = [figures.ARM_STYLE[arm] for arm in ("base", *ARMS)]  # all have a look of their own
    assert len(set(looks)) == len(looks)
