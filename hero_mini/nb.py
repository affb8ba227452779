"""What the notebooks share: sizes per preset, pictures with alt text, package source, and the trajectory viewer.

Every output carries a plain-text twin, which GitHub, nbval and screen readers fall back on.
"""

from __future__ import annotations

import base64
import inspect
import os
import platform
import re
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from matplotlib.figure import Figure
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from hero_mini import envs, figures
from hero_mini.config import SIZES as SIZES
from hero_mini.config import sizes as sizes
from hero_mini.envs import Task, webshop_pages
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, Reflection
from hero_mini.rollout import Rollout, Turn, collect, load_rollouts, save_rollouts
from hero_mini.runtime import HeroError


def live() -> bool:
    """Whether a person can move widgets here: a Jupyter session, not papermill, not a test."""
    return "JPY_SESSION_NAME" in os.environ


def versions(seed: int) -> None:
    """Print what the results below depend on."""
    packages = [f"{name} {version(name)}" for name in ("hero_mini", "torch", "transformers")]
    print(", ".join([f"Python {platform.python_version()}", *packages, f"seed {seed}"]))


def short_errors(shell: InteractiveShell | None) -> None:
    """Show a HeroError as its one sentence: the remedy is in it, and a traceback would print folders of this machine.

    It stays an error: a run without a person stops there, unless the cell is tagged `raises-exception`.
    """

    def show_sentence(shell: InteractiveShell, kind: type, error: Exception, trace: object, tb_offset: object = None):
        shell._showtraceback(kind, error, [f"{kind.__name__}: {error}"])

    if shell is not None:
        shell.set_custom_exc((HeroError,), show_sentence)


short_errors(get_ipython())


# --- simple outputs --------------------------------------------------------------------------------------------------
def _put(kind: str, content: str, plain: str, metadata: dict | None = None) -> None:
    display({kind: content, "text/plain": plain}, raw=True, metadata={kind: metadata} if metadata else {})


def say(markdown: str) -> None:
    """A paragraph whose numbers come from code."""
    _put("text/markdown", markdown, markdown)


def show(fig: Figure, *, alt: str, name: str | Path | None = None) -> None:
    """Show a picture. alt: what it shows, with its numbers; name: also save name.svg and name.png."""
    if name is not None:
        figures.save(fig, name)
    _put("image/png", base64.b64encode(figures.render(fig)).decode(), f"Figure: {alt}", {"alt": alt})


def source(*objects: object) -> None:
    """The package's own code of functions or classes, so that a page never retypes it."""
    text = "\n\n".join(inspect.getsource(o).rstrip() for o in objects)
    shown = HtmlFormatter(prestyles="font-family:monospace;white-space:pre-wrap")
    _put("text/html", highlight(text, PythonLexer(), shown), text)


