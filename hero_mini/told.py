"""What a teacher may be told about a rollout: the local contexts, and a demonstration in several variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hero_mini import reflect
from hero_mini.demos import sibling
from hero_mini.errors import HeroError, check_known
from hero_mini.probe import PROBES, by_source
from hero_mini.reflect import Reflection
from hero_mini.rollout import Rollout
from hero_mini.teacher import demonstration_text, told_at
from hero_mini.track import Track, names

KINDS = ("expert", "sibling", "other_task", "masked", "local", "truncated", "next")  # of demonstrations, see `vary`


@dataclass(frozen=True)
class Told:
    """What a teacher is told about one rollout: a run before the episode, or a text right before each turn."""

    run: Rollout | None = None
    texts: tuple[str | None, ...] | None = None  # per turn; None: nothing to say, and this turn is not measured


def hinted(
    rollouts: Sequence[Rollout], context: str, reflections: Sequence[Reflection], *, always: bool = False
) -> list[Told]:
    """A local context of `teacher.told_at` for every rollout: hero, diagnosis_only or env_feedback."""
    return [
        Told(texts=tuple(told_at(context, t, reflect.outcome(r), d, always=always) for t, d in pairs))
        for r, f in zip(rollouts, reflections, strict=True)
        for pairs in [zip(r.turns, f.diagnoses, strict=True)]
    ]


def demonstrated(rollouts: Sequence[Rollout], tracks: Sequence[Track], kind: str, *, seed: int = 0) -> list[Told]:
    """A demonstration for every rollout, of one of the KINDS.

    A rollout that does just what its demonstration does would read its own text, and is not measured.
    sibling: another success among `rollouts` on the same task; a rollout without one is not measured
    other_task: the expert's run of the next task; the other kinds change the expert's run of this one, see `vary`
    raises HeroError: unknown kind, or other_task with a single task
    """
    found = []
    for i, (rollout, mine) in enumerate(zip(rollouts, tracks, strict=True)):
        demo = mine.run
        if kind == "sibling":
            demo = sibling(rollout, rollouts, seed)
        elif kind == "other_task":
            others = [t.run for t in (*tracks[i:], *tracks[:i]) if t.run.task_id != rollout.task_id]
            if not others:
                raise HeroError("kind 'other_task' needs rollouts of two tasks or more; collect some of another task")
            demo = others[0]
        if demo is not None and demo.actions == rollout.actions:
            demo = None
        found.append(Told(texts=(None,) * len(mine.due)) if demo is None else vary(demo, kind, mine.due_turns))
    return found


def vary(demo: Rollout, kind: str, at: Sequence[int]) -> Told:
    """One demonstration, changed.

    expert, sibling, other_task: the whole run before the episode, as the arm full_demo shows it
    masked: the same with every id replaced by "[id]", so that the order of the steps can be read and no id copied
    local, truncated, next: right before each turn, a branch and no part of the trunk, since they differ from turn to
        turn: the whole run (which changes its place alone), the run up to and with the step that is due, and
        the step that is due alone
    at: per turn of the student, the turn of `demo` that is due
    raises HeroError: unknown kind
    """
    check_known("demo_kind", kind, KINDS)
    if kind == "masked":
        turns = tuple(replace(t, observation=_mask(t.observation), action=_mask(t.action)) for t in demo.turns)
        return Told(replace(demo, turns=turns))
    shown = {
        "local": lambda t: demo.turns,
        "truncated": lambda t: demo.turns[: t + 1],
        "next": lambda t: demo.turns[t : t + 1],
    }
    if kind in shown:
        return Told(texts=tuple(demonstration_text(replace(demo, turns=shown[kind](t))) for t in at))
    return Told(demo)


def _mask(text: str) -> str:
    for name in sorted(names(text), key=len, reverse=True):
        text = text.replace(name, "[id]")
    return text


def all_teachers(
    rollouts: Sequence[Rollout], tracks: Sequence[Track], own: Sequence[Reflection], *, seed: int = 0
) -> dict[str, list[Told]]:
    """The teachers of `probe.PROBES`, the arm full_demo, and every other kind of demonstration, by name.

    own: the model's reflections on `rollouts`
    """
    whose = by_source(rollouts, own, seed=seed)
    teachers = {name: hinted(rollouts, context, whose[source]) for name, (context, source) in PROBES.items()}
    kinds = {"full_demo" if kind == "expert" else kind: kind for kind in KINDS}
    return teachers | {name: demonstrated(rollouts, tracks, kind, seed=seed) for name, kind in kinds.items()}
