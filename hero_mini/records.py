"""What a study keeps. A run's folder holds steps.json, the commands that are behind it; the results are gathered into
tidy tables with their provenance, from which the folders of finished runs can be made again:

    figures/data/<study>.csv          a row per held-out rollout: COLUMNS, task, success, turns, ...
    figures/data/<study>_curves.csv   a row per update: COLUMNS, and every column of metrics.csv
    figures/data/<study>_ability.csv  a row per item of `ability.general_ability`, where a study asks for it
    figures/data/<study>_growth.csv   a row per agent and number of `growth.growth`, where a study asks for it
    .json twins of all                command, settings; per run its commands with minutes, commit and date; failed runs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from hero_mini.config import ADAPTERS, WARMUPS, TrainConfig, sizes
from hero_mini.envs import edition
from hero_mini.errors import HeroError
from hero_mini.files import atomic_write, read_json, weights_digest
from hero_mini.studies import MODELS, STUDIES, Job, Step, jobs
from hero_mini.tables import check_columns, origin, read_table, write_origin, write_table

SUFFIXES = ("", "_curves", "_ability", "_growth")  # of a study's tables
COLUMNS = ["run", "arm", "variant", "trained_on", "seed", "env"]  # which the study puts before those of a run's files
Record = dict[str, str | float]  # of a command: minutes, commit, date


# --- settings --------------------------------------------------------------------------------------------------------
def common_settings(preset: str, model: str, planned: Sequence[Job]) -> dict[str, object]:
    """What all runs of a study have in common, and what has to be the same for an older run to count as one of it."""
    worlds = sorted({env for job in planned for env in (job.env, *job.tests)})
    tasks = {f"tasks of {env}": edition(env) for env in worlds}
    size = sizes(preset)
    training = asdict(TrainConfig(tasks=size.tasks, budget=size.budget))
    for own in ("arm", "env", "seed", "updates"):  # which every run names itself
        del training[own]
    return {"preset": preset, "model": model, "adapter": start(model), **training, **tasks}


def start(model: str) -> str:
    """What tells runs of one start from those of another: the warm-up adapter, or a model that starts without one.

    Of a model's folder it knows the place, and beginning and end of the weights, lest other weights there go unnoticed.
    raises HeroError: the warm-up's weights are not there
    """
    if model in WARMUPS:
        weights = ADAPTERS / WARMUPS[model] / "adapter_model.safetensors"
        if not weights.is_file():
            raise HeroError(f"the warm-up of {model} is not here; copy {weights.parent} from the repository")
        return hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    digest = hashlib.sha256(f"{model} {weights_digest(model)}".encode())
    return f"{Path(model).name}-{digest.hexdigest()[:8]}"


def differences(before: dict[str, object], today: dict[str, object]) -> str:
    """What is not as it was, in words. A setting that came later counts as having had today's default."""
    return ", ".join(f"{n} was {before[n]!r}, is {v!r}" for n, v in today.items() if before.get(n, v) != v)


def check_folder(folder: Path, today: dict[str, object]) -> None:
    """Note in a folder of runs what they have in common. raises HeroError: it holds runs with other settings"""
    file = folder / "settings.json"
    remedy = f"delete {folder}, or choose another --runs"
    before = read_json(file, remedy) if file.exists() else {}
    if not file.exists() and any(folder.glob("*/steps.json")):
        raise HeroError(f"{file} is missing, so nobody knows with which settings these runs were made; {remedy}")
    if changed := differences(before, today):
        raise HeroError(f"{folder} holds runs with other settings ({changed}); choose another --runs or delete it")
    atomic_write(file, json.dumps(before | today, indent=1) + "\n")  # another study is in other worlds


def made_otherwise(table: Path, today: dict[str, object]) -> str:
    """How the runs of a table differ from those of today, in words; empty if they do not, or there is no table."""
    about = origin(table)
    if not about and not table.exists():
        return ""
    return differences(about["settings"], today) if "settings" in about else "their settings were not kept"


# --- a run's folder --------------------------------------------------------------------------------------------------
def steps_done(own: Path) -> dict[str, Record]:
    """The commands that a run's folder has behind it, by `Step.key`."""
    path = own / "steps.json"
    found = read_json(path, _again(own)) if path.exists() else {}
    kinds = {"minutes": int | float, "commit": str, "date": str}
    for record in found.values():
        if not isinstance(record, dict) or not all(isinstance(record.get(k), kind) for k, kind in kinds.items()):
            raise HeroError(f"{path} is damaged (a record is not whole); {_again(own)}")
    return found


def _again(own: Path) -> str:
    return f"delete {own}, and its run is made again"


def note_steps(own: Path, done: dict[str, Record]) -> None:
    atomic_write(own / "steps.json", json.dumps(done, indent=1) + "\n")