def table(df: pd.DataFrame, caption: str = "") -> None:
    """A table with three decimals at most, its caption above; words stand on the left, numbers on the right."""
    shown = df.copy()
    sides = cycle(["right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in df.dtypes])
    for column in shown.select_dtypes("float"):
        shown[column] = [f"{v:.3g}" if abs(v) < 1 else f"{v:.2f}" for v in shown[column]]
        shown[column] = shown[column].replace("nan", "–")
    shown = shown.astype(object).where(shown.notna(), "–")
    html = shown.to_html(index=False, border=0)  # escapes the cells
    html = re.sub("<(t[hd])>", lambda cell: f"<{cell[1]} style='text-align:{next(sides)}'>", html)
    if caption:
        html = html.replace(
            "<thead>", f"<caption style='text-align:left;white-space:nowrap'>{escape(caption)}</caption><thead>", 1
        )
    _put("text/html", html, f"{caption}\n{shown.to_string(index=False)}".lstrip("\n"))


def check(name: str, got: object, want: object, hint: str, *, tolerance: float = 1e-4) -> None:
    """The verdict on an exercise: "correct", or the hint. Numbers (also in lists and tensors) may be rounded."""
    try:
        a, b = np.asarray(got), np.asarray(want)
        numbers = np.issubdtype(a.dtype, np.number) and np.issubdtype(b.dtype, np.number)
        right = (
            a.shape == b.shape and bool(np.allclose(a, b, atol=tolerance, equal_nan=True)) if numbers else got == want
        )
        right = bool(right)
    except (TypeError, ValueError):  # a reader's value may be anything
        right = False
    print(f"{name}: correct" if right else f"{name}: not yet. {hint}")


# --- rollouts --------------------------------------------------------------------------------------------------------
def fingerprint(policy: Policy) -> str:
    """Eight hex digits that change with the weights: two models may share a name."""
    digest = sha256(policy.name.encode())
    for parameter in policy.model.parameters():
        digest.update(parameter.detach().flatten()[::4099].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def rollouts(policy: Policy, n: int, *, env: str, seed: int, out: str | Path, split: str = "train") -> list[Rollout]:
    """One rollout of each of the first n tasks; sampled once, then read from a file in `out`."""
    name = Path(policy.name).name
    file = Path(out) / f"rollouts-{name}-{fingerprint(policy)}-{env}-{split}-{n}-{seed}.jsonl"
    if not file.exists():
        save_rollouts(file, collect(policy, env, envs.make(env).tasks(split, n), seed=seed))
    return load_rollouts(file)


# --- the shop --------------------------------------------------------------------------------------------------------
def shop_pages(task: Task, actions: Sequence[str]) -> None:
    """An episode of mini WebShop as a strip of pages, each with the action taken on it and the oracle's verdict."""
    _put("text/html", webshop_pages.strip_html(task, actions), webshop_pages.strip_text(task, actions))


def shop(task: Task) -> None:
    """Mini WebShop by hand: a button per possible action. Without a live kernel, the expert's episode as a strip."""
    if live():
        display(click_through(task))
    else:
        shop_pages(task, webshop_pages.expert_actions(task))


def click_through(task: Task) -> widgets.VBox:
    """The page, what the agent reads of it, a field to search with, and a button per click that the page offers."""
    env = envs.make("webshop")
    page, reads = widgets.HTML(), widgets.HTML()
    keywords = widgets.Text(placeholder="keywords")
    buttons = widgets.Box(layout=widgets.Layout(flex_flow="row wrap"))
    again = widgets.Button(description="Start again", icon="refresh")

    def show(observation: str) -> None:
        page.value = webshop_pages.page_html(env)
        reads.value = webshop_pages.reads_html(observation, env.turn, env.max_turns)
        searching = env.page == "search" and not env.done
        buttons.children = [keywords] * searching + [button(a) for a in ([] if env.done else env.admissible())]

    def button(action: str) -> widgets.Button:
        made = widgets.Button(description=action, layout=widgets.Layout(width="auto"))
        made.on_click(lambda _: show(env.step(action)[0]))
        return made

    def search(change: dict) -> None:
        if change["new"] and not env.done:
            words, keywords.value = change["new"], ""
            show(env.step(f"search[{words}]")[0])

    def start(_: object) -> None:
        show(env.reset(options={"task": task})[0])

    keywords.continuous_update = False  # search when Enter is pressed
    keywords.observe(search, "value")
    again.on_click(start)
    start(None)
    return widgets.VBox([widgets.HBox([page, reads]), buttons, again])


# --- the trajectory viewer -------------------------------------------------------------------------------------------
BOX = "margin:.35em 0;padding:.3em .7em;border-left:.35em {style} {color};overflow-wrap:anywhere"


def trajectory(
    rollout: Rollout,
    reflection: Reflection | None = None,
    edges: Sequence[Sequence[float] | None] | None = None,
    *,
    policy: Policy | None = None,
) -> None:
    """A rollout as a conversation that can be read, with what a reflection says about each action.

    edges: per turn, log π_T − log π_S of each action token in nats, or None; shades the tokens, blue and underlined
        where the teacher likes a token better, red and dotted where it likes it less
    policy: whose tokenizer splits the actions into tokens; without one an action is shaded as a whole, by its mean
    raises HeroError: reflection or edges do not fit the rollout
    """
    for what, given in {"reflection": reflection and reflection.diagnoses, "edges": edges}.items():
        if given is not None and len(given) != len(rollout.turns):
            raise HeroError(
                f"{what} has {len(given)} turns, the rollout {len(rollout.turns)}: they do not belong together"
            )
    html, plain = trajectory_html(rollout, reflection, edges, policy), trajectory_text(rollout, reflection, edges)
    _put("text/html", html, plain)


def trajectory_html(
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
        color, sign = figures.VERDICT_STYLE[diagnosis.verdict] if diagnosis else ("#888888", "·")
        note = ""
        if reflection:
            note = f"<br><small><b>{sign} {escape(_hint(diagnosis))}</b></small>"
        action = _tokens(turn, edges[i] if edges else None, policy)
        style = BOX.format(style="solid", color=color)
        parts.append(f"<div style='{style};margin-left:1.5em'><b>agent, turn {i + 1}:</b> {action}{note}</div>")
    if rollout.turns:
        parts.append(_said(rollout.turns[-1].next_role, rollout.turns[-1].next_observation))
    return f"<div style='max-width:60em;line-height:1.5'>{''.join(parts)}</div>"


def trajectory_text(
    rollout: Rollout, reflection: Reflection | None = None, edges: Sequence[Sequence[float] | None] | None = None
) -> str:
    """The same as plain text."""
    lines = [_headline(rollout)]
    for i, turn in enumerate(rollout.turns):
        lines += [f"  {turn.role}: {turn.observation}", f"{i + 1} agent: {turn.action}"]
        if reflection:
            lines.append(f"    = {_hint(reflection.diagnoses[i])}")
        if edges and edges[i] is not None:
            lines.append(f"    log π_T − log π_S = {float(sum(edges[i])):+.2f} nats")
    if rollout.turns:
        lines.append(f"  {rollout.turns[-1].next_role}: {rollout.turns[-1].next_observation}")
    return "\n".join(lines)


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


def pieces(policy: Policy, turn: Turn) -> list[str]:
    """The tokens of an action as text; stopping is a token, too."""
    return ["[end]" if token == policy.eos_id else policy.decode([token]) for token in turn.token_ids]


def _shaded(text: str, value: float | None, title: str) -> str:
    style = ""
    if value is not None and abs(value) >= 0.05:
        strength = min(0.6, 0.1 + 0.2 * abs(value))
        rgb, line = ("0,114,178", "underline") if value > 0 else ("213,94,0", "underline dotted")
        style = f" style='background:rgba({rgb},{strength:.2f});text-decoration:{line}'"
    title = f" title='{escape(title)}'" if title else ""
    return f"<span{style}{title}>{escape(text)}</span>"
