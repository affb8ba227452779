"""Leaking words and anchoring quotes: measured on scripted rollouts with a tiny model, and by hand."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from hero_mini import envs
from hero_mini.demos import expert_run
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, oracle
from hero_mini.rollout import Rollout, play
from hero_mini.seeds import rng
from hero_mini.teacher import score_rollouts
from hero_mini.told import Told, hinted
from hero_mini.traps import anchoring, credit, leakage, quoting, token_rows, told_something, wrong_call
from hero_mini.warmup import WarmupConfig, scripted_episode


@pytest.fixture
def rollouts(tiny: Policy) -> list[Rollout]:
    tasks = envs.make("retail").tasks("train", 2)
    made = [scripted_episode(tiny, task, rng(0, "traps", task.index), WarmupConfig()).rollout for task in tasks]
    return [replace(r, turns=r.turns[:3]) for r in made]


def test_edges_are_those_of_the_teacher(tiny: Policy, rollouts: list[Rollout]) -> None:
    """A second way to the numbers: `score_rollouts`, whose tree hangs no branch for an empty text."""
    reflections = oracle(rollouts)
    rows = token_rows(tiny, rollouts, {"hero": hinted(rollouts, "hero", reflections)})
    told = score_rollouts(tiny, rollouts, "hero", [f.diagnoses for f in reflections])
    own = score_rollouts(tiny, rollouts, "none")
    for i, rollout in enumerate(rollouts):
        for t, turn in enumerate(rollout.turns):
            mine = rows[(rows["rollout"] == i) & (rows["turn"] == t + 1)]
            assert list(mine["token"]) == list(range(len(turn.token_ids)))
            edge = told[i].logprobs[t] - own[i].logprobs[t]
            assert torch.allclose(torch.tensor(mine["edge"].to_numpy()), edge, atol=1e-4)


def test_words_of_the_text_and_words_the_student_knew(tiny: Policy, rollouts: list[Rollout]) -> None:
    rollout = rollouts[0]
    action = "respond(message='goodbye zebra')"
    ids = (*tiny.encode(action), tiny.eos_id)
    turn = replace(rollout.turns[0], action=action, token_ids=ids, logprobs=(0.0,) * len(ids))
    turn = replace(turn, observation="respond with a message to the goodbye.")
    rollout = replace(rollout, turns=(turn, rollout.turns[1]), system_prompt="Be kind.")
    rows = token_rows(tiny, [rollout], {"one": [Told(texts=("end with zebra, message", None))]})
    assert set(rows["turn"]) == {1}  # nothing is told about the second
    texts = [tiny.decode([token]) for token in ids[:-1]]
    place, letters = 0, ["" for _ in action]
    for k, text in enumerate(texts):
        letters[place : place + len(text)] = [k] * len(text)
        place += len(text)
    tokens = {word: set(letters[action.index(word) : action.index(word) + len(word)]) for word in ("zebra", "message")}
    assert set(rows.index[rows["named"]]) == tokens["zebra"] | tokens["message"]
    assert not set(rows.index[rows["seen"]]) & tokens["zebra"]
    assert tokens["message"] <= set(rows.index[rows["seen"]])
    assert not rows["named"].iloc[-1]  # the end of the turn is no word


def test_a_quote_stands_before_the_text_of_its_turn(rollouts: list[Rollout]) -> None:
    texts = ("the first", None, "the third")
    (told, _) = quoting(rollouts, [Told(texts=texts), Told(texts=(None,) * 3)])
    assert told.texts[0] == f"Your next action: {rollouts[0].turns[0].action}\nthe first"
    assert told.texts[1] is None
    assert told.texts[2].endswith(f"{rollouts[0].turns[2].action}\nthe third")


def test_without_a_turn_to_measure_the_tables_have_their_columns() -> None:
    rows = pd.DataFrame(columns=["context", "good", "rollout", "turn", "student", "edge", "named", "seen"])
    assert {"difference", "n_new"} < set(leakage(rows)) and {"action", "plain"} < set(
        anchoring(rows, "plain", "quoted")
    )


def test_by_hand() -> None:
    def row(context: str, rollout: int, turn: int, edge: float, named: bool, good: bool, seen: bool = True) -> dict:
        about = {"context": context, "rollout": rollout, "turn": turn, "good": good, "token": 0}
        return {**about, "named": named, "seen": seen, "student": -1.0, "edge": edge}

    rows = pd.DataFrame(
        [
            row("plain", 0, 1, -3.0, True, False, seen=False), row("plain", 0, 1, 1.0, False, False),
            row("plain", 1, 1, 2.0, True, True), row("plain", 1, 1, 0.0, False, True),
            row("quoted", 0, 1, 1.0, True, False), row("quoted", 0, 1, 0.5, False, False),
            row("quoted", 1, 1, 2.0, True, True), row("quoted", 1, 1, 1.0, False, True),
        ]
    )  # fmt: skip
    plain = leakage(rows).set_index("context").loc["plain"]
    assert (plain["named"], plain["other"], plain["difference"]) == (2.5, 0.5, 2.0)
    assert (plain["share"], plain["of_divergence"], plain["new"], plain["n_new"]) == (0.5, 5 / 6, 3.0, 1)
    kinds = anchoring(rows, "plain", "quoted").set_index("action")
    assert tuple(kinds.loc["wrong", ["student", "plain", "quoted", "difference"]]) == (-2.0, -2.0, 1.5, 3.5)
    assert tuple(kinds.loc["good", ["plain", "quoted", "difference", "turns"]]) == (2.0, 3.0, 1.0, 1)


def test_credit_is_of_a_wrong_call_that_every_context_speaks_about(tiny: Policy, rollouts: list[Rollout]) -> None:
    astray = iter(["get_order_details(order_id='#W1234')"])  # a guess
    world = envs.make("retail")
    wrong = play(tiny, world, world.tasks("train", 1)[0], lambda e: next(astray, None) or str(e.expert()))
    both = [rollouts[1], wrong] if wrong_call(rollouts[1]) is None else [wrong]
    told = told_something(tiny, both, oracle(both))
    assert set(told) == {"env_feedback", "diagnosis_only", "hero", "hero, quoted", "full_demo"}
    rows = token_rows(tiny, both, told)
    shown = credit(tiny, both, rows, oracle(both))
    assert set(shown["action"]) == {wrong.turns[0].action} and set(shown["context"]) == set(told)
    assert shown[shown["context"] == "hero"]["text"].tolist()[-1] == "[end]"
    assert shown["said"].str.startswith("failed, order not found").all()
    blind = [replace(f, diagnoses=(Diagnosis("necessary"),) * len(f.diagnoses)) for f in oracle(both)]
    passed = credit(tiny, both, rows, blind)
    assert set(passed["said"]) == {"necessary"} and set(passed["action"]) == set(shown["action"])
    expert = [expert_run(tiny, "retail", wrong.task_id)]
    assert told_something(tiny, expert, oracle(expert))["full_demo"][0].run is None, "it would read its own text"
    assert credit(tiny, expert, rows, oracle(expert)).empty, "it makes no wrong call"
