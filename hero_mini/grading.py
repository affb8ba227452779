"""How good reflections are: what a reflector said of every turn, against the oracle's judgement of it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hero_mini.reflect import Reflection
from hero_mini.rollout import Rollout


def turn_rows(rollouts: Sequence[Rollout], reflections: Sequence[Reflection]) -> pd.DataFrame:
    """A row per turn, counted from 0: verdicts of oracle (truth) and reflector (said), corrections, confidence.

    An empty hint leaves said, better_said and confidence empty.
    """
    rows = [
        {
            "rollout": i,
            "turn": t,
            "truth": turn.info["oracle"]["verdict"],
            "said": d.verdict if d else None,
            "better_truth": turn.info["oracle"].get("better"),
            "better_said": d.better if d else None,
            "confidence": d.confidence if d else None,
        }
        for i, (rollout, reflection) in enumerate(zip(rollouts, reflections, strict=True))
        for t, (turn, d) in enumerate(zip(rollout.turns, reflection.diagnoses, strict=True))
    ]
    columns = ["rollout", "turn", "truth", "said", "better_truth", "better_said", "confidence"]
    return pd.DataFrame(rows, columns=columns)


def quality(turns: pd.DataFrame) -> pd.DataFrame:
    """How good reflections are, from `turn_rows`: a row per verdict of the oracle.

    parsed: share of turns with a readable line; exact: with the oracle's verdict; corrected: of the turns where the
    oracle has a corrected action, the share with the same one
    """
    graded = pd.DataFrame(
        {
            "verdict": turns["truth"],
            "parsed": turns["said"].notna(),
            "exact": turns["said"] == turns["truth"],
            "corrected": (turns["better_said"] == turns["better_truth"]).where(turns["better_truth"].notna()),
        }
    ).astype({"corrected": "float"})
    table = graded.groupby("verdict").mean().reset_index()
    table.insert(1, "turns", graded.groupby("verdict").size().to_numpy())
    return table


def calibration(turns: pd.DataFrame) -> pd.DataFrame:
    """Whether the reflector knows how sure it may be, from `turn_rows`: a row per range of its confidence.

    Columns: confidence (its mean), right (the share with the oracle's verdict and correction), turns. Empty hints and
    empty ranges are left out.
    """
    said = turns[turns["said"].notna()]
    better = said["better_said"].fillna("") == said["better_truth"].fillna("")
    right = ((said["said"] == said["truth"]) & better).astype(float)
    ranges = pd.cut(said["confidence"].astype(float).clip(upper=1.0), (0.0, 0.5, 0.8, 0.95, 1.0), include_lowest=True)
    graded = pd.DataFrame({"range": ranges, "confidence": said["confidence"].astype(float), "right": right})
    by_range = graded.groupby("range", observed=True)
    table = by_range.mean().assign(turns=by_range.size()).reset_index()
    return table.assign(range=[f"{max(0.0, r.left):.2f} to {r.right:.2f}" for r in table["range"]])


def blamed(turns: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Per turn of `turn_rows`, whether it was truly not necessary, and whether the reflector says so.

    An empty hint blames nothing, so it counts as "necessary".
    """
    return turns["truth"] != "necessary", turns["said"].notna() & (turns["said"] != "necessary")


def blame(turns: pd.DataFrame) -> dict[str, float]:
    """Accuracy, balanced accuracy, precision and recall of "this turn was not necessary", from `turn_rows`."""
    truth, said = blamed(turns)
    recall, specificity = said[truth].mean(), (~said[~truth]).mean()
    return {
        "accuracy": float((truth == said).mean()),
        "balanced": float((recall + specificity) / 2),
        "precision": float(truth[said].mean()),
        "recall": float(recall),
    }
