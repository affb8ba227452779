"""From figures/data to claims.csv, the figures and the tables of README, results and teaching guide."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from hero_mini import compare, probe, results
from hero_mini.bootstrap import by_task, interval
from hero_mini.claims import DATA, claims_table
from hero_mini.errors import HeroError, first_line
from hero_mini.evaluate import ended_early
from hero_mini.files import atomic_write, check_clone
from hero_mini.tables import RESTORE, read_table

TEXTS = (Path("README.md"), Path("figures/README.md"), Path("notebooks/teaching.md"))  # with places for tables


def markdown(table: pd.DataFrame) -> str:
    """A GitHub table; `|` in a cell is escaped, and a missing value is a dash."""
    cells = table.astype(object).where(table.notna(), "–").map(str)
    rows = [list(table.columns), ["---"] * len(table.columns), *cells.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def render(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers `<!-- name -->` and `<!-- /name -->` replaced by content."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n?<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{content}{m[2] if m[2].startswith(chr(10)) else chr(10) + m[2]}", text)


def fill(texts: dict[Path, str], made: dict[str, str]) -> dict[Path, str]:
    """Every text with each block in its place. raises HeroError: a block has no place in any of them"""
    for name in made:
        if not any(f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text for text in texts.values()):
            files = ", ".join(map(str, texts))
            raise HeroError(f"no place <!-- {name} --> ... <!-- /{name} --> in {files}; restore it (git checkout)")
        texts = {path: render(text, name, made[name]) for path, text in texts.items()}
    return texts


def claims_readme(claims: pd.DataFrame) -> str:
    """The claims as README and page 08 show them, with the smallest difference that a claim's data would have shown."""
    visible = [
        "" if r.ours == "" or ".." in r.predicted_sign else f"{compare.smallest_visible(r.ci_low, r.ci_high):.2f}"
        for r in claims.itertuples(index=False)
    ]
    shown = pd.DataFrame(
        {
            "claim": claims["statement"],
            "paper": claims["paper_value"],
            "predicted": claims["predicted_sign"],
            "ours [95 %]": [
                f"{r.ours} [{r.ci_low}, {r.ci_high}]" if r.ours != "" else "" for r in claims.itertuples(index=False)
            ],
            "seeds × tasks": [f"{r.n_seeds} × {r.n_tasks}" if r.ours != "" else "" for r in claims.itertuples()],
            "visible from": visible,
            "verdict": claims["verdict"],
        }
    )
    return markdown(shown)


def turns_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Turns per episode by outcome, and how many of the failures ended before the last turn; a row per agent."""
    won = rows["success"] == 1
    parts = {
        "turns, solved": rows["turns"].where(won),
        "turns, failed": rows["turns"].where(~won),
        "ended early, share of failures": ended_early(rows).where(~won),
        "wasted turns": rows["wasted"],
    }
    table = pd.DataFrame({"agent": rows["agent"], **parts}).groupby("agent", sort=False).mean()
    return table.round(2).reset_index()


def _means(rows: pd.DataFrame, columns: Sequence[str] = ("success", "turns", "wasted")) -> dict[str, int | str]:
    """The number of seeds, and of each column its mean with the 95 % interval."""
    values = {name: by_task(rows, name) for name in columns}
    cells = {name: "{:.2f} [{:.2f}, {:.2f}]".format(*interval(v)) for name, v in values.items()}
    return {"seeds": rows["seed"].nunique(), **cells}


def agents_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval of success, turns and wasted turns for every agent of `results.read`."""
    of = rows.groupby("agent", sort=False)
    return pd.DataFrame([{"agent": agent, **_means(mine)} for agent, mine in of])


