"""What worlds share: which tasks they have, what these are called, which one is played; and scripted agents."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from hero_mini.envs.base import Action, Task
from hero_mini.errors import HeroError, check_known, check_whole
from hero_mini.seeds import rng


class World:
    """What all worlds share: a limit of turns, which task is played, and when its scripted agents may act."""

    name: str
    task_named: Callable[[str], Task]
    done: bool  # whether the episode is over

    def __init__(self, max_turns: int):
        check_whole(1, max_turns=max_turns)
        self.max_turns = max_turns
        self.task: Task | None = None

    def check_running(self) -> None:
        """raises HeroError: there is no episode in which a step could be taken"""
        if self.task is None or self.done:
            raise HeroError("this episode is over or was never started; call reset first")

    def chosen_task(self, seed: int | None, options: dict | None) -> Task:
        """`options["task"]` (a Task or its id); without one, the train task at place `seed`."""
        if not isinstance(options or {}, dict):
            raise HeroError(f"options is {options!r}; it has to be a dictionary, such as {{'task': 'retail/test/0'}}")
        for option in options or {}:
            check_known("option", option, ["task"])
        task = (options or {}).get("task")
        if task is None:
            task = f"{self.name}/train/{seed or 0}"
        if isinstance(task, Task) and task.id.startswith(f"{self.name}/"):
            return task
        return self.task_named(str(getattr(task, "id", task)))  # which refuses a task of another world

    # -- the scripted agents; raises HeroError, all three: see `check_running` --------------------------------------

    def expert(self) -> Action:
        """The best next action, as the world's `_expert` knows it."""
        self.check_running()
        return self._expert()

    def scripted(self, draw: random.Random, skill: float) -> Action:
        """The expert's action with probability `skill` (0..1), a bad habit otherwise."""
        best = self.expert()
        return best if draw.random() < skill else self._habit(draw, best)

    def admissible(self) -> list[str] | None:
        """Actions that are allowed now, from which the random floor draws; None where they are too many to list."""
        self.check_running()
        return self._admissible()

    def _expert(self) -> Action:
        raise NotImplementedError

    def _habit(self, draw: random.Random, best: Action) -> Action:
        raise NotImplementedError

    def _admissible(self) -> list[str] | None:
        raise NotImplementedError


class Generated(World):
    """What the worlds with generated tasks share: endless splits, and the ids of their tasks."""

    make_task: Callable[[str, int, int], Task]  # split, index, seed

    def __init__(self, max_turns: int = 10):
        super().__init__(max_turns)

    def tasks(self, split: str, n: int, seed: int = 0) -> list[Task]:
        """The first `n` tasks of a split; every split is endless, and no user (or wish) stands in two of them.

        raises HeroError: unknown split, or no whole number, or a negative one
        """
        check_whole(0, n=n)
        return [self.make_task(split, index, seed) for index in range(n)]

    def task_named(self, task_id: str) -> Task:
        """The task with this id: "<env>/<split>/<index>", with "@<seed>" behind it for a seed other than 0."""
        found = re.fullmatch(rf"{self.name}/(\w+)/(\d{{1,19}})(?:@(\d{{1,19}}))?", str(task_id))
        if found is None:
            raise HeroError(
                f"{task_id!r} is no task of {self.name}; write {self.name}/<split>/<index>, such as {self.name}/test/0"
            )
        return self.make_task(found[1], int(found[2]), int(found[3] or 0))

    def in_split(self, task_id: str, split: str) -> bool:
        """Whether the task with this id is one of the split."""
        return task_id.startswith(f"{self.name}/{split}/")


class Listed(World):
    """What the real benchmarks share: upstream's splits, each a list of numbers, of which a task has one."""

    def numbers(self) -> Mapping[str, Sequence[str | int]]:
        """The numbers of upstream's tasks by split, in upstream's order."""
        raise NotImplementedError

    def numbered(self, number: str | int) -> Task:
        """The task with one of these numbers; its id is "<env>/<number>"."""
        raise NotImplementedError

    def tasks(self, split: str, n: int, seed: int = 0) -> list[Task]:
        """The first `n` tasks of upstream's split, or all there are; a seed other than 0 shuffles them.

        raises HeroError: the benchmark has no such split, or no task in it; a number out of range
        """
        check_whole(0, n=n, seed=seed)
        splits = self.numbers()
        check_known(f"split of {self.name}", split, splits)
        if not splits[split]:
            loaded = sum(map(len, splits.values()))
            raise HeroError(f"{self.name} loaded only {loaded} tasks, which leaves none for {split}; load more of them")
        numbers = list(splits[split])
        if seed:
            rng(seed, self.name, "shuffle").shuffle(numbers)
        return [self.numbered(number) for number in numbers[:n]]

    def task_named(self, task_id: str) -> Task:
        """A task by upstream's number, "<env>/<number>", or by its place, "<env>/<split>/<place>[@<seed>]".

        Places go round, so that training never runs out of tasks.
        raises HeroError: there is no such task
        """
        splits = self.numbers()
        world, _, asked = str(task_id).partition("/")
        for number in chain.from_iterable(splits.values()) if world == self.name else ():
            if str(number) == asked:
                return self.numbered(number)
        found = re.fullmatch(rf"{self.name}/({'|'.join(splits)})/(\d{{1,19}})(?:@(\d{{1,19}}))?", str(task_id))
        if found is None:
            some = next(chain.from_iterable(splits.values()))
            raise HeroError(
                f"{task_id!r} is no task of {self.name}; write {self.name}/<number>, such as {self.name}/{some}"
            )
        tasks = self.tasks(found[1], len(splits[found[1]]), int(found[3] or 0))
        return tasks[int(found[2]) % len(tasks)]

    def chosen_task(self, seed: int | None, options: dict | None) -> Task:
        """See `World.chosen_task`; upstream's own copy of the task."""
        return self.task_named(super().chosen_task(seed, options).id)

    def in_split(self, task_id: str, split: str) -> bool:
        """Whether the task with this id is one of the split."""
        world, _, number = task_id.partition("/")
        return world == self.name and number in map(str, self.numbers().get(split, ()))
