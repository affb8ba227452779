"""The command line: help that teaches, errors that name the near match, and exit statuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace

import pandas as pd
import pytest

from hero_mini.cli import build_parser, main
from hero_mini.config import SIZES
from hero_mini.errors import HeroError


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "--lrr", "1"], "did you mean '--lr'?"),
        (["train", "--see", "1"], "did you mean '--seed'?"),  # no abbreviations
        (["eval", "--preset", "qiuck"], "did you mean 'quick'?"),
        (["rollout", "--split=tets"], "did you mean 'test'?"),
    ],
)
def test_a_misspelt_name_gets_its_near_match(capsys, arguments, near):
    assert near in error_of(capsys, *arguments)


def test_a_misspelt_arm_is_refused_before_a_model_is_loaded(capsys):
    assert main(["train", "--arm", "hreo"]) == 1
    assert "did you mean 'hero'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train", "--updates", "-1"], ["train", "--lr", "0"]])
def test_numbers_out_of_range_are_refused(capsys, arguments):
    assert main(arguments) == 1
    assert "has to be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["rollout", "--n", "2.5"], ["rollout", "--n", "9" * 20], ["eval", "--seed", "-1"], ["eval", "--seed", "x"]],
)
def test_a_number_that_cannot_be_is_refused(capsys, arguments):
    said = error_of(capsys, *arguments)
    assert arguments[2] in said and ("whole number" in said or "from 1 to a million" in said)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["eval", "--endpoint-model", "hero"], "name that with --url"),
        (["reflect", "--reflector", "oracle", "--url", "http://localhost:1/v1"], "--reflector endpoint alone"),
        (["rollout", "--dtype", "float23"], "did you mean 'float32'"),
        (["study", "retail", "--cpus", "2"], "for --engine ray"),
        (["rollout", "--url", "http://localhost:1/v1", "--n", "1"], "OPENAI_API_KEY holds characters"),
        (["rollout", "--model", "wrlds", "--n", "1"], "did you mean 'worlds'"),
    ],
)
def test_an_option_without_effect_is_refused(capsys, monkeypatch, tmp_path, arguments, why):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\x07")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert why in said and "secret" not in said


def test_a_full_output_is_one_sentence():
    command = [sys.executable, "-m", "hero_mini", "memory"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "disk is full" in done.stderr and done.stderr.count("\n") == 1


def test_a_label_can_be_printed(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--label", "a\rb"])
    assert "cannot be printed" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model", "--adapter"])
@pytest.mark.parametrize("place", ["~nobody-of-this-name/x", "x" * 300])
def test_what_can_be_no_path_is_one_sentence(capsys, option, place):
    assert main(["rollout", "--n", "1", option, place]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and place[:20] in said


def test_the_shipped_warm_up_is_replaced_by_its_like_alone(capsys):
    assert main(["warmup", "--envs", "airline"]) == 1
    assert "name a folder with --out" in capsys.readouterr().err


def test_a_missing_file_is_one_sentence(capsys, tmp_path):
    assert main(["reflect", "--reflector", "oracle", "--rollouts", str(tmp_path / "none.jsonl")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_default_model_is_one_that_knows_the_world(monkeypatch, tmp_path):
    asked = []

    def load(model: str, **_):
        asked.append(model)
        raise HeroError("this far")

    monkeypatch.setattr("hero_mini.models.load_policy", load)
    for options in ("--env webshop", "--env retail", "--env airline --model no_demos"):
        main(["rollout", "--out", str(tmp_path / "r.jsonl"), *options.split()])
    assert asked == ["worlds", "default", "no_demos"]


def test_an_evaluation_takes_no_other_agent_s_or_world_s_place(monkeypatch, tmp_path, capsys, tiny):
    monkeypatch.setattr("hero_mini.models.load_policy", lambda *_, **__: tiny)
    out = tmp_path / "eval.csv"
    asked = ["eval", "--n", "1", "--max-turns", "1", "--out", str(out)]
    for more in ("", "--env airline", "--adapter runs/hero/adapter", "--split validation", ""):
        assert main([*asked, *more.split()]) == 0
    rows = pd.read_csv(out)
    assert rows["arm"].tolist() == ["base", "runs/hero/adapter", "base", "base"]
    assert rows["task"].tolist() == ["airline/test/0", "retail/test/0", "retail/validation/0", "retail/test/0"]
    floors = [line.split()[-2] for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["expert"]]
    assert set(floors) == {"1.0"}, "the floors have the evaluation's limit of turns"
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert main([*asked[:-1], str(tmp_path / "other.csv")]) == 1
    assert "is no table of eval" in capsys.readouterr().err
    assert main([*asked, "--label", "1"]) == main([*asked, "--label", "1"]) == 0
    assert pd.read_csv(out)["arm"].astype(str).tolist().count("1") == 1, "a label that looks like a number"
    assert "replaces 1 earlier rows of '1', seed 0, by 1" in capsys.readouterr().out
    study = pd.read_csv(out).assign(run="base-retail-0")
    study.to_csv(out, index=False)
    assert main(asked) == 1 and pd.read_csv(out).equals(study), "the table of a study stays as it is"


def test_a_model_that_the_adapter_was_not_trained_on(monkeypatch, tmp_path, capsys, tiny):
    trained = replace(tiny, name="SmolLM2-135M-Instruct+warmup+runs/hero/adapter")
    monkeypatch.setattr("hero_mini.models.load_policy", lambda *_, **__: trained)
    asked = ["eval", "--n", "1", "--max-turns", "1", "--out", str(tmp_path / "e.csv"), "--adapter", "runs/hero/adapter"]
    assert main([*asked, "--model", "worlds"]) == 1
    assert "trained on SmolLM2-135M-Instruct+warmup, not on worlds; leave --model out" in capsys.readouterr().err
    assert main(asked) == main([*asked, "--env", "webshop"]) == 0


def test_a_report_outside_the_repository_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 1
    assert "top folder of a clone" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_no_rollouts_are_one_sentence(capsys, tmp_path):
    (tmp_path / "none.jsonl").touch()
    assert main(["reflect", "--rollouts", str(tmp_path / "none.jsonl")]) == 1
    assert "holds no rollouts; collect some" in capsys.readouterr().err


def test_a_place_may_be_at_home_but_not_nowhere(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_parser().parse_args(["rollout", "--out=~/a b.jsonl"]).out == tmp_path / "a b.jsonl"
    assert "it is empty; name a file or a folder" in error_of(capsys, "student", "--out", "")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_is_no_failure(closed):
    command = f"{sys.executable} -m hero_mini memory --model nothing/here {closed}>&-"
    assert subprocess.run(f"{command} || exit 7", shell=True, capture_output=True, text=True).returncode == 7
    fine = f"{sys.executable} -m hero_mini memory {closed}>&-"
    done = subprocess.run(fine, shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_every_command_has_help():
    commands = next(a for a in build_parser()._actions if a.dest == "command").choices
    expected = {"rollout", "reflect", "probe", "train", "eval", "ability", "study", "mechanism", "growth", "traps"}
    expected |= {"warmup", "report", "bench", "reproduce", "refresh", "site", "student", "memory", "fidelity"}
    assert set(commands) == expected
    for parser in commands.values():
        assert parser.description and parser.format_help()


def test_help_does_not_load_torch():
    code = "import sys; from hero_mini.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_presets_grow():
    sizes = [asdict(s) for s in SIZES.values()]
    assert all(a[k] <= b[k] for a, b in zip(sizes, sizes[1:], strict=False) for k in a)
