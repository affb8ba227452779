"""A training run on disk: what it was asked to do, what it has done, and how to go on after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from hero_mini import envs
from hero_mini.config import TrainConfig
from hero_mini.envs import Task
from hero_mini.envs.base import task_id
from hero_mini.errors import HeroError, first_line
from hero_mini.evaluate import ended_early, rollout_rows
from hero_mini.files import (
    UNFIT,
    atomic_save,
    atomic_write,
    check_adapter_folder,
    load_saved,
    read_json,
    sweep,
    whole_folder,
    writing,
)
from hero_mini.grpo import without_contrast
from hero_mini.lora import STUDENT_ADAPTER, AdapterOptimizer, Ema, add_student
from hero_mini.models import TRAINED_ON, Policy, check_place, fingerprint
from hero_mini.parallel import first, gather, state, totals
from hero_mini.reflect import Reflection
from hero_mini.rollout import Rollout, Usage


class Clock:
    """Seconds per phase of one update."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = now - self._last
        self._last = now


class Run:
    """The student, its optimiser and its metrics; everything that is needed to continue is in `checkpoint.pt`.

    Between entry and exit the folder is this run's alone; then it goes on from what is there.
    """

    def __init__(self, policy: Policy, config: TrainConfig, out: Path):
        if not isinstance(config, TrainConfig):
            raise HeroError(f"config is {config!r}; it has to be a TrainConfig, such as TrainConfig(arm='hero')")
        self.config, self.out, self.lock = config, out, FileLock(out / "lock")
        if config.tasks < (processes := state().num_processes):
            raise HeroError(f"{processes} processes cannot share {config.tasks} tasks per update; start fewer of them")
        if len({task.id for task in self.tasks(0)}) < config.tasks:  # of a benchmark, whose places go round
            raise HeroError(f"{config.env} has fewer than {config.tasks} tasks to train on; set tasks lower")
        vocabulary = policy.model.config.vocab_size
        if config.top_k is not None and config.top_k > vocabulary:
            raise HeroError(f"top_k is {config.top_k}, but {policy.name} knows {vocabulary} tokens; set it lower")
        self.student = add_student(policy, rank=config.rank, seed=config.seed, ema=config.teacher == "ema")
        self.optimizer = AdapterOptimizer(self.student)
        self.ema = Ema(self.student, decay=config.ema_decay) if config.teacher == "ema" else None
        self.rows: list[dict] = []
        self.described = {**asdict(config), "model": policy.name, "weights": fingerprint(policy)}

    def check(self) -> None:
        """raises HeroError: the folder holds a run with another configuration, or something else than a run"""
        file, described = self.out / "config.json", self.described
        before = dict(described)
        if file.exists():  # an older run does not name settings that came later: it had their defaults
            told = read_json(file, "choose another folder, or delete this one if it is a run's")
            if not {"arm", "model", "weights"} <= told.keys():
                raise HeroError(f"{self.out} holds something else than a run; choose another folder")
            before |= asdict(TrainConfig()) | told
        elif others := [name for name in ("checkpoint.pt", "metrics.csv") if (self.out / name).exists()]:
            raise HeroError(f"{self.out} holds {others[0]} without a run's config.json; choose another folder")
        check_adapter_folder(self.out / "adapter")
        if changed := ", ".join(f"{k} was {before[k]!r}" for k in described if described[k] != before[k]):
            raise HeroError(
                f"{self.out} holds a run with other settings ({changed}); choose another folder or delete it"
            )
        if first():
            atomic_write(file, json.dumps(described, indent=1) + "\n")

    def restore(self) -> None:
        """Back to the last whole update, where there is one."""
        if (self.out / "checkpoint.pt").exists():
            saved = load_saved(file := self.out / "checkpoint.pt")
            try:
                self.rows = list(saved["rows"])
                self.optimizer.load_state(saved["optimizer"])
                if self.ema:
                    self.ema.load_state(saved["ema"])
            except UNFIT as problem:
                raise HeroError(
                    f"{file} is no checkpoint of this run ({first_line(problem)}); delete it with its folder, and "
                    "start again"
                ) from problem
            if first():
                self.write_metrics()

    def __enter__(self) -> Run:
        """raises HeroError: another process trains in the folder, or it holds a run with another configuration"""
        check_place(str(self.out.resolve()))
        if any(gather([first() and not self.lock_folder()])):  # all processes of a run learn of it
            raise HeroError(f"another process is training in {self.out}; wait for it or stop it")
        try:
            self.check()
            if first():
                sweep(self.out, "checkpoint.pt", "metrics.csv", "config.json", "adapter", "updates/*")
            self.restore()
        except BaseException:
            self.lock.release()
            raise
        return self

    def lock_folder(self) -> bool:
        """Whether the folder is ours now. The operating system gives it back when the process ends, however it ends."""
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                return False
        return True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The trained agent is written; after a keyboard interrupt, that of the last whole update."""
        try:
            if kind is KeyboardInterrupt:
                self.restore()
            if kind is None or (kind is KeyboardInterrupt and self.rows):
                self.save("adapter")
            if kind is None:
                state().wait_for_everyone()  # whoever goes on may read it
        finally:
            self.lock.release()

    @property
    def updates_done(self) -> int:
        return len(self.rows)

    @property
    def budget_spent(self) -> bool:
        budget = self.config.budget
        return budget is not None and bool(self.rows) and self.rows[-1]["env_turns"] >= budget

    def tasks(self, update: int) -> list[Task]:
        """The next tasks of the train split; every seed has its own."""
        env, start = envs.make(self.config.env), update * self.config.tasks
        indices = range(start, start + self.config.tasks)
        return [env.task_named(task_id(self.config.env, "train", i, self.config.seed)) for i in indices]

    def rollout_seed(self, update: int) -> int:
        return self.config.seed * 100_000 + update

    def log(
        self,
        update: int,
        rollouts: Sequence[Rollout],
        reflections: Sequence[Reflection],
        step: dict[str, float],
        usage: dict[str, Usage],
        clock: Clock,
    ) -> dict:
        """Add one row of metrics (figures/README.md explains each) and make everything up to this update permanent."""
        episodes = rollout_rows(rollouts)
        diagnoses = [d for r in reflections for d in r.diagnoses]
        row = {
            "update": update,
            **episodes[["success", "turns", "wasted"]].mean().to_dict(),
            "early": float(ended_early(episodes, self.config.max_turns).mean()),
            "parsed": float(np.mean([d is not None for d in diagnoses])),
            "no_contrast": without_contrast([r.reward for r in rollouts], [r.task_id for r in rollouts]),
            "env_turns": int(episodes["turns"].sum()) + (self.rows[-1]["env_turns"] if self.rows else 0),
            **step,
            **totals({f"tokens_{phase}": u.encoded for phase, u in usage.items()}),
            **clock.seconds,
        }
        if self.ema:
            self.ema.follow(self.optimizer)
        self.rows.append(row)
        self.save(f"updates/{update + 1}")
        if first():
            self.write_metrics()
            done = {"rows": self.rows, "optimizer": self.optimizer.state(), "ema": self.ema and self.ema.state()}
            atomic_save(self.out / "checkpoint.pt", done)  # last: from here on the update counts as done
        return row

    def write_metrics(self) -> None:
        atomic_write(self.out / "metrics.csv", pd.DataFrame(self.rows).to_csv(index=False))

    def save(self, name: str) -> None:
        """Write the adapter to `out / name`, of which `load_policy(adapter=out / name)` makes the trained agent."""
        if first():
            with whole_folder(self.out / name) as folder:
                self.student.model.save_pretrained(
                    folder, selected_adapters=[STUDENT_ADAPTER], save_embedding_layers=False
                )
                (folder / TRAINED_ON).write_text(json.dumps({"digests": self.student.digests}) + "\n", encoding="utf-8")
