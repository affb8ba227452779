"""What the paper reports, from secondary readings of its full text. No number of ours stands here."""

from __future__ import annotations

import numpy as np
import pandas as pd

PAPER = pd.DataFrame(  # its main table, from secondary readings of the full text; success as a share; nan: not known
    [
        ("4B", "retail", "grpo", 0.333, 13.4), ("4B", "retail", "hero", 0.347, 9.6),
        ("4B", "airline", "grpo", 0.180, np.nan), ("4B", "airline", "hero", 0.195, np.nan),
        ("4B", "webshop", "grpo", 0.652, 8.1), ("4B", "webshop", "hero", 0.689, 8.1),
        ("30B", "retail", "grpo", 0.478, np.nan), ("30B", "retail", "hero", 0.503, np.nan),
        ("30B", "airline", "grpo", 0.335, np.nan), ("30B", "airline", "hero", 0.355, np.nan),
        ("30B", "webshop", "grpo", 0.761, np.nan), ("30B", "webshop", "hero", 0.796, np.nan),
    ],
    columns=["model", "env", "arm", "success", "turns"],
)  # fmt: skip
TRAINED_ON = {"retail": "retail", "airline": "retail", "webshop": "webshop"}  # by the world of the test, in the paper
PAPER_ABLATION = pd.DataFrame(  # model and benchmark are not named; the last column is our reading
    [
        ("environment feedback only", 0.304, "env_feedback"),
        ("reflection only", 0.339, "diagnosis_only"),
        ("external GPT-4o reflector", 0.357, "oracle_hero (a rule, no model)"),
    ],
    columns=["in the paper", "success", "nearest here"],
)


def quoted(model: str, env: str, arm: str) -> str:
    """What the paper reports for one of its models, in words.

    >>> quoted("4B", "retail", "hero"), quoted("4B", "retail", "base")
    ('34.7 %, 9.6 turns', 'not known')
    """
    found = PAPER[(PAPER["model"] == model) & (PAPER["env"] == env) & (PAPER["arm"] == arm)]
    if found.empty:
        return "not known"
    success, turns = found.iloc[0][["success", "turns"]]
    return f"{success:.1%}".replace("%", " %") + ("" if np.isnan(turns) else f", {turns:.1f} turns")
