"""The notebooks' helpers and figures: what is said is escaped, every picture speaks, nothing depends on a browser."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from hero_mini import envs, figures, nb, viewer
from hero_mini.config import SIZES
from hero_mini.errors import HeroError
from hero_mini.grading import turn_rows
from hero_mini.models import Policy
from hero_mini.reflect import Diagnosis, Reflection, oracle
from hero_mini.rollout import Rollout, Turn, save_rollouts
from hero_mini.warmup import WarmupConfig, scripted_episode

Shown = list[tuple[dict, dict]]
HOSTILE = "<script>alert(1)</script> & '\"><img src=x onerror=alert(2)> {braces} <|im_end|>"


def rollout_of(policy: Policy, *texts: str) -> Rollout:
    turns = tuple(
        Turn("user", HOSTILE, text, (*policy.encode(text), policy.eos_id), (-0.5,) * (len(policy.encode(text)) + 1),
             "tool", HOSTILE, {}) for text in texts
    )  # fmt: skip
    return Rollout("retail", f"retail/train/0{HOSTILE}", 0, "system", turns, 0.0, True, False)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What was displayed: (data, metadata) of every output."""
    outputs: Shown = []
    monkeypatch.setattr(nb, "display", lambda data, raw, metadata: outputs.append((data, metadata)))
    return outputs


@pytest.fixture
def scripted(tiny: Policy) -> list[Rollout]:
    tasks = envs.make("retail").tasks("warmup", 6)
    return [scripted_episode(tiny, task, random.Random(task.index), WarmupConfig()).rollout for task in tasks]


def test_unknown_preset_names_the_near_one() -> None:
    with pytest.raises(HeroError, match="did you mean 'quick'"):
        nb.sizes("qiuck")
    assert [nb.sizes(p).rollouts for p in SIZES] == sorted(nb.sizes(p).rollouts for p in SIZES)


@pytest.mark.parametrize("with_policy", [False, True])
def test_trajectory_escapes_everything(tiny: Policy, with_policy: bool) -> None:
    rollout = rollout_of(tiny, HOSTILE, "bye")
    reflection = Reflection((Diagnosis("failed", HOSTILE, HOSTILE), None), "")
    edges = [torch.full((len(t.token_ids),), sign) for t, sign in zip(rollout.turns, (2.0, -2.0), strict=True)]
    html = viewer.as_html(rollout, reflection, edges, tiny if with_policy else None)
    assert set(re.findall(r"</?(\w+)", html)) <= {"div", "p", "b", "i", "span", "br", "small"}
    assert re.findall(r" (\w+)=", re.sub(r"='[^']*'", "=", "".join(re.findall(r"<[^>]*>", html)))).count("onerror") == 0
    assert "failed" in html and "no diagnosis (empty hint)" in html
    assert "rgba(0,114,178" in html and "rgba(213,94,0" in html  # both directions are shaded, and by line style too
    assert "underline dotted" in html
    if with_policy:
        assert f"p = {np.exp(-0.5):.3f}, log" in html  # the probability on hover


def test_trajectory_has_a_plain_twin(scripted: list[Rollout], shown: Shown) -> None:
    (reflection,) = oracle(scripted[:1])
    nb.trajectory(scripted[0], reflection)
    data, _ = shown[0]
    assert set(data) == {"text/html", "text/plain"}
    for turn, diagnosis in zip(scripted[0].turns, reflection.diagnoses, strict=True):
        assert turn.action in data["text/plain"] and diagnosis.verdict in data["text/plain"]


