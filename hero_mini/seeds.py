"""Seeded generators, each with a name of its own."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def _derive(seed: int, name: tuple[str | int, ...]) -> int:
    """A 63-bit seed that depends on every part of the name; the same on every machine and in every Python."""
    text = repr((int(seed), *name)).encode()
    return int.from_bytes(sha256(text).digest()[:8], "big") >> 1


def rng(seed: int, *name: str | int) -> random.Random:
    """A generator of its own for each purpose, so that drawing for one never shifts another.

    >>> draw = lambda *name: rng(7, *name).random()
    >>> draw("rollout", 3) == draw("rollout", 3), draw("rollout", 3) == draw("rollout", 4)
    (True, False)
    """
    return random.Random(_derive(seed, name))


def resampler(seed: int, *name: str | int) -> np.random.Generator:
    """The same for a bootstrap's draws, many at a time."""
    import numpy as np

    return np.random.default_rng(_derive(seed, name))
