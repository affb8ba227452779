"""The warm-up's examples: what they teach, that targets obey the text, and that nothing in them favours the expert."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hero_mini.warmup
from hero_mini import envs
from hero_mini.envs import Env
from hero_mini.envs.base import task_id
from hero_mini.errors import HeroError
from hero_mini.files import alone
from hero_mini.models import Policy
from hero_mini.reflect import oracle
from hero_mini.tree import logprobs
from hero_mini.warmup import (
    Episode,
    Example,
    WarmupConfig,
    demo_example,
    episode_example,
    examples,
    literal_example,
    own_episodes,
    scripted_episode,
    warm_up,
    weighted_nll,
)

CONFIG = WarmupConfig()
LOCAL = ("diagnosis_only", "env_feedback", "hero")
TINY = WarmupConfig(episodes=8, batch=2, rank=4, max_turns=2, demo_every=4, lr=0.01)


class Letters:
    """Stands in for the policy where only the text matters."""

    eos_id, newline = 0, [1]

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def header(self) -> list[int]:
        return [2]

    def message(self, role: str, text: str) -> list[int]:
        return [3, *self.encode(text)]


@dataclass(frozen=True)
class Drawn:
    """One literal example: the state it is about, its words, what it teaches."""

    context: str
    state: Env
    text: str
    target: str
    kind: str  # what its words ask for


@cache
def drawn() -> list[Drawn]:
    """An example of every local context on every turn of many episodes."""
    found = []
    for task in envs.make("retail").tasks("train", 120):
        draw = random.Random(task.index)
        episode = scripted_episode(Letters(), task, draw, CONFIG)
        for t, state in enumerate(episode.states):
            for context in LOCAL:
                example = literal_example(context, episode, t, draw, CONFIG)
                if example is not None:
                    text, target = example
                    found.append(Drawn(context, state, text, str(target), kind(text)))
    return found


def kind(text: str) -> str:
    if "Diagnosis of your next action: " in text:
        hint = text.split("Diagnosis of your next action: ")[1]
        return "necessary" if hint == "necessary" else "corrected" if ". Better: " in hint else "blamed"
    return "success" if text.endswith("Outcome: success.") else "failure"


def of(**wanted: str) -> Iterator[Drawn]:
    return (d for d in drawn() if all(getattr(d, name) == value for name, value in wanted.items()))


def answer_in(text: str) -> str:
    return re.match(r"Answer to your next action: (.*)\nOutcome: ", text, re.DOTALL)[1]


def answer_to(state: Env, action: str) -> str:
    return state.clone().step(action)[0]


def verdict_of(state: Env, action: str) -> str:
    told = state.clone().step(action)[4]["oracle"]
    return f"{told['verdict']}, {told['cause']}"


def is_error(answer: str) -> bool:
    return answer.startswith(("Error: ", "Unknown action "))


# --- scripted episodes -----------------------------------------------------------------------------------------------
def test_scripted_episodes_have_bad_habits_and_some_success() -> None:
    """Skill decides: always the expert, or a base agent with room to improve."""
    tasks = envs.make("retail").tasks("train", 60)

    def share(skill: float) -> float:
        config = replace(CONFIG, skill=skill)
        return sum(scripted_episode(Letters(), t, random.Random(t.index), config).rollout.success for t in tasks) / 60

    assert share(1.0) == 1.0 and share(0.0) < 0.1
    assert 0.2 < share(CONFIG.skill) < 0.7


def test_a_scripted_episode_is_a_rollout_with_its_states() -> None:
    task = envs.make("retail").tasks("train", 1)[0]
    episode = scripted_episode(Letters(), task, random.Random(0), CONFIG)
    assert episode.rollout == scripted_episode(Letters(), task, random.Random(0), CONFIG).rollout
    assert len(episode.states) == len(episode.rollout.turns)
    for number, (state, turn) in enumerate(zip(episode.states, episode.rollout.turns, strict=True)):
        assert state.turn == number
        assert answer_to(state, turn.action) == turn.next_observation
        assert turn.token_ids == (*Letters().encode(turn.action), Letters.eos_id)
    after = episode.rollout.turns[1:]
    assert [t.observation for t in after] == [t.next_observation for t in episode.rollout.turns[:-1]]


# --- the words are obeyed --------------------------------------------------------------------------------------------
def test_every_kind_of_context_occurs() -> None:
    counts = Counter((d.context, d.kind) for d in drawn())
    assert set(counts) == {
        *((c, k) for c in ("hero", "diagnosis_only") for k in ("necessary", "corrected", "blamed")),
        *(("env_feedback", k) for k in ("success", "failure")),
    }
    assert min(counts.values()) > 30
    per_context = Counter(d.context for d in drawn())
    assert max(per_context.values()) < 1.1 * min(per_context.values())  # equal shares


def test_a_correction_is_followed() -> None:
    for d in of(kind="corrected"):
        assert d.text.split(". Better: ", 1)[1] == d.target


def test_what_is_called_right_gets_its_answer() -> None:
    for d in of(context="hero", kind="necessary"):
        assert answer_to(d.state, d.target) == answer_in(d.text)
    for d in of(context="env_feedback", kind="success"):
        assert answer_to(d.state, d.target) == answer_in(d.text)


def test_a_failure_after_an_error_is_not_repeated() -> None:
    errors = 0
    for d in of(context="env_feedback", kind="failure"):
        if is_error(answer_in(d.text)):
            errors += 1
            assert answer_to(d.state, d.target) != answer_in(d.text)
    assert errors > 20


def test_blame_without_a_correction_is_avoided() -> None:
    for d in of(kind="blamed"):
        blamed = d.text.split("Diagnosis of your next action: ")[1]
        assert verdict_of(d.state, d.target) != blamed


def test_words_do_not_depend_on_worth() -> None:
    """Outcome, "necessary" and corrections stand beside good and bad actions alike."""
    worth = defaultdict(Counter)
    for d in drawn():
        good = verdict_of(d.state, d.target).startswith("necessary")
        worth[d.kind][good] += 1
        if d.context != "diagnosis_only":
            worth["success" in d.text.split("Outcome: ")[1][:8]][good] += 1
    for name in ("necessary", "corrected", "success", "failure", True, False):
        assert min(worth[name][True], worth[name][False]) > 0.2 * worth[name].total(), (name, worth[name])


# --- nobody's side is taken ------------------------------------------------------------------------------------------
def is_expert(state: Env, action: str) -> bool:
    return action == str(state.expert())


def redraw(d: Drawn, draw: random.Random) -> str | None:
    """An action of the bad-habit policy under the same words, drawn by rejection; None if there is none."""
    other = str(d.state.scripted(draw, CONFIG.skill))  # a correction is better than some other action
    for _ in range(12):
        action = str(d.state.scripted(draw, CONFIG.skill))
        if d.kind == "corrected" and action == other:
            continue
        if d.kind == "failure" and is_error(answer_in(d.text)) and answer_to(d.state, action) == answer_in(d.text):
            continue
        return action
    return None


@pytest.mark.parametrize("context", LOCAL)
@pytest.mark.parametrize("which", ["necessary", "corrected", "success", "failure"])
def test_targets_are_the_expert_as_often_as_the_bad_habit_policy_is(context: str, which: str) -> None:
    """...under the same words, and no more often than without any words."""
    found = list(of(context=context, kind=which))
    if not found:
        return
    draw = random.Random(0)
    states = [(d, again) for d in found for _ in range(3) if (again := redraw(d, draw)) is not None]
    mine = sum(is_expert(d.state, d.target) for d in found) / len(found)
    base = sum(is_expert(d.state, again) for d, again in states) / len(states)
    noise = (0.25 / len(found) + 0.25 / len(states) * 3) ** 0.5
    assert abs(mine - base) < 3 * noise, (mine, base, noise)
    if which != "failure":  # an error in the words rules out a bad action
        plain = sum(is_expert(d.state, str(d.state.scripted(draw, CONFIG.skill))) for d in found) / len(found)
        assert mine < plain + 3 * (0.5 / len(found)) ** 0.5


# --- examples --------------------------------------------------------------------------------------------------------
def first_episode(policy: Policy | Letters, config: WarmupConfig = CONFIG) -> Episode:
    return scripted_episode(policy, envs.make("retail").tasks("warmup", 1)[0], random.Random(0), config)


def experts(episode: Episode) -> set[str]:
    return {str(state.expert()) for state in episode.states}


def test_an_episode_teaches_acting_reflecting_and_reading() -> None:
    episode = first_episode(Letters())
    (reflection,) = oracle([episode.rollout])
    plain = episode_example(Letters(), episode, random.Random(0), CONFIG, branches=False)
    scored = {n: node for n, node in enumerate(plain.tree.nodes) if node.scored}
    assert set(plain.weights) == set(scored)
    taught = [node.ids for node in scored.values()]
    turns = episode.rollout.turns
    assert taught[: len(turns)] == [turn.token_ids for turn in turns]
    hints = [(*Letters().encode(d.hint), Letters.eos_id) for d in reflection.diagnoses]
    assert taught[-len(turns) :] == hints
    weights = list(plain.weights.values())
    assert set(weights[-len(turns) :]) == {CONFIG.reflection_weight}
    assert sum(weights[: -len(turns)]) == pytest.approx(len(turns))
    share = sum(plain.weights[n] for n, node in scored.items() if "".join(map(chr, node.ids[:-1])) in experts(episode))
    assert share >= CONFIG.skill * len(turns)
    full = episode_example(Letters(), episode, random.Random(0), CONFIG, branches=True)
    assert 1 <= len(full.weights) - len(plain.weights) <= len(LOCAL)
    assert set(full.weights) == {n for n, node in enumerate(full.tree.nodes) if node.scored}
    assert all(node.ids[-1] == Letters.eos_id for node in full.tree.nodes if node.scored)


def test_a_demonstration_is_a_success_that_is_followed() -> None:
    found = 0
    for task in envs.make("retail").tasks("warmup", 12):
        example = demo_example(Letters(), task, random.Random(task.index), CONFIG)
        if example is None:
            continue
        found += 1
        text = "".join(map(chr, example.tree.nodes[1].ids))
        actions = ["".join(map(chr, node.ids[:-1])) for node in example.tree.nodes if node.scored]
        assert "A successful run of this task:" in text
        assert re.findall(r"^agent: (.*)$", text, re.MULTILINE) == actions
        env = envs.make("retail")
        env.reset(options={"task": task})
        assert [env.step(action)[1] for action in actions][-1] == 1.0
    assert found > 8


def test_examples_are_named_by_their_episode(tiny: Policy) -> None:
    """A step's trees do not depend on what was drawn before them, so a resumed run sees what it would have seen."""

    def ids(found: list[Example]) -> list:
        return [[node.ids for node in e.tree.nodes] for e in found]

    step = CONFIG.demo_every // CONFIG.batch
    late = ids(examples(tiny, step, CONFIG, {}))
    examples(tiny, 0, CONFIG, {})
    assert ids(examples(tiny, step, CONFIG, {})) == late != ids(examples(tiny, step, replace(CONFIG, seed=1), {}))
    assert len(late) == CONFIG.batch + 1  # its first episode has a demonstration beside it


