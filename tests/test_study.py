"""A study on runs that cost nothing: what is skipped, what is gathered, and what an interruption leaves.

The last test does it with real processes and a tiny model.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil  # comes with accelerate
import pytest
from filelock import FileLock

from hero_mini import claims as claimed
from hero_mini import compare, figures, figures_paper, records, results
from hero_mini.cli import main
from hero_mini.config import SIZES, TrainConfig
from hero_mini.errors import HeroError
from hero_mini.records import failed
from hero_mini.studies import STUDIES, Job, jobs
from hero_mini.study import plan, study, time_left, total


class Killed(BaseException):
    """What nobody catches."""


class Processes:
    """In place of subprocess.run: `train` and `eval` write what the real ones write, at once."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.fail_on: str | None = None
        self.kill_at: int | None = None
        self.commit = "abc1234"

    def __call__(self, command: list[str], **settings) -> subprocess.CompletedProcess:
        if command[0] == "git":
            return subprocess.CompletedProcess(command, 0, stdout=f"{self.commit}\n" if "log" in command else "")
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
            table = pd.DataFrame({"update": range(3), "success": 0.5})
            table.to_csv(out / "metrics.csv", index=False)
        elif arguments[0] == "ability":
            table = pd.DataFrame({"arm": option["--label"], "seed": int(option["--seed"]), "item": ["a", "b"]})
            table.assign(kind="fact", correct=1.0, perplexity=None).to_csv(out, index=False)
        elif arguments[0] == "growth":
            table = pd.DataFrame({"who": "student", "update": [0, 1], "number": "ending", "value": 0.1})
            table.to_csv(out, index=False)
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
    assert curves.groupby(["arm", "seed"]).size().tolist() == [3] * 6  # the base agent is not trained
    kept = json.loads((tmp_path / "data/hero_retail.json").read_text())
    assert kept["commit"] == "abc1234" and len(kept["runs"]) == 9
    ((command, record),) = kept["runs"]["base-retail-1"].items()
    assert command.startswith("eval --env retail --split test --n 200") and record["commit"] == "abc1234"


def done(job: Job, folder: Path, minutes: float, only: str = "") -> None:
    """Let a run look as if its commands, or those that begin like this, had taken so long each."""
    steps = [step for step in job.steps(folder / job.name, SIZES["full"]) if step.key.startswith(only)]
    record = {"minutes": minutes, "commit": "abc1234", "date": "2026-01-01"}
    records.note_steps(folder / job.name, dict.fromkeys((step.key for step in steps), record))


def test_a_plan_tells_its_total_once_a_run_was_timed(tmp_path: Path) -> None:
    planned, size = jobs("hero_retail", "full"), SIZES["full"]
    unknown = plan(planned, tmp_path, size)
    assert time_left(unknown) == "" and "not known before the first run" in total(unknown)
    done(planned[0], tmp_path, 6)  # the base agent, which has no training
    assert total(plan(planned, tmp_path, size)) == "At least 12 minutes left; of 6 runs it is not known yet."
    for job, minutes in zip(planned[:2], (6, 5), strict=True):
        done(job, tmp_path, minutes)
    assert plan(planned, tmp_path, size)["minutes"].tolist() == [6, 10, 10] * 3  # an arm takes as long as another
    done(planned[2], tmp_path, 6)
    done(planned[4], tmp_path, 7, only="train")  # its evaluation is left
    known = plan(planned, tmp_path, size)
    assert known["minutes"].tolist() == [6, 10, 12, 6, 12, 12, 6, 12, 12]
    assert known["left"].tolist() == [0, 0, 0, 6, 5, 12, 6, 12, 12]
    assert total(known) == "About 88 minutes in all, 53 left." and time_left(known) == " (about 53 minutes left)"
    for job in planned:
        done(job, tmp_path, 1)
    assert time_left(plan(planned, tmp_path, size)) == ""


@pytest.mark.parametrize("preset", SIZES)
def test_every_arm_has_the_same_budget_and_nothing_else_ends_it(preset: str, tmp_path: Path) -> None:
    for name in STUDIES:
        for job in jobs(name, preset):
            for arguments in [s.arguments for s in job.steps(tmp_path, SIZES[preset]) if s.arguments[0] == "train"]:
                option = dict(zip(arguments[1::2], arguments[2::2], strict=True))
                budget, tasks = SIZES[preset].budget, int(option["--tasks"])
                assert int(option["--budget"]) == budget
                assert int(option["--updates"]) * tasks * int(option.get("--group", 1)) >= budget


