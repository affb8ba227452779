"""The trajectory viewer: a rollout as a conversation that can be read, in HTML and in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from hero_mini.figures import VERDICT_STYLE
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, Reflection
from hero_mini.rollout import Rollout, Turn, pieces

BOX = "margin:.35em 0;padding:.3em .7em;border-left:.35em {style} {color};overflow-wrap:anywhere;white-space:pre-wrap"


def as_html(
    rollout: Rollout,
    reflection: Reflection | None = None,
    edges: Sequence[Sequence[float] | None] | None = None,
    policy: Policy | None = None,
) -> str:
    """Static HTML with inline styles only; transparent colours and inherited text fit a dark page and a light one."""
    parts = [f"<p><b>{escape(_headline(rollout))}</b></p>"]
    for i, turn in enumerate(rollout.turns):
        parts.append(_said(turn.role, turn.observation))
        diagnosis = reflection.diagnoses[i] if reflection else None
        color, sign = VERDICT_STYLE[diagnosis.verdict] if diagnosis else ("#888888", "·")
        note = ""
        if reflection:
            note = f"<br><small><b>{sign} {escape(_hint(diagnosis))}</b></small>"
        action = _tokens(turn, edges[i] if edges else None, policy)
        style = BOX.format(style="solid", color=color)
        parts.append(f"<div style='{style};margin-left:1.5em'><b>agent, turn {i + 1}:</b> {action}{note}</div>")
    if rollout.turns:
        parts.append(_said(rollout.turns[-1].next_role, rollout.turns[-1].next_observation))
    return f"<div style='max-width:60em;line-height:1.5'>{''.join(parts)}</div>"


def as_text(
    rollout: Rollout, reflection: Reflection | None = None, edges: Sequence[Sequence[float] | None] | None = None
) -> str:
    """The same as plain text."""
    lines = [_headline(rollout)]
    for i, turn in enumerate(rollout.turns):
        lines += [f"  {turn.role}: {_indented(turn.observation)}", f"{i + 1} agent: {_indented(turn.action)}"]
        if reflection:
            lines.append(f"    = {_hint(reflection.diagnoses[i])}")
        if edges and edges[i] is not None:
            lines.append(f"    log π_T − log π_S = {float(sum(edges[i])):+.2f} nats")
    if rollout.turns:
        lines.append(f"  {rollout.turns[-1].next_role}: {_indented(rollout.turns[-1].next_observation)}")
    return "\n".join(lines)


def _indented(text: str) -> str:
    """A text of several lines, such as a page of the shop, under its first one."""
    return text.replace("\n", "\n    ")


def _headline(rollout: Rollout) -> str:
    return f"{rollout.task_id}: {'success' if rollout.success else 'failure'} after {len(rollout.turns)} turns"


def _hint(diagnosis: Diagnosis | None) -> str:
    return diagnosis.hint if diagnosis else "no diagnosis (empty hint)"


def _said(role: str, text: str) -> str:
    return f"<div style='{BOX.format(style='dotted', color='#888888')}'><i>{escape(role)}:</i> {escape(text)}</div>"


def _tokens(turn: Turn, edge: Sequence[float] | None, policy: Policy | None) -> str:
    """The action, token by token where that is possible; hovering tells the probability and the edge."""
    if policy is None:
        mean = None if edge is None else float(np.mean([float(e) for e in edge]))
        return _shaded(turn.action, mean, "" if mean is None else f"mean log π_T − log π_S = {mean:+.2f} nats")
    spans = []
    for j, (piece, logprob) in enumerate(zip(pieces(policy, turn), turn.logprobs, strict=True)):
        value = None if edge is None else float(edge[j])
        title = f"p = {np.exp(logprob):.3f}"
        title += "" if value is None else f", log π_T − log π_S = {value:+.2f} nats"
        spans.append(_shaded(piece, value, title))
    return "".join(spans)


def _shaded(text: str, value: float | None, title: str) -> str:
    style = ""
    if value is not None and abs(value) >= 0.05:
        strength = min(0.6, 0.1 + 0.2 * abs(value))
        rgb, line = ("0,114,178", "underline") if value > 0 else ("213,94,0", "underline dotted")
        style = f" style='background:rgba({rgb},{strength:.2f});text-decoration:{line}'"
    title = f" title='{escape(title)}'" if title else ""
    return f"<span{style}{title}>{escape(text)}</span>"