def test_worlds_may_differ_in_skill(tiny: Policy) -> None:
    config = replace(CONFIG, envs=("retail", "webshop"), skills=(0.9, 0.2), demo_every=0)
    for at, example in enumerate(examples(tiny, 0, config, {})):
        world = envs.make(config.envs[at])
        world.reset(options={"task": world.task_named(task_id(world.name, "warmup", at, config.seed))})
        best = (*tiny.encode(str(world.expert())), tiny.eos_id)
        shares = [w for n, w in example.weights.items() if tuple(example.tree.nodes[n].ids) == best]
        assert config.skills[at] in shares, "of the first turn, before anything could go wrong"
    with pytest.raises(HeroError, match="1 skills for 2 envs"):
        replace(config, skills=(0.9,))


def test_the_loss_is_the_weighted_sum(tiny: Policy) -> None:
    batch = examples(tiny, 0, TINY, {})
    by_hand = sum(
        -weight * of_tree[node].sum().item()
        for e, of_tree in zip(batch, logprobs(tiny, [e.tree for e in batch]), strict=True)
        for node, weight in e.weights.items()
    )
    assert weighted_nll(tiny, batch).item() == pytest.approx(by_hand, rel=1e-4)


def test_in_its_own_episodes_the_model_is_taught_what_it_should_have_done(tiny: Policy) -> None:
    config = replace(CONFIG, envs=("retail", "webshop"), max_turns=3, demo_every=13, branch_every=1)
    own = own_episodes(tiny, [1, 4, 6], config)
    assert [episode.rollout.env for _, episode in sorted(own.items())] == ["webshop", "retail", "retail"]
    for index, episode in own.items():
        rollout = episode.rollout
        assert rollout.task_id.split("/")[1] == "warmup" and episode.own
        for state, turn in zip(episode.states, rollout.turns, strict=True):
            assert answer_to(state, turn.action) == turn.next_observation
        example = episode_example(tiny, episode, random.Random(0), config, branches=False)
        taught = [example.tree.nodes[n].ids for n in example.weights]
        best = [(*tiny.encode(str(state.expert())), tiny.eos_id) for state in episode.states]
        assert [tuple(ids) for ids in taught[: 2 * len(best) : 2]] == best, "and a habit after each"
        assert not {turn.token_ids for turn in rollout.turns} & set(map(tuple, taught)), "what it did is not taught"
        used = examples(tiny, index // config.batch, config, own)[index % config.batch]
        assert rollout.turns[0].token_ids in {tuple(node.ids) for node in used.tree.nodes}
    again = own_episodes(tiny, [4], config)[4].rollout
    assert [t.action for t in again.turns] == [t.action for t in own[4].rollout.turns], "whatever is sampled beside it"


# --- the whole warm-up on a tiny model -------------------------------------------------------------------------------
@pytest.mark.parametrize("own_every", [0, 1])
def test_warm_up_teaches_and_a_kill_costs_nothing(tiny: Policy, tmp_path: Path, monkeypatch, own_every: int) -> None:
    config = replace(TINY, own_every=own_every)
    monkeypatch.setattr(hero_mini.warmup, "CHECKPOINT_EVERY", 1)
    losses = []
    whole_nll = weighted_nll

    def noted(policy, group):
        value = whole_nll(policy, group)
        losses.append(value.item())
        return value

    monkeypatch.setattr(hero_mini.warmup, "weighted_nll", noted)
    warm_up(tiny, tmp_path / "whole", config, progress=False)

    class Killed(BaseException):
        pass

    def dies(policy, step, settings, own):
        if step == 2:
            raise Killed
        return examples(policy, step, settings, own)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(hero_mini.warmup, "examples", dies)
        warm_up(tiny, tmp_path / "parts", config, progress=False)
    assert not (tmp_path / "parts").exists() and (tmp_path / "parts.checkpoint").exists()
    with pytest.raises(HeroError, match="other settings"):
        warm_up(tiny, tmp_path / "parts", replace(config, lr=0.5), progress=False)
    with alone(tmp_path / "parts.lock", ""), pytest.raises(HeroError, match="another warm-up is made in"):
        warm_up(tiny, tmp_path / "parts", config, progress=False)
    warm_up(tiny, tmp_path / "parts", config, progress=False)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in one.items())
    assert not list(tmp_path.glob("*.checkpoint"))
    assert len(losses) >= 8


