"""Step 2, reflection: a finished rollout and its outcome become one diagnosis, or none, per turn (HERO, section 3 [S]).

The wording of the question and of the answer is our choice. An answer has one line per turn:

    3 get_order_details: failed, order not found. Better: find_user_id_by_email(email='mia31@mail.com')

The line names the tool so that a small model does not lose its place; the hint that the teacher reads
(`Diagnosis.hint`) does not repeat the action it speaks about: quoting a wrong action anchors the teacher on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from hero_mini.endpoint import chat
from hero_mini.envs import parse_action
from hero_mini.envs.base import VERDICTS
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, Turn, Usage, complete, segments

TOKENS_PER_LINE = 72  # room for one diagnosis line


@dataclass(frozen=True)
class Diagnosis:
    """What one turn's action was worth, seen in hindsight. `better` is the corrected action, where one is offered."""

    verdict: str  # one of VERDICTS
    cause: str = ""
    better: str | None = None

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


def question(rollout: Rollout) -> str:
    """What the reflector is asked once the episode is over; the outcome is the final reward in a word."""
    return f"The episode is over: {outcome(rollout)}. Diagnose every turn."


def outcome(rollout: Rollout) -> str:
    return "success" if rollout.success else "failure"


def line(number: int, turn: Turn, diagnosis: Diagnosis) -> str:
    """One line of a reflection; turns are counted from 1."""
    return f"{number} {_called(turn)}: {diagnosis.hint}"


def _called(turn: Turn) -> str:
    action = parse_action(turn.action)
    return "message" if action.name == "respond" else re.sub(r"\s", "_", action.name[:40]) or "unreadable"


_LINE = re.compile(
    rf"(\d+) (\S+): ({'|'.join(VERDICTS)})(?:, (.+?))?(?:\. Better: (.+))?",
)


def parse_reflection(text: str, n_turns: int) -> Reflection:
    """Read the reflector's lines. One that does not parse, or is about no turn, leaves an empty hint.

    >>> parse_reflection("1 message: necessary\\n2 f: nonsense", 2).diagnoses
    (Diagnosis(verdict='necessary', cause='', better=None), None)
    """
    found: dict[int, Diagnosis] = {}
    malformed = []
    for raw in filter(str.strip, text.splitlines()):
        match = _LINE.fullmatch(raw.strip())
        number = int(match[1]) if match and len(match[1]) < 5 else 0
        if not 1 <= number <= n_turns or number in found:
            malformed.append(raw)
            continue
        found[number] = Diagnosis(match[3], match[4] or "", match[5])
    return Reflection(tuple(found.get(i + 1) for i in range(n_turns)), text, tuple(malformed))


def oracle(rollouts: Sequence[Rollout]) -> list[Reflection]:
    """The rule-based reflector: the environment's own judgement of every turn."""
    reflections = []
    for rollout in rollouts:
        diagnoses = tuple(Diagnosis(**turn.info["oracle"]) for turn in rollout.turns)
        text = "\n".join(line(i + 1, t, d) for i, (t, d) in enumerate(zip(rollout.turns, diagnoses, strict=True)))
        reflections.append(Reflection(diagnoses, text))
    return reflections


def reflection_prefix(policy: Policy, rollout: Rollout) -> list[int]:
    """Token ids of the finished rollout, the question, and the header of the reflector's answer."""
    ids = [i for segment, _ in segments(policy, rollout) for i in segment]
    return ids + policy.message("system", question(rollout)) + policy.header()


def self_reflector(policy: Policy, *, usage: Usage | None = None) -> Reflector:
    """The paper's reflector: the model itself, reading its own finished rollouts (greedy decoding, our choice)."""

    def reflect(rollouts: Sequence[Rollout]) -> list[Reflection]:
        if not rollouts:
            return []
        prefixes = [reflection_prefix(policy, r) for r in rollouts]
        limit = TOKENS_PER_LINE * max(len(r.turns) for r in rollouts)
        texts = complete(policy, prefixes, max_tokens=limit, usage=usage)
        return [parse_reflection(text, len(r.turns)) for text, r in zip(texts, rollouts, strict=True)]

    return reflect