def test_a_page_of_the_shop_keeps_its_lines(tiny: Policy, shown: Shown) -> None:
    task = envs.make("webshop").task_named("webshop/train/1")
    draw = random.Random(0)
    rollout = scripted_episode(tiny, task, draw, WarmupConfig(skill=0.6)).rollout
    nb.trajectory(rollout, oracle([rollout])[0])
    nb.shop_pages(task, rollout.actions)  # an agent's own episode, wasted turns and all
    (talk, _), (pages, _) = shown
    results = next(t.next_observation for t in rollout.turns if "Page 1" in t.next_observation).split("\n")
    assert "\n    ".join(results) in talk["text/plain"] and "white-space:pre-wrap" in talk["text/html"]
    assert "\n".join(results) in talk["text/html"].replace("&gt;", ">").replace("&lt;", "<")
    for number, turn in enumerate(rollout.turns, 1):
        assert f"\n{number} {turn.action} = {turn.info['oracle']['verdict']}" in pages["text/plain"]
    assert pages["text/html"].count("mini WebShop") == len(rollout.turns) + 1


def test_trajectory_refuses_what_does_not_fit(tiny: Policy) -> None:
    rollout = rollout_of(tiny, "a", "b")
    with pytest.raises(HeroError, match="reflection has 1 turns, the rollout 2"):
        nb.trajectory(rollout, Reflection((None,), ""))
    with pytest.raises(HeroError, match="edges has 1 turns"):
        nb.trajectory(rollout, None, [[0.0]])


def test_show_carries_alt_text_and_saves(tmp_path: Path, shown: Shown) -> None:
    nb.show(figures.pipeline_figure(), alt="five steps", name=tmp_path / "sub" / "pipeline")
    data, metadata = shown[0]
    assert metadata["image/png"]["alt"] == "five steps" and data["text/plain"] == "Figure: five steps"
    first = {p.name: p.read_bytes() for p in (tmp_path / "sub").iterdir()}
    assert set(first) == {"pipeline.png", "pipeline.svg"}
    figures.save(figures.pipeline_figure(), tmp_path / "sub" / "pipeline")
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "sub").iterdir()}, "the same figure, the same bytes"


def test_table_escapes_and_rounds(shown: Shown) -> None:
    nb.table(pd.DataFrame({"a": ["<b>", None], "x": [0.123456, float("nan")], "y": [2**-51, 8e-9]}), caption="1 < 2")
    data, _ = shown[0]
    assert "<b>" not in data["text/html"] and "1 &lt; 2" in data["text/html"] and "0.123<" in data["text/html"]
    assert ">0<" in data["text/html"] and ">8e-09<" in data["text/html"], "a rounding error is none, a small number is"
    assert data["text/plain"].startswith("1 < 2\n")


def test_no_line_breaks_inside_an_interval(shown: Shown) -> None:
    nb.table(pd.DataFrame({"ours": ["+0.05 [-0.02, 0.12]", "f([1, x], 2)"]}))
    html, plain = (shown[0][0][kind] for kind in ("text/html", "text/plain"))
    assert "+0.05 [-0.02,&nbsp;0.12]" in html and "f([1, x], 2)" in html and "[-0.02, 0.12]" in plain


def test_the_name_of_the_columns_takes_no_cell(shown: Shown) -> None:
    """A pivot's columns have one."""
    rows = pd.DataFrame({"who": ["a", "b"], "what": ["x", "x"], "value": [1, 2]})
    nb.table(rows.pivot(index="who", columns="what", values="value").reset_index())
    html = shown[0][0]["text/html"]
    assert "what" not in html and "text-align:left'>a<" in html and "text-align:right'>1<" in html


@pytest.mark.parametrize(
    "got, want, right",
    [(0.19274, 0.1927, True), ([1, 2], [1, 2], True), ([1, 2], [1, 2, 3], False), ("a", "a", True), (None, 1, False),
     (torch.tensor([0.5]), [0.5], True), (torch.tensor(0.5, requires_grad=True), 0.5, True),
     (torch.tensor([0.5]).bfloat16(), torch.tensor([0.5]), True), ({"a": 1}, {"a": 1}, True), (..., 3, False),
     (True, True, True),
     (Diagnosis("failed"), Diagnosis("failed"), True), ([1, [2]], [1, 2], False), (None, None, False)],
)  # fmt: skip
def test_check(capsys: pytest.CaptureFixture[str], got: object, want: object, right: bool) -> None:
    nb.check("exercise", got, want, "look again")
    assert capsys.readouterr().out == ("exercise: correct\n" if right else "exercise: not yet. look again\n")


