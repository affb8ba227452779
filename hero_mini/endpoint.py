"""A model behind an OpenAI-compatible endpoint, asked with the standard library alone."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Sequence
from typing import Any

from hero_mini.errors import HeroError

TIMEOUT = 60.0  # seconds for one answer


def post(where: str, body: dict[str, Any], api_key: str, timeout: float) -> Any:
    """The JSON that comes back for some JSON.

    raises OSError (among them urllib's HTTPError), http.client.HTTPException, ValueError
    """
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(where, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def chat(
    url: str, model: str, messages: Sequence[dict[str, str]], *, who: str, api_key: str = "", timeout: float = TIMEOUT
) -> str:
    """The model's answer at temperature 0 to chat messages ({"role": ..., "content": ...}).

    url: up to the version, for example `http://localhost:8000/v1`; who: what to call it in an error; timeout: seconds
    raises HeroError: the endpoint cannot be reached, or its answer is not a chat completion
    """
    body = {"model": model, "messages": list(messages), "temperature": 0}
    try:
        answer = post(f"{url.rstrip('/')}/chat/completions", body, api_key, timeout)
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise ValueError("the answer holds no text")
    except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as problem:
        raise HeroError(
            f"{who} at {url} gave no chat completion ({problem!r}); check the address, the model name and the key"
        ) from problem
    return text.encode("utf-8", "replace").decode()  # half a character, which JSON can spell, cannot be written down
