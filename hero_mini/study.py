"""A study: a list of runs (arm x seed x settings), each trained and evaluated in processes of its own.

Everything a run leaves behind lies in its folder, so a study that was interrupted skips what is finished and goes on
with what is not. All studies share the folder of a preset and of the warm-up adapter they start from, so that no run is
made twice and none of another adapter is counted. Runs of which only the tables are there, as in a fresh clone, are
taken from the tables. The results are gathered into tidy tables with their provenance:

    figures/data/<study>.csv          a row per held-out rollout: COLUMNS, task, success, turns, ...
    figures/data/<study>_curves.csv   a row per update: COLUMNS, and every column of metrics.csv
    figures/data/<study>_ability.csv  a row per item of `ability.general_ability`, where a study asks for it
    .json twins of all                commit, versions, adapter, and per run its commands with their minutes
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from hero_mini.config import SIZES, Sizes, sizes
from hero_mini.engines import local
from hero_mini.runtime import HeroError, atomic_write, check_known
from hero_mini.tables import origin, read_table, write_table

ADAPTER = Path(__file__).parent / "adapters/warmup/adapter_model.safetensors"
SUFFIXES = ("", "_curves", "_ability")  # of a study's tables
COLUMNS = ["run", "arm", "variant", "trained_on", "seed", "env"]  # which the study puts before those of a run's files
Setting = tuple[str, str | int | float]


@dataclass(frozen=True)
class Job:
    """One run: an arm trained from one seed (the arm "base" is not trained), then evaluated on held-out tasks."""

    arm: str
    seed: int
    settings: tuple[Setting, ...] = ()  # options of `train` that differ from its defaults
    env: str = "retail"
    tests: tuple[str, ...] = ("retail",)  # environments it is evaluated on
    split: str = "test"
    ability: bool = False  # whether its general ability is measured too

    @property
    def variant(self) -> str:
        """The settings in words, empty for the defaults."""
        return " ".join(f"{name}={value}" for name, value in self.settings)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return "-".join([self.arm, self.env, *(f"{name}={value}" for name, value in self.settings), str(self.seed)])

    def commands(self, folder: Path, size: Sizes) -> list[list[str]]:
        """What is run for it, as arguments of `python -m hero_mini`."""
        found, adapter = [], []
        if self.arm != "base":
            asked = {"updates": size.updates, "tasks": size.tasks, **dict(self.settings)}
            options = [text for name, value in asked.items() for text in (f"--{name.replace('_', '-')}", str(value))]
            start = ["train", "--arm", self.arm, "--env", self.env, "--seed", str(self.seed)]
            found.append([*start, *options, "--out", str(folder)])
            adapter = ["--adapter", str(folder / "adapter")]
        for env in self.tests:
            where = ["--env", env, "--split", self.split, "--n", str(size.eval_tasks), "--seed", str(self.seed)]
            out = ["--label", self.arm, "--out", str(folder / f"eval-{env}-{self.split}.csv")]
            found.append(["eval", *adapter, *where, *out])
        if self.ability:
            who = ["--label", self.arm, "--seed", str(self.seed)]
            found.append(["ability", *adapter, *who, "--out", str(folder / "ability.csv")])
        return found

    def files(self) -> list[tuple[str, str, str]]:
        """What a finished run leaves for the tables: suffix of the table, file, environment it is about."""
        found = [("", f"eval-{env}-{self.split}.csv", env) for env in self.tests]
        if self.arm != "base":
            found.append(("_curves", "metrics.csv", self.env))
        if self.ability:
            found.append(("_ability", "ability.csv", ""))
        return found


def _hero_retail(size: Sizes) -> list[Job]:
    return [Job(arm, seed) for seed in range(size.seeds) for arm in ("base", "hero", "shuffled_hero")]


def _retail(size: Sizes) -> list[Job]:
    arms = ("base", "hero", "shuffled_hero", "env_feedback", "full_demo")
    return [
        job
        for seed in range(size.headline_seeds)
        for job in (
            *(Job(arm, seed, ability=True) for arm in arms),
            Job("grpo", seed, _groups(size, 4), ability=True),
        )
    ]


def _groups(size: Sizes, group: int) -> tuple[Setting, ...]:
    """Several rollouts per task, and as many rollouts per update as without groups."""
    return ("group", group), ("tasks", max(1, size.tasks // group))


def _ablations_retail(size: Sizes) -> list[Job]:
    changes: list[tuple[str, tuple[Setting, ...]]] = [
        ("base", ()),
        ("hero", ()),
        ("diagnosis_only", ()),  # reflection without the observation
        ("env_feedback", ()),  # the observation without reflection
        ("oracle_hero", ()),  # another reflector
        ("hero", (("hints", "blamed"),)),
        ("hero", (("outcomes", "failure"),)),
        ("hero", (("teacher", "ema"),)),
        ("hero", (("teacher", "live"),)),
        ("hero", (("divergence", "forward_kl"),)),
        ("hero", (("divergence", "reverse_kl"),)),
        ("full_demo", (("demo", "sibling"), *_groups(size, 4))),
        ("hero_grpo", _groups(size, 4)),
    ]
    return [Job(arm, seed, settings) for seed in range(size.seeds) for arm, settings in changes]


def _groups_retail(size: Sizes) -> list[Job]:
    sizes = [("base", ()), ("hero", ()), *((arm, _groups(size, g)) for arm in ("hero", "grpo") for g in (2, 4, 8))]
    return [Job(arm, seed, settings) for seed in range(size.seeds) for arm, settings in sizes]


def _worlds(size: Sizes) -> list[Job]:
    every = ("retail", "airline", "webshop")
    trained = [("base", "retail"), ("hero", "webshop"), ("hero", "retail"), ("hero", "airline")]
    return [Job(arm, seed, env=env, tests=every) for seed in range(size.seeds) for arm, env in trained]


def _grid_retail(size: Sizes) -> list[Job]:
    grid: list[tuple[str, tuple[Setting, ...]]] = [
        ("base", ()),
        ("hero", ()),
        *(("hero", (("updates", updates), ("tasks", 16))) for updates in (5, 8)),
    ]
    return [Job(arm, seed, settings, split="validation") for arm, settings in grid for seed in (0, 1)]


STUDIES: dict[str, Callable[[Sizes], list[Job]]] = {
    "hero_retail": _hero_retail,  # does HERO help, and do shuffled diagnoses not?
    "retail": _retail,  # every arm
    "ablations_retail": _ablations_retail,  # one setting changed at a time
    "groups_retail": _groups_retail,  # rollouts per task
    "worlds": _worlds,  # HERO on each world, tested on all of them
    "grid_retail": _grid_retail,  # settings, chosen on the validation split
}


def jobs(name: str, preset: str) -> list[Job]:
    """The runs of a study. raises HeroError: unknown name or preset"""
    check_known("study", name, STUDIES)
    return STUDIES[name](sizes(preset))


def study(name: str, preset: str, *, runs: Path, data: Path, engine: Callable = local) -> pd.DataFrame:
    """Do what is left of a study and gather what is there; returns a row per run: name, status, minutes.

    engine: works on the runs, see `engines`
    status: "finished", or what went wrong; a run that failed is tried again when the study is started again
    raises HeroError: unknown study, or another process is working in the same folder
    """
    planned, size = jobs(name, preset), SIZES[preset]
    folder = runs.resolve() / f"{preset}-{_adapter()}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as problem:
        raise HeroError(f"another study is running in {folder}; wait for it, or choose another --runs") from problem
    with lock:
        restore(planned, folder, data, preset)
        print(plan(planned, folder, size).to_string(index=False), flush=True)
        spent = {job: minutes_of(job, folder, size) for job in planned}
        left = [job for job, minutes in spent.items() if minutes is None]
        outcomes = {job: {"status": "finished", "minutes": minutes} for job, minutes in spent.items()}

        def begin(job: Job) -> None:
            number = planned.index(job) + 1
            print(f"[{number}/{len(planned)}] {job.name}{time_left(plan(planned, folder, size))}", flush=True)

        gather(name, planned, folder, data, preset)
        for job, outcome in engine(left, partial(run, folder=folder, size=size), begin):
            outcomes[job] = outcome
            gather(name, planned, folder, data, preset)
    return pd.DataFrame([{"run": job.name, **outcomes[job]} for job in planned])


def plan(planned: Sequence[Job], folder: Path, size: Sizes) -> pd.DataFrame:
    """A row per run: whether it is finished, and its minutes as measured, or as a finished run of its arm took."""
    minutes = {job: minutes_of(job, folder, size) for job in planned}
    typical = {job.arm: spent for job, spent in minutes.items() if spent is not None}
    return pd.DataFrame(
        {
            "run": [job.name for job in planned],
            "finished": [minutes[job] is not None for job in planned],
            "minutes": [typical.get(job.arm, "?") if minutes[job] is None else minutes[job] for job in planned],
        }
    )


def time_left(planned: pd.DataFrame) -> str:
    """How long the unfinished runs of a plan will take, in words; nothing before the first run of each arm."""
    minutes = planned.loc[~planned["finished"], "minutes"]
    return "" if minutes.empty or "?" in minutes.tolist() else f" (about {minutes.sum():.0f} minutes left)"


def run(job: Job, folder: Path, size: Sizes) -> dict[str, str | float]:
    """Train and evaluate one run in processes of their own, but for what is done already; status and minutes."""
    own, steps = folder / job.name, _steps(folder / job.name)
    left = [a for a in job.commands(own, size) if _key(a, own) not in steps]
    if steps and any("--adapter" in a for a in left) and not (own / "adapter").exists():
        shutil.rmtree(own)  # only its tables were here: what is left needs the agent, too
        steps, left = {}, job.commands(own, size)
    for arguments in left:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "hero_mini", *arguments], check=False)
        if done.returncode:
            return {"status": f"failed: {arguments[0]} ended with status {done.returncode}", "minutes": 0.0}
        steps[_key(arguments, own)] = round((time.perf_counter() - started) / 60, 1)
        atomic_write(own / "steps.json", json.dumps(steps, indent=1) + "\n")
    return {"status": "finished", "minutes": minutes_of(job, folder, size)}


def minutes_of(job: Job, folder: Path, size: Sizes) -> float | None:
    """How long a run took; None if it is not finished."""
    own, steps = folder / job.name, _steps(folder / job.name)
    keys = [_key(arguments, own) for arguments in job.commands(own, size)]
    return round(sum(steps[key] for key in keys), 1) if all(key in steps for key in keys) else None


def _steps(own: Path) -> dict[str, float]:
    """The commands that a run's folder has behind it, with their minutes."""
    path = own / "steps.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _adapter() -> str:
    """What tells one warm-up adapter from another."""
    return hashlib.sha256(ADAPTER.read_bytes()).hexdigest()[:8]


