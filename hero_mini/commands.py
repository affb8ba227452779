"""What each command of the command line does. Heavy imports stand inside, so that --help stays quick."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import fields
from pathlib import Path

from hero_mini.config import SIZES, WARMUPS, TrainConfig, WarmupConfig, model_for
from hero_mini.envs import turn_limit
from hero_mini.errors import HeroError
from hero_mini.files import check_clone, check_out


def _settings(options: argparse.Namespace, of: type) -> dict:
    """What the options of `cli.every_setting` say for the fields of a configuration."""
    values = {field.name: getattr(options, field.name) for field in fields(of)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _policy(options: argparse.Namespace, env: str):
    """The model of the options, for episodes in a world."""
    from hero_mini.models import load_policy

    model = model_for(options.model, env)
    adapter = None if options.adapter.lower() == "none" else options.adapter
    policy = load_policy(model, adapter=adapter, device=options.device, dtype=options.dtype)
    asked = WARMUPS.get(options.model) if options.model != "default" and adapter not in (None, "default") else None
    if asked and asked not in policy.name.split("+"):
        raise HeroError(
            f"{adapter} was trained on {policy.name.rpartition('+')[0]}, not on {options.model}; leave --model out"
        )
    return policy


def _rollouts(options: argparse.Namespace, policy, *, repeats: int = 1):
    from hero_mini import envs
    from hero_mini.rollout import collect

    tasks = envs.make(options.env).tasks(options.split, options.n or SIZES[options.preset].rollouts)
    return collect(policy, options.env, tasks, seed=options.seed, repeats=repeats, **_limits(options))


def _limits(options: argparse.Namespace) -> dict:
    """What the command line says about every rollout."""
    from hero_mini.server import Server

    if options.endpoint_model and not options.url:
        raise HeroError("--endpoint-model says what a model is called at a server; name that with --url")
    model = options.endpoint_model or options.model
    server = Server(options.url, model, api_key=_api_key()) if options.url else None
    turns = options.max_turns or turn_limit(options.env)
    return {"progress": True, "server": server, "max_turns": turns, **_reading(options)}


def _reading(options: argparse.Namespace) -> dict:
    """What the command line says about every reflection."""
    return {name: getattr(options, name) for name in ("max_action_tokens", "batch_size")}


def _api_key() -> str:
    """What is sent to the server of --url; empty where the environment names none."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise HeroError("OPENAI_API_KEY holds characters that no key has; copy it again")
    return key


def _tables(options: argparse.Namespace, *names: str) -> list[Path]:
    """The files of a command's tables, of which it is known before long work that they can be written."""
    from hero_mini.tables import check_table

    files = [options.out / f"{name}.csv" for name in names]
    for file in files:
        check_table(file, options.line)
    return files


def rollout(options: argparse.Namespace) -> None:
    from hero_mini.evaluate import rollout_rows
    from hero_mini.rollout import save_rollouts

    check_out(options.out)
    rollouts = _rollouts(options, _policy(options, options.env))
    save_rollouts(options.out, rollouts)
    print(rollout_rows(rollouts).drop(columns=["task", "trial"]).mean().round(3).to_string())
    print(f"{len(rollouts)} rollouts in {options.out}")


def reflect(options: argparse.Namespace) -> None:
    from hero_mini import grading, reflect
    from hero_mini.rollout import load_rollouts, spells
    from hero_mini.tables import check_table, write_table

    check_table(options.out, options.line)
    if options.url and options.reflector != "endpoint":
        raise HeroError(
            f"--url is asked by --reflector endpoint alone, not by {options.reflector}; leave one of them out"
        )
    if options.out.resolve() == options.rollouts.resolve():
        raise HeroError(f"--out is the file of the rollouts, {options.out}; choose another one")
    rollouts = load_rollouts(options.rollouts)
    if not rollouts:
        raise HeroError(f"{options.rollouts} holds no rollouts; collect some with python -m hero_mini rollout")
    if any("oracle" not in turn.info for rollout in rollouts for turn in rollout.turns):
        raise HeroError(f"no oracle has judged the turns in {options.rollouts}, so there is nothing to compare with")
    if options.reflector == "self":
        policy = _policy(options, rollouts[0].env)
        if any(not spells(policy, turn) for rollout in rollouts for turn in rollout.turns):
            raise HeroError(f"the tokens in {options.rollouts} are of another model than {policy.name}; set --model")
        reflector = reflect.self_reflector(policy, progress=True, **_reading(options))
    elif options.reflector == "oracle":
        reflector = reflect.oracle
    elif not options.url:
        raise HeroError("--reflector endpoint needs --url, for example --url http://localhost:8000/v1")
    else:
        reflector = reflect.endpoint_reflector(options.url, options.endpoint_model, api_key=_api_key())
    reflections = reflector(rollouts)
    turns = grading.turn_rows(rollouts, reflections)
    write_table(options.out, turns, command=options.line)
    print(grading.quality(turns).round(3).to_string(index=False))
    print(", ".join(f"{name} {value:.3f}" for name, value in grading.blame(turns).items()))
    print(f"{sum(len(r.malformed) for r in reflections)} malformed lines; a row per turn in {options.out}")


