"""What can be played with in a running Jupyter: a rollout whose diagnoses are edited, a training that is stopped."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest

from hero_mini import envs, explore, live, nb
from hero_mini.cli import build_parser
from hero_mini.config import TrainConfig
from hero_mini.demos import expert_run
from hero_mini.explore import Credit, explorer
from hero_mini.live import LiveTraining
from hero_mini.models import Policy, load_policy
from hero_mini.reflect import Diagnosis, oracle
from hero_mini.seeds import rng
from hero_mini.warmup import WarmupConfig, scripted_episode


@pytest.fixture
def credit(tiny: Policy) -> Credit:
    task = envs.make("retail").task_named("retail/train/3")
    rollout = scripted_episode(tiny, task, rng(0, "test", "explore"), WarmupConfig(max_turns=5, skill=0.5)).rollout
    (reflection,) = oracle([rollout])
    return Credit(tiny, rollout, [None, *reflection.diagnoses[1:]])


def find(box, description: str):
    """The widget of this description."""
    for child in getattr(box, "children", ()):
        if getattr(child, "description", None) == description:
            return child
        if found := find(child, description):
            return found
    return None


def pictures(box) -> list[bytes]:
    """What every picture and text shows at the moment."""
    if hasattr(box, "children"):
        return [shown for child in box.children for shown in pictures(child)]
    return [box.value] if type(box).__name__ in ("Image", "HTML") else []


def test_an_edited_diagnosis_changes_its_teacher_and_no_other(credit: Credit) -> None:
    assert credit.edges["hero"][0] is None and set(credit.of_turn(0)) == {"full_demo", "env_feedback"}
    before = dict(credit.edges)
    credit.edit(0, Diagnosis("failed", "order not found"))
    assert credit.edges["hero"][0]
    for edge, old in zip(credit.edges["hero"][1:], before["hero"][1:], strict=True):
        assert edge == pytest.approx(old, abs=1e-4)
    assert all(credit.edges[name] == before[name] for name in ("full_demo", "env_feedback"))
    assert "failed, order not found" in credit.html("hero")


def test_a_perfect_rollout_has_no_demonstration_but_itself(tiny: Policy) -> None:
    rollout = expert_run(tiny, "retail", "retail/train/3")
    rollout = replace(rollout, turns=tuple(replace(t, logprobs=(-0.5,) * len(t.token_ids)) for t in rollout.turns))
    assert set(Credit(tiny, rollout, oracle([rollout])[0].diagnoses).of_turn(0)) == {"env_feedback", "hero"}


def test_the_fields_follow_the_turn_and_an_edit_redraws(credit: Credit) -> None:
    box = explorer(credit)
    turn, verdict, cause = (find(box, name) for name in ("turn", "verdict", "cause"))
    turn.value = 2
    assert verdict.value == credit.diagnoses[1].verdict
    second = pictures(box)
    turn.value = 1
    assert verdict.value == explore.NONE and pictures(box) != second
    assert credit.diagnoses[0] is None, "looking at a turn edits nothing"
    before = pictures(box)
    verdict.value = "invalid"
    cause.value = "no such tool"
    assert credit.diagnoses[0] == Diagnosis("invalid", "no such tool") and pictures(box) != before
    verdict.value = explore.NONE
    assert credit.diagnoses[0] is None
    find(box, "shading").value = "env_feedback"
    assert pictures(box)[0] != before[0]


def test_another_task_is_acted_and_reflected_on(credit: Credit) -> None:
    box = explorer(credit)
    find(box, "turn").value = find(box, "turn").max
    find(box, "task").value, find(box, "seed").value = "retail/train/1", 5
    find(box, "Act and reflect again").click()
    assert any("retail/train/1" in shown for shown in pictures(box) if isinstance(shown, str))


def test_the_picture_stands_still_without_a_kernel(credit: Credit, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(nb, "show", lambda figure, alt: shown.append(alt))
    explore.explore(credit.policy, credit.rollout, oracle([credit.rollout])[0])
    (alt,) = shown
    assert all(context in alt for context in explore.SHOWN)


# --- a training ------------------------------------------------------------------------------------------------------
def test_the_command_has_all_settings(tiny: Policy, tmp_path: Path) -> None:
    config = TrainConfig(arm="grpo", env="webshop", group=4, updates=2, tasks=3, lr=1e-4, gradient_checkpointing=True)
    command = LiveTraining(tiny, config, tmp_path, model="some/folder").command()
    options = build_parser().parse_args(command[3:])
    assert TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig)}) == config
    assert options.model == "some/folder" and options.out == tmp_path


STAND_IN = """
import sys, time
from pathlib import Path
for update in range({updates}):
    head = "update,success,turns,loss,env_turns\\n"
    rows = "".join(f"{{u}},0.5,7.0,0.1,{{u}}\\n" for u in range(update + 1))
    Path(r"{out}", "half").write_text(head + rows)
    Path(r"{out}", "half").replace(r"{out}/metrics.csv")
