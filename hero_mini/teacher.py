"""Step 3, the self-teacher: the same model, told what happened, re-scores the student's original action tokens.

A privileged context has two places. Local contexts stand right before the turn they speak about, so every turn of a
rollout is a branch that leaves the trunk at its own decision point. The full demonstration stands before the whole
episode, as in single-turn self-distillation. Either way all turns of a rollout are scored in one forward pass.

    system ─ o1 ─┬─ a1 ─ o2 ─┬─ a2 ─ …          trunk: what the student saw and did
                 └─ d1 ─ a1' └─ d2 ─ a2'         branches: the diagnosis, then the same token ids again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from hero_mini import tree
from hero_mini.errors import HeroError, check_known
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, outcome
from hero_mini.rollout import Rollout, Turn, close_action
from hero_mini.tree import Tree

Context = Literal["hero", "diagnosis_only", "env_feedback", "full_demo", "none"]
CONTEXTS: tuple[str, ...] = get_args(Context)


@dataclass(frozen=True)
class TeacherScores:
    """What a teacher thinks of one rollout: per turn, log-probabilities of the student's own token ids, in nats."""

    context: str
    logprobs: tuple[Tensor | None, ...]  # per turn (T_t,) float32; None where the turn has no hint


def check_context(context: str) -> None:
    check_known("context", context, CONTEXTS)


def privileged_text(context: str, turn: Turn, result: str, diagnosis: Diagnosis | None) -> str | None:
    """What the teacher is told before one turn, or None where this context has nothing to say (no hint, no training).

    The three parts are the paper's (observation, final reward, local hint [S]); the wording is our choice.
    raises HeroError: unknown context
    """
    check_context(context)
    observed = f"Answer to your next action: {turn.next_observation}\nOutcome: {result}."
    if context == "env_feedback":
        return observed
    if context in ("hero", "diagnosis_only") and diagnosis is not None:
        hint = f"Diagnosis of your next action: {diagnosis.hint}"
        return f"{observed}\n{hint}" if context == "hero" else hint
    return None


def told_at(context: str, turn: Turn, result: str, diagnosis: Diagnosis | None, *, always: bool) -> str | None:
    """`privileged_text`; always: where it has nothing to say, the observation and the outcome."""
    text = privileged_text(context, turn, result, diagnosis)
    return privileged_text("env_feedback", turn, result, None) if text is None and always else text


def demonstration_text(demo: Rollout) -> str:
    """A complete successful run as the full-demo teacher reads it, before the episode (our wording)."""
    lines = [f"{t.role}: {t.observation}\nagent: {t.action}" for t in demo.turns]
    return "A successful run of this task:\n" + "\n".join(lines)


def check_demonstration(rollout: Rollout, demo: Rollout | None) -> None:
    """raises HeroError: no demonstration, one that failed, or one that does what the rollout did"""
    if demo is None:
        raise HeroError(f"context 'full_demo' needs a demonstration of {rollout.task_id}; pass demos=")
    if not demo.success:
        raise HeroError(f"the demonstration for {rollout.task_id} did not succeed; take a successful run")
    if demo.actions == rollout.actions:  # whoever sampled it, with whatever probabilities
        raise HeroError(f"the rollout of {rollout.task_id} cannot be its own demonstration")


@dataclass(frozen=True)
class Trunk:
    """The nodes of a rollout's trunk. A branch about turn t hangs on `decisions[t]`, before the assistant header."""

    decisions: tuple[int, ...]
    actions: tuple[int, ...]
    end: int


def add_trunk(
    policy: Policy, grown: Tree, rollout: Rollout, *, scored: Sequence[bool], demo: Rollout | None = None
) -> Trunk:
    """Grow the trunk of a rollout in an empty tree: the layout of `rollout.segments`, a node per segment.

    scored: per turn, whether its action's tokens are asked for
    """
    here = grown.add(policy.message("system", rollout.system_prompt))
    if demo is not None:
        shown = policy.message("system", demonstration_text(demo))
        here = grown.add(shown, here, label=f"the demonstration of {demo.task_id}")
    decisions, actions = [], []
    for number, turn in enumerate(rollout.turns, 1):
        label = f"turn {number} of {rollout.task_id}"
        here = grown.add(policy.message(turn.role, turn.observation), here, label=label)
        decisions.append(here)
        here = grown.add(policy.header(), here, label=label)
        here = grown.add(turn.token_ids, here, scored=scored[number - 1], label=label)
        actions.append(here)
        here = grown.add(close_action(policy, turn.token_ids), here, label=label)
    return Trunk(tuple(decisions), tuple(actions), here)