def test_no_world_is_left_out_by_the_rhythm(tiny: Policy) -> None:
    three = ("retail", "airline", "webshop")
    with pytest.raises(HeroError, match="demo_every shares a divisor"):
        replace(TINY, envs=three, demo_every=12)
    replace(TINY, envs=three, demo_every=13)
    with pytest.raises(HeroError, match="did you mean 'airline'"):
        replace(TINY, envs=("airlne",))
    with pytest.raises(HeroError, match="episodes is 0; it has to be above 0"):
        replace(TINY, episodes=0)
    long = replace(TINY, max_turns=10)
    counts = [len(examples(tiny, 0, replace(long, demo_every=every), {})) for every in (0, 1)]
    assert counts == [TINY.batch, 2 * TINY.batch]
    told, plain = (examples(tiny, 0, replace(long, demo_every=0, branch_every=every), {}) for every in (1, 0))
    assert all(len(a.weights) > len(b.weights) for a, b in zip(told, plain, strict=True))


def test_a_warm_up_takes_the_place_of_nothing_else(tiny: Policy, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(HeroError, match="holds something else than an adapter"):
        warm_up(tiny, tmp_path, WarmupConfig(episodes=2))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained/adapter_config.json").write_text("{}")
    with pytest.raises(HeroError, match="adapter that is not of a warm-up with these settings"):
        warm_up(tiny, tmp_path / "trained", TINY)
    foreign = {"config": asdict(TINY), "step": 20, "optimizer": {"masters": {}, "adam": {}}}
    for saved in ([1], {"config": asdict(TINY)}, foreign):
        torch.save(saved, tmp_path / "v1.2.checkpoint")
        with pytest.raises(HeroError, match=r"v1.2.checkpoint is no checkpoint of this warm-up \(.*\); delete it"):
            warm_up(tiny, tmp_path / "v1.2", TINY, progress=False)
    torch.save(foreign | {"config": asdict(replace(TINY, rank=3))}, tmp_path / "v1.2.checkpoint")
    with pytest.raises(HeroError, match=r"v1.2.checkpoint belongs to a warm-up with other settings; delete it"):
        warm_up(tiny, tmp_path / "v1.2", TINY, progress=False)


def test_a_warm_up_goes_on_from_an_adapter(tiny: Policy, tmp_path: Path) -> None:
    warm_up(tiny, tmp_path / "first", TINY, progress=False)
    again = replace(TINY, start=str(tmp_path / "first"), lr=1e-12)
    warm_up(tiny, tmp_path / "second", again, progress=False)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(one[name], two[name]) for name in one) and {w.dtype for w in one.values()} == {
        torch.bfloat16
    }
    with pytest.raises(HeroError, match="check the folder and the rank"):
        warm_up(tiny, tmp_path / "third", replace(again, rank=2 * TINY.rank), progress=False)
    with pytest.raises(HeroError, match="nowhere"):
        warm_up(tiny, tmp_path / "third", replace(again, start=str(tmp_path / "nowhere")), progress=False)
