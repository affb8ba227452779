"""The command line: python -m hero_mini <command> --help."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from hero_mini import commands
from hero_mini.config import SIZES, TrainConfig, WarmupConfig  # no torch: --help stays quick
from hero_mini.envs import ENVS, SPLITS
from hero_mini.errors import HeroError, nearest
from hero_mini.files import expanded


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
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed by whoever started this
            setattr(sys, stream, open(os.devnull, "w"))
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    options, unknown = parser.parse_known_args(arguments)
    options.line = shlex.join(["python", "-m", "hero_mini", *arguments])
    if unknown:  # reported by the command's own parser, which knows its options
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a label
    try:
        options.run(options)
        sys.stdout.flush()
    except HeroError as error:
        print(f"hero_mini: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = options.command in ("train", "study", "warmup")
        left = "the same command goes on where it stopped" if goes_on else "what was not written yet is lost"
        print(f"hero_mini: interrupted; {left}", file=sys.stderr)
        return 130
    except OSError as problem:
        read_enough = isinstance(problem, BrokenPipeError)  # whoever reads the output
        full = problem.errno == errno.ENOSPC and problem.filename is None
        if not (read_enough or full):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if full:
            print("hero_mini: what is printed cannot be written, the disk is full; free some space", file=sys.stderr)
        return int(full)
    return 0


def build_parser() -> Parser:
    parser = Parser(prog="python -m hero_mini", description="HERO in miniature: act, reflect, score, distil, evaluate.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Parser:
        sub = subparsers.add_parser(name, help=text.splitlines()[0], description=text)
        sub.set_defaults(run=run, parser=sub)
        return sub

    def model_options(sub: Parser, *, adapter: bool = True) -> None:
        sub.add_argument(
            "--model",
            default="default",
            help="the embedded model (default: the one that knows the world, see README), a hub id, or a folder",
        )
        if adapter:
            sub.add_argument(
                "--adapter", default="default", help="a trained adapter, for example runs/hero/adapter; or none"
            )
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
        sub.add_argument(
            "--dtype", default="auto", help="auto (bfloat16 where it is faster), bfloat16, float32, float16"
        )

    def work_options(sub: Parser, *, split: str) -> None:
        sub.add_argument("--env", default="retail", choices=ENVS)
        sub.add_argument("--split", default=split, choices=SPLITS)
        sub.add_argument("--preset", default="quick", choices=SIZES, help="how much: a minute, a laptop, the tables")
        sub.add_argument("--n", type=positive, help="number of tasks, instead of the preset's")
        sub.add_argument("--seed", type=whole, default=0, help="every random draw derives from it")
        sub.add_argument("--max-turns", type=positive, help="of an episode (default: the environment's own)")
        as_in_train(sub, "max_action_tokens", "batch_size")
        sub.add_argument("--url", help="of a vLLM server that samples in place of this process (key: OPENAI_API_KEY)")
        sub.add_argument("--endpoint-model", help="what the model is called there (default: as --model says)")

    sub = command("rollout", commands.rollout, "Let the agent act and keep the episodes as JSON lines.")
    model_options(sub), work_options(sub, split="train")
    sub.add_argument("--out", type=place, default=Path("runs/rollouts.jsonl"))

    sub = command("reflect", commands.reflect, "Diagnose every turn of kept rollouts and compare with the oracle.")
    model_options(sub)
    sub.add_argument("--rollouts", type=place, default=Path("runs/rollouts.jsonl"))
    sub.add_argument("--reflector", default="self", choices=["self", "oracle", "endpoint"])
    sub.add_argument("--url", help="of an OpenAI-compatible endpoint, for --reflector endpoint (key: OPENAI_API_KEY)")
    sub.add_argument("--endpoint-model", default="gpt-4o", help="the model to ask for there")
    as_in_train(sub, "max_action_tokens", "batch_size")
    sub.add_argument("--out", type=place, default=Path("runs/reflections.csv"))

    sub = command(
        "probe",
        commands.probe,
        "Measure the teacher edge before any training.\n\n"
        "Writes reflection.csv (a row per turn) and edge.csv (a row per turn and context) to --out.",
    )
    model_options(sub), work_options(sub, split="test")
    sub.add_argument("--out", type=place, default=Path("runs/probe"))

    sub = command(
        "traps",
        commands.traps,
        "Measure whether a teacher copies words of its text, and whether a quoted mistake draws it.\n\n"
        "Writes leakage.csv, anchoring.csv and credit.csv (the tokens of one wrong call) to --out.",
    )
    model_options(sub), work_options(sub, split="validation")
    sub.add_argument("--out", type=place, default=Path("runs/traps"))

    sub = command(
        "mechanism",
        commands.mechanism,
        "Measure on which step of a demonstration the probability of every teacher falls.\n\n"
        "Rolls every task out twice. Writes heat.csv (place in the run x place in the episode), turns.csv (a row per\n"
        "turn and teacher) and summary.csv (means with intervals) to --out.",
    )
    model_options(sub), work_options(sub, split="validation")
    sub.add_argument("--out", type=place, default=Path("runs/mechanism"))

    sub = command(
        "growth",
        commands.growth,
        "Measure what a trained student takes over from its teacher, update by update.\n\n"
        "The numbers of `mechanism`, always on the same rollouts of the base agent; writes growth.csv into the run's "
        "folder.",
    )
    model_options(sub, adapter=False)
    sub.add_argument("--run", dest="run_folder", type=place, required=True, help="the folder that train wrote")
    sub.add_argument("--split", default="validation", choices=SPLITS)
    sub.add_argument("--preset", default="quick", choices=SIZES, help="how many tasks")
    sub.add_argument("--n", type=positive, help="number of tasks, instead of the preset's")
    sub.add_argument("--out", type=place, help="the table (default: growth.csv in the run's folder)")

    sub = command("train", commands.train, "Train one arm. A run that was interrupted goes on when called again.")
    model_options(sub)
    sub.add_argument("--preset", default="quick", choices=SIZES, help="how many updates of how many tasks")
    theirs = {"updates": "preset's", "tasks": "preset's", "max_turns": "environment's"}
    every_setting(sub, TrainConfig, elsewhere=theirs)
    sub.add_argument("--out", type=place, help="folder of the run (default: runs/<arm>-<env>-<seed>)")

    sub = command("eval", commands.eval, "Success, turns and waste on held-out tasks, with intervals and floors.")
    model_options(sub), work_options(sub, split="test")
    sub.add_argument("--k", type=positive, default=1, help="rollouts per task (mean@k)")
    sub.add_argument(
        "--label", type=printable, help="what to call this agent in the table (default: base, or model and adapter)"
    )
    sub.add_argument(
        "--out",
        type=place,
        default=Path("runs/eval.csv"),
        help="table that the rows are added to; the same agent's of this seed, world and split are replaced",
    )

    sub = command("ability", commands.ability, "What else the agent can do: short instructions and plain text.")
    model_options(sub)
    sub.add_argument("--label", type=printable, default="base", help="what to call this agent in the table")
    sub.add_argument("--seed", type=whole, default=0, help="the seed of the agent's training, for the table")
    sub.add_argument("--out", type=place, default=Path("runs/ability.csv"), help="this table is replaced")

    sub = command(
        "study",
        commands.study,
        "Train and evaluate a list of runs, and gather the results.\n\n"
        "A study that was interrupted goes on when called again; finished runs are skipped. The results in\n"
        "figures/data are those of the preset full and the embedded model: other tables go to a folder of their own.",
    )
    sub.add_argument("name", help="which one: see hero_mini/studies.py")
    sub.add_argument("--model", help="as elsewhere (default: the embedded one that the study needs)")
    sub.add_argument("--preset", default="full", choices=SIZES, help="how much per run, and how many seeds")
    sub.add_argument("--runs", type=place, default=Path("runs/studies"), help="where the runs are kept")
    sub.add_argument(
        "--data",
        type=place,
        help="where the tables go (default: figures/data, or data-<preset> in the folder of --runs)",
    )
    sub.add_argument("--engine", default="local", choices=("local", "ray"), help="a run at a time, or a Ray cluster")
    sub.add_argument("--cpus", type=positive, help="ray: cores of a run (default: as many as are here)")
    sub.add_argument("--gpus", type=float, default=0, help="ray: GPUs of a run")

    sub = command(
        "memory",
        commands.memory,
        "What fits where: bytes of weights, adapter, cache and a training step, counted from a model's configuration.",
    )
    sub.add_argument("--model", help="the embedded model (default), a hub id, or a folder; without it, four known ones")
    sub.add_argument("--context", type=positive, default=8000, help="tokens of an episode, prompt included")
    as_in_train(sub, "rank", "max_tokens")
    sub.add_argument(
        "--scored", type=fraction, help="share of actions among a micro-batch's tokens (default: as in retail)"
    )

    sub = command("warmup", commands.warmup, "Teach a warm-up; by default, rebuild that of the model `default`.")
    sub.add_argument("--out", type=place, help="folder of the adapter (default: the package's own)")
    every_setting(sub, WarmupConfig)

    command("fidelity", commands.fidelity, "Hold the mini worlds against the real ones, into figures/data.")
    command("report", commands.report, "Recompute claims.csv, the figures, and the tables of the texts that show them.")
    sub = command("bench", commands.bench, "Speed as ratios, measured side by side, into figures/data/bench.csv.")
    sub.add_argument("--preset", default="full", choices=SIZES)
    sub = command(
        "reproduce", commands.reproduce, "Execute the notebooks in order into runs/notebooks and print the outcome."
    )
    sub.add_argument("--preset", default="quick", choices=SIZES)
    sub.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    sub = command("site", commands.site, "Render all pages, with their committed outputs, into one static site.")
    sub.add_argument("--out", type=place, default=Path("runs/site"))
    sub = command("refresh", commands.refresh, "Re-execute the committed notebooks in place.")
    sub.add_argument("pages", nargs="*", help="how the names of some begin, such as 08 (default: all)")
    sub = command(
        "student",
        commands.student,
        "Copy the notebooks without their solutions, for a class.\n\n"
        "A copy that somebody has worked in is never overwritten.",
    )
    sub.add_argument("--out", type=place, default=Path("runs/student"), help="folder of the copies")
    return parser


def every_setting(sub: Parser, of: type, *, elsewhere: Mapping[str, str] | None = None) -> None:
    """An option for every field of a configuration, with its default, or None where that comes from elsewhere."""
    elsewhere = elsewhere or {}
    for field in fields(of):
        name, default = f"--{field.name.replace('_', '-')}", None if field.name in elsewhere else field.default
        told = {"default": default, "help": f"(default: {elsewhere.get(field.name, field.default)})"}
        if field.type == "bool":
            sub.add_argument(name, action="store_true", help="(default: no)")
        elif field.type.startswith("tuple"):
            sub.add_argument(name, nargs="+", type=float if "float" in field.type else str, **told)
        else:
            sub.add_argument(name, type={"int": int, "float": float, "str": str}[field.type.split(" |")[0]], **told)


def as_in_train(sub: Parser, *names: str) -> None:
    """Options for some settings of a training, with its defaults."""
    for name in names:
        default = getattr(TrainConfig, name)
        sub.add_argument(
            f"--{name.replace('_', '-')}", type=positive, default=default, help=f"as in train (default: {default})"
        )


def place(text: str) -> Path:
    """Where a file or a folder lies."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder, . for this one")
    try:
        return expanded(text)
    except HeroError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


def printable(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{ascii(text)} holds characters that cannot be printed")
    return text


def positive(text: str) -> int:
    value = whole(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to a million")
    return value


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0, at most 1")
    return value


def whole(text: str) -> int:
    """A whole number, at least 0, such as a seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, at least 0")
    return int(text)
