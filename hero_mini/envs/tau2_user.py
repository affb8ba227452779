"""Who talks to the agent in the real TauBench: a script, a local model, or a model behind an endpoint.

A user simulator is a function from the story so far to the user's next words. One of `ENDS` in them ends the episode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hero_mini.endpoint import TIMEOUT, chat
from hero_mini.envs.base import STOP
from hero_mini.envs.tau_script import asks_yes

if TYPE_CHECKING:
    from hero_mini.models import Policy

TRANSFERRED = "###TRANSFER###"
ENDS = (STOP, TRANSFERRED, "###OUT-OF-SCOPE###")  # tau2's words
GREETING = "Hi! How can I help you today?"  # the agent's first words are the same in every episode, as in tau2
IDENTITY = ("name", "email", "e-mail", "zip", "user id")  # an agent that says one of these asks for identity


@dataclass(frozen=True)
class Story:
    """What a user simulator is shown. Tool calls are hidden from it; the script sees what they came to."""

    prompt: str  # tau2's rules for a user and the scenario of this task, for a model
    request: str  # the same scenario in parts, for the script: what the user wants
    identity: str  # what the user knows and does not know
    remarks: str  # how the user is to behave
    said: tuple[tuple[str, str], ...]  # ("agent" or "user", text) in turn; it ends with the agent's last words
    served: bool  # as many writes went through as the task needs, and it needs some
    transferred: bool  # the agent has called the transfer tool


User = Callable[[Story], str]


def scripted_user(story: Story) -> str:
    """The offline user: one part of its scenario at a time, yes to every proposal, the end once it is served.

    It reads its instructions out as they stand and cannot tell a wrong proposal from a right one, so its success rates
    are not comparable with published ones. An agent that has heard everything and proposes nothing is left.
    """
    heard = story.said[-1][1].lower()
    given = [text for who, text in story.said if who == "user"]
    if not given:
        return story.request
    if story.transferred:
        return TRANSFERRED
    if story.served:
        return STOP
    if asks_yes(heard):
        return "Yes, please."
    if any(word in heard for word in IDENTITY):
        return story.identity
    return next((slot for slot in (story.identity, story.remarks) if slot and slot not in given), STOP)


def policy_user(policy: Policy, *, max_tokens: int = 128) -> User:
    """A local model as the user (greedy), under tau2's own rules for user simulators."""
    from hero_mini.generate import complete  # torch is loaded only for those who use it

    def speak(story: Story) -> str:
        ids = [i for m in _messages(story) for i in policy.message(m["role"], m["content"])]
        return complete(policy, [ids + policy.header()], max_tokens=max_tokens)[0]

    return speak


def endpoint_user(url: str, model: str, *, api_key: str = "", timeout: float = TIMEOUT) -> User:
    """A user behind an OpenAI-compatible endpoint, for example `http://localhost:8000/v1`, under tau2's own rules.

    raises HeroError when it speaks: the endpoint cannot be reached, or its answer is not a chat completion
    """
    return lambda story: chat(url, model, _messages(story), who="the user", api_key=api_key, timeout=timeout)


def _messages(story: Story) -> list[dict[str, str]]:
    """The conversation from the user's side: what the agent says is the prompt of the model that plays the user."""
    roles = {"agent": "user", "user": "assistant"}
    return [
        {"role": "system", "content": story.prompt},
        *({"role": roles[who], "content": text} for who, text in story.said),
    ]
