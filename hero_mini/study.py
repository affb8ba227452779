"""A study: a list of runs (see `studies`), each trained and evaluated in processes of its own.

Everything a run leaves behind lies in its folder, so a study that was interrupted skips what is finished and goes on
with what is not. All studies share the folder of a preset and of the warm-up adapter they start from, so that no run is
made twice and none of another adapter is counted. Runs of which only the tables are there, as in a fresh clone, are
taken from the tables; see `records`.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import pandas as pd

from hero_mini.config import SIZES, WARMUPS, Sizes
from hero_mini.engines import call, local
from hero_mini.errors import HeroError
from hero_mini.files import alone, check_out
from hero_mini.records import (
    check_folder,
    check_kept,
    common_settings,
    failed,
    gather_tables,
    made_otherwise,
    note_steps,
    restore,
    steps_done,
)
from hero_mini.studies import Job, Step, jobs
from hero_mini.tables import commit


def study(
    name: str, preset: str, *, runs: Path, data: Path, engine: Callable = local, model: str | None = None
) -> pd.DataFrame:
    """Do what is left of a study and gather what is there; returns a row per run: name, status, minutes.

    engine: works on the runs, see `engines`
    model: see `models.load_policy`; None: the study's own, an embedded one. All others start without a warm-up adapter
    status: "finished", or what went wrong; a run that failed is tried again when the study is started again
    raises HeroError: unknown study, another process is working in the same folder, or the folder or the table is one
        of runs with other settings
    """
    if model and model not in WARMUPS:
        from hero_mini.models import find  # loads torch, which the embedded models leave to the runs

        folder, is_folder = find(model)
        model = str(folder.resolve()) if is_folder else model
    planned, size = jobs(name, preset, model), SIZES[preset]
    model = planned[0].model
    today = common_settings(preset, model, planned)
    folder = runs.resolve() / f"{preset}-{today['adapter']}"
    with alone(folder / "lock", f"another study is running in {folder}; wait for it, or choose another --runs"):
        check_folder(folder, today)
        if changed := made_otherwise(table := data / f"{name}.csv", today):
            raise HeroError(f"{table} is of other runs ({changed}); move this study's tables away or set --data")
        check_out(table)
        restore(planned, folder, data, today)
        check_kept(table, planned, folder, today)
        at_first = plan(planned, folder, size)
        print(at_first.to_string(index=False, na_rep="?"), total(at_first), sep="\n", flush=True)
        outcomes = {job: {"status": "finished", "minutes": minutes_of(job, folder, size)} for job in planned}
        left = [job for job in planned if outcomes[job]["minutes"] is None]

        def begin(job: Job) -> None:
            number = planned.index(job) + 1
            print(f"[{number}/{len(planned)}] {job.name}{time_left(plan(planned, folder, size))}", flush=True)

        problems = failed(table)
        gather_tables(name, planned, folder, data, today, problems)
        for job, outcome in engine(left, partial(run, folder=folder, size=size), begin):
            outcomes[job] = outcome
            if outcome["status"] != "finished":
                problems[job.name] = str(outcome["status"])
            gather_tables(name, planned, folder, data, today, problems)
    return pd.DataFrame([{"run": job.name, **outcomes[job]} for job in planned])


def plan(planned: Sequence[Job], folder: Path, size: Sizes) -> pd.DataFrame:
    """A row per run: whether it is finished, its minutes, and how many of them are left.

    Minutes are as measured, or as the same step of another run took, of the arm if there is one; nan before the first.
    """

    def kinds(job: Job, step: Step) -> tuple[tuple[str, ...], ...]:
        """From the most alike to the least."""
        command, k = step.arguments[0], str(job.k)
        return (command, k, job.arm, step.env), (command, k, step.env), (command, job.arm, step.env), (command,)

    steps = {job: job.steps(folder / job.name, size) for job in planned}
    done = {job: steps_done(folder / job.name) for job in planned}
    typical = {
        kind: done[job][step.key]["minutes"]
        for job in planned
        for step in steps[job]
        if step.key in done[job]
        for kind in kinds(job, step)
    }
    rows = []
    for job in planned:
        spent = [done[job][step.key]["minutes"] for step in steps[job] if step.key in done[job]]
        guesses = [[typical[k] for k in kinds(job, s) if k in typical] for s in steps[job] if s.key not in done[job]]
        left = [guess[0] if guess else float("nan") for guess in guesses]
        rows.append((job.name, not left, sum(spent) + sum(left), sum(left)))
    return pd.DataFrame(rows, columns=["run", "finished", "minutes", "left"]).round(1)


def total(planned: pd.DataFrame) -> str:
    """How long a plan takes, in words."""
    unknown = planned["left"].isna().sum()
    if unknown == len(planned):
        return "How long this takes is not known before the first run."
    if unknown:
        return f"At least {planned['left'].sum():.0f} minutes left; of {unknown} runs it is not known yet."
    return f"About {planned['minutes'].sum():.0f} minutes in all, {planned['left'].sum():.0f} left."


def time_left(planned: pd.DataFrame) -> str:
    """The same behind the name of a run, where something is left and it is known how much."""
    left = planned["left"].sum(skipna=False)
    return f" (about {left:.0f} minutes left)" if left > 0 else ""


def run(job: Job, folder: Path, size: Sizes) -> dict[str, str | float]:
    """Train and evaluate one run in processes of their own, but for what is done already; status and minutes."""
    own = folder / job.name
    steps, done = job.steps(own, size), steps_done(own)
    left = [step for step in steps if step.key not in done]
    if done and left and job.arm != "base" and not (own / "adapter").exists():
        (own / "steps.json").unlink()  # only its tables were here: what is left needs the agent, too
        shutil.rmtree(own)
        left, done = steps, {}
    for step in left:
        made, started = {"commit": commit(), "date": date.today().isoformat()}, time.perf_counter()
        if status := call([sys.executable, "-m", "hero_mini", *step.arguments]):
            return {"status": f"failed: {step.arguments[0]} ended with status {status}", "minutes": 0.0}
        done[step.key] = {"minutes": round((time.perf_counter() - started) / 60, 1), **made}
        note_steps(own, done)
    return {"status": "finished", "minutes": minutes_of(job, folder, size)}


def minutes_of(job: Job, folder: Path, size: Sizes) -> float | None:
    """How long a run took; None if it is not finished."""
    done, steps = steps_done(folder / job.name), job.steps(folder / job.name, size)
    return round(sum(done[s.key]["minutes"] for s in steps), 1) if all(s.key in done for s in steps) else None
