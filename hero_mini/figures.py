"""Pictures: data in, matplotlib Figure out. One visual language for notebooks, README and projector.

Okabe-Ito colours always come with a marker, a hatch or a word, so that greyscale loses nothing. Bands and whiskers are
95 % intervals unless the text says otherwise, and what they were computed from (n) stands in the picture. Nothing here
goes through pyplot, so no figure is shown twice and none stays open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.patheffects import withStroke

from hero_mini.compare import seeds
from hero_mini.efficiency import spent
from hero_mini.envs.base import VERDICTS
from hero_mini.files import atomic_write

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = "osD^vPX"
ARM_STYLE = {  # colour and marker of an arm or a teacher's context, in every figure
    "base": (BLACK, "o"),
    "hero": (BLUE, "s"),
    "oracle_hero": (SKY, "^"),
    "shuffled_hero": (RED, "D"),
    "diagnosis_only": (PURPLE, "P"),
    "env_feedback": (GREEN, "v"),
    "full_demo": (ORANGE, "X"),
    "grpo": ("#777777", "*"),
    "hero_grpo": (BLUE, "*"),
    "student": (BLACK, "o"),
    "random": ("#777777", "o"),  # these are no trained agents
    "model": (BLUE, "s"),
    "expert": (GREEN, "^"),
    "skill": (GREEN, "^"),  # of the scripted agent, whose highest is the expert
    "sibling": (ORANGE, "o"),  # these are kinds of a demonstration
    "other_task": (ORANGE, "s"),
    "masked": (ORANGE, "D"),
    "local": (ORANGE, "^"),
    "truncated": (ORANGE, "v"),
    "next": (ORANGE, "P"),
}
VERDICT_STYLE = {  # colour and sign of a verdict, everywhere
    "necessary": (GREEN, "●"),
    "unnecessary": (SKY, "○"),
    "invalid": (PURPLE, "■"),
    "failed": (ORANGE, "▲"),
    "harmful": (RED, "✖"),
}
UNITS = {  # the metrics of a training, as titles
    "success": "success (share)",
    "turns": "turns per episode",
    "wasted": "wasted turns per episode",
    "early": "early failures (share)",
    "loss": "loss (nats)",
}
LOOK = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "svg.hashsalt": "hero_mini",  # the same picture is the same file
}


def style_of(name: str, i: int) -> tuple[str, str]:
    """Colour and marker of what is called `name` ("hero", "hero, 3 seeds"); the i-th ones for any other name."""
    return ARM_STYLE.get(re.split("[ ,]", name)[0], (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]))


def blank(width: float = 7.0, height: float = 3.6, *, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure in our look with its axes, row by row; width and height in inches."""
    with mpl.rc_context(LOOK):
        fig = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
        return fig, list(np.ravel(fig.subplots(rows, columns)))


def save(fig: Figure, stem: str | Path) -> list[Path]:
    """Write stem.svg and stem.png, the same bytes every time; returns the paths."""
    stem, paths = Path(stem), []
    for kind, metadata in {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}.items():
        paths.append(atomic_write(stem.with_name(f"{stem.name}.{kind}"), render(fig, kind, metadata)))
    return paths


def render(fig: Figure, kind: str = "png", metadata: dict | None = None) -> bytes:
    """The picture as the bytes of a file."""
    buffer = BytesIO()
    with mpl.rc_context(LOOK):
        fig.savefig(buffer, format=kind, metadata={"Software": None} if metadata is None else metadata)
    return buffer.getvalue()


def above(ax: Axes, x: float, y: float, text: str) -> None:
    """A number over its marker, readable on lines, too."""
    halo = [withStroke(linewidth=3, foreground="white")]
    place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
    ax.annotate(text, (x, y), fontsize=9, path_effects=halo, **place)


def _whiskers(ax: Axes, table: pd.DataFrame, value: str, labels: Sequence[str]) -> None:
    """One point with its interval per row of the table, the first row on top."""
    for i, row in enumerate(table.itertuples(index=False)):
        middle, y = getattr(row, value), len(table) - 1 - i
        low, high = getattr(row, "low", middle), getattr(row, "high", middle)
        color, marker = style_of(labels[i], i)
        ax.plot([low, high], [y, y], color=BLACK, linewidth=1.4, solid_capstyle="butt")
        ax.plot(middle, y, marker=marker, markersize=9, color=color)
    ax.set_yticks(range(len(table) - 1, -1, -1), labels)
    ax.set_ylim(-0.6, len(table) - 0.4)


