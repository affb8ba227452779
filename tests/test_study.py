"""A study on runs that cost nothing: what is skipped, what is gathered, and what an interruption leaves."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from hero_mini import study as module
from hero_mini.cli import main
from hero_mini.runtime import HeroError
from hero_mini.study import STUDIES, jobs, plan, study, time_left


class Killed(BaseException):
    """What nobody catches."""


class Processes:
    """In place of subprocess.run: `train` and `eval` write what the real ones write, at once."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.fail_on: str | None = None
        self.kill_at: int | None = None

    def __call__(self, command: list[str], **settings) -> subprocess.CompletedProcess:
        if command[0] == "git":
            return subprocess.CompletedProcess(command, 0, stdout="abc1234\n" if "log" in command else "")
        arguments = command[3:]
        self.started.append(arguments)
        if self.kill_at == len(self.started):
            raise Killed
        option = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        if self.fail_on and self.fail_on in " ".join(arguments):
            return subprocess.CompletedProcess(command, 1)
        out = Path(option["--out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        if arguments[0] == "train":
            (out / "adapter").mkdir(parents=True, exist_ok=True)
            table = pd.DataFrame({"update": range(int(option["--updates"])), "success": 0.5})
            table.to_csv(out / "metrics.csv", index=False)
        elif arguments[0] == "ability":
            table = pd.DataFrame({"arm": option["--label"], "seed": int(option["--seed"]), "item": ["a", "b"]})
            table.assign(kind="fact", correct=1.0, perplexity=None).to_csv(out, index=False)
        else:
            names = [f"{option['--env']}/{option['--split']}/{i}" for i in range(int(option["--n"]))]
            table = pd.DataFrame({"arm": option["--label"], "seed": int(option["--seed"]), "task": names, "trial": 0})
            table.assign(success=float(option["--label"] == "hero")).to_csv(out, index=False)
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    fake = Processes()
    monkeypatch.setattr("subprocess.run", fake)
    return fake


def tables(data: Path) -> list[str]:
    return [(data / name).read_text() for name in ("hero_retail.csv", "hero_retail_curves.csv")]


def test_a_study_leaves_tidy_tables(processes: Processes, tmp_path: Path) -> None:
    done = study("hero_retail", "full", runs=tmp_path / "runs", data=tmp_path / "data")
    assert len(done) == 9 and (done["status"] == "finished").all()
    rows = pd.read_csv(tmp_path / "data/hero_retail.csv", keep_default_na=False)
    assert rows.groupby(["arm", "seed"]).size().tolist() == [200] * 9
    assert set(rows["variant"]) == {""} and set(rows["env"]) == {"retail"} == set(rows["trained_on"])
    curves = pd.read_csv(tmp_path / "data/hero_retail_curves.csv")
    assert curves.groupby(["arm", "seed"]).size().tolist() == [6] * 6  # the base agent is not trained
    kept = json.loads((tmp_path / "data/hero_retail.json").read_text())
    assert kept["commit"] == "abc1234" and len(kept["runs"]) == 9
    (command,) = kept["runs"]["base-retail-0"]
    assert command.startswith("eval --env retail --split test --n 200")


def test_time_left_is_told_once_every_arm_was_timed(tmp_path: Path) -> None:
    planned = jobs("hero_retail", "full")
    size = module.SIZES["full"]
    assert time_left(plan(planned, tmp_path, size)) == ""
    for job, minutes in zip(planned[:3], (6, 10, 11), strict=True):
        (tmp_path / job.name).mkdir()
        keys = [module._key(a, tmp_path / job.name) for a in job.commands(tmp_path / job.name, size)]
        (tmp_path / job.name / "steps.json").write_text(json.dumps(dict.fromkeys(keys, minutes)))
    assert time_left(plan(planned, tmp_path, size)) == " (about 96 minutes left)"


def test_studies_share_their_runs(processes: Processes, tmp_path: Path) -> None:
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    study("retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    trained = [a[2] for a in processes.started if a[0] == "train"]
    assert trained == ["hero", "shuffled_hero", "env_feedback", "full_demo", "grpo"]
    found = pd.read_csv(tmp_path / "data/retail_ability.csv", keep_default_na=False)
    assert set(found["arm"]) == {"base", *trained} and set(found["item"]) == {"a", "b"}


def test_finished_runs_are_skipped(processes: Processes, tmp_path: Path) -> None:
    for _ in range(2):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    assert len(processes.started) == 5  # base: eval; hero and shuffled_hero: train and eval


@pytest.mark.parametrize("first", ["runs", "lost"], ids=["runs", "tables alone"])
def test_what_another_warm_up_made_does_not_count(processes: Processes, tmp_path: Path, monkeypatch, first) -> None:
    study("hero_retail", "smoke", runs=tmp_path / first, data=tmp_path / "data")
    monkeypatch.setattr(module, "ADAPTER", tmp_path / "adapter")
    (tmp_path / "adapter").write_bytes(b"another")
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    assert len(processes.started) == 10


def test_a_study_goes_on_from_its_tables(processes: Processes, tmp_path: Path) -> None:
    """The folder of the runs is lost, as in a fresh clone: what the tables hold is not made again."""
    data = tmp_path / "data"
    processes.kill_at = 5
    with pytest.raises(Killed):
        study("hero_retail", "full", runs=tmp_path / "lost", data=data)
    begun = len(processes.started)
    study("hero_retail", "full", runs=tmp_path / "runs", data=data)
    assert len(processes.started) == begun + 15 - 3  # of base and hero nothing; the interrupted run begins again
    study("hero_retail", "full", runs=tmp_path / "whole", data=tmp_path / "other")
    for name in ("hero_retail.csv", "hero_retail_curves.csv"):
        assert (data / name).read_text() == (tmp_path / "other" / name).read_text()


def test_what_needs_a_lost_agent_is_trained_again(processes: Processes, tmp_path: Path) -> None:
    study("hero_retail", "smoke", runs=tmp_path / "lost", data=tmp_path / "data")
    processes.started.clear()
    study("retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")  # asks for the general ability as well
    names = [a[0] if a[0] != "train" else a[2] for a in processes.started]
    assert names[:4] == ["ability", "hero", "eval", "ability"]


def test_tables_of_two_studies_make_one_run_whole(processes: Processes, tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    for name in ("hero_retail", "worlds"):  # HERO on retail is in both, with more tests in the second
        study(name, "smoke", runs=runs, data=data)
    shutil.rmtree(runs)
    processes.started.clear()
    study("worlds", "smoke", runs=runs, data=data)
    assert not processes.started
    for twin in ("worlds.csv", "worlds.json"):
        (data / twin).unlink()
    shutil.rmtree(runs)
    study("worlds", "smoke", runs=runs, data=data)  # the agent trained on retail is gone, and wanted on other worlds
    assert [a[4] for a in processes.started if a[0] == "train"] == ["webshop", "retail", "airline"]
    rows = pd.read_csv(data / "worlds.csv")
    assert rows.groupby(["arm", "trained_on", "env"])["task"].nunique().tolist() == [4] * 12


def test_a_failed_run_is_named_and_tried_again(processes: Processes, tmp_path: Path, capsys) -> None:
    processes.fail_on = "train --arm shuffled_hero"
    options = ["--preset", "smoke", "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    assert main(["study", "hero_retail", *options]) == 1
    assert "1 runs did not finish (shuffled_hero-retail-0)" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "data/hero_retail.csv")["arm"]) == {"base", "hero"}
    processes.fail_on = None
    assert main(["study", "hero_retail", *options]) == 0
    assert [a[2] for a in processes.started if a[0] == "train"] == ["hero", "shuffled_hero", "shuffled_hero"]


def test_ten_kills_change_nothing(processes: Processes, tmp_path: Path) -> None:
    study("hero_retail", "full", runs=tmp_path / "whole", data=tmp_path / "a")
    draw = random.Random(0)
    for _ in range(10):
        processes.kill_at = len(processes.started) + draw.randint(1, 3)
        try:
            study("hero_retail", "full", runs=tmp_path / "parts", data=tmp_path / "b")
        except Killed:
            continue
    processes.kill_at = None
    study("hero_retail", "full", runs=tmp_path / "parts", data=tmp_path / "b")
    assert tables(tmp_path / "a") == tables(tmp_path / "b")


def test_two_studies_do_not_work_in_one_folder(processes: Processes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ADAPTER", tmp_path / "adapter")
    (tmp_path / "adapter").write_bytes(b"")
    (tmp_path / "smoke-e3b0c442").mkdir()
    with FileLock(tmp_path / "smoke-e3b0c442/lock"), pytest.raises(HeroError, match="another study is running"):
        study("hero_retail", "smoke", runs=tmp_path, data=tmp_path)
    assert not processes.started


def test_wrong_names() -> None:
    with pytest.raises(HeroError, match="did you mean 'hero_retail'"):
        jobs("hero_retial", "full")
    with pytest.raises(HeroError, match="did you mean 'smoke'"):
        jobs("hero_retail", "smok")


@pytest.mark.parametrize("name", STUDIES)
def test_every_command_of_a_study_parses(name: str, tmp_path: Path) -> None:
    from hero_mini.cli import build_parser

    planned = jobs(name, "full")
    assert len({job.name for job in planned}) == len(planned)
    for job in planned:
        for arguments in job.commands(tmp_path, module.SIZES["full"]):
            build_parser().parse_args(arguments)