def probe(options: argparse.Namespace) -> None:
    from hero_mini.probe import probe, summary
    from hero_mini.tables import write_table

    files = _tables(options, "reflection", "edge")
    policy = _policy(options, options.env)
    rollouts = _rollouts(options, policy)
    turns, edges = probe(policy, rollouts, seed=options.seed, progress=True, **_reading(options))
    for file, table in zip(files, (turns, edges), strict=True):
        write_table(file, table, command=options.line)
    print(summary(edges).round(3).to_string(index=False))


def traps(options: argparse.Namespace) -> None:
    from hero_mini import traps
    from hero_mini.reflect import self_reflector
    from hero_mini.tables import write_table

    files = _tables(options, "leakage", "anchoring", "credit")
    policy = _policy(options, options.env)
    rollouts = _rollouts(options, policy)
    reflections = self_reflector(policy, progress=True, **_reading(options))(rollouts)
    told = traps.told_something(policy, rollouts, reflections)
    rows = traps.token_rows(policy, rollouts, told)
    tables = traps.leakage(rows), traps.anchoring(rows, "hero", "hero, quoted")
    for file, table in zip(files, (*tables, traps.credit(policy, rollouts, rows, reflections)), strict=True):
        write_table(file, table.round(4), command=options.line)
    for table in tables:
        print(table.round(3).to_string(index=False))


def mechanism(options: argparse.Namespace) -> None:
    from hero_mini.mechanism import heat, measure, summary
    from hero_mini.reflect import self_reflector
    from hero_mini.tables import write_table
    from hero_mini.told import all_teachers
    from hero_mini.track import track

    files = _tables(options, "heat", "turns", "summary")
    if options.n == 1:
        raise HeroError("--n is 1, but one teacher reads the demonstration of another task; ask for 2 or more")
    policy = _policy(options, options.env)
    rollouts = _rollouts(options, policy, repeats=2)
    tracks = [track(policy, rollout) for rollout in rollouts]
    reflections = self_reflector(policy, progress=True, **_reading(options))(rollouts)
    teachers = all_teachers(rollouts, tracks, reflections, seed=options.seed)
    table, turns = measure(policy, rollouts, tracks, teachers)
    numbers = summary(turns)
    for file, rows in zip(files, (heat(table, turns), turns, numbers), strict=True):
        write_table(file, rows.round(4), command=options.line)
    print(numbers.pivot(index="context", columns="number", values="value").round(3).to_string())


