"""A training run's folder is its own, and a command that a study has started does not outlive it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from hero_mini import parallel
from hero_mini.config import TrainConfig
from hero_mini.engines import call
from hero_mini.errors import HeroError
from hero_mini.models import Policy
from hero_mini.run import Run

SMALL = TrainConfig(arm="oracle_hero", tasks=2, rank=4)


def test_two_runs_do_not_train_in_one_folder(tiny: Policy, tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"), pytest.raises(HeroError, match="another process is training in .*; wait for it"):
        Run(tiny, SMALL, tmp_path).__enter__()
    assert not (tmp_path / "config.json").exists()
    with Run(tiny, SMALL, tmp_path), pytest.raises(HeroError, match="another process is training"):
        Run(tiny, SMALL, tmp_path).__enter__()


def test_what_is_no_run_is_not_overwritten(tiny: Policy, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/metrics.csv").write_text("years of work")
    for name, why in {
        "model": "something else than a run",
        "mine": "metrics.csv without a run's",
        "a+b": "has a +",
    }.items():
        with pytest.raises(HeroError, match=why):
            Run(tiny, SMALL, tmp_path / name).__enter__()
    assert (tmp_path / "model/config.json").read_text() == '{"model_type": "llama"}'
    assert (tmp_path / "mine/metrics.csv").read_text() == "years of work"


@pytest.mark.parametrize("saved", [{"config": {}, "step": 1}, [1], {"rows": [], "optimizer": {}}])
def test_a_checkpoint_of_something_else_is_one_sentence(tiny: Policy, tmp_path: Path, saved: object) -> None:
    with Run(tiny, SMALL, tmp_path):
        pass
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(HeroError, match="no checkpoint of this run .*; delete it with its folder"):
        Run(tiny, SMALL, tmp_path).__enter__()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_ends_badly_gives_its_folder_back(tiny: Policy, tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Run(tiny, SMALL, tmp_path):
        raise error
    with pytest.raises(HeroError, match="tasks was 2"):
        Run(tiny, replace(SMALL, tasks=3), tmp_path).__enter__()
    with Run(tiny, SMALL, tmp_path) as run:
        assert run.updates_done == 0


def test_a_process_that_does_not_write_takes_no_lock(
    tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(tiny, SMALL, tmp_path), monkeypatch.context() as patch:
        patch.setattr("hero_mini.run.first", lambda: False)
        other = Run(tiny, SMALL, tmp_path).__enter__()
        assert not other.lock.is_locked
        patch.setattr("hero_mini.run.gather", lambda own: [True, *own])  # the first process was refused
        with pytest.raises(HeroError, match="another process is training"):
            Run(tiny, SMALL, tmp_path).__enter__()
    assert parallel.first()


def test_what_a_kill_left_half_written_is_removed(tiny: Policy, tmp_path: Path) -> None:
    left = [".checkpoint.pt.a1", ".metrics.csv.b2", ".adapter-c3/new", "updates/.2-d4/old"]
    kept = ["updates/1", "eval.csv"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".config.json.e5").write_text("{")
    with Run(tiny, SMALL, tmp_path):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"lock", "config.json", "updates", *kept}


def test_an_adapter_can_be_read_by_all_who_may_read_its_folder(tiny: Policy, tmp_path: Path) -> None:
    with Run(tiny, SMALL, tmp_path):
        pass
    rights = {path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()}
    assert rights == {(tmp_path / "config.json").stat().st_mode & 0o777}


# --- commands of a study ---------------------------------------------------------------------------------------------
def test_a_command_s_status() -> None:
    assert [call([sys.executable, "-c", f"raise SystemExit({status})"]) for status in (0, 3)] == [0, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the lock has to do")
def test_a_command_dies_with_its_study(tmp_path: Path) -> None:
    told = str(tmp_path / "child")
    child = f"import os, pathlib, time; pathlib.Path({told!r}).write_text(str(os.getpid())); time.sleep(600)"
    parent = f"import sys; from hero_mini.engines import call; call([sys.executable, '-c', {child!r}])"
    study = subprocess.Popen([sys.executable, "-c", parent])
    pid = int(wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text()))
    study.send_signal(signal.SIGKILL)
    study.wait()
    wait_for(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # dead, and not yet collected


def wait_for(found: Callable[[], object], seconds: float = 120) -> object:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