# --- tables ----------------------------------------------------------------------------------------------------------
def restore(planned: Sequence[Job], folder: Path, data: Path, today: dict[str, object]) -> None:
    """Give runs of which `data` has the tables, made with today's settings, their folders again.

    raises HeroError: a table is damaged
    """
    preset, wanted = str(today["preset"]), {job.name for job in planned}
    for name in STUDIES:
        paths = {suffix: data / f"{name}{suffix}.csv" for suffix in SUFFIXES}
        if made_otherwise(paths[""], today):
            continue
        told = origin(paths[""]).get("runs", {})
        tables = {suffix: read_table(path) for suffix, path in paths.items() if path.exists()}
        for suffix, table in tables.items():
            check_columns(paths[suffix], table, COLUMNS)
        for job in jobs(name, preset, str(today["model"])):
            if job.name in wanted and job.name in told:
                own = folder / job.name
                _restore_run(job.steps(own, sizes(preset)), own, told[job.name], tables)


def _restore_run(steps: Sequence[Step], own: Path, told: dict[str, Record], tables: dict[str, pd.DataFrame]) -> None:
    """told: the commands that the tables name for this run"""
    steps, here = [step for step in steps if step.key in told], steps_done(own)
    known = {step.key: told[step.key] for step in steps}
    if known.items() <= here.items() or any(here.get(key, record) != record for key, record in known.items()):
        return  # nothing new, or another training of the same run
    found = {}
    for step in steps:
        table = tables.get(step.suffix, pd.DataFrame(columns=COLUMNS))
        found[step.file] = table[(table["run"] == own.name) & (table["env"] == step.env)]
    if any(rows.empty for rows in found.values()):
        return  # a table is lost, or an older one is beside the others
    for file, rows in found.items():
        atomic_write(file, rows.drop(columns=COLUMNS).dropna(axis=1, how="all").to_csv(index=False))
    note_steps(own, here | known)


def check_kept(table: Path, planned: Sequence[Job], folder: Path, today: dict[str, object]) -> None:
    """After `restore`. raises HeroError: the table would lose runs

    Which the study plans no more or by other commands, or of which another of its tables has no rows.
    """
    told, size = origin(table).get("runs", {}), sizes(str(today["preset"]))
    commands = {job.name: {step.key for step in job.steps(folder / job.name, size)} for job in planned}
    if names := [name for name, steps in told.items() if steps.keys() != commands.get(name)]:
        raise HeroError(
            f"{table} has runs that the study plans no more, or by other commands ({', '.join(names)}); move this "
            "study's tables away or set --data"
        )
    if names := [name for name, steps in told.items() if not steps.keys() <= steps_done(folder / name).keys()]:
        raise HeroError(
            f"{table} names runs without all of their rows ({', '.join(names)}); restore this study's tables, for "
            "example with git checkout, or move them away"
        )


def gather_tables(
    name: str, planned: Sequence[Job], folder: Path, data: Path, today: dict[str, object], problems: dict[str, str]
) -> None:
    """Write the tables of all finished runs, and where they come from, to `data`.

    problems: of runs that failed, by name; those that are finished by now are no problem any more
    """
    preset, model = str(today["preset"]), str(today["model"])
    found: dict[str, list[pd.DataFrame]] = {suffix: [] for suffix in SUFFIXES}
    finished = {}
    for job in planned:
        own = folder / job.name
        steps, done = job.steps(own, sizes(preset)), steps_done(own)
        if any(step.key not in done for step in steps):
            continue
        finished[job.name] = {step.key: done[step.key] for step in steps}
        for step in steps:
            alone = f"take its command, {step.key!r}, out of {own / 'steps.json'}, and this step is done again"
            table = read_table(step.file, alone).drop(columns=COLUMNS, errors="ignore")
            if step.suffix == "_curves" and len(table) < len(list(own.glob("updates/*"))):
                raise HeroError(f"{step.file} was cut off, with {len(table)} updates; {alone}")
            told = (job.name, job.arm, job.variant, job.env, job.seed, step.env)
            label = pd.DataFrame(dict(zip(COLUMNS, told, strict=True)), index=table.index)
            found[step.suffix].append(label.join(table))
    lacking = {job.name: problems[job.name] for job in planned if job.name in problems and job.name not in finished}
    command = f"python -m hero_mini study {name} --preset {preset}"
    about: dict[str, object] = {"command": command if model == MODELS[name] else f"{command} --model {model}"}
    if records := [record for run in finished.values() for record in run.values()]:  # when they were made, not gathered
        about["commit"] = ", ".join(dict.fromkeys(str(record["commit"]) for record in records))
        about["date"] = max(str(record["date"]) for record in records)
    about |= {"settings": today, "runs": finished, "failed": lacking}
    for suffix, tables in found.items():
        if tables:
            write_table(data / f"{name}{suffix}.csv", pd.concat(tables), **about)
    if lacking and not finished:
        write_origin(data / f"{name}.csv", **about)


def failed(table: Path) -> dict[str, str]:
    """The runs that a study's table lacks because they failed, and how; they are tried again by the next start."""
    return origin(table).get("failed", {})
