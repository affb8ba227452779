"""Rollouts from a server: a fake one on this machine, which speaks as vLLM does and samples from the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread

import pytest
import torch

from hero_mini import envs
from hero_mini.cli import main
from hero_mini.errors import HeroError
from hero_mini.generate import Usage
from hero_mini.models import Policy
from hero_mini.rollout import Rollout, collect
from hero_mini.server import Server


class Fake:
    """An endpoint on loopback; `reply` makes a status and a body from a request."""

    def __init__(self, reply: Callable[[dict], tuple[int, object]]) -> None:
        self.heard: list[tuple[str, dict]] = []
        outer, self.reply = self, reply

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.heard.append((self.path, body))
                status, answer = outer.reply(body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def vllm(policy: Policy) -> Callable[[dict], tuple[int, object]]:
    """A greedy vLLM with the policy's weights, one token after the other and without a cache."""
    one_at_a_time = Lock()

    def reply(body: dict) -> tuple[int, object]:
        if body["model"] != "tiny":
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        ids, logprobs = [], []
        bans = [int(i) for i in body["logit_bias"]]
        with one_at_a_time, torch.no_grad():
            while len(ids) < body["max_tokens"] and (not ids or ids[-1] not in body["stop_token_ids"]):
                raw = policy.model(torch.tensor([body["prompt"] + ids])).logits[0, -1].log_softmax(-1)
                ids.append(int(raw.index_fill(0, torch.tensor(bans), -torch.inf).argmax()))
                logprobs.append(float(raw[ids[-1]]))
        tokens = [f"token_id:{i}" for i in ids]
        choice = {"index": 0, "text": policy.decode(ids), "finish_reason": "stop", "token_ids": ids}
        return 200, {"choices": [choice | {"logprobs": {"tokens": tokens, "token_logprobs": logprobs}}]}

    return reply


