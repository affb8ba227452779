"""Why a full demonstration misleads a teacher: which step of the run its probability falls on, turn by turn.

The reference is the scripted expert's run of the same task. At every decision point of a student's rollout each action
of that run is a branch, and so is the student's own action; what a teacher is told stands before them:

    (run) ─ system ─ o1 ─┬─ a1 ─ o2 ─┬─ a2 ─ …     trunk: what the student saw and did, a demonstration before it
                         ├ (text) e1 ├ (text) e1   branches: a text for this turn, then the reference's actions
                         ├ (text) e2 ├ (text) e2
                         └ (text) a1 └ (text) a2

An action ends with its end of turn, so no action is the beginning of another: probabilities of different actions add
up, and what they leave of 1 belongs to all other actions. All definitions here are our choice; the paper has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hero_mini import tree
from hero_mini.bootstrap import interval
from hero_mini.errors import HeroError
from hero_mini.models import Policy
from hero_mini.probe import auc_interval
from hero_mini.rollout import Rollout
from hero_mini.teacher import add_branch, add_trunk
from hero_mini.told import Told
from hero_mini.track import Track
from hero_mini.tree import Tree

STUDENT = "student"  # the context in which nothing is told
MAX_TOKENS = 2048  # padded tokens per forward pass: a turn has a branch for every step of the demonstration
MASSES = ("due", "ahead", "behind", "other", "ending", "unseen")


def place_tree(
    policy: Policy, rollout: Rollout, told: Told, actions: Sequence[str]
) -> tuple[Tree, list[list[int] | None]]:
    """One tree for all decision points of a rollout; per turn the nodes of `actions`, then of the student's own action.

    None stands for a turn that the teacher is told nothing about.
    """
    grown = Tree()
    trunk = add_trunk(policy, grown, rollout, scored=[False] * len(rollout.turns), demo=told.run)
    nodes: list[list[int] | None] = []
    for t, (turn, decision) in enumerate(zip(rollout.turns, trunk.decisions, strict=True)):
        text = told.texts[t] if told.texts is not None else ""
        if text is None:
            nodes.append(None)
            continue
        ids = [(*policy.encode(action), policy.eos_id) for action in actions] + [turn.token_ids]
        nodes.append(add_branch(policy, grown, decision, text, ids, f"turn {t + 1} of {rollout.task_id}"))
    return grown, nodes


def measure(
    policy: Policy,
    rollouts: Sequence[Rollout],
    tracks: Sequence[Track],
    teachers: Mapping[str, Sequence[Told]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The student and every teacher at every turn: a row per candidate action (see `per_turn`), and a row per turn.

    In both, rollouts count from 0 and turns from 1.
    teachers: name -> what it is told, per rollout
    """
    rows, own = [], []
    candidates = [tuple(dict.fromkeys((*mine.steps, *mine.endings))) for mine in tracks]
    for context, told in {STUDENT: [Told()] * len(rollouts), **teachers}.items():
        built = [place_tree(policy, *given) for given in zip(rollouts, told, candidates, strict=True)]
        scores = tree.logprobs(policy, [grown for grown, _ in built], max_tokens=MAX_TOKENS)
        for i, (rollout, mine, actions) in enumerate(zip(rollouts, tracks, candidates, strict=True)):
            for t, nodes in enumerate(built[i][1]):
                if nodes is None:
                    continue
                *logprobs, sampled = (float(scores[i][node].sum()) for node in nodes)
                turn = {"context": context, "task": rollout.task_id, "rollout": i, "turn": t + 1}
                turn |= {"on_path": mine.on_path[t], "at_step": mine.due[t] + 1, "n_steps": len(mine.steps)}
                good = rollout.turns[t].necessary
                own.append({"context": context, "rollout": i, "turn": t + 1, "good": good, "own": sampled})
                for k, (action, logprob) in enumerate(zip(actions, logprobs, strict=True), 1):
                    step = k if k <= len(mine.steps) else 0
                    ends, unseen = step == len(mine.steps) or action in mine.endings, action in mine.unseen[t]
                    rows.append({**turn, "step": step, "mass": np.exp(logprob), "ends": ends, "unseen": unseen})
    table = pd.DataFrame(rows)
    return table, per_turn(table, pd.DataFrame(own))


