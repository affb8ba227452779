"""Step 2, reflection: a finished rollout and its outcome become one diagnosis, or none, per turn (HERO, section 3 [S]).

The wording of questions and answers is our choice. Once the episode is over the model is asked about one turn after
the other, and sees what it said about the turns before:

    system:    Turn 3: get_order_details(order_id='#W1234')
    assistant: failed, order not found. Better: find_user_id_by_email(email='mia31@mail.com')

The question quotes the action so that a small model finds its place; the hint that the teacher reads
(`Diagnosis.hint`) does not repeat the action it speaks about: quoting a wrong action anchors the teacher on it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from math import exp

from hero_mini.config import TrainConfig
from hero_mini.endpoint import TIMEOUT, chat
from hero_mini.envs.base import VERDICTS
from hero_mini.generate import Dialogue, Sampling, Usage, converse
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, close_action, segments
from hero_mini.seeds import rng

BESIDE = 32  # tokens of a diagnosis beside its correction, which is a whole action
CUT = " [cut off]"


@dataclass(frozen=True)
class Diagnosis:
    """What one turn's action was worth, seen in hindsight. `better` is the corrected action, where one is offered.

    confidence: the probability that the reflector gave to these words; 1 where it has none to tell
    """

    verdict: str  # one of VERDICTS
    cause: str = ""
    better: str | None = None
    confidence: float = field(default=1.0, compare=False, repr=False)

    @property
    def hint(self) -> str:
        """The diagnosis in words, as the teacher reads it.

        >>> Diagnosis("failed", "order not found", "find_user_id_by_email(email='a@b.c')").hint
        "failed, order not found. Better: find_user_id_by_email(email='a@b.c')"
        """
        text = f"{self.verdict}, {self.cause}" if self.cause else self.verdict
        return f"{text}. Better: {self.better}" if self.better else text


@dataclass(frozen=True)
class Reflection:
    """What came back for one rollout: a diagnosis or None per turn, the raw text, the lines that could not be read."""

    diagnoses: tuple[Diagnosis | None, ...]
    text: str
    malformed: tuple[str, ...] = ()


Reflector = Callable[[Sequence[Rollout]], list[Reflection]]


def question(rollout: Rollout, t: int) -> str:
    """What the reflector is asked about turn `t` (from 0); the first question tells how the episode ended."""
    over = f"The episode is over: {outcome(rollout)}. Diagnose every turn.\n" if t == 0 else ""
    return f"{over}Turn {t + 1}: {rollout.turns[t].action}"


def outcome(rollout: Rollout) -> str:
    """The final reward in a word."""
    return "success" if rollout.success else "failure"


BREAK = " ⏎ "  # stands for a line break inside what is said about a turn
_LINE = re.compile(r"(\d{1,4}): (.+)")
_DIAGNOSIS = re.compile(rf"({'|'.join(VERDICTS)})(?:, (.+?))?(?:\. Better: (.+))?")


def parse_diagnosis(text: str, action: str) -> Diagnosis | None:
    """What was said about a turn with this action; None if it cannot be read, or was cut off.

    A correction that repeats the action it blames contradicts its own verdict, so only verdict and cause are kept.

    >>> parse_diagnosis("failed, order not found. Better: g()", "f()")
    Diagnosis(verdict='failed', cause='order not found', better='g()')
    """
    found = _DIAGNOSIS.fullmatch(text.strip())
    if found is None or text.endswith(CUT):
        return None
    better = found[3] and found[3].replace(BREAK, "\n")
    return Diagnosis(found[1], found[2] or "", None if better == "\n".join(action.strip().splitlines()) else better)


def parse_reflection(text: str, actions: Sequence[str]) -> Reflection:
    """Read a line "<turn>: <diagnosis>" about each of the turns with these actions, counted from 1.

    A line that does not parse, or is about no turn, leaves an empty hint.

    >>> parse_reflection("1: necessary\\n2: nonsense", ["Hello", "f()"]).diagnoses
    (Diagnosis(verdict='necessary', cause='', better=None), None)
    """
    found: dict[int, Diagnosis] = {}
    malformed = []
    for raw in filter(str.strip, text.splitlines()):
        line = _LINE.fullmatch(raw.strip())
        number = int(line[1]) if line else 0
        known = 1 <= number <= len(actions) and number not in found
        diagnosis = parse_diagnosis(line[2], actions[number - 1]) if known else None
        if diagnosis is None:
            malformed.append(raw)
        else:
            found[number] = diagnosis
    return Reflection(tuple(found.get(i + 1) for i in range(len(actions))), text, tuple(malformed))


def in_lines(diagnoses: Sequence[str]) -> str:
    """What was said about the turns, a line for each; a line break inside is BREAK."""
    return "\n".join(f"{i}: {BREAK.join(text.splitlines())}" for i, text in enumerate(diagnoses, 1))


def oracle(rollouts: Sequence[Rollout]) -> list[Reflection]:
    """The rule-based reflector: the environment's own judgement of every turn."""
    reflections = []
    for rollout in rollouts:
        diagnoses = tuple(Diagnosis(**turn.info["oracle"]) for turn in rollout.turns)
        reflections.append(Reflection(diagnoses, in_lines([d.hint for d in diagnoses])))
    return reflections