def edge_figure(table: pd.DataFrame) -> Figure:
    """The teacher edge: columns context, auc, low, high, n (turns), as from `probe.summary`."""
    fig, (ax,) = blank(7, 1.2 + 0.45 * len(table))
    _whiskers(ax, table, "auc", [f"{r.context}  (n = {r.n})" for r in table.itertuples(index=False)])
    for r, y in zip(table.itertuples(index=False), range(len(table) - 1, -1, -1), strict=True):
        above(ax, r.auc, y, f"{r.auc:.2f}")
    ax.axvline(0.5, color=BLACK, linestyle="--", linewidth=1)
    ax.text(0.5, -0.55, " no preference", va="bottom", fontsize=9)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel(
        "AUC: how often a good action has the larger teacher edge\n(n turns; whiskers: 95 % interval over rollouts)"
    )
    return fig


def success_bars(table: pd.DataFrame) -> Figure:
    """Rates of agents: columns agent, value, low, high and, optionally, n (tasks); nan where there is no interval."""
    fig, (ax,) = blank(7, 1.2 + 0.45 * len(table))
    names = [f"{r.agent}  (n = {r.n})" if "n" in table else str(r.agent) for r in table.itertuples(index=False)]
    for i, r in enumerate(table.itertuples(index=False)):
        y = len(table) - 1 - i
        color, _ = style_of(names[i], i)
        ax.barh(y, r.value, height=0.55, color=color, alpha=0.35, edgecolor=BLACK, linewidth=0.6)
        high = getattr(r, "high", np.nan)
        end = r.value if np.isnan(high) else high
        ax.text(end, y, f"  {r.value:.2f}", va="center", fontsize=10)
    _whiskers(ax, table, "value", names)
    ax.set_xlim(left=0, right=max(ax.get_xlim()[1], 0.1) * 1.08)
    ax.set_xlabel("success (whiskers: 95 % interval)" if "low" in table else "success", loc="right")
    return fig