def add_branch(
    policy: Policy, grown: Tree, decision: int, text: str, actions: Sequence[Sequence[int]], label: str = ""
) -> list[int]:
    """Hang a privileged context on a decision point and actions behind it; returns the nodes of the scored actions.

    text: "" tells the teacher nothing
    """
    told = policy.message("system", text) if text else []
    asked = grown.add(told + policy.header(), decision, label=label)
    return [grown.add(action, asked, scored=True, label=label) for action in actions]


def teacher_tree(
    policy: Policy,
    rollout: Rollout,
    context: str,
    diagnoses: Sequence[Diagnosis | None],
    demo: Rollout | None = None,
    *,
    always: bool = False,
    fitting: bool = False,
) -> tuple[Tree, list[int | None]]:
    """One rollout as the teacher reads it; per turn the node that holds the student's action, None without a hint.

    always: a turn without a diagnosis gets what it has, the observation and the outcome
    fitting: what does not fit into the model's context is no hint; otherwise scoring it is an error
    raises HeroError: unknown context, or a full_demo without a successful demonstration other than the rollout itself
    """
    check_context(context)
    grown = Tree()
    if context == "none" or context == "full_demo":
        if context == "full_demo":
            check_demonstration(rollout, demo)
        every = [True] * len(rollout.turns)
        trunk = add_trunk(policy, grown, rollout, scored=every, demo=demo if context == "full_demo" else None)
        left_out = fitting and grown.nodes[trunk.end].end > policy.context_length
        return grown, [None] * len(every) if left_out else list(trunk.actions)
    trunk = add_trunk(policy, grown, rollout, scored=[False] * len(rollout.turns))
    nodes: list[int | None] = []
    for number, (turn, decision, diagnosis) in enumerate(
        zip(rollout.turns, trunk.decisions, diagnoses, strict=True), 1
    ):
        text = told_at(context, turn, outcome(rollout), diagnosis, always=always)
        label = f"turn {number} of {rollout.task_id} with its {context} context"
        nodes.append(None)
        if text is not None:
            (nodes[-1],) = add_branch(policy, grown, decision, text, [turn.token_ids], label)
            if fitting and grown.nodes[-1].end > policy.context_length:
                del grown.nodes[-2:]  # the branch
                nodes[-1] = None
    return grown, nodes


def student_tree(policy: Policy, rollout: Rollout, scored: Sequence[bool]) -> Tree:
    """One rollout as the student saw it, with the actions of the chosen turns scored."""
    grown = Tree()
    add_trunk(policy, grown, rollout, scored=scored)
    return grown


def score_rollouts(
    policy: Policy,
    rollouts: Sequence[Rollout],
    context: str,
    diagnoses: Sequence[Sequence[Diagnosis | None]] | None = None,
    demos: Sequence[Rollout | None] | None = None,
    *,
    max_tokens: int = 8192,
) -> list[TeacherScores]:
    """Teacher scores of many rollouts; one pass per rollout, several rollouts per batch.

    diagnoses: per rollout, per turn (contexts hero and diagnosis_only); demos: per rollout (context full_demo)
    """
    diagnoses = diagnoses or [[None] * len(r.turns) for r in rollouts]
    demos = demos or [None] * len(rollouts)
    built = [teacher_tree(policy, r, context, d, demo) for r, d, demo in zip(rollouts, diagnoses, demos, strict=True)]
    logprobs = tree.logprobs(policy, [grown for grown, _ in built], max_tokens=max_tokens)
    return [
        TeacherScores(context, tuple(None if node is None else of_tree[node] for node in nodes))
        for (_, nodes), of_tree in zip(built, logprobs, strict=True)
    ]