def test_the_settings_of_a_run_come_before_those_of_the_preset(tmp_path: Path) -> None:
    (train, _) = Job("hero", 0, (("budget", 50), ("updates", 2))).steps(tmp_path, SIZES["full"])
    assert "--budget 50 --tasks 16 --updates 2" in train.key


def test_the_grid_is_the_same_for_every_arm() -> None:
    planned = jobs("grid_retail", "full")
    rates = {}
    for job in planned[1:]:
        rates.setdefault(job.arm, []).append(dict(job.settings).get("lr", TrainConfig.lr))
    assert rates.pop("grpo") == [2.5e-4, 5e-4, 1e-3, 2e-3], "one beyond the edge at which it was best"
    assert rates == dict.fromkeys(("hero", "env_feedback", "full_demo"), [2.5e-4, 5e-4, 1e-3])
    assert planned[0].arm == "base" and {job.split for job in planned} == {"validation"}


def test_an_agent_of_the_main_comparison_is_evaluated_as_often_in_every_study_of_retail(tmp_path: Path) -> None:
    main = {(job.arm, job.settings) for job in jobs("retail", "full")}
    for name in ("hero_retail", "retail", "ablations_retail", "groups_retail"):
        for job in jobs(name, "full"):
            assert job.k == (4 if (job.arm, job.settings) in main else 1), (name, job)
            *_, step = (step for step in job.steps(tmp_path, SIZES["full"]) if step.arguments[0] == "eval")
            assert ("--k 4" in step.key) == (job.k == 4) == step.file.stem.endswith("-k4")
    assert {job.k for name in ("worlds", "grid_retail", "no_demos", "no_hints") for job in jobs(name, "full")} == {1}
    assert {job.k for job in jobs("retail", "smoke")} == {1}


