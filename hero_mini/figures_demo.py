"""Pictures of what a demonstration does to a teacher, in the visual language of `figures`; tables in, Figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from hero_mini.compare import seeds
from hero_mini.figures import BLACK, MARKERS, blank, style_of


def place_figure(cells: pd.DataFrame, contexts: Sequence[str]) -> Figure:
    """Place in the run against place in the episode, a panel per context; from `mechanism.heat`.

    Every column of numbers adds up to 100 %. The framed cells are the step that is due; above them a teacher is ahead.
    """
    cells = cells[cells["context"].isin(contexts)]
    last, due = int(cells["step"].max()), int(cells.loc[cells["n"] > 0, "at_step"].max())  # where there are turns
    across = min(3, len(contexts))
    down = -(-len(contexts) // across)
    fig, axes = blank(
        1.2 + 0.46 * due * across + 0.6 * across, (1.3 + 0.4 * (last + 1)) * down, rows=down, columns=across
    )
    for ax in axes[len(contexts) :]:
        ax.set_axis_off()
    for ax, context in zip(axes, contexts, strict=False):
        mine = cells[cells["context"] == context]
        total = mine.assign(mass=mine["mass"] * mine["n"]).groupby(["step", "at_step"])["mass"].sum().unstack()
        turns = mine[mine["step"] == 0].groupby("at_step")["n"].sum()
        share = (total / turns).reindex(index=range(last + 1), columns=range(1, due + 1))  # (steps + other, places)
        ax.grid(False)
        ax.imshow(share.fillna(0.0), cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
        for (k, at), value in np.ndenumerate(share.to_numpy()):
            if value >= 0.005:
                color = "white" if value > 0.55 else BLACK
                ax.text(at, k, f"{value:.0%}".rstrip("%"), ha="center", va="center", fontsize=8, color=color)
        for at in range(due):
            ax.add_patch(Rectangle((at - 0.5, at + 0.5), 1, 1, fill=False, edgecolor=BLACK, linewidth=1.6))
        ax.set_yticks(range(last + 1), ["other", *map(str, range(1, last + 1))])
        ax.set_xticks(range(due), [f"{at}\n{turns.get(at, 0)}" for at in range(1, due + 1)], fontsize=9)
        ax.set_title(context, loc="left", fontsize=11)
    fig.supylabel("step of the run (% of mass)", fontsize=11)
    fig.supxlabel("step that is due; n turns below", fontsize=11)
    return fig


def mass_figure(numbers: pd.DataFrame, shown: Mapping[str, str]) -> Figure:
    """Bars with 95 % intervals from `mechanism.summary`: a panel per number, a bar per context.

    shown: number -> its title
    """
    contexts = list(dict.fromkeys(numbers["context"]))
    fig, axes = blank(1.6 + 2.5 * len(shown), 1.2 + 0.36 * len(contexts), columns=len(shown))
    places = range(len(contexts) - 1, -1, -1)  # the first context on top
    for ax, (number, title) in zip(axes, shown.items(), strict=True):
        mine = numbers[numbers["number"] == number].set_index("context").reindex(contexts)
        for i, (y, row) in enumerate(zip(places, mine.itertuples(), strict=True)):
            color, marker = style_of(row.Index, i)
            ax.barh(y, row.value, height=0.6, color=color, alpha=0.35, edgecolor=BLACK, linewidth=0.6)
            ax.plot([row.low, row.high], [y, y], color=BLACK, linewidth=1.5)
            ax.plot(row.value, y, marker=marker, color=color, markersize=7)
            if not np.isnan(row.value):
                ax.annotate(
                    f"{row.value:.2f}",
                    (max(row.value, row.high), y),
                    (5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
        ax.margins(x=0.18)
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_yticks(list(places), [""] * len(contexts))
        ax.set_ylim(-0.6, len(contexts) - 0.4)  # also where a context has no such number
    counts = numbers.groupby("context")["n"].max()
    axes[0].set_yticks(list(places), [f"{context}  (n = {counts[context]})" for context in contexts])
    axes[0].set_xlabel("n tasks; whiskers: 95 % interval", fontsize=9)
    return fig


def outcome_figure(points: pd.DataFrame, shown: Mapping[str, str]) -> Figure:
    """One number before training against the outcome: columns arm, warm_up, gain, low, high, each, and one per number.

    A panel per number, the arms numbered, a marker per warm-up; bar: 95 % interval of the gain; each: the gain of every
    seed, a short line.
    """
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    fig, axes = blank(3.3 * across, 3.2 * down, rows=down, columns=across)
    markers = dict(zip(points["warm_up"].unique(), MARKERS, strict=False))
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    for ax, (number, title) in zip(axes, shown.items(), strict=False):
        for i, row in enumerate(points.to_dict("records")):
            color, place = style_of(row["arm"], i)[0], (row[number], row["gain"])
            ax.plot([row[number]] * 2, [row["low"], row["high"]], color=color, linewidth=2, alpha=0.4)
            ax.plot([row[number]] * len(row["each"]), row["each"], "_", color=color, markersize=7)
            label = f"{i + 1} {row['arm']}; {row['warm_up']}"
            ax.plot(*place, markers[row["warm_up"]], color=color, markersize=8, markeredgecolor="white", label=label)
            ax.annotate(str(i + 1), place, color=color, fontsize=9, **_beside(points, number, i))
        ax.axhline(0, color=BLACK, linestyle="--", linewidth=1)
        ax.margins(x=0.14)
        ax.set_xlabel(title, fontsize=10)
    for ax in axes[::across]:
        ax.set_ylabel("gain in success")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return fig


def _beside(points: pd.DataFrame, number: str, i: int) -> dict:
    """Where the name of point i stands: away from its neighbours; in a column of points, by turns right and left."""
    x, gain = (points[c] - points[c].iloc[i] for c in (number, "gain"))
    beside = (x.abs() < 0.15 * np.ptp(x)) & (gain.abs() < 0.06 * np.ptp(gain))
    column = points.loc[x.abs() < 0.07 * np.ptp(x), "gain"]
    right = x[beside].mean() < 0 if beside.sum() > 1 else column.rank(method="first").get(points.index[i], 1) % 2
    side = {"xytext": (6, 0), "ha": "left"} if right else {"xytext": (-6, 0), "ha": "right"}
    return {"textcoords": "offset points", "va": "center"} | side


def growth_figure(grown: pd.DataFrame, shown: Mapping[str, str]) -> Figure:
    """A student after each update, from `growth.growth` with the columns arm and seed.

    A column of panels per number, a row each for turns on the reference's path and off it. A thin line per seed, the
    mean of the seeds with the arm's marker; dashed: the arm's teacher. shown: number -> title
    """
    fig, axes = blank(1.0 + 2.6 * len(shown), 5.4, rows=2, columns=len(shown))
    numbers, paths = list(shown), ("on", "off")
    for place, ax in enumerate(axes):
        path, number = paths[place // len(numbers)], numbers[place % len(numbers)]
        mine = grown[(grown["path"] == path) & (grown["number"] == number)]
        for i, (arm, rows) in enumerate(mine.groupby("arm", sort=False)):
            color, marker = style_of(arm, i)
            who = dict(tuple(rows.groupby("who")))
            student = who["student"].pivot(index="update", columns="seed", values="value")
            ax.plot(student, color=color, linewidth=0.7, alpha=0.5)
            label = f"{arm} ({seeds(student.shape[1])})"
            ax.plot(student.dropna().mean(axis=1), color=color, marker=marker, linewidth=2, label=label)
            if "teacher" in who:
                ax.axhline(who["teacher"]["value"].mean(), color=color, linestyle="--", linewidth=1.2)
        ax.set_ylim(0, 1.08 * grown.loc[grown["number"] == number, "value"].max() or 1)
        if place < len(numbers):
            ax.set_title(shown[number], loc="left", fontsize=10)
        else:
            ax.set_xlabel("updates")
        if number == numbers[0]:
            ax.set_ylabel({"on": "turns on the path", "off": "turns off the path"}[path])
    lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = [*lines, "dashed: the arm's teacher"]
    dashed = Line2D([], [], color=BLACK, linestyle="--", linewidth=1.2)
    fig.legend([*lines.values(), dashed], names, loc="outside lower center", ncols=len(names), frameon=False)
    return fig
