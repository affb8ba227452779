"""Rollouts from a server: step 1 on vLLM (0.10.2 or later), or on another server with the same two extensions.

    vllm serve Qwen/Qwen3-4B-Instruct-2507 --enable-lora --lora-modules hero=runs/hero-retail-0/adapter
    python -m hero_mini rollout --model Qwen/Qwen3-4B-Instruct-2507 --url http://localhost:8000/v1 --endpoint-model hero

Text never travels: the completions endpoint is asked with token ids and, by `return_token_ids`, answers with the ids
that it sampled, so that training scores exactly these. Their log-probabilities are vLLM's `raw_logprobs`, its default:
those of the model itself, whatever temperature and bans a token was drawn with, as in `generate`. The server must hold
the weights of the local policy, of which only tokenizer and configuration are used here. `train` does not use it: the
server would have to load the adapter of every update.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import time
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from tqdm import tqdm

from hero_mini.config import TrainConfig
from hero_mini.endpoint import post
from hero_mini.errors import HeroError, check_whole
from hero_mini.generate import Answer, Dialogue, Row, Sampling, T, Usage, banned_ids, begin
from hero_mini.models import Policy


@dataclass(frozen=True)
class Server:
    """Where a policy is served."""

    url: str  # up to the version, for example http://localhost:8000/v1
    model: str  # as the server calls it
    api_key: str = ""
    timeout: float = 600.0  # seconds for one answer

    def converse(
        self,
        policy: Policy,
        dialogues: Sequence[Callable[[], Dialogue[T]]],
        draws: Sequence[random.Random],
        *,
        shared: Sequence[int],
        sampling: Sampling,
        batch_size: int = TrainConfig.batch_size,
        usage: Usage | None = None,
        progress: str = "",
    ) -> list[T]:
        """`generate.converse` with the server's tokens: at most `batch_size` requests at a time.

        The server keeps the beginnings that it has read, so `shared` needs no care; a draw is the seed of a request.
        raises HeroError: see `answer`, or batch_size is below 1
        """
        check_whole(1, batch_size=batch_size)
        started, usage = time.perf_counter(), usage if usage is not None else Usage()
        fixed = self._settings(policy, sampling)
        upcoming = (begin(place, *pair, ()) for place, pair in enumerate(zip(dialogues, draws, strict=True)))
        results: dict[int, T] = {}
        answers: SimpleQueue[tuple[Row, Answer | Exception]] = SimpleQueue()

        def fetch(row: Row, seed: int) -> None:
            try:
                answers.put((row, self.answer(row.chunk, fixed | {"seed": seed}, len(policy.tokenizer))))
            except Exception as problem:
                answers.put((row, problem))

        def ask(row: Row | None) -> None:
            """A request alone, in a thread that nobody waits for if the others are given up."""
            if row is not None:
                Thread(target=fetch, args=(row, row.draw.getrandbits(31)), daemon=True).start()

        with tqdm(total=len(dialogues), disable=not progress, desc=progress) as bar:
            for _ in range(min(batch_size, len(dialogues))):
                ask(next(upcoming))
            while len(results) < len(dialogues):
                row, answer = answers.get()
                if isinstance(answer, Exception):
                    raise answer
                usage.generated += len(answer.ids)
                usage.steps += 1
                try:
                    row.chunk = [*row.chunk, *answer.ids, *row.dialogue.send(answer)]
                except StopIteration as end:
                    results[row.place] = end.value
                    usage.encoded += len(row.chunk) + len(answer.ids)
                    bar.update()
                    row = next(upcoming, None)
                ask(row)
        usage.seconds += time.perf_counter() - started
        return [results[place] for place in range(len(dialogues))]

    def _settings(self, policy: Policy, sampling: Sampling) -> dict[str, Any]:
        """What is the same in all requests."""
        return {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,  # with the two below: nothing that the model's generation_config.json would put in
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": [policy.eos_id],
            "logit_bias": {str(i): -100 for i in banned_ids(policy).tolist()},
            "logprobs": 1,
            "return_token_ids": True,
        }

    def answer(self, prompt: Sequence[int], settings: dict[str, Any], vocabulary: int) -> Answer:
        """The server's answer to one context. vocabulary: the number of tokens that the local policy knows

        raises HeroError: it cannot be reached, refuses (an unknown model, a context that is too long), leaves out
            token ids or log-probabilities, or gives some that the policy cannot have sampled
        """
        body = {"prompt": list(prompt), **settings}
        try:
            (choice,) = post(f"{self.url.rstrip('/')}/completions", body, self.api_key, self.timeout)["choices"]
            ids, told = choice.get("token_ids"), choice.get("logprobs")
            logprobs = told and told.get("token_logprobs")
        except urllib.error.HTTPError as refusal:
            raise HeroError(f"the server at {self.url} refuses {self.model!r}: {_reason(refusal)}") from refusal
        except (OSError, http.client.HTTPException) as problem:
            raise HeroError(f"no server answers at {self.url} ({problem}); start it, or check the address") from problem
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise HeroError(f"what answers at {self.url} is no completions endpoint; check the address") from problem
        if not ids:
            raise HeroError(f"the server at {self.url} gives no token ids: take vLLM 0.10.2 or later")
        if not logprobs or len(logprobs) != len(ids) or None in logprobs:
            raise HeroError(f"the server at {self.url} gives no log-probability per token; allow logprobs there")
        known = len(ids) <= settings["max_tokens"] and all(type(i) is int and 0 <= i < vocabulary for i in ids)
        if not known or not all(isinstance(p, int | float) and -math.inf < p <= 1e-3 for p in logprobs):
            raise HeroError(
                f"the server at {self.url} answers with tokens that the model here cannot have said: name the model "
                "that it serves with --model"
            )
        return Answer(tuple(ids), tuple(logprobs))


def _reason(refusal: urllib.error.HTTPError) -> str:
    """The server's own words, or its status."""
    try:
        return str(json.load(refusal)["error"]["message"]).rstrip(".") + "; check the model's name and the settings"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return f"status {refusal.code}; check the address, the model's name and the key"
