"""Errors that a reader can act on, and the checks that raise them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from numbers import Integral


class HeroError(Exception):
    """An error a reader can act on: what went wrong and the remedy, in one sentence."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The likely meaning of a misspelt name, to be put behind it in a message; empty if nothing is near.

    >>> nearest("retial", ["retail", "airline"]), nearest("xyz", ["retail"])
    (" (did you mean 'retail'?)", '')
    """
    found = get_close_matches(str(name), list(options), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_known(what: str, name: object, known: Collection[str]) -> None:
    """raises HeroError: `name` is none of the known ones; the message names the near one, and all

    >>> check_known("preset", "qick", ["smoke", "quick"])
    Traceback (most recent call last):
    hero_mini.errors.HeroError: unknown preset 'qick' (did you mean 'quick'?); there are: smoke, quick
    """
    if not isinstance(name, str) or name not in known:
        raise HeroError(f"unknown {what} {name!r}{nearest(str(name), known)}; there are: {', '.join(known)}")


def check_whole(least: int, **numbers: object) -> None:
    """raises HeroError: one of them is no whole number, or below `least`

    >>> check_whole(1, max_turns=2.5)
    Traceback (most recent call last):
    hero_mini.errors.HeroError: max_turns is 2.5; it must be a whole number, at least 1
    """
    for name, value in numbers.items():
        if not isinstance(value, Integral) or value < least:
            raise HeroError(f"{name} is {value!r}; it must be a whole number, at least {least}")


def first_line(error: Exception) -> str:
    """What a library complains of, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".:")
