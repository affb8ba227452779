"""General ability: the checks by hand, and a run on a model that knows nothing."""

from __future__ import annotations

import math

import pytest

from hero_mini.ability import PROMPTS, TEXTS, ability, general_ability, plain_text_nll
from hero_mini.models import Policy

CHECKS = {text: check for _, text, check in PROMPTS}


@pytest.mark.parametrize(
    ("instruction", "answer", "right"),
    [
        ("What is the capital of France?", "The capital of France is paris.", True),
        ("What is the capital of France?", "Parisian", False),
        ("What is 2 + 3?", "2 + 3 = 5.", True),
        ("What is 2 + 3?", "25", False),
        ("Answer with yes or no only: is ice cold?", "Yes.", True),
        ("Answer with yes or no only: is ice cold?", "Yes, it is.", False),
        ("Name three colors, each on a line of its own.", "red\n\nblue\ngreen\n", True),
        ("Name three colors, each on a line of its own.", "red, blue, green", False),
        ("Repeat this word three times: apple", "apple apple, Apple", True),
        ("Write the word HELLO in lower case letters and nothing else.", "Hello", False),
    ],
)
def test_a_check_by_hand(instruction: str, answer: str, right: bool) -> None:
    assert CHECKS[instruction](answer) == right


def test_no_prompt_contains_its_own_answer_check() -> None:
    """Repeating the instruction is not an answer, except where a choice is asked for."""
    parroted = {text for _, text, check in PROMPTS if check(text)}
    assert parroted == {"Which is larger, 8 or 15?", "Is a whale a fish or a mammal?"}


def test_it_runs(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hero_mini.ability.MAX_ANSWER", 3)
    table = ability(tiny)
    assert len(table) == len(PROMPTS) and set(table["right"]) <= {0.0, 1.0}
    nll = plain_text_nll(tiny)["nll"]
    assert (nll > 0).all() and nll.mean() < 2 * math.log(tiny.model.config.vocab_size)
    both = general_ability(tiny)
    assert both["correct"].count() == len(PROMPTS) and both["perplexity"].count() == len(TEXTS)
    assert both["item"].is_unique