def ask_about(policy: Policy, rollout: Rollout, t: int) -> list[int]:
    """Token ids of the question about turn `t` and of the header of its answer."""
    return policy.message("system", question(rollout, t)) + policy.header()


def _opening(policy: Policy, rollout: Rollout) -> list[int]:
    """What the reflector hears before the first question. A policy without our warm-up is told how to answer."""
    heard = [i for segment, _ in segments(policy, rollout) for i in segment]
    if not policy.warmed_up:
        heard += policy.message("system", f"You will be asked about every turn. Answer with one line:\n{FORM}")
    return heard


def interview(policy: Policy, rollout: Rollout, longest: int) -> Dialogue[Reflection]:
    """The reflection on one rollout as a dialogue: yields what the policy hears, is sent what it answers.

    longest: tokens that an answer may have
    An answer that was cut off cannot be read: its correction would end in the middle of an action. A turn of which
    question and answer would no longer fit into the model's context gets no diagnosis, nor do those behind it.
    """
    heard, length = _opening(policy, rollout), 0
    said, confidence = [], [0.0] * len(rollout.turns)
    for t in range(len(rollout.turns)):
        heard = heard + ask_about(policy, rollout, t)
        length += len(heard)
        if t and length + longest > policy.context_length:
            break
        answer = yield heard
        length += len(answer.ids)
        said.append(policy.decode(answer.ids) + CUT * (answer.ids[-1:] != (policy.eos_id,)))
        confidence[t] = exp(sum(answer.logprobs))
        heard = close_action(policy, answer.ids)
    read = parse_reflection(in_lines(said), rollout.actions)
    sure = (d and replace(d, confidence=c) for d, c in zip(read.diagnoses, confidence, strict=True))
    return replace(read, diagnoses=tuple(sure))


def self_reflector(
    policy: Policy,
    *,
    max_action_tokens: int = TrainConfig.max_action_tokens,
    batch_size: int = TrainConfig.batch_size,
    usage: Usage | None = None,
    progress: bool = False,
) -> Reflector:
    """The paper's reflector: the model itself, reading its own finished rollouts (greedy decoding, our choice).

    max_action_tokens: of the actions, since a correction is one
    A rollout that leaves no room for a first question gets no diagnosis.
    """
    longest = max_action_tokens + BESIDE

    def leaves_room(rollout: Rollout) -> bool:
        return len(_opening(policy, rollout)) + len(ask_about(policy, rollout, 0)) + longest <= policy.context_length

    def reflect(rollouts: Sequence[Rollout]) -> list[Reflection]:
        prompts, room = {r.system_prompt for r in rollouts}, [leaves_room(r) for r in rollouts]
        answers = iter(
            converse(
                policy,
                [lambda rollout=rollout: interview(policy, rollout, longest) for rollout in compress(rollouts, room)],
                [rng(0, "reflect", r.task_id, r.repeat) for r in compress(rollouts, room)],
                shared=policy.message("system", prompts.pop()) if len(prompts) == 1 else [],
                sampling=Sampling(greedy=True, max_tokens=longest),
                batch_size=batch_size,
                usage=usage,
                progress="reflections" if progress else "",
            )
        )
        nothing = (Reflection((None,) * len(r.turns), "") for r in rollouts)
        return [next(answers) if fits else empty for fits, empty in zip(room, nothing, strict=True)]

    return reflect


def endpoint_reflector(url: str, model: str, *, api_key: str = "", timeout: float = TIMEOUT) -> Reflector:
    """A reflector behind an OpenAI-compatible endpoint, for example `http://localhost:8000/v1`.

    raises HeroError: the endpoint cannot be reached, or its answer is not a chat completion
    """

    def ask(rollout: Rollout) -> str:
        messages = [{"role": "system", "content": rollout.system_prompt + "\n\n" + INSTRUCTIONS}]
        story = "\n".join(
            f"{t.role}: {t.observation}\nagent, turn {i + 1}: {t.action}" for i, t in enumerate(rollout.turns)
        )
        last = rollout.turns[-1]
        story += f"\n{last.next_role}: {last.next_observation}\nThe episode is over: {outcome(rollout)}."
        return chat(
            url,
            model,
            [*messages, {"role": "user", "content": story}],
            who="the reflector",
            api_key=api_key,
            timeout=timeout,
        )

    return lambda rollouts: [parse_reflection(ask(r), r.actions) for r in rollouts]


FORM = f"""<verdict>, <cause>. Better: <the action that would have been right>
Verdicts: {", ".join(VERDICTS)}. Cause and correction are left out where the turn was necessary."""
INSTRUCTIONS = f"""After the episode, diagnose every turn of the agent on a line of its own, in this form:
<turn>: {FORM}"""


def shuffled(reflections: Sequence[Reflection], draw: random.Random) -> list[Reflection]:
    """The control: the same diagnoses, dealt out at random over all turns of all rollouts."""
    pool = [d for r in reflections for d in r.diagnoses]
    draw.shuffle(pool)
    deal = iter(pool)
    return [Reflection(tuple(next(deal) for _ in r.diagnoses), r.text, r.malformed) for r in reflections]