def learning_curves(
    metrics: pd.DataFrame, columns: Sequence[str] = ("success", "turns", "loss"), *, x: str = "env_turns"
) -> Figure:
    """Training curves: columns arm, seed, update, the axis `x` and the metrics; a panel per metric; of
    four or more, two stand in a row.

    An update's rollouts measure the agent before it, so "env_turns" counts the turns that were spent before them.

    A thin line per seed. As far as all seeds go, which differ in length under a budget of turns: their mean with the
    arm's marker, and a band from the lowest to the highest.
    """
    across, down = (len(columns), 1) if len(columns) < 4 else (2, -(-len(columns) // 2))
    fig, axes = blank(max(7, 3.6 * across), 3.2 * down + 0.4, rows=down, columns=across)
    for ax in axes[len(columns) :]:
        ax.set_axis_off()
    if x == "env_turns":
        metrics = metrics.assign(env_turns=spent(metrics.assign(agent=metrics["arm"]))["spent"])
    for ax, column in zip(axes, columns, strict=False):
        for i, (arm, rows) in enumerate(metrics.groupby("arm", sort=False)):
            by_seed = rows.pivot(index="update", columns="seed", values=column).dropna(axis=1, how="all")
            shared, at = by_seed.dropna(), rows.groupby("update")[x].mean()
            style = dict(zip(("color", "marker"), style_of(arm, i), strict=True))
            style["label"] = f"{arm} ({seeds(by_seed.shape[1])})"
            if by_seed.shape[1] > 1:
                own = rows.pivot(index="update", columns="seed", values=x)[by_seed.columns]
                ax.plot(own, by_seed, color=style["color"], linewidth=0.7, alpha=0.5)
                band = (shared.min(axis=1), shared.max(axis=1))
                ax.fill_between(at[shared.index], *band, color=style["color"], alpha=0.15)
            ax.plot(at[shared.index], shared.mean(axis=1), linewidth=2, markersize=5, **style)
        ax.set_xlabel({"env_turns": "environment turns spent before", "update": "updates"}.get(x, x))
        ax.set_title(UNITS.get(column, column), loc="left")
        if metrics[column].min() >= 0:
            ax.set_ylim(0, 1.06 * metrics[column].max() or 1)
    lines, names = axes[0].get_legend_handles_labels()
    where = {"loc": "outside lower center", "ncols": min(len(names), 1 + across), "frameon": False}
    band = "band: lowest to highest seed" if metrics["seed"].nunique() > 1 else None
    fig.legend(lines, names, title=band, fontsize=9, title_fontsize=8, **where)
    return fig


def reflection_table_figure(turns: pd.DataFrame) -> Figure:
    """Confusion of verdicts, from `grading.turn_rows`: the oracle's in rows, the reflector's in columns, counts."""
    said = turns["said"].fillna("no hint")
    columns = [*VERDICTS, "no hint"]
    counts = pd.crosstab(turns["truth"], said).reindex(index=VERDICTS, columns=columns, fill_value=0)
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    fig, (ax,) = blank(7, 3.8)
    ax.grid(False)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts.to_numpy()):
        if count:
            ax.text(j, i, str(count), ha="center", va="center", color="white" if shares.iat[i, j] > 0.55 else BLACK)
    ax.set_xticks(range(len(columns)), columns, rotation=20)
    ax.set_yticks(range(len(VERDICTS)), [f"{v}  (n = {counts.loc[v].sum()})" for v in VERDICTS])
    ax.set_xlabel("the reflector's verdict")
    ax.set_ylabel("the oracle's verdict")
    return fig


def credit_figure(tokens: Sequence[str], values: Mapping[str, Sequence[float]]) -> Figure:
    """Credit per token of one action, log π_T − log π_S in nats: a panel per context, hatched where negative."""
    width = max(5.0, 1.5 + 0.33 * len(tokens))
    larger = max(1.0, width / 7)  # a page shrinks a wide figure, and its letters with it
    fig, axes = blank(width, (1.4 * len(values) + 1.1) * larger**0.5, rows=len(values))
    extent = max([0.1, *(abs(float(v)) for row in values.values() for v in row)]) * 1.15
    for ax, (name, row) in zip(axes, values.items(), strict=True):
        row = np.asarray(row, dtype=float)
        bars = ax.bar(range(len(tokens)), row, color=np.where(row < 0, RED, BLUE), edgecolor=BLACK, linewidth=0.5)
        for bar, value in zip(bars, row, strict=True):
            bar.set_hatch("///" if value < 0 else "")
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.set_ylim(-extent, extent)
        ax.set_title(f"{name}: sum {row.sum():+.2f} nats", loc="left", fontsize=10 * larger)
        ax.set_ylabel("nats", fontsize=10 * larger)
        ax.tick_params(labelsize=9 * larger)
        ax.set_xticks(range(len(tokens)), [])
    words = [t.replace("\n", "⏎").replace("$", r"\$") for t in tokens]
    readable = ["".join(c if c.isprintable() else "·" for c in word) for word in words]
    axes[-1].set_xticks(range(len(tokens)), readable, rotation=90, family="monospace", fontsize=9 * larger)
    return fig


def divergence_figure(curves: pd.DataFrame, *, teacher: float, mark: float | None = None) -> Figure:
    """Divergences between a student [p, 1-p] and a teacher [teacher, 1-teacher] over two words.

    curves: column student (p), then one column per divergence, in nats; mark: a student to point at
    """
    fig, (ax,) = blank(7, 3.8)
    every = max(1, len(curves) // 8)
    for i, name in enumerate(c for c in curves if c != "student"):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        there = "" if mark is None else f", {np.interp(mark, curves['student'], curves[name]):.4f} at {mark:g}"
        ax.plot(curves["student"], curves[name], color=color, marker=marker, markevery=every, label=name + there)
    ax.axvline(teacher, color=BLACK, linestyle="--", linewidth=1, label=f"teacher {teacher:g}")
    if mark is not None:
        ax.axvline(mark, color=BLACK, linestyle=":", linewidth=1, label=f"student {mark:g}")
    ax.set_xlabel("the student's probability of the first word")
    ax.set_ylabel("nats")
    ax.legend(fontsize=9, framealpha=1, edgecolor="none", loc="upper left", bbox_to_anchor=(0.52, 1))
    return fig


def mask_figure(mask: np.ndarray, labels: Sequence[str], starts: Sequence[int]) -> Figure:
    """Who sees whom in a tree of segments. mask: (S, S) bool, row sees column; a label and a first slot per segment."""
    fig, (ax,) = blank(5.6, 4.8)
    ax.grid(False)
    ax.imshow(np.asarray(mask, dtype=bool), cmap=ListedColormap(["white", BLUE]), vmin=0, vmax=1)
    ends = [*starts[1:], len(mask)]
    middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
    for edge in starts[1:]:
        ax.axhline(edge - 0.5, color=BLACK, linewidth=0.6)
        ax.axvline(edge - 0.5, color=BLACK, linewidth=0.6)
    ax.set_xticks(middles, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(middles, labels, fontsize=9)
    ax.set_xlabel("sees these tokens (blue)")
    ax.set_ylabel("a token of")
    for side in ax.spines.values():
        side.set_visible(True)
    return fig


def bench_figure(table: pd.DataFrame) -> Figure:
    """Speed ratios: columns name, ratio, low, high, as in figures/data/bench.csv; growth with turns on the left."""
    found = table["name"].str.extract(r"one_pass_teacher_(\d+)_turns")[0]
    growth = table[found.notna()].assign(turns=found.dropna().astype(int)).sort_values("turns")
    rest = table[found.isna()].reset_index(drop=True)
    fig, (left, right) = blank(9.5, 3.4, columns=2)
    left.plot(growth["turns"], growth["ratio"], color=BLUE, marker="o")
    left.fill_between(growth["turns"], growth["low"], growth["high"], color=BLUE, alpha=0.2)
    left.axhline(1, color=BLACK, linestyle="--", linewidth=1)
    if len(growth):
        left.set_xscale("log", base=2)
        left.set_xticks(growth["turns"], growth["turns"].astype(str))
    left.set_ylim(bottom=0)
    left.set_xlabel("turns of the episode")
    left.set_title("one-pass teacher: times as fast\nas turn by turn", loc="left", fontsize=10)
    if len(rest):
        _whiskers(right, rest, "ratio", [str(n).replace("_", " ") for n in rest["name"]])
        for r, y in zip(rest.itertuples(index=False), range(len(rest) - 1, -1, -1), strict=True):
            above(right, r.ratio, y, f"{r.ratio:.2f}")
    right.set_xlim(left=0)
    right.set_title("other ratios (band: lowest to highest pair)", loc="left", fontsize=10)
    return fig


def pipeline_figure() -> Figure:
    """The method in one picture, numbered like the training loop and the notebooks."""
    fig, (ax,) = blank(8.2, 3.7)
    ax.set_axis_off()
    ax.set_xlim(0, 10)
    ax.set_ylim(0, 4.1)
    steps = [
        (
            0.1,
            BLUE,
            "1  roll out",
            "the student $\\pi_\\theta$\nin context $c_t$ acts:\n$a_t$; the world\nanswers $o_{t+1}$",
        ),
        (2.65, GREEN, "2  reflect", "the same model\nreads the episode\nand $R$: a diagno-\nsis $d_t$, or none"),
        (
            5.2,
            ORANGE,
            "3  score",
            "the self-teacher\n$\\pi_T$ scores $a_t$\nagain, given $c_t$,\n$o_{t+1}$, $R$ and $d_t$",
        ),
        (7.75, RED, "4  distil", "JSD($\\pi_\\theta$ ‖ $\\pi_T$)\non the tokens of\n$a_t$ where $d_t$ is\nnot empty"),
    ]
    for x, color, title, text in steps:
        box = FancyBboxPatch((x, 2.0), 2.1, 1.9, boxstyle="round,pad=0.03", facecolor="white", edgecolor=color, lw=2.5)
        ax.add_patch(box)
        ax.text(x + 0.1, 3.62, title, fontsize=13, weight="bold", va="center")
        ax.text(x + 0.1, 2.68, text, fontsize=11.5, va="center", linespacing=1.25)
    for x in (2.25, 4.8, 7.35):
        ax.add_patch(
            FancyArrowPatch((x, 2.95), (x + 0.37, 2.95), arrowstyle="-|>", mutation_scale=16, lw=1.8, color=BLACK)
        )
    log = FancyBboxPatch((3.9, 0.25), 2.2, 0.8, boxstyle="round,pad=0.03", facecolor="white", edgecolor=PURPLE, lw=2.5)
    ax.add_patch(log)
    ax.text(4.0, 0.82, "5  log", fontsize=13, weight="bold", va="center")
    ax.text(4.0, 0.46, "one row of metrics", fontsize=11, va="center")
    bend = {"arrowstyle": "-|>", "mutation_scale": 16, "lw": 1.8, "color": BLACK}
    ax.add_patch(FancyArrowPatch((8.8, 1.92), (6.2, 0.65), connectionstyle="angle,angleA=-90,angleB=0,rad=8", **bend))
    ax.add_patch(
        FancyArrowPatch((3.8, 0.65), (1.15, 1.92), connectionstyle="angle,angleA=180,angleB=-90,rad=8", **bend)
    )
    ax.text(2.45, 0.78, "next update", fontsize=11, ha="center")
    return fig
