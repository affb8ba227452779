"""Two processes on a tiny model: the numbers of one, and one set of files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hero_mini import parallel
from hero_mini.config import TrainConfig
from hero_mini.errors import HeroError
from hero_mini.models import Policy, load_policy
from hero_mini.train import train

RUN = """
import json, sys
from pathlib import Path
from hero_mini import parallel, run
from hero_mini.config import TrainConfig
from hero_mini.models import load_policy
from hero_mini.train import train
from hero_mini.errors import HeroError

def noted(function):
    def write(path, *content):
        with open(Path(sys.argv[2]).with_suffix(".log"), "a") as log:
            log.write(f"{parallel.state().process_index} {path.name}\\n")
        return function(path, *content)
    return write

run.atomic_write, run.atomic_save = noted(run.atomic_write), noted(run.atomic_save)
policy = load_policy(sys.argv[1], adapter=None, dtype="float32", device="cpu")
try:
    train(policy, TrainConfig(**json.loads(sys.argv[3])), sys.argv[2])
except HeroError as error:
    print(error)
"""
SMALL = {"tasks": 3, "max_turns": 2, "max_action_tokens": 8, "rank": 4, "lr": 5e-3}


def two(folder: Path, out: Path, **settings) -> str:
    """Train with two processes; what they print."""
    script = out.with_suffix(".py")
    script.write_text(RUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [str(script), str(folder), str(out), json.dumps(SMALL | settings)]
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tiny: Policy, tmp_path: Path) -> Path:
    tiny.model.save_pretrained(tmp_path / "tiny")
    tiny.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    "settings",
    [
        {"arm": "oracle_hero", "updates": 2, "steps": 2, "max_tokens": 1},  # one rollout in a step: a process is idle
        {"arm": "full_demo", "updates": 2, "steps": 1, "group": 2, "teacher": "ema", "max_tokens": 3000},
    ],
)
def test_two_processes_have_the_numbers_of_one(folder: Path, tmp_path: Path, settings: dict) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    policy = load_policy(folder, adapter=None, dtype="float32", device="cpu")
    train(policy, TrainConfig(**SMALL | settings), alone)
    two(folder, both, **settings)
    tables = []
    for out in (alone, both):
        table = pd.read_csv(out / "metrics.csv").drop(columns="tokens_acting")  # the system prompt, once per process
        tables.append(table[[c for c in table if not c.startswith("seconds_")]])
    assert (tables[0]["loss"] > 0).all() and (tables[0]["grad_norm"] > 0).all()
    pd.testing.assert_frame_equal(*tables, rtol=1e-3, atol=1e-6)
    one, other = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (alone, both))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-2, atol=1e-4)
    written = both.with_suffix(".log").read_text().splitlines()
    assert len(written) == 1 + 2 * settings["updates"] and all(line.startswith("0 ") for line in written)

    train(policy, TrainConfig(**SMALL | settings), both)  # one process goes on where two have been


def test_more_processes_than_tasks(folder: Path, tmp_path: Path) -> None:
    said = two(folder, tmp_path / "run", tasks=1)
    assert said.count("2 processes cannot share 1 tasks per update; start fewer of them") == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_are_a_partition_in_order(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    parts = []
    for index in range(processes):
        here = type("State", (), {"process_index": index, "num_processes": processes})
        monkeypatch.setattr(parallel, "state", lambda here=here: here)
        parts.append(parallel.share(range(7)))
    assert [i for part in parts for i in part] == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_changes_nothing() -> None:
    tensor = torch.tensor([1.0, 2.0])
    parallel.add_up([tensor])
    assert tensor.tolist() == [1.0, 2.0] and parallel.first()
    assert parallel.gather([3, 4]) == [3, 4] and parallel.totals({"a": 2}) == {"a": 2}


def test_the_error_is_raised_in_one_process_too(tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hero_mini.run.state", lambda: type("State", (), {"num_processes": 9}))
    with pytest.raises(HeroError, match="9 processes cannot share 3 tasks"):
        train(tiny, TrainConfig(**SMALL), tmp_path)
