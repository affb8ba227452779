"""Several processes, each with a whole copy of the model, usually one per GPU:

    accelerate launch --num_processes 4 -m hero_mini train --arm hero ...

Every process rolls out and reflects on its share of the tasks; then all hold all rollouts and diagnoses, and each
takes its share of the micro-batches. The weights of the loss are those of the whole batch, so gradients are *added up*,
not averaged, and every process makes the same optimiser step. The first one alone writes. In a single process, what
these functions got stays as it is.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

from hero_mini.errors import HeroError, first_line

T = TypeVar("T")


@cache
def state() -> PartialState:
    """Which process this is. The first call joins the others, and makes "cuda" mean this process's own GPU."""
    try:
        found = PartialState(cpu=not torch.cuda.is_available())
    except (ValueError, RuntimeError) as problem:
        raise HeroError(
            f"this process was told to be one of several, and cannot ({first_line(problem)}); start all of them with "
            "accelerate launch, or unset LOCAL_RANK, RANK and WORLD_SIZE"
        ) from problem
    atexit.register(found.destroy_process_group)  # threads of the group that outlive the interpreter may abort it
    return found


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return state().is_main_process


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of what all of them hold: consecutive items, as many as the others have, or one more."""
    here, all_of_them = state().process_index, state().num_processes
    return items[len(items) * here // all_of_them : len(items) * (here + 1) // all_of_them]


def gather(items: Sequence[T]) -> list[T]:
    """The items of all processes in the order of the processes, so that `gather(share(items))` is `items`."""
    return gather_object(list(items))


def totals(numbers: dict[str, float]) -> dict[str, float]:
    """Numbers by name, added up over all processes."""
    every = gather([numbers])
    return {name: sum(one[name] for one in every) for name in numbers}


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over all processes, in one message."""
    if state().num_processes > 1:
        whole = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        for tensor, total in zip(tensors, whole.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