def test_source_and_say(shown: Shown) -> None:
    nb.source(nb.sizes)
    nb.say("**0.5** nats")
    assert "def sizes(preset: str)" in shown[0][0]["text/plain"] and "sizes</span>" in shown[0][0]["text/html"]
    assert shown[1][0]["text/plain"] == "**0.5** nats"


def test_rollouts_are_sampled_once_per_weights(
    tiny: Policy, scripted: list[Rollout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, two = [], scripted[:2]
    monkeypatch.setattr(nb, "collect", lambda *_, **__: calls.append(1) or two)
    for _ in range(2):
        assert nb.rollouts(tiny, 2, env="retail", seed=0, out=tmp_path) == two
    assert len(calls) == 1
    save_rollouts(next(tmp_path.iterdir()), two[:1])
    with pytest.raises(HeroError, match="holds 1 of 2 rollouts; delete it"):
        nb.rollouts(tiny, 2, env="retail", seed=0, out=tmp_path)
    with torch.no_grad():
        next(tiny.model.parameters()).add_(1)
    nb.rollouts(tiny, 2, env="retail", seed=0, out=tmp_path)
    assert len(calls) == 2, "other weights, other rollouts"


def test_every_figure_draws(scripted: list[Rollout]) -> None:
    rows = [(a, s, u, 40 * u, 0.1 * u, 5 - u, 0.3) for a in ("hero", "shuffled") for s in (0, 1) for u in range(3)]
    metrics = pd.DataFrame(rows, columns=["arm", "seed", "update", "env_turns", "success", "turns", "loss"])
    edge = pd.DataFrame({"context": ["hero", "none"], "auc": [0.8, 0.5], "low": [0.7, 0.4], "high": [0.9, 0.6], "n": 9})
    agents = pd.DataFrame(
        {"agent": ["base", "expert"], "value": [0.3, 1.0], "low": [0.2, np.nan], "high": [0.4, np.nan]}
    )
    p = np.linspace(0.01, 0.99, 50)
    bench = pd.DataFrame({"name": ["one_pass_teacher_2_turns", "one_pass_teacher_8_turns", "model_flop_utilisation"]})
    bench = bench.assign(ratio=[1.4, 3.2, 0.6], low=[1.2, 3.0, 0.5], high=[1.5, 3.3, 0.7])
    drawn = [
        figures.edge_figure(edge),
        figures.learning_curves(metrics),
        figures.learning_curves(metrics[metrics["seed"] == 0], ["success"], x="update"),
        figures.success_bars(agents),
        figures.reflection_table_figure(turn_rows(scripted, oracle(scripted))),
        figures.credit_figure(["get", "$1", "\n"], {"hero": [0.1, -2.0, 0.0], "none": [0.0, 0.0, 0.0]}),
        figures.divergence_figure(pd.DataFrame({"student": p, "jsd": p**2, "forward_kl": p}), teacher=0.5, mark=0.8),
        figures.mask_figure(np.tri(6, dtype=bool), ["a", "b"], [0, 4]),
        figures.bench_figure(bench),
        figures.bench_figure(bench[2:]),
        figures.pipeline_figure(),
    ]
    for fig in drawn:
        assert len(figures.render(fig)) > 5000


def test_live_is_a_jupyter_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not nb.live()
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert nb.live()


def test_errors_show_their_sentence_only(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell()
    nb.short_errors(shell)
    result = shell.run_cell("from hero_mini import nb\nnb.sizes('qiuck')")
    assert isinstance(result.error_in_exec, HeroError)
    said = capsys.readouterr().out
    assert said.strip() == f"HeroError: {result.error_in_exec}"