try:
    while {waits}: time.sleep(0.05)
except KeyboardInterrupt:
    sys.exit(130)
sys.exit({ends})
"""


def training(tiny: Policy, out: Path, monkeypatch, **how: object) -> LiveTraining:
    """A training whose process only pretends."""
    script = STAND_IN.format(out=out, **{"updates": 2, "waits": True, "ends": 0, **how})
    monkeypatch.setattr(LiveTraining, "command", lambda self: [sys.executable, "-c", script])
    monkeypatch.setattr(live, "EVERY", 0.05)
    monkeypatch.setattr(LiveTraining, "compare", lambda self: self.episodes.children + ("compared",))
    return LiveTraining(tiny, TrainConfig(updates=3), out)


def test_it_grows_and_can_be_stopped(tiny: Policy, tmp_path: Path, monkeypatch) -> None:
    made = training(tiny, tmp_path, monkeypatch)
    assert made.stop.disabled and not made.train.disabled
    watcher = made.begin()
    while "2 of 3" not in made.state.value:
        assert watcher.is_alive()
    assert made.curves.children and made.train.disabled and not made.stop.disabled
    made.stop.click()
    watcher.join(20)
    assert not watcher.is_alive() and made.process.returncode == 130
    assert not made.train.disabled and made.stop.disabled, "it can go on"


def test_an_end_closes_it_and_a_failure_is_told(tiny: Policy, tmp_path: Path, monkeypatch) -> None:
    made = training(tiny, tmp_path, monkeypatch, updates=3, waits=False)
    made.begin().join(20)
    assert made.train.disabled and made.state.value == "3 of 3 updates"
    made = training(tiny, tmp_path, monkeypatch, updates=0, waits=False, ends="'hero_mini: the <disk> is full'")
    made.begin().join(20)
    assert "the &lt;disk&gt; is full" in made.state.value
    made = training(tiny, tmp_path / "none", monkeypatch, updates=0, waits=False, ends=130)
    made.begin().join(20)
    assert made.state.value == "Stopped before the first update was done" and not made.train.disabled


def test_before_and_after(tiny: Policy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(live, "load_policy", lambda model, adapter: replace(tiny, name=f"{model}+{adapter.name}"))
    made = LiveTraining(tiny, TrainConfig(max_turns=2), tmp_path)
    made.compare()
    assert [box.value.split("</b>")[0] for box in made.episodes.children] == ["<b>before", "<b>after"]
    assert all("retail/test/0" in box.value for box in made.episodes.children)


def test_a_real_training_is_stopped_and_goes_on(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.05)
    out = tmp_path / "run"
    config = TrainConfig(arm="oracle_hero", updates=25, tasks=1, max_turns=2, max_action_tokens=8, rank=4)
    made = LiveTraining(load_policy(folder), config, out, model=str(folder))
    watcher = made.begin()
    while " of 25" not in made.state.value:
        assert watcher.is_alive(), made.state.value
    made.stop.click()
    watcher.join(60)
    done = len(pd.read_csv(out / "metrics.csv"))
    assert 0 < done < 25 and (out / "adapter" / "adapter_model.safetensors").exists()
    assert len(made.episodes.children) == 2 and not made.train.disabled
    made.begin().join(120)
    assert made.state.value == "25 of 25 updates" and made.train.disabled
    assert pd.read_csv(out / "metrics.csv")["update"].tolist() == list(range(25))
