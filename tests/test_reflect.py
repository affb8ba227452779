"""Reflections: reading them, the oracle's, the shuffled control, their quality, and an endpoint on loopback."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pandas as pd
import pytest

from hero_mini import envs
from hero_mini.config import TrainConfig
from hero_mini.envs.base import VERDICTS
from hero_mini.errors import HeroError
from hero_mini.generate import Answer, Sampling
from hero_mini.grading import blame, calibration, quality, turn_rows
from hero_mini.models import END, START, Policy
from hero_mini.reflect import (
    Diagnosis,
    Reflection,
    endpoint_reflector,
    in_lines,
    interview,
    oracle,
    parse_reflection,
    question,
    self_reflector,
    shuffled,
)
from hero_mini.rollout import Rollout, Turn, Usage, segments
from hero_mini.seeds import rng
from hero_mini.warmup import WarmupConfig, scripted_episode


@pytest.fixture
def rollouts(tiny: Policy) -> list[Rollout]:
    """Twenty scripted episodes."""
    tasks = envs.make("retail").tasks("train", 20)
    return [scripted_episode(tiny, t, rng(0, "test", t.index), WarmupConfig()).rollout for t in tasks]


def one_turn(action: str, **oracle_says) -> Turn:
    facts = {"verdict": "necessary", "cause": "", "better": None, **oracle_says}
    return Turn("user", "Hi.", action, (5,), (0.0,), "tool", "Error", {"oracle": facts})


def rollout_of(*turns: Turn, reward: float = 0.0) -> Rollout:
    return Rollout("retail", "retail/train/0", 0, "Retail agent.", turns, reward, bool(reward), not reward)


# --- reading ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, diagnosis",
    [
        ("1: necessary", Diagnosis("necessary")),
        ("  1: necessary  ", Diagnosis("necessary")),
        ("1: failed, order not found", Diagnosis("failed", "order not found")),
        ("1: failed, a, b", Diagnosis("failed", "a, b")),
        ("1: harmful. Better: g(x='1')", Diagnosis("harmful", "", "g(x='1')")),
        ("1: invalid, unknown action. Better: What is it?", Diagnosis("invalid", "unknown action", "What is it?")),
        ("1: failed, Mr. X, v1.2. Better: go. Now.", Diagnosis("failed", "Mr. X, v1.2", "go. Now.")),
        ("1: failed, {x} <|im_end|>. Better: {{y}}", Diagnosis("failed", "{x} <|im_end|>", "{{y}}")),
    ],
)
def test_a_line_is_read(text: str, diagnosis: Diagnosis) -> None:
    assert parse_reflection(text, ["f()"]) == Reflection((diagnosis,), text)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "necessary",
        "1 f: necessary",
        "1 f necessary",
        "1: Necessary",
        "1: necessary!",
        "1: wrong, order not found",
        "1: failed order not found",
        "1 two words: necessary",
        "0: necessary",
        "2: necessary",
        "-1: necessary",
        "99999999999999999999999: necessary",
        "one: necessary",
        "{0}: {necessary}",
    ],
)
def test_a_malformed_line_leaves_an_empty_hint_and_is_kept(text: str) -> None:
    found = parse_reflection(text, ["f()"])
    assert found.diagnoses == (None,) and found.malformed == (text,)


def test_a_correction_that_repeats_the_blamed_action_is_dropped() -> None:
    text = "1: unnecessary, work not done. Better: It is done.\n2: failed, order not found. Better: f(x='2')"
    found = parse_reflection(text, ["It is done.", "f(x='1')"])
    assert found.diagnoses == (
        Diagnosis("unnecessary", "work not done"),
        Diagnosis("failed", "order not found", "f(x='2')"),
    )


def test_lines_in_any_order_missing_and_twice() -> None:
    text = "3: harmful\nwhat?\n1: necessary\n1: failed\n\n4: necessary"
    found = parse_reflection(text, ["f()"] * 3)
    assert found.diagnoses == (Diagnosis("necessary"), None, Diagnosis("harmful"))
    assert found.malformed == ("what?", "1: failed", "4: necessary")
    assert found.text == text
    assert parse_reflection("", ["f()"] * 2) == Reflection((None, None), "")
    assert parse_reflection("1: necessary", []).diagnoses == ()


def test_the_oracles_text_reads_back(rollouts: list[Rollout]) -> None:
    verdicts = Counter()
    for rollout, reflection in zip(rollouts, oracle(rollouts), strict=True):
        again = parse_reflection(reflection.text, rollout.actions)
        assert again == reflection and not again.malformed
        for turn, diagnosis in zip(rollout.turns, reflection.diagnoses, strict=True):
            assert (diagnosis.verdict, diagnosis.better) == tuple(turn.info["oracle"][k] for k in ("verdict", "better"))
            verdicts[diagnosis.verdict] += 1
    assert set(verdicts) == set(VERDICTS)


@pytest.mark.parametrize(
    "action", ["", "f(x=", '{"name": "a b\\nc", "arguments": {}}', '{"name": "", "arguments": {}}', "{"]
)
def test_a_line_about_an_unreadable_action_reads_back(action: str) -> None:
    diagnosis = Diagnosis("invalid", "bad arguments", "What is your email?")
    assert parse_reflection(in_lines([diagnosis.hint]), [action]).diagnoses == (diagnosis,)


def test_line_breaks_read_back(action: str = "Hello\n\nthere") -> None:
    diagnosis = Diagnosis("failed", "no answer", action)
    assert parse_reflection(in_lines([diagnosis.hint]), ["Hello"]).diagnoses == (diagnosis,)
    (same,) = parse_reflection(in_lines([diagnosis.hint]), [f"{action}\n"]).diagnoses
    assert same == replace(diagnosis, better=None), "a correction that repeats the action is none"


def test_a_hint_does_not_quote_the_action_it_is_about(rollouts: list[Rollout]) -> None:
    wrong = 0
    for rollout, reflection in zip(rollouts, oracle(rollouts), strict=True):
        for turn, diagnosis in zip(rollout.turns, reflection.diagnoses, strict=True):
            assert turn.action not in diagnosis.hint
            wrong += diagnosis.verdict != "necessary"
    assert wrong > 20
    assert Diagnosis("necessary").hint == "necessary"


# --- the model as its own reflector --------------------------------------------------------------------------------
def test_the_interview_follows_the_rollout_and_its_outcome(tiny: Policy, rollouts: list[Rollout]) -> None:
    assert {r.success for r in rollouts} == {True, False}
    for rollout in rollouts:
        (oracles,) = oracle([rollout])
        told = tiny.tokenizer.decode([i for ids, _ in segments(tiny, rollout) for i in ids])
        talk = interview(tiny, rollout, 128)
        heard = tiny.tokenizer.decode(next(talk))
        for t, diagnosis in enumerate(oracles.diagnoses):
            asked = question(rollout, t)
            assert asked.endswith(f"Turn {t + 1}: {rollout.turns[t].action}")
            assert ("The episode is over: " + ("success" if rollout.success else "failure") in asked) == (t == 0)
            assert heard == (told if t == 0 else "\n") + f"{START}system\n{asked}{END}\n{START}assistant\n"
            try:
                ids = (*tiny.encode(diagnosis.hint), tiny.eos_id)
                heard = tiny.tokenizer.decode(talk.send(Answer(ids, (-0.1, *[0.0] * (len(ids) - 2), -0.1 * t))))
            except StopIteration as end:
                assert t == len(rollout.turns) - 1 and end.value == oracles
                sure = [d.confidence for d in end.value.diagnoses]
                assert sure == pytest.approx([math.exp(-0.1 - 0.1 * t) for t in range(len(sure))])


def test_an_answer_that_was_cut_off_is_no_diagnosis(tiny: Policy, rollouts: list[Rollout]) -> None:
    """Its correction would end in the middle of an action."""
    talk = interview(tiny, replace(rollouts[0], turns=rollouts[0].turns[:1]), 128)
    next(talk)
    ids = tiny.encode("failed, order not found. Better: get_order_details(ord")
    with pytest.raises(StopIteration) as end:
        talk.send(Answer(tuple(ids), (0.0,) * len(ids)))
    assert end.value.value.diagnoses == (None,) and end.value.value.malformed[0].endswith("(ord [cut off]")


def test_a_line_break_in_an_answer_makes_no_second_line() -> None:
    text = in_lines(["necessary\n2: harmful", "failed, x"])
    assert parse_reflection(text, ["f()", "g()"]).diagnoses == (None, Diagnosis("failed", "x"))


def test_the_model_itself(tiny: Policy, rollouts: list[Rollout]) -> None:
    """A random model writes nonsense: empty hints, the lines shown, the same every time."""
    usage = Usage()
    two = [replace(r, turns=r.turns[:1]) for r in rollouts[:2]]
    found = self_reflector(tiny, usage=usage)(two)
    assert usage.encoded > 0 and found == self_reflector(tiny)(two)
    for rollout, reflection in zip(two, found, strict=True):
        assert len(reflection.diagnoses) == len(rollout.turns)
        assert all(d is None for d in reflection.diagnoses)
        assert bool(reflection.malformed) == bool(reflection.text.strip())


def test_a_correction_may_be_as_long_as_an_action(tiny: Policy, rollouts: list[Rollout], monkeypatch) -> None:
    asked: list[int] = []

    def no_dialogue(*_: object, sampling: Sampling, **__: object) -> list:
        asked.append(sampling.max_tokens)
        return []

    monkeypatch.setattr("hero_mini.reflect.converse", no_dialogue)
    self_reflector(tiny, max_action_tokens=256)([])
    self_reflector(tiny)([])
    assert asked == [256 + 32, TrainConfig.max_action_tokens + 32]


# --- the control ---------------------------------------------------------------------------------------------------
def test_shuffling_keeps_the_multiset_and_is_seeded(rollouts: list[Rollout]) -> None:
    reflections = oracle(rollouts)
    mixed = shuffled(reflections, random.Random(0))
    assert mixed == shuffled(reflections, random.Random(0)) != shuffled(reflections, random.Random(1))
    assert [len(r.diagnoses) for r in mixed] == [len(r.diagnoses) for r in reflections]
    before = [d for r in reflections for d in r.diagnoses]
    after = [d for r in mixed for d in r.diagnoses]
    assert Counter(before) == Counter(after) and before != after
    assert reflections == oracle(rollouts)  # the true ones are left as they are
    hole = Reflection((None, Diagnosis("failed")), "")
    assert Counter(shuffled([hole], random.Random(0))[0].diagnoses) == Counter(hole.diagnoses)


# --- quality ---------------------------------------------------------------------------------------------------------
def test_quality_by_hand() -> None:
    rollouts = [
        rollout_of(
            one_turn("a"),
            one_turn("b", verdict="failed", cause="x", better="B"),
            one_turn("c", verdict="failed", cause="x", better="C"),
            one_turn("d"),
        ),
        rollout_of(one_turn("e", verdict="harmful", better="E"), one_turn("f")),
    ]
    said = [
        (Diagnosis("necessary"), Diagnosis("failed", "y", "B"), Diagnosis("invalid", "", "B"), Diagnosis("harmful")),
        (None, None),
    ]
    turns = turn_rows(rollouts, [Reflection(d, "") for d in said])
    assert turns["rollout"].tolist() == [0, 0, 0, 0, 1, 1] and turns["turn"].tolist() == [0, 1, 2, 3, 0, 1]
    table = quality(turns).set_index("verdict")
    assert table.loc["necessary", ["turns", "parsed", "exact"]].tolist() == pytest.approx([3, 2 / 3, 1 / 3])
    assert table.loc["failed", ["turns", "parsed", "exact", "corrected"]].tolist() == pytest.approx([2, 1, 0.5, 0.5])
    assert table.loc["harmful", ["turns", "parsed", "exact", "corrected"]].tolist() == pytest.approx([1, 0, 0, 0])
    assert pd.isna(table.loc["necessary", "corrected"])  # there is nothing to correct
    # blamed: b, c rightly, d wrongly; e and f have an empty hint, which blames nothing: e is missed
    assert blame(turns) == pytest.approx(
        {"accuracy": 4 / 6, "balanced": (2 / 3 + 2 / 3) / 2, "precision": 2 / 3, "recall": 2 / 3}
    )


def test_the_oracle_is_perfect(rollouts: list[Rollout]) -> None:
    turns = turn_rows(rollouts, oracle(rollouts))
    assert set(blame(turns).values()) == {1.0}
    table = quality(turns)
    assert table["turns"].sum() == sum(len(r.turns) for r in rollouts)
    assert (table[["parsed", "exact"]] == 1.0).all(axis=None)
    assert (table["corrected"].dropna() == 1.0).all()


def test_calibration_counts_a_wrong_correction_as_wrong() -> None:
    turns = pd.DataFrame(
        [
            ("necessary", "necessary", None, None, 0.99),
            ("failed", "failed", "g()", "g()", 0.97),
            ("failed", "failed", "g()", "h()", 0.6),
            ("failed", "necessary", "g()", None, 0.7),
            ("harmful", None, "g()", None, None),
        ],
        columns=["truth", "said", "better_truth", "better_said", "confidence"],
    )
    table = calibration(turns)
    assert table["turns"].tolist() == [2, 2] and table["right"].tolist() == [0.0, 1.0]
    assert table["confidence"].tolist() == pytest.approx([0.65, 0.98])


# --- an endpoint -----------------------------------------------------------------------------------------------------
class Server:
    """An OpenAI-compatible server that says what it is told and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict, dict]] = []
        self.status, self.body = 200, b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.heard.append((self.path, dict(self.headers), body))
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body) + outer.missing))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_) -> None:
                pass

        self.missing = 0
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def says(self, content: object) -> None:
        self.body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_an_endpoint_reflects(server: Server, rollouts: list[Rollout]) -> None:
    server.says("1: necessary\n2: oops\n3: failed, {x}. Better: g()")
    found = endpoint_reflector(server.url + "/", "gpt-x", api_key="secret")(rollouts[:2])
    assert [r.diagnoses[:3] for r in found] == [(Diagnosis("necessary"), None, Diagnosis("failed", "{x}", "g()"))] * 2
    assert found[0].malformed == ("2: oops",)
    for rollout, (path, headers, body) in zip(rollouts, server.heard, strict=False):
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
        assert body["model"] == "gpt-x" and body["temperature"] == 0
        system, story = (message["content"] for message in body["messages"])
        assert rollout.system_prompt in system and all(verdict in system for verdict in VERDICTS)
        for turn in rollout.turns:
            assert turn.observation in story and turn.action in story
        assert rollout.turns[-1].next_observation in story and "The episode is over: " in story.splitlines()[-1]