def growth(options: argparse.Namespace) -> None:
    from hero_mini import envs
    from hero_mini.growth import growth, kept
    from hero_mini.models import fingerprint, load_policy, merged_into
    from hero_mini.rollout import collect
    from hero_mini.tables import check_table, write_table

    config, begun_with, weights, agents = kept(options.run_folder)
    check_table(out := options.out or options.run_folder / "growth.csv", options.line)
    model, before = model_for(options.model, config.env), merged_into(begun_with)
    options.adapter = str(before[-1]) if before else "none"
    policy = _policy(options, config.env)
    if policy.name != begun_with:
        raise HeroError(f"{options.run_folder} was trained from {begun_with}, not from {policy.name}; set --model")
    if weights != fingerprint(policy):
        raise HeroError(
            f"{options.run_folder} was trained from other weights than {policy.name} has now; train it again"
        )
    tasks = envs.make(config.env).tasks(options.split, options.n or max(2, SIZES[options.preset].eval_tasks // 8))
    rollouts = collect(policy, config.env, tasks, seed=config.seed, progress=True, **config.rollout_settings)
    students = (load_policy(model, adapter=one, device=options.device, dtype=options.dtype) for one in agents)
    table = growth(policy, config, rollouts, students)
    write_table(out, table.round(4), command=options.line)
    shown = table[(table["path"] == "all") & table["number"].isin(["due", "ahead", "ending", "unseen"])]
    print(shown.pivot(index=["who", "update"], columns="number", values="value").round(3).to_string())


def train(options: argparse.Namespace) -> None:
    from hero_mini import parallel
    from hero_mini.train import train

    values = _settings(options, TrainConfig)
    of_preset = {name: getattr(SIZES[options.preset], name) for name in ("updates", "tasks")}
    for name, value in (of_preset | {"max_turns": turn_limit(options.env)}).items():
        values[name] = value if values[name] is None else values[name]
    config = TrainConfig(**values)
    out = options.out or Path(f"runs/{config.arm}-{config.env}-{config.seed}")
    writes = parallel.first()  # before a model is loaded: every process has to know its GPU
    train(_policy(options, options.env), config, out, progress=writes)
    if writes:
        print(f"metrics in {out}/metrics.csv, the trained agent in {out}/adapter (use it with --adapter)")


def eval(options: argparse.Namespace) -> None:
    from hero_mini.bootstrap import interval
    from hero_mini.evaluate import COLUMNS, evaluate, floors, in_place_of, kept_rows
    from hero_mini.tables import check_table, write_table

    sample = {"split": options.split, "n_tasks": options.n or SIZES[options.preset].eval_tasks, "seed": options.seed}
    named = [] if options.model == "default" else [options.model]
    named += {"default": [], "none": ["no warm-up"]}.get(options.adapter.lower(), [options.adapter])
    named += [options.endpoint_model] if options.endpoint_model else []
    label, limits = options.label or ", ".join(named) or "base", _limits(options)
    check_table(options.out, options.line)
    kept_rows(options.out)
    rows = evaluate(_policy(options, options.env), options.env, k=options.k, **sample, **limits).assign(arm=label)
    try:
        earlier = kept_rows(options.out)  # as they are by now: another evaluation may have ended
    except HeroError as problem:
        write_table(spare := options.out.with_name(f"{options.out.stem}-new.csv"), rows, command=options.line)
        raise HeroError(f"{problem}; the rows of this evaluation are in {spare}") from problem
    table = in_place_of(earlier, rows, options.env, options.split)
    if replaced := len(earlier) + len(rows) - len(table):
        print(f"replaces {replaced} earlier rows of {label!r}, seed {options.seed}, by {len(rows)}")
    write_table(options.out, table, command=options.line)
    print(floors(options.env, max_turns=limits["max_turns"], **sample).round(3).to_string(index=False))
    for name in COLUMNS[2:]:  # task and trial are no numbers of the agent
        mean, low, high = interval(rows.groupby("task")[name].mean().to_numpy())
        print(f"{label} {name}: {mean:.3f} [{low:.3f}, {high:.3f}]")


def ability(options: argparse.Namespace) -> None:
    from hero_mini.ability import general_ability
    from hero_mini.tables import check_table, write_table

    check_table(options.out, options.line)
    table = general_ability(_policy(options, env="retail"))
    write_table(options.out, table.assign(arm=options.label, seed=options.seed), command=options.line)
    print(table.groupby("kind")[["correct", "perplexity"]].mean().round(3).to_string())


def study(options: argparse.Namespace) -> None:
    from functools import partial

    from hero_mini.engines import local, on_ray
    from hero_mini.study import study

    if options.engine == "local" and (options.cpus or options.gpus):
        raise HeroError("--cpus and --gpus are for --engine ray; leave them out, or add it")
    engine = local if options.engine == "local" else partial(on_ray, cpus=options.cpus, gpus=options.gpus)
    results = options.preset == "full" and options.model is None  # all else must not take their place
    data = options.data or (Path("figures/data") if results else options.runs / f"data-{options.preset}")
    if not options.data and results:
        check_clone(data)
    table = study(options.name, options.preset, runs=options.runs, data=data, engine=engine, model=options.model)
    print(table.to_string(index=False))
    if failed := [row.run for row in table.itertuples() if row.status != "finished"]:
        raise HeroError(f"{len(failed)} runs did not finish ({', '.join(failed)}); the same command tries them again")


def memory(options: argparse.Namespace) -> None:
    from hero_mini.memory import KNOWN, SCORED, fits, needs

    models = list(KNOWN) if options.model is None else [options.model]
    settings = {"rank": options.rank, "max_tokens": options.max_tokens, "scored": options.scored or SCORED}
    print(needs(models, **settings).round(2).to_string(index=False))
    print(f"\nA training step, and how many rollouts of {options.context} tokens fit at once (plan with half of them):")
    table = fits(models, context=options.context, **settings)
    print(table.to_string(index=False))


def warmup(options: argparse.Namespace) -> None:
    from hero_mini.models import ADAPTERS, load_policy
    from hero_mini.warmup import warm_up

    config = WarmupConfig(**_settings(options, WarmupConfig))
    if options.out is None and config != WarmupConfig():
        raise HeroError("with these settings the warm-up is not that of the model `default`; name a folder with --out")
    warm_up(load_policy(adapter=None), options.out or ADAPTERS / WARMUPS["default"], config)


def fidelity(options: argparse.Namespace) -> None:
    from hero_mini.envs.fidelity import remake

    check_clone(data := Path("figures/data"))
    print(remake(data))


def report(options: argparse.Namespace) -> None:
    from hero_mini.report import report

    report()


def bench(options: argparse.Namespace) -> None:
    from hero_mini.bench import main as bench

    folder = "figures/data" if options.preset == "full" else "runs"  # a small one must not take the place of results
    if options.preset == "full":
        check_clone(folder)
    bench(Path(folder) / "bench.csv", quick=options.preset != "full")


def reproduce(options: argparse.Namespace) -> None:
    from hero_mini.notebooks import reproduce

    reproduce(options.preset, dict(options.parameters))


def site(options: argparse.Namespace) -> None:
    from hero_mini.site import build

    print(f"the site's front page, to be opened in a browser: {build(options.out)}")


def refresh(options: argparse.Namespace) -> None:
    from hero_mini.notebooks import refresh

    refresh(options.pages)


def student(options: argparse.Namespace) -> None:
    from hero_mini.handout import write_handouts

    for file in write_handouts(options.out):
        print(file)
    print(f"open them with: {shlex.join(['python', '-m', 'jupyter', 'lab', str(options.out)])}")
