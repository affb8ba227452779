"""The paper's figures, redrawn from the numbers of `compare` and `efficiency`, in the visual language of `figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hero_mini.figures import BLACK, COLORS, MARKERS, UNITS, above, blank, style_of


def effects_figure(table: pd.DataFrame, shown: Mapping[str, str] | None = None, *, items: str = "tasks") -> Figure:
    """Differences from `compare.effects`, a panel per number: value, 95 % interval, and a tick per seed.

    shown: number -> title; None: success and turns; items: what the numbers are measured on
    a column smallest (see `compare.visible`) adds a hatched band, a column paper a diamond
    """
    shown = shown or {number: UNITS[number] for number in ("success", "turns")}
    names = list(dict.fromkeys(table["comparison"]))
    fig, axes = blank(2.6 + 3.2 * len(shown), 1.5 + 0.5 * len(names), columns=len(shown))
    places = range(len(names) - 1, -1, -1)  # the first comparison on top
    for ax, (number, title) in zip(axes, shown.items(), strict=True):
        mine = table[table["number"] == number].set_index("comparison")
        for i, (y, name) in enumerate(zip(places, names, strict=True)):
            if name in mine.index:
                _difference(ax, y, mine.loc[name], *style_of(name, i))
        ax.axvline(0, color=BLACK, linestyle="--", linewidth=1)
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_yticks(list(places), [""] * len(names))
        ax.set_ylim(-0.6, len(names) - 0.3)
        ax.use_sticky_edges = False  # room beside the hatched bands, too
        ax.margins(x=0.12)
    size = table.drop_duplicates("comparison").set_index("comparison")
    axes[0].set_yticks(list(places), [f"{n}  ({size.n_seeds[n]} × {size.n_tasks[n]})" for n in names])
    extra = "\nhatched: too small to be seen reliably" * ("smallest" in table) + "; diamond: the paper" * (
        "paper" in table
    )
    axes[0].set_xlabel(f"(seeds × {items}); bar: 95 % interval; tick: a seed{extra}", fontsize=9)
    return fig


def _difference(ax: Axes, y: float, row: pd.Series, color: str, marker: str) -> None:
    if "smallest" in row:
        ax.barh(y, 2 * row.smallest, left=-row.smallest, height=0.7, color="0.93", hatch="///", edgecolor="0.8")
    ax.plot([row.low, row.high], [y, y], color=color, linewidth=3, alpha=0.45, solid_capstyle="butt")
    ax.plot(row.seeds, [y] * len(row.seeds), linestyle="", marker="|", color=BLACK, markersize=8)
    ax.plot(row.value, y, marker=marker, color=color, markersize=9)
    above(ax, row.value, y, f"{row.value:+.2f}")
    if not np.isnan(row.get("paper", np.nan)):
        ax.plot(row.paper, y, marker="D", color=BLACK, markerfacecolor="none", markersize=10)


def budget_figure(curves: pd.DataFrame) -> Figure:
    """Success on fresh training tasks, and the share of groups without contrast, against `efficiency.spent`.

    A thin line per seed, and with the agent's name the mean as far as all seeds go. Groups have two rollouts or more.
    """
    fig, axes = blank(9.5, 3.6, columns=2)
    agents = list(dict.fromkeys(curves["agent"]))
    grouped = [agent for agent in agents if "G=" in agent]
    for ax, column, drawn in zip(axes, ("success", "no_contrast"), (agents, grouped), strict=True):
        means = {a: _of_all_seeds(curves[curves["agent"] == a], column) for a in drawn}
        for rank, agent in enumerate(sorted(drawn, key=lambda a: -means[a][column].iloc[-1])):
            color, marker = style_of(agent, agents.index(agent))
            for _, run in curves[curves["agent"] == agent].sort_values("update").groupby("seed"):
                ax.plot(run["spent"], run[column], color=color, linewidth=0.7, alpha=0.5)
            ax.plot(*means[agent].to_numpy().T, color=color, marker=marker, linewidth=2)
            end = means[agent].iloc[-1]
            side = {"xytext": (6, -4 - 10 * rank), "textcoords": "offset points", "fontsize": 10}
            ax.annotate(agent, (end["spent"], end[column]), color=color, **side).set_in_layout(False)
        ax.set_ylim(0, 1.02 if column == "no_contrast" else None)
        last = curves["spent"].max() or 1
        ax.set_xlim(-0.05 * last, 1.35 * last)  # room for the names
        ax.set_xlabel("turns in the environment, spent before")
    n = curves.groupby("agent")["seed"].nunique()
    axes[0].set_title("success on fresh training tasks", loc="left", fontsize=11)
    axes[1].set_title("share of groups without contrast", loc="left", fontsize=11)
    axes[0].set_ylabel(f"thin: a seed (n = {', '.join(str(n[a]) for a in agents)})", fontsize=9)
    return fig


def _of_all_seeds(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean turns spent and mean of a column, for the updates that every seed has made."""
    by_update = runs.groupby("update")
    return by_update[["spent", column]].mean()[by_update.size() == runs["seed"].nunique()]