@pytest.mark.parametrize(
    "status, body",
    [
        (401, b'{"error": "no key"}'),
        (500, b""),
        (200, b"not json"),
        (200, b"\xff\xfe"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [{"message": {}}]}'),
        (200, b'{"choices": [{"message": {"content": null}}]}'),
        (200, b'{"choices": [{"message": {"content": ["a"]}}]}'),
    ],
)
def test_an_endpoint_that_fails_is_named(server: Server, rollouts: list[Rollout], status: int, body: bytes) -> None:
    server.status, server.body = status, body
    with pytest.raises(HeroError, match="127.0.0.1.*check the address"):
        endpoint_reflector(server.url, "m")(rollouts[:1])


def test_a_broken_off_answer_is_named(server: Server, rollouts: list[Rollout]) -> None:
    server.says("1: necessary")
    server.missing = 1000
    with pytest.raises(HeroError, match="no chat completion"):
        endpoint_reflector(server.url, "m", timeout=0.5)(rollouts[:1])


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "localhost", "", "http://127.0.0.1:x/v1", "http://a b/"])
def test_an_address_without_a_server_is_named(rollouts: list[Rollout], url: str) -> None:
    with pytest.raises(HeroError, match="check the address"):
        endpoint_reflector(url, "m", timeout=5)(rollouts[:1])