def per_turn(table: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """A row per context and turn, from the rows of candidate actions (steps count from 1; 0 is no step of the run).

    due, ahead, behind, other: probability of the step that is due, of later ones, of earlier ones, of anything else
    place, place_error: mean step, given that the action is one of the run's; place - at_step
    ending: probability of closing the episode (by what closes it in this environment, such as a transfer or a
        purchase, or by the run's last action) although something else is due
    unseen: probability of the run's actions that name an id which the student has not been shown
    edge: log π_T - log π_S of the student's own action in nats; good: the oracle calls that action necessary
    """
    step, at, mass = table["step"], table["at_step"], table["mass"]
    keys = ["context", "task", "rollout", "turn", "on_path", "at_step", "n_steps"]
    parts = {
        "due": mass * (step == at),
        "ahead": mass * (step > at),
        "behind": mass * ((step > 0) & (step < at)),
        "ending": mass * (table["ends"] & (step != at)),
        "unseen": mass * table["unseen"],
        "moment": mass * step,
    }
    turns = table[keys].assign(**parts).groupby(keys, sort=False, as_index=False).sum()
    inside = turns[["due", "ahead", "behind"]].sum(axis=1)
    turns["other"] = (1.0 - inside).clip(lower=0.0)  # bf16 may give the steps 1.003 together
    turns["place"] = turns.pop("moment") / inside
    turns["place_error"] = turns["place"] - turns["at_step"]
    turns = turns.merge(own, on=["context", "rollout", "turn"])
    student = turns.loc[turns["context"] == STUDENT, ["rollout", "turn", "own"]]
    turns = turns.merge(student, on=["rollout", "turn"], suffixes=("", "_student"))
    return turns.assign(edge=turns["own"] - turns["own_student"]).drop(columns=["own", "own_student"])


def heat(table: pd.DataFrame, turns: pd.DataFrame) -> pd.DataFrame:
    """Place in the run against place in the episode: context, on_path, at_step, step, mass, n (turns).

    mass: mean probability of a step over all turns at which `at_step` is due; step 0 is any other action, so that the
    masses of one at_step add up to 1; a run that has no such step adds 0
    """
    here = ["context", "on_path", "at_step"]
    n = turns.groupby(here, sort=False).size().rename("n")
    steps = table[table["step"] > 0].groupby([*here, "step"], sort=False)["mass"].sum().reset_index()
    other = turns.groupby(here, sort=False)["other"].sum().rename("mass").reset_index().assign(step=0)
    found = pd.concat([steps, other]).merge(n.reset_index(), on=here)
    return found.assign(mass=found["mass"] / found["n"])[[*here, "step", "mass", "n"]]


def summary(turns: pd.DataFrame, numbers: Sequence[str] = (*MASSES, "place_error")) -> pd.DataFrame:
    """Mean over tasks of each number per context: context, number, value, low, high, n (tasks; they are resampled).

    A teacher also has "auc", its edge, and "gap", the mean of -edge in nats per action.
    """
    rows = []
    for context, mine in turns.assign(gap=-turns["edge"]).groupby("context", sort=False):
        for number in numbers if context == STUDENT else (*numbers, "gap"):
            values = mine.groupby("task")[number].mean().dropna().to_numpy()
            if len(values):
                rows.append((context, number, *interval(values), len(values)))
        if context != STUDENT:
            rows.append((context, "auc", *auc_interval(mine.assign(rollout=mine["task"])), mine["task"].nunique()))
    return pd.DataFrame(rows, columns=["context", "number", "value", "low", "high", "n"])


def difference(turns: pd.DataFrame, number: str, context: str, against: str) -> tuple[float, float, float]:
    """Mean of a number in one context minus another's on the same turns, with its interval; tasks are resampled.

    raises HeroError: the two contexts share no turn
    """
    keys = ["task", "rollout", "turn"]
    a, b = (turns[turns["context"] == name].set_index(keys)[number] for name in (context, against))
    gaps = (a - b).dropna().groupby("task").mean().to_numpy()
    if not len(gaps):
        raise HeroError(f"{context!r} and {against!r} share no turn; measure both on the same rollouts")
    return interval(gaps)
