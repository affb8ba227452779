"""The benchmark compares like with like; its seconds are not tested."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hero_mini import bench, envs
from hero_mini.lora import add_student
from hero_mini.models import Policy
from hero_mini.reflect import oracle
from hero_mini.rollout import collect
from hero_mini.teacher import student_tree, teacher_tree
from hero_mini.tree import forward, layout, logprobs


def test_a_path_alone_scores_as_in_its_tree(tiny: Policy) -> None:
    (rollout,) = bench.scripted_rollouts(tiny, 1)
    tree, nodes = teacher_tree(tiny, rollout, "hero", oracle([rollout])[0].diagnoses)
    at_once = logprobs(tiny, [tree])[0]
    assert len(at_once) == len(rollout.turns)
    for node in nodes:
        (by_turn,) = logprobs(tiny, [bench.alone(tree, node)])[0].values()
        torch.testing.assert_close(by_turn, at_once[node], atol=1e-4, rtol=0)


def test_generate_speaks_the_very_tokens_of_the_rollouts(tiny: Policy) -> None:
    tasks = envs.make("retail").tasks("train", 3)
    rollouts = collect(tiny, "retail", tasks, seed=0, max_turns=2, max_action_tokens=12)
    for turn, rows in enumerate(bench.regenerate(tiny, rollouts)):
        live = [rollout for rollout in rollouts if turn < len(rollout.turns)]
        for row, rollout in zip(rows, live, strict=True):
            action = list(rollout.turns[turn].token_ids)
            assert row == action + [tiny.eos_id] * (len(row) - len(action))


def test_counted_operations_are_those_that_are_run(tiny: Policy) -> None:
    """torch's own count of the products; ours has the first layer's input gradients too, which nobody needs."""
    rollouts = bench.scripted_rollouts(tiny, 1)
    diagnoses = [reflection.diagnoses for reflection in oracle(rollouts)]
    student = add_student(tiny, rank=4, seed=0)
    products, _ = bench.update_operations(student, rollouts, diagnoses)

    taught, nodes = teacher_tree(student, rollouts[0], "hero", diagnoses[0])
    trained = student_tree(student, rollouts[0], [node is not None for node in nodes])
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad(), student.model.disable_adapter():
            forward(student, [taught])
        forward(student, [trained]).logprobs.sum().backward()
    of_kernels = counter.get_flop_counts()["Global"]
    run = sum(of_kernels[kernel] for kernel in of_kernels if str(kernel) in ("aten.mm", "aten.addmm"))
    assert 1.0 <= products / run < 1.1
    for tree in (taught, trained):
        _, _, mask = layout([tree], torch.float32)
        assert bench.seen_pairs(tree) == (mask == 0).sum()


def test_rows_hold_median_and_range() -> None:
    assert bench.Row.of("x", [3.0, 1.0, 2.0]) == bench.Row("x", 2.0, 1.0, 3.0)
    calls: list[str] = []
    bench.interleaved(lambda: calls.append("a"), lambda: calls.append("b"), pairs=2)
    assert calls == ["b", "a", "b", "a", "b"]


def test_the_table_is_written_whole(tiny: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "load_policy", lambda: tiny)
    monkeypatch.setattr(bench, "one_pass_teacher", lambda _, turns: bench.Row(f"one_pass_{turns}", 3, 2, 4))
    for name in ("cached_rollouts", "training_utilisation"):
        monkeypatch.setattr(bench, name, lambda *_, name=name: bench.Row(name, 3, 2, 4))
    rows = bench.main(tmp_path / "data" / "bench.csv", quick=True)
    with open(tmp_path / "data" / "bench.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["name", "ratio", "low", "high", "command"]
    assert [row["name"] for row in table] == [row.name for row in rows] and len(rows) == 6
    assert 0 < float(table[-1]["ratio"]) < 1  # memory