def endpoint_reflector(url: str, model: str, *, api_key: str = "", timeout: float = 60.0) -> Reflector:
    """A reflector behind an OpenAI-compatible endpoint, for example `http://localhost:8000/v1`.

    raises HeroError: the endpoint cannot be reached, or its answer is not a chat completion
    """

    def ask(rollout: Rollout) -> str:
        messages = [{"role": "system", "content": rollout.system_prompt + "\n\n" + INSTRUCTIONS}]
        story = "\n".join(
            f"{t.role}: {t.observation}\nagent, turn {i + 1}: {t.action}" for i, t in enumerate(rollout.turns)
        )
        last = rollout.turns[-1]
        story += f"\n{last.next_role}: {last.next_observation}\n{question(rollout)}"
        return chat(
            url,
            model,
            [*messages, {"role": "user", "content": story}],
            who="the reflector",
            api_key=api_key,
            timeout=timeout,
        )

    return lambda rollouts: [parse_reflection(ask(r), len(r.turns)) for r in rollouts]


INSTRUCTIONS = f"""After the episode, diagnose every turn of the agent on a line of its own, in this form:
<turn> <tool, or message>: <verdict>, <cause>. Better: <the action that would have been right>
Verdicts: {", ".join(VERDICTS)}. Cause and correction are left out where the turn was necessary."""


def shuffled(reflections: Sequence[Reflection], draw) -> list[Reflection]:
    """The control: the same diagnoses, dealt out at random over all turns of all rollouts (`draw`: random.Random)."""
    pool = [d for r in reflections for d in r.diagnoses]
    draw.shuffle(pool)
    deal = iter(pool)
    return [Reflection(tuple(next(deal) for _ in r.diagnoses), r.text, r.malformed) for r in reflections]


def turn_rows(rollouts: Sequence[Rollout], reflections: Sequence[Reflection]) -> pd.DataFrame:
    """A row per turn: the oracle's verdict (truth), the reflector's (said), and the corrections of both.

    An empty hint leaves said and better_said empty.
    """
    rows = [
        {
            "rollout": i,
            "turn": t,
            "truth": turn.info["oracle"]["verdict"],
            "said": d.verdict if d else None,
            "better_truth": turn.info["oracle"]["better"],
            "better_said": d.better if d else None,
        }
        for i, (rollout, reflection) in enumerate(zip(rollouts, reflections, strict=True))
        for t, (turn, d) in enumerate(zip(rollout.turns, reflection.diagnoses, strict=True))
    ]
    return pd.DataFrame(rows, columns=["rollout", "turn", "truth", "said", "better_truth", "better_said"])


def quality(turns: pd.DataFrame) -> pd.DataFrame:
    """How good reflections are, from `turn_rows`: a row per verdict of the oracle.

    parsed: share of turns with a readable line; exact: with the oracle's verdict; corrected: of the turns where the
    oracle has a corrected action, the share with the same one
    """
    graded = pd.DataFrame(
        {
            "verdict": turns["truth"],
            "parsed": turns["said"].notna(),
            "exact": turns["said"] == turns["truth"],
            "corrected": (turns["better_said"] == turns["better_truth"]).where(turns["better_truth"].notna()),
        }
    ).astype({"corrected": "float"})
    table = graded.groupby("verdict").mean().reset_index()
    table.insert(1, "turns", graded.groupby("verdict").size().to_numpy())
    return table


def blamed(turns: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Per turn of `turn_rows`, whether it was truly not necessary, and whether the reflector says so.

    An empty hint blames nothing, so it counts as "necessary".
    """
    return turns["truth"] != "necessary", turns["said"].notna() & (turns["said"] != "necessary")


def blame(turns: pd.DataFrame) -> dict[str, float]:
    """Accuracy, balanced accuracy, precision and recall of "this turn was not necessary", from `turn_rows`."""
    truth, said = blamed(turns)
    recall, specificity = said[truth].mean(), (~said[~truth]).mean()
    return {
        "accuracy": float((truth == said).mean()),
        "balanced": float((recall + specificity) / 2),
        "precision": float(truth[said].mean()),
        "recall": float(recall),
    }