def _by_agent(rows: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The rows of every world and of every agent that was tested in it, the base agent first."""
    agent = rows["agent"].where(rows["arm"] == "base", rows["agent"] + ", trained on " + rows["trained_on"])
    return list(rows.groupby(["env", agent]))


def _hero_by_world(curves: pd.DataFrame) -> pd.DataFrame:
    """HERO's curves with the world of the training before its name."""
    return curves[curves["arm"] == "hero"].assign(arm=curves["trained_on"] + ": hero")


def worlds_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval of success, turns and wasted turns for every agent in every world."""
    found = []
    for (env, agent), of_agent in _by_agent(rows):
        found.append({"tested in": env, "agent": agent, **_means(of_agent)})
    return pd.DataFrame(found)


def worlds_differences(rows: pd.DataFrame) -> str:
    """By world of test and training: every trained agent against the base agent, HERO against the others, in words."""
    lines = []
    for (env, world), trained in rows[rows["arm"] != "base"].groupby(["env", "trained_on"]):
        here, agents = results.in_world(rows, env, world), sorted(trained["agent"].unique())
        pairs = [(agent, "base") for agent in agents] + [("hero", agent) for agent in agents if agent != "hero"]
        lines += [f"- in {env}, trained on {world}, {s}" for s in compare.sentences(compare.effects(here, pairs))]
    return "\n".join(lines)


def _listed(effects: pd.DataFrame) -> str:
    """`compare.effects` as a list in words."""
    return "\n".join(f"- {line}" for line in compare.sentences(effects))


def against_others(rows: pd.DataFrame) -> str:
    """HERO against every other agent of the main comparison, in words."""
    pairs = [("hero", agent) for agent in results.headline(rows)["agent"].unique() if agent != "hero"]
    return _listed(compare.effects(rows, pairs))


def by_group_size(rows: pd.DataFrame) -> str:
    """HERO against GRPO with as many rollouts per task, in words; empty without such agents."""
    sizes = sorted(int(found[1]) for agent in set(rows["agent"]) if (found := re.fullmatch(r"hero, G=(\d+)", agent)))
    return _listed(compare.effects(rows, [(f"hero, G={size}", f"grpo, G={size}") for size in sizes]))


def against_first(rows: pd.DataFrame, first: pd.DataFrame) -> str:
    """The trained agents that the first study has as well: their rows of today against those, in words."""
    trained = [agent for agent in first["agent"].unique() if agent != "base"]
    both = [mine.assign(agent=mine["agent"] + when) for mine, when in ((rows, ", now"), (first, ", first study"))]
    pairs = [(f"{agent}, now", f"{agent}, first study") for agent in trained]
    return _listed(compare.effects(pd.concat(both), pairs))


def changed(rows: pd.DataFrame) -> list[str]:
    """The agents outside the main comparison: those of which something was changed."""
    return sorted(set(rows["agent"]) - set(results.headline(rows)["agent"]))


def changes_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Every changed agent: its success, and paired with HERO and with the base agent."""
    of = dict(tuple(rows.groupby("agent")))
    found = []
    for agent in changed(rows):
        line = {"agent": agent, **_means(of[agent], ["success"])}
        for other in ("hero", "base"):
            gap = compare.effect(of[agent], of[other], "success") if other in of else None
            line[f"minus {other}"] = compare.cell(gap["value"], gap["low"], gap["high"], "+") if gap else ""
        found.append(line)
    return pd.DataFrame(found)


def success_table(groups: Iterable[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Success of named groups of a study's rows: the columns of `figures.success_bars`."""
    found = []
    for name, rows in groups:
        values = by_task(rows, "success")
        value, low, high = interval(values)
        agent = f"{name}, {compare.seeds(len(values))}"
        found.append({"agent": agent, "value": value, "low": low, "high": high, "n": values.shape[1]})
    return pd.DataFrame(found)


def _retail(suffix: str = "") -> pd.DataFrame:
    """The base agent and all that were trained in retail, from whatever studies hold their runs."""
    return results.in_world(results.read_all(DATA, suffix), "retail")


def draw() -> None:
    """The figures of all data that are there."""
    from hero_mini import figures
    from hero_mini.figures_demo import place_figure
    from hero_mini.figures_paper import effects_figure
    from hero_mini.mechanism import STUDENT

    def saved(source: str, make: Callable[[pd.DataFrame], object], name: str) -> None:
        if (path := DATA / source).exists():
            try:
                picture = make(read_table(path))
            except KeyError as problem:
                raise HeroError(f"{path} has no column {problem.args[0]}; {RESTORE}") from problem
            except (TypeError, ValueError) as problem:
                raise HeroError(
                    f"{path} has values that cannot be drawn ({first_line(problem)}); {RESTORE}"
                ) from problem
            figures.save(picture, f"figures/{name}")

    def bars(groups: Iterable[tuple[str, pd.DataFrame]]) -> object:
        return figures.success_bars(success_table(groups))

    figures.save(figures.pipeline_figure(), "figures/pipeline")
    saved("probe_retail/edge.csv", lambda edges: figures.edge_figure(probe.summary(edges)), "edge_retail")
    saved("probe_retail/reflection.csv", figures.reflection_table_figure, "reflection_retail")
    saved("worlds_curves.csv", lambda rows: figures.learning_curves(_hero_by_world(rows)), "worlds_curves")
    saved("bench.csv", figures.bench_figure, "bench")
    places = partial(place_figure, contexts=[STUDENT, "full_demo", "hero"])
    for warm_up, name in {"": "practised", "_no_demos": "not_practised"}.items():
        saved(f"mechanism_retail{warm_up}/heat.csv", places, f"places_{name}")
    if (worlds := DATA / "worlds.csv").exists():
        found = _by_agent(results.read(worlds))
        short = ((f"{who.replace('trained on ', '')} → {env}", mine) for (env, who), mine in found)
        figures.save(bars(short), "figures/worlds")
    every = _retail()
    if len(rows := results.headline(every)):
        figures.save(bars(rows.groupby("agent", sort=False)), "figures/retail")
    if len(rows) and (others := results.left_out(DATA)):
        effects = compare.side_by_side({"all practised": rows, **others}, [("full_demo", "base"), ("hero", "base")])
        figures.save(effects_figure(effects), "figures/warmups")
    if names := changed(every):
        gains = compare.effects(every, [(name, "base") for name in ("hero", *names)])
        best = gains[gains["number"] == "success"].sort_values("value", ascending=False)["comparison"]
        order = ["hero − base", *best.drop_duplicates()]
        gains = gains.sort_values("comparison", key=lambda names: names.map(order.index), kind="stable")
        figures.save(effects_figure(gains), "figures/changes")
    if len(rows := results.headline(_retail("_curves"))):
        shown = ("success", "turns", "wasted")  # the losses of HERO and GRPO share no scale
        figures.save(figures.learning_curves(rows.assign(arm=rows["agent"]), shown), "figures/retail_curves")


def blocks() -> dict[str, str]:
    """The tables and lists that the data give, by the name of their place in a text."""
    made: dict[str, str | pd.DataFrame] = {}
    every = _retail()
    main = results.headline(every)
    if len(main):
        made |= {"retail": agents_table(main), "against": against_others(main), "turns": turns_table(main)}
        if len(changes := changes_table(every)):
            made |= {"changes": changes, "groups": by_group_size(every)}
    for source, makers in {
        "worlds.csv": {"worlds": worlds_table, "worlds differences": worlds_differences},
        "grid_retail.csv": {"rates": agents_table, "own rates": against_others},
        "no_demos.csv": {"no_demos": agents_table},
        "no_hints.csv": {"no_hints": agents_table},
        "updates_retail.csv": {"updates": agents_table},
        "early_retail.csv": {
            "early": agents_table,
            "early differences": against_others,
            "rule": partial(against_first, main),
        },
    }.items():
        if (DATA / source).exists():
            rows = results.read(DATA / source)
            made |= {name: make(rows) for name, make in makers.items()}
    return {name: content if isinstance(content, str) else markdown(content) for name, content in made.items()}


def report() -> None:
    """Write claims.csv, the figures and the tables of the texts, from the data that are there."""
    from hero_mini.notebooks import overview

    check_clone(*TEXTS, DATA)
    claims = claims_table()
    made = {"claims": claims_readme(claims), "pages": overview(), **blocks()}
    texts = fill({path: path.read_text(encoding="utf-8") for path in TEXTS}, made)
    draw()  # first, since a table that is not whole may show only here
    for path, content in {DATA / "claims.csv": claims.to_csv(index=False), **texts}.items():
        atomic_write(path, content)
    print(claims[["claim_id", "predicted_sign", "ours", "ci_low", "ci_high", "verdict"]].to_string(index=False))