def test_studies_share_their_runs(processes: Processes, tmp_path: Path) -> None:
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    study("retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    trained = [a[2] for a in processes.started if a[0] == "train"]
    assert trained == ["hero", "shuffled_hero", "env_feedback", "full_demo", "grpo"]
    found = pd.read_csv(tmp_path / "data/retail_ability.csv", keep_default_na=False)
    assert set(found["arm"]) == {"base", "hero", "full_demo"} and set(found["item"]) == {"a", "b"}
    study("no_demos", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    grown = pd.read_csv(tmp_path / "data/no_demos_growth.csv", keep_default_na=False)
    assert set(grown["arm"]) == {"full_demo"} and set(grown["update"]) == {0, 1}


def test_finished_runs_are_skipped(processes: Processes, tmp_path: Path) -> None:
    for _ in range(2):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    assert len(processes.started) == 5  # base: eval; hero and shuffled_hero: train and eval


@pytest.fixture
def other_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ADAPTERS", tmp_path / "adapters")
    (tmp_path / "adapters/warmup").mkdir(parents=True)
    (tmp_path / "adapters/warmup/adapter_model.safetensors").write_bytes(b"")


def test_what_another_warm_up_made_does_not_count(
    processes: Processes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    study("hero_retail", "smoke", runs=runs, data=data)
    request.getfixturevalue("other_adapter")
    with pytest.raises(HeroError, match=r"hero_retail.csv is of other runs \(adapter was '\w{8}', is 'e3b0c442'\)"):
        study("hero_retail", "smoke", runs=runs, data=data)
    study("retail", "smoke", runs=runs, data=data)  # in which all runs of the other are
    assert len([a for a in processes.started if a[0] == "train"]) == 2 + 5


def test_what_other_settings_made_does_not_count(processes: Processes, tmp_path: Path, monkeypatch) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    study("hero_retail", "smoke", runs=runs, data=data)
    made = json.loads((data / "hero_retail.json").read_text())["settings"]
    monkeypatch.setattr("hero_mini.study.common_settings", lambda *_: {**made, "later": 1})
    study("hero_retail", "smoke", runs=runs, data=data)  # what came later had its default
    assert len(processes.started) == 5
    monkeypatch.setattr("hero_mini.study.common_settings", lambda *_: {**made, "lr": 1.0})
    with pytest.raises(
        HeroError, match=r"holds runs with other settings \(lr was 0.0005, is 1.0\); choose another --runs"
    ):
        study("hero_retail", "smoke", runs=runs, data=data)
    with pytest.raises(HeroError, match=r"hero_retail.csv is of other runs \(lr was 0.0005, is 1.0\); move"):
        study("hero_retail", "smoke", runs=tmp_path / "other", data=data)
    study("retail", "smoke", runs=tmp_path / "other", data=data)
    assert len([a for a in processes.started if a[0] == "train"]) == 2 + 5


@pytest.mark.parametrize("twin", ["{}", '{"commit": "old", "runs": {"base-retail-1": {"eval": 0.5}}}', None])
def test_a_table_of_unknown_origin_is_not_overwritten(processes: Processes, tmp_path: Path, twin: str | None) -> None:
    (tmp_path / "hero_retail.csv").write_text("run,arm\n")
    if twin:
        (tmp_path / "hero_retail.json").write_text(twin)
    with pytest.raises(HeroError, match="hero_retail.csv is of other runs .their settings were not kept"):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path)
    assert not processes.started


def test_a_table_loses_no_run_that_is_planned_no_more(processes: Processes, tmp_path: Path, monkeypatch) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    study("hero_retail", "smoke", runs=runs, data=data)
    made = (data / "hero_retail.csv").read_text()
    fewer = jobs("hero_retail", "smoke")[:-1]
    monkeypatch.setattr("hero_mini.study.jobs", lambda *_: fewer)
    with pytest.raises(HeroError, match="has runs that the study plans no more.*shuffled_hero-retail-1"):
        study("hero_retail", "smoke", runs=runs, data=data)
    assert (data / "hero_retail.csv").read_text() == made


def test_runs_keep_the_commit_that_made_them(processes: Processes, tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    study("hero_retail", "smoke", runs=runs, data=data)
    shutil.rmtree(runs)
    processes.commit = "def5678"
    study("hero_retail", "smoke", runs=runs, data=data)
    assert json.loads((data / "hero_retail.json").read_text())["commit"] == "abc1234"
    study("retail", "smoke", runs=runs, data=data)
    kept = json.loads((data / "retail.json").read_text())
    assert {record["commit"] for record in kept["runs"]["shuffled_hero-retail-1"].values()} == {"abc1234"}
    assert {record["commit"] for record in kept["runs"]["env_feedback-retail-1"].values()} == {"def5678"}
    assert set(kept["commit"].split(", ")) == {"abc1234", "def5678"}


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


@pytest.mark.parametrize("lost", ["eval-retail-test.csv", "metrics.csv"])
def test_a_step_whose_file_is_lost_costs_no_other(processes: Processes, tmp_path: Path, lost: str) -> None:
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    (own,) = (tmp_path / "runs").glob("smoke-*/hero-retail-1")
    before = (tmp_path / "data" / "hero_retail.csv").read_text()
    (own / lost).unlink()
    with pytest.raises(HeroError, match=f"{lost} is no table.*take its command, .* out of .*steps.json") as told:
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    steps = json.loads((own / "steps.json").read_text())
    (again,) = (key for key in steps if repr(key) in str(told.value))
    (own / "steps.json").write_text(json.dumps({key: record for key, record in steps.items() if key != again}))
    processes.started.clear()
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    assert not processes.started, "its rows are in the study's table"
    assert (tmp_path / "data" / "hero_retail.csv").read_text() == before


def test_curves_that_lack_updates_are_refused(processes: Processes, tmp_path: Path) -> None:
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    (own,) = (tmp_path / "runs").glob("smoke-*/hero-retail-1")
    for update in range(4):
        (own / "updates" / str(update + 1)).mkdir(parents=True)
    with pytest.raises(HeroError, match="metrics.csv was cut off, with 3 updates; take its command"):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")


@pytest.mark.parametrize("column", ["run", "env", "seed"])
def test_a_table_without_a_column_is_refused(processes: Processes, tmp_path: Path, column: str) -> None:
    study("hero_retail", "smoke", runs=tmp_path / "lost", data=tmp_path / "data")
    table = tmp_path / "data" / "hero_retail.csv"
    table.write_text(table.read_text().replace(column, f"{column}x", 1))
    with pytest.raises(HeroError, match=f"hero_retail.csv has no column {column};"):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")


def test_tables_of_two_studies_make_one_run_whole(processes: Processes, tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    for name in ("hero_retail", "worlds"):  # HERO on retail is in both, with more tests in the second
        study(name, "smoke", runs=runs, data=data, model="worlds")
    shutil.rmtree(runs)
    processes.started.clear()
    study("worlds", "smoke", runs=runs, data=data)
    assert not processes.started, "its own model is worlds"
    for twin in ("worlds.csv", "worlds.json"):
        (data / twin).unlink()
    shutil.rmtree(runs)
    study("worlds", "smoke", runs=runs, data=data)  # the agent trained on retail is gone, and wanted on other worlds
    again = [a[a.index("--env") + 1] for a in processes.started if a[0] == "train" and "hero" in a]
    assert again == ["webshop", "retail", "airline"]
    rows = pd.read_csv(data / "worlds.csv")
    tests = rows.groupby(["arm", "trained_on"])["env"].agg(lambda env: " ".join(sorted(set(env))))
    every = "airline retail webshop"
    heroes = {("hero", "retail"): every, ("hero", "airline"): "airline", ("hero", "webshop"): "webshop"}
    as_paper = {"retail": "airline", "webshop": "webshop"}  # where an agent that was trained on the first is tested
    others = {(arm, own): there for arm in ("env_feedback", "full_demo", "grpo") for own, there in as_paper.items()}
    assert tests.to_dict() == {("base", "retail"): every} | heroes | others


def test_runs_that_other_commands_made_are_not_overwritten(processes: Processes, tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    study("hero_retail", "smoke", runs=runs, data=data)
    shutil.rmtree(runs)
    file = data / "hero_retail.json"
    file.write_text(file.read_text().replace("--n 4", "--n 5"))  # as if a study had changed since
    kept = (data / "hero_retail.csv").read_text()
    with pytest.raises(HeroError, match="plans no more, or by other commands .*; move this study's tables away"):
        study("hero_retail", "smoke", runs=runs, data=data)
    assert (data / "hero_retail.csv").read_text() == kept


@pytest.mark.parametrize("lost", ["rows", "table"])
def test_a_table_that_lacks_rows_is_refused_and_no_run_is_lost(processes, tmp_path: Path, lost: str) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    study("hero_retail", "smoke", runs=runs, data=data)
    shutil.rmtree(runs)
    file = data / "hero_retail_curves.csv"
    curves, kept = pd.read_csv(file), (data / "hero_retail.csv").read_text()
    file.unlink() if lost == "table" else curves[curves["arm"] != "hero"].to_csv(file, index=False)
    processes.started.clear()
    why = {
        "rows": "hero_retail_curves.csv was cut off, with 3 of 6 rows; restore it",
        "table": r"hero_retail.csv names runs without all of their rows \(hero-retail-1, shuffled_hero-retail-1\)",
    }
    with pytest.raises(HeroError, match=why[lost]):
        study("hero_retail", "smoke", runs=runs, data=data)
    assert not processes.started and (data / "hero_retail.csv").read_text() == kept


def test_a_failed_run_is_named_and_tried_again(processes: Processes, tmp_path: Path, capsys) -> None:
    processes.fail_on = "train --arm shuffled_hero"
    options = ["--preset", "smoke", "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    assert main(["study", "hero_retail", *options]) == 1
    assert "1 runs did not finish (shuffled_hero-retail-1)" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "data/hero_retail.csv")["arm"]) == {"base", "hero"}
    problem = {"shuffled_hero-retail-1": "failed: train ended with status 1"}
    assert failed(tmp_path / "data/hero_retail.csv") == problem
    processes.kill_at = len(processes.started) + 1
    with pytest.raises(Killed):
        main(["study", "hero_retail", *options])
    assert failed(tmp_path / "data/hero_retail.csv") == problem  # still
    processes.fail_on = None
    assert main(["study", "hero_retail", *options]) == 0
    assert [a[2] for a in processes.started if a[0] == "train"] == ["hero", *["shuffled_hero"] * 3]
    assert failed(tmp_path / "data/hero_retail.csv") == {}


def test_what_failed_is_named_without_any_finished_run(processes: Processes, tmp_path: Path) -> None:
    processes.fail_on = "retail"
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data")
    assert len(failed(tmp_path / "data/hero_retail.csv")) == 3 and not (tmp_path / "data/hero_retail.csv").exists()
    assert failed(tmp_path / "data/none.csv") == {}


def test_only_the_full_preset_of_the_embedded_model_writes_results(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for options in (["--preset", "smoke"], ["--model", "some/model"], ["--preset", "quick", "--data", "mine"]):
        assert main(["study", "hero_retail", *options]) == 0
    found = sorted(str(file.parent.relative_to(tmp_path)) for file in tmp_path.rglob("hero_retail.csv"))
    assert found == ["mine", "runs/studies/data-full", "runs/studies/data-smoke"]
    assert main(["study", "hero_retail"]) == 1  # this is no clone
    (tmp_path / "figures/data").mkdir(parents=True)
    assert main(["study", "hero_retail"]) == 0
    assert (tmp_path / "figures/data/hero_retail.csv").exists()


def test_another_model_has_runs_of_its_own(processes: Processes, tmp_path: Path) -> None:
    for model in ("default", "some/model", "other/model"):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / model, model=model)
    models = [a[2] if a[1] == "--model" else "" for a in processes.started]
    assert models == [""] * 5 + ["some/model"] * 5 + ["other/model"] * 5
    with pytest.raises(HeroError, match="model was 'some/model', is 'other/model'"):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "some/model", model="other/model")
    with pytest.raises(HeroError, match="is not a model, it does not exist"):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path, model=str(tmp_path / "tinny"))
    assert len(processes.started) == 15


def test_other_weights_in_a_models_folder_are_another_model(processes: Processes, tmp_path: Path) -> None:
    (model := tmp_path / "mine").mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"one")
    study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data", model=str(model))
    (model / "model.safetensors").write_bytes(b"two")
    with pytest.raises(HeroError, match=r"hero_retail.csv is of other runs \(adapter was 'mine-\w{8}', is 'mine-"):
        study("hero_retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data", model=str(model))


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


def test_two_studies_do_not_work_in_one_folder(processes: Processes, tmp_path: Path, other_adapter) -> None:
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
        for step in job.steps(tmp_path, SIZES["full"]):
            build_parser().parse_args(step.arguments)


SCRIPT = """
import sys
from hero_mini import studies
from hero_mini.cli import main

trained = studies.Job("oracle_hero", 0, (("max_turns", 2), ("max_action_tokens", 8)))  # three updates
studies.STUDIES["hero_retail"] = lambda size: [studies.Job("base", 0), trained]
sys.exit(main(sys.argv[1:]))
"""


def work(process: psutil.Process) -> float:
    """Seconds of processor time of a process and of all that it has started: what a busy machine does not stretch."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:4]) for one in family)  # own and of finished children, each user and system


@pytest.mark.real  # its processes load torch ten times, which takes a minute or two
@pytest.mark.skipif(sys.platform != "linux", reason="the time of finished children is counted on Linux alone")
def test_real_kills_change_nothing(folder: Path, tmp_path: Path) -> None:
    """Each SIGKILL hits the study and what it has started, at a moment of which nobody is warned."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(name: str, kill_after: float | None = None) -> tuple[int, float]:
        """Status and work of a study, which is killed after so much of it."""
        options = ["--preset", "smoke", "--model", str(folder), "--runs", str(tmp_path / name)]
        command = [sys.executable, str(tmp_path / "script.py"), "study", "hero_retail", *options]
        study, done = psutil.Popen(command, start_new_session=True), 0.0
        while study.poll() is None:
            with suppress(psutil.NoSuchProcess):  # a child that ends while it is counted
                done = work(study)
            if kill_after is not None and done > kill_after:
                os.killpg(study.pid, signal.SIGKILL)
                return study.wait(), done
            time.sleep(0.1)
        return study.returncode, done

    status, whole = start("whole")
    assert status == 0
    draw = random.Random(0)
    kills = [start("parts", kill_after=draw.uniform(0.1, 0.9) * whole)[0] for _ in range(3)]
    assert -signal.SIGKILL in kills and start("parts")[0] == 0
    for name, rows in (("hero_retail.csv", 4 + 4), ("hero_retail_curves.csv", 3)):
        one, two = (pd.read_csv(tmp_path / part / "data-smoke" / name) for part in ("whole", "parts"))
        assert len(one) == rows
        same = [column for column in one if not column.startswith("seconds_")]
        pd.testing.assert_frame_equal(one[same], two[same], check_exact=True)


@pytest.mark.real  # fourteen commands, each of which loads torch
def test_a_miniature_study_ends_in_claims_and_figures(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Every arm as in the study of the page, in processes of its own, on a tiny model."""
    done = study("retail", "smoke", runs=tmp_path / "runs", data=tmp_path / "data", model=str(folder))
    assert len(done) == 6 and set(done["status"]) == {"finished"}
    monkeypatch.setattr(claimed, "DATA", tmp_path / "data")
    claims = claimed.claims_table().set_index("claim_id")
    made = claims[claims["ours"] != ""]
    assert {"full_demo_below_base_retail", "hero_beats_grpo_tight_budget_retail", "no_forgetting"} < set(made.index)
    assert set(made["command"]) == {f"python -m hero_mini study retail --preset smoke --model {folder}"}
    rows = results.read_all(tmp_path / "data")
    effects = compare.effects(rows, [(arm, "base") for arm in ("hero", "full_demo", "grpo, G=4", "env_feedback")])
    assert len(effects) == 2 * 4
    assert figures.render(figures_paper.effects_figure(effects, {"success": "success", "turns": "turns"}))
    assert figures.render(figures_paper.seeds_figure(results.read_all(tmp_path / "data", "_curves")))