@pytest.fixture
def fake(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Fake(vllm(tiny))
    yield running
    running.server.shutdown()
    running.server.server_close()


def roll(policy: Policy, server: Server | None = None, **settings) -> list[Rollout]:
    tasks = envs.make("retail").tasks("train", 3)
    return collect(
        policy, "retail", tasks, **{"seed": 0, "max_turns": 2, "max_action_tokens": 6, "greedy": True, **settings},
        server=server,
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_rollouts_are_those_of_the_local_policy(tiny: Policy, fake: Fake, batch_size: int) -> None:
    usage = Usage()
    local = roll(tiny)
    served = roll(tiny, Server(fake.url + "/", "tiny"), batch_size=batch_size, usage=usage)
    for one, other in zip(local, served, strict=True):
        assert (one.task_id, one.actions, one.reward) == (other.task_id, other.actions, other.reward)
        for a, b in zip(one.turns, other.turns, strict=True):
            assert a.token_ids == b.token_ids and a.info == b.info
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert usage.steps == len(fake.heard) == 6
    assert usage.generated == sum(len(t.token_ids) for r in served for t in r.turns)


def test_what_is_asked(tiny: Policy, fake: Fake) -> None:
    server = Server(fake.url, "tiny", api_key="secret")
    roll(tiny, server, greedy=False, temperature=0.7, top_p=0.9, repeats=2)
    (path, body), *_ = fake.heard
    assert path == "/v1/completions" and body["prompt"][:1] == [1]  # ids, from <|im_start|> on
    assert body["return_token_ids"] is True and body["logprobs"] == 1
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 6)
    assert body["stop_token_ids"] == [tiny.eos_id] and set(body["logit_bias"]) == {"0", "1"}  # the control tokens
    seeds = sorted(b["seed"] for _, b in fake.heard)
    assert len(set(seeds)) == len(seeds)
    before = len(fake.heard)
    roll(tiny, server, greedy=False, temperature=0.7, top_p=0.9, repeats=2)
    assert sorted(b["seed"] for _, b in fake.heard[before:]) == seeds


def test_a_later_request_goes_on_from_the_servers_own_ids(tiny: Policy, fake: Fake) -> None:
    (rollout, *_) = roll(tiny, Server(fake.url, "tiny"), batch_size=1)
    first, second = (body["prompt"] for _, body in fake.heard[:2])
    assert second[: len(first)] == first
    assert tuple(second[len(first) :][: len(rollout.turns[0].token_ids)]) == rollout.turns[0].token_ids


CHOICE = {"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -2.0]}}


@pytest.mark.parametrize(
    "status, body, says",
    [
        (200, {"choices": [CHOICE | {"token_ids": None}]}, "no token ids: take vLLM 0.10.2"),
        (200, {"choices": [CHOICE | {"token_ids": []}]}, "no token ids"),
        (200, {"choices": [CHOICE | {"logprobs": None}]}, "no log-probability per token"),
        (200, {"choices": [CHOICE | {"logprobs": {"token_logprobs": [-1.0]}}]}, "no log-probability per token"),
        (200, {"choices": [CHOICE | {"logprobs": {"token_logprobs": [None, -1.0]}}]}, "no log-probability per token"),
        (200, {"choices": [CHOICE | {"token_ids": [5, 10**7]}]}, "tokens that the model here cannot have said"),
        (200, {"choices": [CHOICE | {"token_ids": [5, -1]}]}, "cannot have said"),
        (200, {"choices": [CHOICE | {"token_ids": ["5", 6]}]}, "cannot have said"),
        (200, {"choices": [CHOICE | {"logprobs": {"token_logprobs": [-1.0, 3.0]}}]}, "cannot have said"),
        (200, {"choices": [CHOICE | {"logprobs": {"token_logprobs": [-1.0, float("nan")]}}]}, "cannot have said"),
        (200, {"choices": [{"token_ids": [5] * 7, "logprobs": {"token_logprobs": [-1.0] * 7}}]}, "cannot have said"),
        (200, b"not json", "no completions endpoint"),
        (200, [], "no completions endpoint"),
        (200, {"choices": []}, "no completions endpoint"),
        (200, {"choices": ["x"]}, "no completions endpoint"),
        (400, {"error": {"message": "The prompt is too long."}}, "refuses 'tiny': The prompt is too long; check"),
        (401, b"", "refuses 'tiny': status 401; check the address"),
        (500, {"detail": "oops"}, "status 500"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_sentence(
    tiny: Policy, fake: Fake, status: int, body: object, says: str
) -> None:
    fake.reply = lambda _: (status, body)
    with pytest.raises(HeroError, match=f"127.0.0.1.*{says}"):
        roll(tiny, Server(fake.url, "tiny"))


def test_no_batch(tiny: Policy, fake: Fake) -> None:
    with pytest.raises(HeroError, match="batch_size is 0"):
        roll(tiny, Server(fake.url, "tiny"), batch_size=0)


def test_an_unknown_model(tiny: Policy, fake: Fake) -> None:
    with pytest.raises(HeroError, match="refuses 'tinny': The model `tinny` does not exist; check the model's name"):
        roll(tiny, Server(fake.url, "tinny"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "localhost", "http://a b/"])
def test_no_server(tiny: Policy, url: str) -> None:
    with pytest.raises(HeroError, match="check the address"):
        roll(tiny, Server(url, "tiny", timeout=5))


def test_a_server_that_goes_away(tiny: Policy, fake: Fake) -> None:
    whole = fake.reply
    fake.reply = lambda body: whole(body) if len(fake.heard) < 4 else (503, {"error": {"message": "shutting down"}})
    with pytest.raises(HeroError, match="shutting down"):
        roll(tiny, Server(fake.url, "tiny"))


def test_a_refusal_does_not_wait_for_a_request_that_hangs(tiny: Policy, fake: Fake) -> None:
    hangs = Event()

    def reply(body: dict) -> tuple[int, object]:
        if len(fake.heard) > 1:
            return 500, {}
        hangs.wait(60)
        return 200, {}

    fake.reply = reply
    with pytest.raises(HeroError, match="status 500"):
        roll(tiny, Server(fake.url, "tiny"), batch_size=2)
    hangs.set()


def test_the_command(tiny: Policy, fake: Fake, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("hero_mini.models.load_policy", lambda *_, **__: tiny)
    command = ["rollout", "--n", "2", "--max-turns", "1", "--max-action-tokens", "5", "--url", fake.url]
    assert main([*command, "--endpoint-model", "tiny", "--out", str(tmp_path / "r.jsonl")]) == 0
    assert "2 rollouts in" in capsys.readouterr().out and len(fake.heard) == 2
    assert main([*command, "--out", str(tmp_path / "r.jsonl")]) == 1
    assert "The model `default` does not exist" in capsys.readouterr().err
