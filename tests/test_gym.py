"""The mini worlds in Gymnasium: its checker, its spaces, which task a seed plays, and errors."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import warnings

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from worlds import HOSTILE, episode, expert, tasks

from hero_mini import gym
from hero_mini.envs import SPLITS
from hero_mini.errors import HeroError

every_world = pytest.mark.parametrize("title", gym.WORLDS)


def made(title: str, **settings) -> gymnasium.Env:
    return gymnasium.make(f"hero_mini/{title}-v0", **settings)


@every_world
def test_gymnasiums_checker_has_nothing_to_say(title: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(made(title).unwrapped)


@every_world
def test_the_same_episode_as_without_gymnasium(title: str) -> None:
    for task in tasks(gym.WORLDS[title], 5, "test"):
        opener, steps, _ = episode(task, expert)
        env = made(title, split="test")
        facts = {"task": task.id, "split": "test", "family": task.family}
        system_prompt = env.unwrapped.world.system_prompt
        assert env.reset(seed=task.index) == (
            opener,
            {"role": "user", "turn": 0, **facts, "system_prompt": system_prompt},
        )
        for action, observation, reward, terminated, info in steps:
            assert action in env.action_space
            assert env.step(action) == (observation, reward, terminated, False, info | facts)


def test_any_seed_of_gymnasium_is_a_task() -> None:
    _, info = made("Retail", split="test").reset(seed=2**31 - 1)
    assert info["task"] == f"retail/test/{2**31 - 1}"


@every_world
@pytest.mark.parametrize("split", SPLITS)
def test_every_text_of_the_worlds_lies_in_its_space(title: str, split: str) -> None:
    """The worlds' own texts pass unchanged."""
    space = made(title).observation_space
    for task in tasks(gym.WORLDS[title], 60, split):
        draw = random.Random(task.index)
        opener, steps, _ = episode(task, lambda env, draw=draw: str(env.scripted(draw, 0.5)))
        assert all(text in space for text in (opener, *(observation for _, observation, *_ in steps)))


@every_world
def test_hostile_text_is_answered_within_the_space(title: str) -> None:
    env = made(title, max_turns=len(HOSTILE) + 1)
    env.reset(seed=0)
    for text in HOSTILE:
        observation, *_ = env.step(text)
        assert observation in env.observation_space


@every_world
def test_seeds_and_options_pick_the_task(title: str) -> None:
    name, env = gym.WORLDS[title], made(title)
    assert env.reset(seed=3)[1]["task"] == f"{name}/train/3"
    drawn = [env.reset()[1]["task"] for _ in range(5)]
    assert len(set(drawn)) == 5
    env.reset(seed=3)
    assert [env.reset()[1]["task"] for _ in range(5)] == drawn
    task = tasks(name, 3, "validation")[2]
    for options in ({"task": task}, {"task": task.id}):
        assert env.reset(options=options) == env.reset(seed=9, options=options)
        assert env.reset(options=options)[1]["split"] == "validation"


def test_several_at_once() -> None:
    several = gymnasium.make_vec("hero_mini/WebShop-v0", num_envs=3, vectorization_mode="sync")
    observations, info = several.reset(seed=5)
    assert list(info["task"]) == ["webshop/train/5", "webshop/train/6", "webshop/train/7"]
    assert [text.splitlines()[0] for text in observations] == [t.instruction for t in tasks("webshop", 8)[5:]]


def test_the_module_in_the_name_registers_it() -> None:
    code = "import gymnasium; print(gymnasium.make('hero_mini.gym:hero_mini/Airline-v0').reset(seed=1)[1]['task'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "airline/train/1\n", run.stderr


def test_errors_name_the_remedy() -> None:
    env = made("Retail")
    for call, near in {
        lambda: made("Retail", split="trian"): "did you mean 'train'",
        lambda: made("Retail", max_turns=0): "at least 1",
        lambda: gym.TextWorld("retial"): "did you mean 'retail'",
        lambda: gym.TextWorld("tau2-retail"): "unknown mini world",
        lambda: env.reset(options={"tsak": "retail/test/0"}): "did you mean 'task'",
        lambda: env.reset(options={"task": "retail/tset/0"}): "did you mean 'test'",
        lambda: gym.TextWorld("retail").step("hi"): "call reset first",
        lambda: (env.reset(), env.step(3)): "an action is a text",
    }.items():
        with pytest.raises(HeroError, match=near):
            call()
    with pytest.raises(gymnasium.error.NameNotFound, match="Did you mean: `Retail`"):
        made("Retial")


def test_without_gymnasium_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "hero_mini.gym")
    with pytest.raises(HeroError, match=r"pip install 'hero_mini\[gym\]'"):
        importlib.import_module("hero_mini.gym")
