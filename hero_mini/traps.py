"""Two traps for whoever writes a teacher's text: words that leak from it, and quotes that anchor.

*Leakage*: the teacher departs from the student mostly where the action has words of the text, as it does if it copies
without having understood; large divergence on such tokens went with failure in pi-Distill (2602.04942). *Anchoring*: a
text that quotes a wrong action makes this action likelier (2606.11173). How both are measured is our choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hero_mini import envs, tree
from hero_mini.bootstrap import interval
from hero_mini.config import TrainConfig
from hero_mini.demos import demonstrations
from hero_mini.mechanism import MAX_TOKENS, place_tree
from hero_mini.models import Policy
from hero_mini.reflect import Reflection
from hero_mini.rollout import Rollout, Turn, pieces
from hero_mini.teacher import demonstration_text
from hero_mini.told import Told, hinted

COLUMNS = ["context", "rollout", "turn", "good", "token", "student", "edge", "named", "seen"]  # of `token_rows`
_WORD = re.compile(r"\w+")


def quoting(rollouts: Sequence[Rollout], told: Sequence[Told]) -> list[Told]:
    """The same local texts, each with the action that it speaks about written out before it."""
    return [
        replace(mine, texts=tuple(text and f"Your next action: {t.action}\n{text}" for t, text in pairs))
        for r, mine in zip(rollouts, told, strict=True)
        for pairs in [zip(r.turns, mine.texts or (), strict=True)]
    ]


def token_rows(policy: Policy, rollouts: Sequence[Rollout], teachers: Mapping[str, Sequence[Told]]) -> pd.DataFrame:
    """A row per teacher and token of the student's actions, where the teacher is told something.

    Rollouts and tokens count from 0, turns from 1.
    teachers: name -> what it is told, per rollout
    good: the oracle calls the turn necessary
    named: the token belongs to a word of the teacher's text; seen: to a word that the student has read or said before
    student: log pi_S; edge: log pi_T - log pi_S, both of this token, in nats
    """

    def scores(told: Sequence[Told]) -> list[list[np.ndarray | None]]:
        built = [place_tree(policy, rollout, mine, ()) for rollout, mine in zip(rollouts, told, strict=True)]
        found = tree.logprobs(policy, [grown for grown, _ in built], max_tokens=MAX_TOKENS)
        return [
            [None if node is None else of_tree[node[0]].numpy(force=True) for node in nodes]
            for (_, nodes), of_tree in zip(built, found, strict=True)
        ]

    student, found = scores([Told()] * len(rollouts)), []
    for context, told in teachers.items():
        for i, (rollout, mine, teacher) in enumerate(zip(rollouts, told, scores(told), strict=True)):
            heard = rollout.system_prompt
            for t, (turn, known) in enumerate(zip(rollout.turns, teacher, strict=True)):
                heard += f"\n{turn.observation}"
                if known is not None:
                    text = demonstration_text(mine.run) if mine.texts is None else mine.texts[t]
                    about = {"context": context, "rollout": i, "turn": t + 1}
                    about["good"] = turn.necessary
                    about |= {"token": range(len(known)), "student": student[i][t], "edge": known - student[i][t]}
                    about |= {"named": _among(policy, turn, text), "seen": _among(policy, turn, heard)}
                    found.append(pd.DataFrame(about))
                heard += f"\n{turn.action}"
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def told_something(
    policy: Policy, rollouts: Sequence[Rollout], reflections: Sequence[Reflection]
) -> dict[str, list[Told]]:
    """The contexts that are compared here, by name: the local ones, HERO's with a quote, and the full demonstration.

    A rollout that does just what the expert does would read its own text: it has no demonstration, and is not measured.
    """
    told = {name: hinted(rollouts, name, reflections) for name in ("env_feedback", "diagnosis_only", "hero")}
    told["hero, quoted"] = quoting(rollouts, told["hero"])
    demos = demonstrations(policy, rollouts, TrainConfig(arm="full_demo"))
    told["full_demo"] = [
        Told(demo, texts=None if demo else (None,) * len(r.turns)) for r, demo in zip(rollouts, demos, strict=True)
    ]
    return told


def is_wrong_call(turn: Turn) -> bool:
    """Whether a tool was called, wrongly, and a better action is known."""
    called = envs.parse_action(turn.action).name != "respond"
    return called and not turn.necessary and bool(turn.info["oracle"].get("better"))


def wrong_call(rollout: Rollout) -> int | None:
    """The first turn with a wrong call, if there is one."""
    return next((t for t, turn in enumerate(rollout.turns) if is_wrong_call(turn)), None)


def credit(
    policy: Policy, rollouts: Sequence[Rollout], rows: pd.DataFrame, reflections: Sequence[Reflection]
) -> pd.DataFrame:
    """Of `token_rows`, those of two wrong calls: the first that its diagnosis blames, and the first that it lets pass.

    A call about which a context has nothing to say is passed over; without any, there are no rows. Three more columns:
    said (the diagnosis), action, and text (of the token).
    """
    found = []
    calls = [
        (i, t, turn, diagnosis)
        for i, (rollout, reflection) in enumerate(zip(rollouts, reflections, strict=True))
        for t, (turn, diagnosis) in enumerate(zip(rollout.turns, reflection.diagnoses, strict=True), 1)
        if diagnosis and is_wrong_call(turn)
    ]
    for blamed in (True, False):
        for i, t, turn, diagnosis in calls:
            mine = rows[(rows["rollout"] == i) & (rows["turn"] == t)]
            if (diagnosis.verdict != "necessary") == blamed and set(mine["context"]) == set(rows["context"]):
                text = mine["token"].map(dict(enumerate(pieces(policy, turn))))
                found.append(mine.assign(said=diagnosis.hint, action=turn.action, text=text))
                break
    return pd.concat(found) if found else rows.iloc[:0]


def _among(policy: Policy, turn: Turn, text: str) -> list[bool]:
    """Per token of an action, whether it has a part of a word that stands in the text."""
    words = set(_WORD.findall(text))
    parts = ["" if token == policy.eos_id else policy.decode([token]) for token in turn.token_ids]
    ends = np.cumsum([len(part) for part in parts])
    spans = [word.span() for word in _WORD.finditer("".join(parts)) if word.group() in words]
    return [any(a < end and b > end - len(part) for a, b in spans) for part, end in zip(parts, ends, strict=True)]


def leakage(rows: pd.DataFrame) -> pd.DataFrame:
    """Per context, the mean divergence |edge| of tokens in nats: named and other ones, and the difference.

    difference, low, high: named minus other, per rollout, and its interval over rollouts
    share, of_divergence: how many of the tokens are named, and how much of all |edge| falls on them
    new, n_new: |edge| of named tokens whose word the student has neither read nor said, and their number
    """
    found = []
    for context, mine in rows.assign(size=rows["edge"].abs()).groupby("context", sort=False):
        named, new = mine["named"], mine["named"] & ~mine["seen"]
        means = mine.groupby(["rollout", "named"])["size"].mean().unstack().reindex(columns=[True, False])
        gap = (means[True] - means[False]).dropna().to_numpy()
        difference, low, high = interval(gap) if len(gap) else (np.nan,) * 3
        found.append(
            {
                "context": context,
                "named": mine["size"][named].mean(),
                "other": mine["size"][~named].mean(),
                "difference": difference,
                "low": low,
                "high": high,
                "share": named.mean(),
                "of_divergence": mine["size"][named].sum() / mine["size"].sum(),
                "new": mine["size"][new].mean(),
                "n_new": int(new.sum()),
            }
        )
    means = ["named", "other", "difference", "low", "high", "share", "of_divergence", "new", "n_new"]
    return pd.DataFrame(found, columns=["context", *means])


def anchoring(rows: pd.DataFrame, plain: str, quoted: str) -> pd.DataFrame:
    """What a quote does to wrong and to good actions: a row per kind of action, in nats per action.

    Columns: action, student (mean log pi_S), then the mean edge of the contexts `plain` and `quoted`, difference
    (quoted minus plain, per rollout) with its interval low, high over rollouts, and turns.
    """
    keys = ["context", "good", "rollout", "turn"]
    actions = rows[rows["context"].isin([plain, quoted])].groupby(keys)[["student", "edge"]].sum().reset_index()
    found = []
    for good, mine in actions.groupby("good"):
        edges = mine.pivot_table(index=["rollout", "turn"], columns="context", values="edge")
        gap = (edges[quoted] - edges[plain]).groupby("rollout").mean().to_numpy()
        found.append(
            {
                "action": "good" if good else "wrong",
                "student": mine["student"].mean(),
                plain: edges[plain].mean(),
                quoted: edges[quoted].mean(),
                **dict(zip(("difference", "low", "high"), interval(gap), strict=True)),
                "turns": len(edges),
            }
        )
    return pd.DataFrame(found, columns=["action", "student", plain, quoted, "difference", "low", "high", "turns"])
