"""The command line: python -m hero_mini <command> --help."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from hero_mini.config import SIZES, TrainConfig  # no torch: --help stays quick
from hero_mini.envs import ENVS, SPLITS
from hero_mini.runtime import HeroError, nearest


class Parser(argparse.ArgumentParser):
    """argparse that takes no abbreviations and names the near match of a misspelt option or value."""

    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> None:
        known = [option for action in self._actions for option in action.option_strings]
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            message += nearest(found[1].split("=")[0], known)
        elif found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += nearest(found[1], re.findall(r"[\w-]+", found[2]))
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 1 after an error that the reader can act on."""
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    options, unknown = parser.parse_known_args(arguments)
    options.line = shlex.join(["python", "-m", "hero_mini", *arguments])
    if unknown:  # reported by the command's own parser, which knows its options
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        options.run(options)
    except HeroError as error:
        print(f"hero_mini: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hero_mini: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def build_parser() -> Parser:
    parser = Parser(prog="python -m hero_mini", description="HERO in miniature: act, reflect, score, distil, evaluate.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Parser:
        sub = commands.add_parser(name, help=text.splitlines()[0], description=text)
        sub.set_defaults(run=run, parser=sub)
        return sub

    def model_options(sub: Parser) -> None:
        sub.add_argument("--model", default="default", help="the embedded model (default), a hub id, or a folder")
        sub.add_argument(
            "--adapter", default="default", help="a trained adapter, for example runs/hero/adapter; or none"
        )
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")

    def work_options(sub: Parser, *, split: str) -> None:
        sub.add_argument("--env", default="retail", choices=ENVS)
        sub.add_argument("--split", default=split, choices=SPLITS)
        sub.add_argument("--preset", default="quick", choices=SIZES, help="how much: a minute, a laptop, the tables")
        sub.add_argument("--n", type=positive, help="number of tasks, instead of the preset's")
        sub.add_argument("--seed", type=int, default=0, help="every random draw derives from it")

    sub = command("rollout", _rollout, "Let the agent act and keep the episodes as JSON lines.")
    model_options(sub), work_options(sub, split="train")
    sub.add_argument("--out", type=Path, default=Path("runs/rollouts.jsonl"))

    sub = command("reflect", _reflect, "Diagnose every turn of kept rollouts and compare with the oracle.")
    model_options(sub)
    sub.add_argument("--rollouts", type=Path, default=Path("runs/rollouts.jsonl"))
    sub.add_argument("--reflector", default="self", choices=["self", "oracle", "endpoint"])
    sub.add_argument("--url", help="of an OpenAI-compatible endpoint, for --reflector endpoint")
    sub.add_argument("--endpoint-model", default="gpt-4o", help="the model to ask for there")
    sub.add_argument("--out", type=Path, default=Path("runs/reflections.csv"))

    sub = command(
        "probe",
        _probe,
        "Measure the teacher edge before any training.\n\n"
        "Writes reflection.csv (a row per turn) and edge.csv (a row per turn and context) to --out.",
    )
    model_options(sub), work_options(sub, split="test")
    sub.add_argument("--out", type=Path, default=Path("runs/probe"))

    sub = command(
        "mechanism",
        _mechanism,
        "Measure on which step of a demonstration the probability of every teacher falls.\n\n"
        "Rolls every task out twice. Writes heat.csv (place in the run x place in the episode), turns.csv (a row per\n"
        "turn and teacher) and summary.csv (means with intervals) to --out.",
    )
    model_options(sub), work_options(sub, split="validation")
    sub.add_argument("--student-only", action="store_true", help="no teachers: for a trained --adapter")
    sub.add_argument("--out", type=Path, default=Path("runs/mechanism"))

    sub = command("train", _train, "Train one arm. A run that was interrupted goes on when called again.")
    model_options(sub)
    sub.add_argument("--preset", default="quick", choices=SIZES, help="how many updates of how many tasks")
    for field in fields(TrainConfig):
        kind = {"int": int, "float": float, "str": str}[str(field.type).split(" |")[0]]
        default = None if field.name in ("updates", "tasks") else field.default
        sub.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=default, help=f"(default: {field.default})"
        )
    sub.add_argument("--out", type=Path, help="folder of the run (default: runs/<arm>-<env>-<seed>)")

    sub = command("eval", _eval, "Success, turns and waste on held-out tasks, with intervals and floors.")
    model_options(sub), work_options(sub, split="test")
    sub.add_argument("--k", type=positive, default=1, help="rollouts per task (mean@k)")
    sub.add_argument("--label", default="base", help="what to call this agent in the table")
    sub.add_argument("--out", type=Path, default=Path("runs/eval.csv"), help="rows are added to this table")

    sub = command(
        "study",
        _study,
        "Train and evaluate a list of runs, and gather the results.\n\n"
        "A study that was interrupted goes on when called again; finished runs are skipped.",
    )
    sub.add_argument("name", help="which one: see hero_mini/study.py")
    sub.add_argument("--preset", default="full", choices=SIZES, help="how much per run, and how many seeds")
    sub.add_argument("--runs", type=Path, default=Path("runs/studies"), help="where the runs are kept")
    sub.add_argument("--data", type=Path, default=Path("figures/data"), help="where the tables go")

    sub = command("warmup", _warmup, "Rebuild the warm-up adapter that ships with the package.")
    sub.add_argument("--out", type=Path, help="folder of the adapter (default: the package's own)")
    sub.add_argument("--episodes", type=positive, help="scripted episodes to learn from")
    sub.add_argument("--seed", type=int, default=0)

    command("report", _report, "Recompute claims.csv, figures and the README's tables from figures/data.")
    sub = command("bench", _bench, "Speed as ratios, measured side by side, into figures/data/bench.csv.")
    sub.add_argument("--preset", default="full", choices=SIZES)
    sub = command("reproduce", _reproduce, "Execute the notebooks in order into runs/notebooks and print the outcome.")
    sub.add_argument("--preset", default="quick", choices=SIZES)
    sub.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command("refresh", _refresh, "Re-execute the committed notebooks in place.")
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _policy(options: argparse.Namespace):
    from hero_mini.models import load_policy

    return load_policy(
        options.model, adapter=None if options.adapter == "none" else options.adapter, device=options.device
    )


def _rollouts(options: argparse.Namespace, policy, *, repeats: int = 1):
    from hero_mini import envs
    from hero_mini.rollout import collect

    tasks = envs.make(options.env).tasks(options.split, options.n or SIZES[options.preset].rollouts)
    return collect(policy, options.env, tasks, seed=options.seed, repeats=repeats, progress=True)


def _rollout(options: argparse.Namespace) -> None:
    from hero_mini.evaluate import rollout_rows
    from hero_mini.rollout import save_rollouts

    rollouts = _rollouts(options, _policy(options))
    save_rollouts(options.out, rollouts)
    print(rollout_rows(rollouts).drop(columns=["task", "trial"]).mean().round(3).to_string())
    print(f"{len(rollouts)} rollouts in {options.out}")


def _reflect(options: argparse.Namespace) -> None:
    from hero_mini import reflect
    from hero_mini.rollout import load_rollouts
    from hero_mini.runtime import atomic_write

    rollouts = load_rollouts(options.rollouts)
    if options.reflector == "self":
        reflector = reflect.self_reflector(_policy(options))
    elif options.reflector == "oracle":
        reflector = reflect.oracle
    elif not options.url:
        raise HeroError("--reflector endpoint needs --url, for example --url http://localhost:8000/v1")
    else:
        reflector = reflect.endpoint_reflector(options.url, options.endpoint_model)
    reflections = reflector(rollouts)
    turns = reflect.turn_rows(rollouts, reflections)
    atomic_write(options.out, turns.to_csv(index=False))
    print(reflect.quality(turns).round(3).to_string(index=False))
    print(", ".join(f"{name} {value:.3f}" for name, value in reflect.blame(turns).items()))
    print(f"{sum(len(r.malformed) for r in reflections)} malformed lines; a row per turn in {options.out}")


def _probe(options: argparse.Namespace) -> None:
    from hero_mini.probe import probe, summary
    from hero_mini.tables import write_table

    policy = _policy(options)
    turns, edges = probe(policy, _rollouts(options, policy), seed=options.seed)
    for name, table in {"reflection": turns, "edge": edges}.items():
        write_table(options.out / f"{name}.csv", table, command=options.line)
    print(summary(edges).round(3).to_string(index=False))


def _mechanism(options: argparse.Namespace) -> None:
    from hero_mini.mechanism import heat, measure, summary
    from hero_mini.reflect import self_reflector
    from hero_mini.tables import write_table
    from hero_mini.told import all_teachers
    from hero_mini.track import track

    policy = _policy(options)
    rollouts = _rollouts(options, policy, repeats=2)
    tracks = [track(policy, rollout) for rollout in rollouts]
    teachers = {}
    if not options.student_only:
        teachers = all_teachers(rollouts, tracks, self_reflector(policy)(rollouts), seed=options.seed)
    table, turns = measure(policy, rollouts, tracks, teachers)
    numbers = summary(turns)
    for name, rows in {"heat": heat(table, turns), "turns": turns, "summary": numbers}.items():
        write_table(options.out / f"{name}.csv", rows.round(4), command=options.line)
    print(numbers.pivot(index="context", columns="number", values="value").round(3).to_string())


def _train(options: argparse.Namespace) -> None:
    from hero_mini.train import train

    values = {field.name: getattr(options, field.name) for field in fields(TrainConfig)}
    for name in ("updates", "tasks"):
        values[name] = values[name] or getattr(SIZES[options.preset], name)
    config = TrainConfig(**values)
    out = options.out or Path(f"runs/{config.arm}-{config.env}-{config.seed}")
    train(_policy(options), config, out, progress=True)
    print(f"metrics in {out}/metrics.csv, the trained agent in {out}/adapter (use it with --adapter)")


def _eval(options: argparse.Namespace) -> None:
    import pandas as pd

    from hero_mini.evaluate import evaluate, floors, interval
    from hero_mini.tables import write_table

    n = options.n or SIZES[options.preset].eval_tasks
    rows = evaluate(
        _policy(options), options.env, split=options.split, n_tasks=n, k=options.k, seed=options.seed, progress=True
    ).assign(arm=options.label)
    kept = pd.read_csv(options.out) if options.out.exists() else rows.iloc[:0]
    kept = kept[(kept["arm"] != options.label) | (kept["seed"] != options.seed)]
    table = pd.concat([kept, rows]) if len(kept) else rows
    columns = ["arm", "seed", *[c for c in rows.columns if c not in ("arm", "seed")]]
    write_table(options.out, table[columns], command=options.line)
    print(floors(options.env, split=options.split, n_tasks=n).round(3).to_string(index=False))
    for name in ("success", "turns", "wasted", "errors", "repeated"):
        mean, low, high = interval(rows.groupby("task")[name].mean().to_numpy())
        print(f"{options.label} {name}: {mean:.3f} [{low:.3f}, {high:.3f}]")


def _study(options: argparse.Namespace) -> None:
    from hero_mini.study import study

    table = study(options.name, options.preset, runs=options.runs, data=options.data)
    print(table.to_string(index=False))
    if failed := [row.run for row in table.itertuples() if row.status != "finished"]:
        raise HeroError(f"{len(failed)} runs did not finish ({', '.join(failed)}); the same command tries them again")


def _warmup(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from hero_mini.models import WARMUP, load_policy
    from hero_mini.warmup import WarmupConfig, warm_up

    config = replace(WarmupConfig(), seed=options.seed)
    if options.episodes:
        config = replace(config, episodes=options.episodes)
    warm_up(load_policy(adapter=None), options.out or WARMUP, config)


def _report(options: argparse.Namespace) -> None:
    from hero_mini.report import report

    report()


def _bench(options: argparse.Namespace) -> None:
    from hero_mini.bench import main as bench

    bench(Path("figures/data/bench.csv"), quick=options.preset != "full")


def _reproduce(options: argparse.Namespace) -> None:
    from hero_mini.notebooks import reproduce

    reproduce(options.preset, dict(options.parameters))


def _refresh(options: argparse.Namespace) -> None:
    from hero_mini.notebooks import refresh

    refresh()