def groups_figure(levels: pd.DataFrame, contrast: pd.DataFrame, base: tuple[float, float, float] | None) -> Figure:
    """Left success by rollouts per task (`efficiency.groups`), right groups without contrast (`efficiency.contrast`).

    base: success of the base agent with its interval, or None; from it the dotted line, the least share that a success
        rate p allows, p^G + (1 - p)^G: all tasks equally hard
    An open marker is of one training run, whose luck its interval does not cover.
    """
    fig, axes = blank(9.5, 3.6, columns=2)
    arms = list(dict.fromkeys(levels["arm"]))
    for ax, table in zip(axes, (levels, contrast), strict=True):
        for i, (arm, mine) in enumerate((a, table[table["arm"] == a].sort_values("G")) for a in arms):
            if mine.empty:
                continue
            at = mine["G"] * 2 ** (0.08 * i)  # side by side
            color, marker = style_of(arm, i)
            ax.vlines(at, mine["low"], mine["high"], color=color, linewidth=3, alpha=0.45)
            ax.plot(at, mine["value"], color=color, marker=marker, linewidth=1.2)
            few = mine["n_seeds"] == 1
            ax.plot(at[few], mine["value"][few], marker, color=color, markerfacecolor="white")
            side = {"xytext": (6, 6 - 14 * i), "textcoords": "offset points", "color": color}
            ax.annotate(arm, (at.iloc[-1], mine["value"].iloc[-1]), annotation_clip=False, **side)
        ax.set_xscale("log", base=2)
        ax.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        ax.set_xlim(0.85, 14)
        ax.set_xlabel("rollouts per task, G")
    if base is not None:
        axes[0].axhline(base[0], color=BLACK, linestyle="--", linewidth=1)
        axes[0].axhspan(base[1], base[2], color=BLACK, alpha=0.07)
        axes[0].annotate("base", (0.88, base[0]), (0, 3), textcoords="offset points", fontsize=9)
        g = np.linspace(1, 8, 50)
        axes[1].plot(g, base[0] ** g + (1 - base[0]) ** g, color=BLACK, linestyle=":")
        axes[1].text(0.9, 0.04, "dotted: all tasks equally hard", fontsize=9)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(0, 1.02)
    one = "; open: one seed" if (levels["n_seeds"] == 1).any() else ""
    axes[0].set_title(f"success on held-out tasks (95 % interval{one})", loc="left", fontsize=11)
    axes[1].set_title("share of groups without contrast", loc="left", fontsize=11)
    return fig


def seeds_figure(
    curves: pd.DataFrame, columns: Sequence[str] = ("success", "turns"), tested: pd.DataFrame | None = None
) -> Figure:
    """Every training run to its end: a column of panels per agent, a row per number, a line per seed.

    tested: rows of held-out rollouts; the mean of a run is an open marker behind its last update, since an update's own
        rollouts measure the agent before it
    """
    agents, seeds = list(dict.fromkeys(curves["agent"])), sorted(curves["seed"].unique())
    across = min(4, len(agents))
    bands = -(-len(agents) // across)  # of panels: in each a row per number
    size = max(5.0, 1.0 + 2.3 * across), 0.8 + 2.1 * len(columns) * bands
    fig, axes = blank(*size, rows=len(columns) * bands, columns=across)
    grid = np.reshape(axes, (bands, len(columns), across))
    for place in range(bands * across):
        panels = grid[place // across, :, place % across]
        for ax, column in zip(panels, columns, strict=True):
            if place >= len(agents):
                ax.set_axis_off()
                continue
            for seed, run in curves[curves["agent"] == agents[place]].sort_values("update").groupby("seed"):
                i = seeds.index(seed)
                style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
                x, y = run["update"].tolist(), run[column].tolist()
                ax.plot(x, y, linewidth=1.2, markersize=4, label=f"seed {seed}", **style)
                if tested is not None:
                    mine = tested[(tested["agent"] == agents[place]) & (tested["seed"] == seed)]
                    end = [x[-1], x[-1] + 1], [y[-1], mine[column].mean()]  # nan, which is not drawn, without rows
                    ax.plot(*end, ":", linewidth=1, markersize=6, markevery=[1], markerfacecolor="white", **style)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if place < len(agents):
            panels[0].set_title(agents[place].replace(", ", ",\n"), loc="left", fontsize=10)
            panels[-1].set_xlabel("update")
    for row, column in enumerate(columns):
        top = max(np.nanmax(line.get_ydata()) for ax in grid[:, row].flat for line in ax.get_lines())
        for ax in grid[:, row].flat:
            ax.set_ylim(0, 1.05 * top or 1)
        for ax in grid[:, row, 0]:
            ax.set_ylabel(column)
    lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return fig