def _key(arguments: Sequence[str], own: Path) -> str:
    """A command without the place of its folder."""
    return " ".join(arguments).replace(str(own), ".")


def restore(planned: Sequence[Job], folder: Path, data: Path, preset: str) -> None:
    """Give runs of which `data` has the tables, made with this preset and adapter, their folders again."""
    wanted, here_made = {job.name for job in planned}, (preset, _adapter())
    for name in STUDIES:
        about = origin(data / f"{name}.csv")
        if (about.get("preset"), about.get("adapter")) != here_made:
            continue
        paths = {suffix: data / f"{name}{suffix}.csv" for suffix in SUFFIXES}
        tables = {suffix: read_table(path) for suffix, path in paths.items() if path.exists()}
        for job in (job for job in jobs(name, preset) if job.name in wanted):
            own = folder / job.name
            here, known = _steps(own), about["runs"].get(job.name, {})
            if known.items() <= here.items() or any(here.get(key, spent) != spent for key, spent in known.items()):
                continue  # nothing new, or another training of the same run
            for suffix, file, env in job.files():
                if suffix in tables:
                    rows = tables[suffix][(tables[suffix]["run"] == job.name) & (tables[suffix]["env"] == env)]
                    if len(rows):
                        rows = rows.drop(columns=COLUMNS).dropna(axis=1, how="all")
                        atomic_write(own / file, rows.to_csv(index=False))
            atomic_write(own / "steps.json", json.dumps(here | known, indent=1) + "\n")


def gather(name: str, planned: Sequence[Job], folder: Path, data: Path, preset: str) -> None:
    """Write the tables of all finished runs, and where they come from, to `data`."""
    found: dict[str, list[pd.DataFrame]] = {suffix: [] for suffix in SUFFIXES}
    finished, size = {}, sizes(preset)
    for job in planned:
        if minutes_of(job, folder, size) is None:
            continue
        own, steps = folder / job.name, _steps(folder / job.name)
        finished[job.name] = {key: steps[key] for key in (_key(a, own) for a in job.commands(own, size))}
        for suffix, file, env in job.files():
            table = pd.read_csv(own / file).drop(columns=COLUMNS, errors="ignore")
            told = (job.name, job.arm, job.variant, job.env, job.seed, env)
            found[suffix].append(pd.DataFrame(dict(zip(COLUMNS, told, strict=True)), index=table.index).join(table))
    about = {"command": f"python -m hero_mini study {name} --preset {preset}"}
    about |= {"preset": preset, "adapter": _adapter(), "runs": finished}
    for suffix, tables in found.items():
        if tables:
            write_table(data / f"{name}{suffix}.csv", pd.concat(tables), **about)
