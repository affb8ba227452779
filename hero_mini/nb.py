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
from html import escape
from importlib.metadata import version
from itertools import cycle
from math import exp
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from matplotlib.figure import Figure
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from hero_mini import envs, figures
from hero_mini.config import sizes as sizes
from hero_mini.envs import Task, webshop_pages
from hero_mini.errors import HeroError
from hero_mini.models import Policy, fingerprint, usual_dtype
from hero_mini.reflect import Reflection
from hero_mini.rollout import Rollout, collect, load_rollouts, save_rollouts
from hero_mini.rollout import pieces as pieces
from hero_mini.viewer import as_html, as_text


def live() -> bool:
    """Whether a person can move widgets here: a Jupyter session, not papermill, not a test."""
    return "JPY_SESSION_NAME" in os.environ


def versions(seed: int) -> None:
    """Print what the results below depend on."""
    packages = [f"{name} {version(name)}" for name in ("hero_mini", "torch", "transformers")]
    kind = str(usual_dtype()).removeprefix("torch.")
    print(", ".join([f"Python {platform.python_version()}", *packages, f"models in {kind}", f"seed {seed}"]))


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
    shown = HtmlFormatter(prestyles="font-family:monospace;white-space:pre-wrap;word-break:normal")
    _put("text/html", highlight(text, PythonLexer(), shown), text)


def table(df: pd.DataFrame, caption: str = "") -> None:
    """A table with its caption above; words stand on the left, numbers on the right.

    Numbers have two decimals, below 1 three significant digits.
    What is no more than the rounding of float64 is shown as 0.
    """
    shown = df.rename_axis(columns=None)  # its name would stand in the head, in a cell of its own
    sides = cycle(["right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in df.dtypes])
    for column in shown.select_dtypes("float"):
        rounded = [0.0 if abs(v) < 1e-12 else v for v in shown[column]]
        shown[column] = [f"{v:.3g}" if abs(v) < 1 else f"{v:.2f}" for v in rounded]
        shown[column] = shown[column].replace("nan", "–")
    shown = shown.astype(object).where(shown.notna(), "–")
    html = shown.to_html(index=False, border=0)  # escapes the cells
    html = re.sub("<(t[hd])>", lambda cell: f"<{cell[1]} style='text-align:{next(sides)}'>", html)
    html = re.sub(r"(\[[-+.\d]+,) ([-+.\d]+\])", r"\1&nbsp;\2", html)  # the line breaks before an interval, not in it
    if caption:
        html = html.replace(
            "<thead>", f"<caption style='text-align:left;white-space:nowrap'>{escape(caption)}</caption><thead>", 1
        )
    _put("text/html", html, f"{caption}\n{shown.to_string(index=False)}".lstrip("\n"))


def check(name: str, got: object, want: object, hint: str, *, tolerance: float = 1e-4) -> None:
    """The verdict on an exercise: "correct", or the hint. Numbers (also in lists and tensors) may be rounded.

    A list, a tuple and an array with the same contents are the same. None and ... are never correct: nothing has been
    written yet.
    """
    try:
        a, b = (
            x.detach().float().numpy(force=True) if isinstance(x, torch.Tensor) else np.asarray(x) for x in (got, want)
        )
        numbers = np.issubdtype(a.dtype, np.number) and np.issubdtype(b.dtype, np.number)
        right = a.shape == b.shape and got is not None and got is not ...
        right = right and bool(np.allclose(a, b, atol=tolerance, equal_nan=True) if numbers else np.all(a == b))
    except (TypeError, ValueError):  # a reader's value may be anything
        right = False
    print(f"{name}: correct" if right else f"{name}: not yet. {hint}")


def likelier(change: float) -> str:
    """In words, how much likelier something has become whose log-probability changed by so many nats.

    >>> likelier(0.7), likelier(-0.7), likelier(6.79), likelier(-6.79)
    ('2.01 times as likely', '0.50 times as likely', '890 times as likely', '1/890 as likely')
    >>> likelier(-40)
    'less than a millionth as likely'
    """
    if abs(change) > 13.8:  # e^13.8 is a million
        return "more than a million times as likely" if change > 0 else "less than a millionth as likely"
    factor = float(f"{exp(abs(change)):.2g}")
    if factor < 10:
        return f"{exp(change):.2f} times as likely"
    return f"{factor:,.0f} times as likely" if change > 0 else f"1/{factor:,.0f} as likely"


# --- rollouts --------------------------------------------------------------------------------------------------------
def rollouts(policy: Policy, n: int, *, env: str, seed: int, out: str | Path) -> list[Rollout]:
    """One rollout of each of the first n training tasks; sampled once, then read from a file in `out`."""
    name = Path(policy.name).name
    world = f"{env}-{envs.edition(env)}" if env in envs.MINI else env
    file = Path(out) / f"rollouts-{name}-{fingerprint(policy)}-{world}-train-{n}-{seed}.jsonl"
    tasks = envs.make(env).tasks("train", n)  # a real benchmark may have fewer
    if not file.exists():
        save_rollouts(file, collect(policy, env, tasks, seed=seed))
    found = load_rollouts(file)
    if len(found) != len(tasks):
        raise HeroError(f"{file} holds {len(found)} of {len(tasks)} rollouts; delete it, and they are sampled again")
    return found


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


# --- rollouts as conversations ----------------------------------------------------------------------------------------
def trajectory(
    rollout: Rollout,
    reflection: Reflection | None = None,
    edges: Sequence[Sequence[float] | None] | None = None,
    *,
    policy: Policy | None = None,
) -> None:
    """A rollout as a conversation that can be read, with what a reflection says about each action.

    edges: per turn, log π_T − log π_S of each action token in nats, or None; shades the tokens, blue and underlined
        where the teacher likes a token better, dark orange and dotted where it likes it less
    policy: whose tokenizer splits the actions into tokens; without one an action is shaded as a whole, by its mean
    raises HeroError: reflection or edges do not fit the rollout
    """
    for what, given in {"reflection": reflection and reflection.diagnoses, "edges": edges}.items():
        if given is not None and len(given) != len(rollout.turns):
            raise HeroError(
                f"{what} has {len(given)} turns, the rollout {len(rollout.turns)}: they do not belong together"
            )
    html, plain = as_html(rollout, reflection, edges, policy), as_text(rollout, reflection, edges)
    _put("text/html", html, plain)
