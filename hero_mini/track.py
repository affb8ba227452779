"""Where a student stands in a task, turn by turn, held against the scripted expert's run of it (our choice)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hero_mini import envs
from hero_mini.demos import EXPERT_TURNS, expert_run
from hero_mini.envs.base import parse_action, said
from hero_mini.errors import HeroError
from hero_mini.models import Policy
from hero_mini.rollout import Rollout


@dataclass(frozen=True)
class Track:
    """A rollout held against the reference: per turn, where the student stands before it acts."""

    run: Rollout  # the reference
    steps: tuple[str, ...]  # its different actions, in order
    due: tuple[int, ...]  # the step that the expert would take in the student's place, from 0
    on_path: tuple[bool, ...]  # so far the student has taken the reference's actions, each in its turn
    unseen: tuple[frozenset[str], ...]  # steps that name an id which no observation has shown the student yet
    endings: tuple[str, ...]  # what closes an episode in this environment, with the reference's last action

    @property
    def due_turns(self) -> list[int]:
        """Per turn of the student, the turn of the reference that is due."""
        actions = [turn.action for turn in self.run.turns]
        return [actions.index(self.steps[step]) for step in self.due]


# A price, or a number of three digits at most, perhaps with a unit: how much or how many, which names nothing.
_AMOUNT = re.compile(r"\$.*|\d{1,3}(\.\d+)?[a-z]*")


def names(text: str) -> set[str]:
    """The ids in a text: words that hold a digit or an @ and are no amount (our choice).

    Four digits are an id, since items and zip codes are such numbers.

    >>> sorted(names("I will return item 7731 of #W1234 to paypal_31, not a.b@mail.com."))
    ['#W1234', '7731', 'a.b@mail.com', 'paypal_31']
    >>> sorted(names("B52 Nord vegan shampoo $66, size: 3 oz; F4C3 HAT35 05-20, 2 bags, booked 30h ago"))
    ['05-20', 'B52', 'F4C3', 'HAT35']
    """
    words = (word.strip(".-") for word in re.findall(r"[\w#@$.-]+", text))
    return {word for word in words if re.search(r"[\d@]", word) and not _AMOUNT.fullmatch(word)}


def track(policy: Policy, rollout: Rollout) -> Track:
    """Replay a rollout in its environment and ask the expert, turn by turn, what is due.

    An order of doing things other than the reference's is off its path, but it does not lose the place: a step that
    is not needed any more is never due. Where the expert would do what the reference does not hold, the first step
    that the student has not taken counts as due.
    raises HeroError: the environment answers otherwise than the rollout says
    """
    run = expert_run(policy, rollout.env, rollout.task_id)
    actions = [turn.action for turn in run.turns]
    steps = tuple(dict.fromkeys(actions))
    world = envs.make(rollout.env, max_turns=EXPERT_TURNS)
    world.reset(options={"task": world.task_named(rollout.task_id)})
    path, taken, heard = [_plain(action) for action in actions], [], ""
    due, on_path, unseen = [], [], []
    for number, turn in enumerate(rollout.turns, 1):
        best = str(world.expert())
        left = [step for step in steps if _plain(step) not in taken] or steps[-1:]
        due.append(steps.index(best if best in steps else left[0]))
        on_path.append(taken == path[: len(taken)])
        heard += f"{turn.observation}\n"
        unseen.append(frozenset(step for step in steps if _names_new(step, heard)))
        taken.append(_plain(turn.action))
        answer = world.step(turn.action)[0]
        if answer != turn.next_observation:
            raise HeroError(
                f"turn {number} of {rollout.task_id} is answered otherwise here than when it was sampled; collect again"
            )
    return Track(run, steps, tuple(due), tuple(on_path), tuple(unseen), world.endings)


def guesses(rollout: Rollout) -> list[bool]:
    """Per turn, whether the action names an id that no observation has shown the student so far."""
    heard, found = "", []
    for turn in rollout.turns:
        heard += f"{turn.observation}\n"
        found.append(_names_new(turn.action, heard))
    return found


def _names_new(action: str, heard: str) -> bool:
    return not said(sorted(names(action)), heard)


def _plain(action: str) -> str:
    """An action in one spelling, so that a call and the same call as JSON are equal."""
    return str(parse_action(action))
