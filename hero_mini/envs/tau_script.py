"""The scripted side that the mini TauBench domains share: set phrases, what a script knows, the judgement of a turn."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Protocol

from hero_mini.envs.base import STOP, Action, Verdict

if TYPE_CHECKING:
    from hero_mini.envs.tau import Tau

TRANSFER = "transfer_to_human_agents"
OUT_OF_SCOPE = Action(TRANSFER, {"summary": "out of scope"})
CLOSING = "It is done. Anything else?"
ENDINGS = (CLOSING, str(OUT_OF_SCOPE))


def respond(text: str) -> Action:
    """A message to the user."""
    return Action("respond", {"content": text})


def asks_yes(low: str) -> bool:
    """Whether a message, in lower case, asks the user's yes to a proposal."""
    return "(yes/no)" in low or "proceed" in low or "confirm" in low


class Script(Protocol):
    """What a domain's script module knows. Nothing here uses a fact that the agent has not been shown."""

    def expert(self, env: Any) -> Action: ...
    def judge_read(self, before: Any, after: Any, action: Action, better: Action) -> tuple[Verdict, str]: ...
    def wrong_write(self, before: Any, action: Action) -> str: ...
    def habits(self, env: Any, draw: random.Random) -> list[tuple[float, Action]]: ...
    def admissible(self, env: Any) -> list[Action]: ...


def judge(
    before: Tau, after: Tau, action: Action, error: str | None, better: Action, observation: str
) -> tuple[Verdict, str]:
    """The diagnosis of one turn as verdict and cause (our choice), from the episode before and after it.

    Its known mistakes are kept, since the warm-ups learnt from it and all results were measured by it. Too mild: the
    user's yes counts as necessary also where retail's user wishes for no write at all, and where an airline proposal
    has the wrong number of bags (see `airline_script.essentials`). Too harsh: a transfer that is right, but comes
    before the order was read. All of this is rare.
    """
    if error is not None:
        return _judge_error(error, before.refusals)
    if action.name in before.writes:
        if action not in before.task.gold:
            return "harmful", before.script.wrong_write(before, action)
        if str(action) in before.calls:
            return ("harmful" if before.db != after.db else "unnecessary"), "already done"
        return ("necessary", "") if before.confirmed else ("harmful", "no yes from the user")
    if action.name == TRANSFER:
        return ("necessary", "") if better.name == TRANSFER else ("harmful", "no need to transfer")
    if action.name != "respond":
        return before.script.judge_read(before, after, action, better)
    if str(better) == CLOSING:
        return "necessary", ""
    if observation == STOP:
        return ("necessary", "") if all(after.reward_parts().values()) else ("harmful", "wrong answer")
    if asks_yes(str(action).lower()):
        if before.confirmed:
            return "unnecessary", "already confirmed"
        if not after.confirmed:
            return "failed", "the user said no"
        return ("harmful", "against the policy") if before.task.world.get("forbidden") else ("necessary", "")
    if after.identity_known and not before.identity_known:
        return "necessary", ""
    return "unnecessary", "already told" if observation == before.task.world["identity_reply"] else "work not done"


def _judge_error(error: str, refusals: tuple[str, ...]) -> tuple[Verdict, str]:
    if error.startswith("Unknown action"):
        return "invalid", "unknown action"
    if any(part in error for part in refusals):
        return "failed", error.removeprefix("Error: ")
    return "invalid", "bad arguments"
