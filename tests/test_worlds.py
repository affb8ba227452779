"""What holds in every mini world: the expert, the floors, seeds, clones, judgements, spellings, hostile text, speed."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from statistics import mean, median

import pytest
from worlds import (
    HOSTILE,
    assert_harmless,
    bad_habits,
    episode,
    expert,
    random_admissible,
    started,
    state,
    tasks,
    world,
)

from hero_mini import cli, envs
from hero_mini.envs import SPLITS, Env, airline_tasks, parse_action, retail_tasks, webshop_catalogue
from hero_mini.envs.base import MAX_ACTION_CHARS, VERDICTS
from hero_mini.errors import HeroError
from hero_mini.evaluate import floors


@dataclass(frozen=True)
class World:
    """What is particular to a world."""

    families: tuple[str, ...]
    turns: tuple[float, float]  # the expert's mean number of turns lies between
    text: int  # characters of the longest observation
    prompt: int  # words of the system prompt


WORLDS = {
    "retail": World(tuple(retail_tasks.FAMILIES), (4, 6.5), 120, 120),
    "airline": World(tuple(airline_tasks.FAMILIES), (4, 6.5), 120, 120),
    "webshop": World(tuple(webshop_catalogue.FAMILIES), (5, 6), 200, 60),
}
every_world = pytest.mark.parametrize("name", WORLDS)


@every_world
@pytest.mark.parametrize("split", SPLITS)
def test_expert_solves_everything_without_a_wasted_turn(name: str, split: str) -> None:
    families, turns = set(), []
    for task in (*tasks(name, 60, split), *tasks(name, 40, split, 1)):
        _, steps, _ = episode(task, expert)
        assert steps[-1][2] == 1.0, task.id
        assert all(info["oracle"] == {"verdict": "necessary", "cause": "", "better": None} for *_, info in steps)
        families.add(task.family)
        turns.append(len(steps))
    low, high = WORLDS[name].turns
    assert families == set(WORLDS[name].families)
    assert max(turns) < 10 and low < mean(turns) < high


@every_world
def test_floors_are_low(name: str) -> None:
    found = floors(name, n_tasks=60).set_index("agent")["success"]
    assert found["do nothing"] == 0 and found["random admissible"] < 0.05 and found["expert"] == 1


@every_world
def test_bad_habits_leave_room(name: str) -> None:
    """The scripted agent that the warm-up imitates succeeds about every second time and wastes some turns."""
    won, wasted = [], []
    for task in tasks(name, 150, "warmup"):
        _, steps, _ = episode(task, bad_habits(task.index, 0.65))
        won.append(steps[-1][2] == 1.0)
        wasted.append(sum(info["oracle"]["verdict"] != "necessary" for *_, info in steps))
    assert 0.4 <= mean(won) <= 0.7
    assert 1.5 <= mean(wasted) <= 3


@every_world
def test_same_seed_same_task(name: str) -> None:
    env = envs.make(name)
    assert env.tasks("train", 10) == env.tasks("train", 10) != env.tasks("train", 10, seed=1)
    assert env.tasks("test", 3) == env.tasks("test", 5)[:3]
    for task in (*tasks(name, 3), *tasks(name, 3, "train", 4)):
        assert env.task_named(task.id) == task
    assert len({task.id for split in SPLITS for seed in (0, 1) for task in tasks(name, 5, split, seed)}) == 40
    assert env.reset(seed=5) == envs.make(name).reset(options={"task": f"{name}/train/5"})


@every_world
def test_other_processes_see_the_same(name: str) -> None:
    """Neither the hash seed nor the process changes a task, an answer, or what the scripted agents do."""
    code = f"""if True:
        import random
        from hero_mini.envs import make
        env = make({name!r})
        for task in env.tasks("test", 6):
            for skill in (1, 0.5):
                draw, done = random.Random(task.index), False
                print(task, task.world, env.reset(options={{"task": task}}))
                while not done:
                    print(env.admissible(), answer := env.step(str(env.scripted(draw, skill))))
                    done = answer[2] or answer[3]"""
    runs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    assert all(run.returncode == 0 and not run.stderr for run in runs), runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 5000


@every_world
def test_errors_name_the_remedy(name: str) -> None:
    env = envs.make(name)
    for call, near in {
        lambda: env.tasks("trian", 1): "'train'",
        lambda: env.task_named(f"{name}/tset/0"): "'test'",
        lambda: env.task_named("nowhere/test/0"): f"no task of {name}; write {name}/<split>/<index>",
        lambda: envs.make(name[:-2] + name[-1] + name[-2]): f"'{name}'",
        lambda: envs.make(name, max_turns=0): "at least 1",
        lambda: envs.make(name, max_turn=5): "did you mean 'max_turns'",
        lambda: env.tasks("test", 2.5): "n is 2.5",
        lambda: env.tasks("test", 1, seed=-1): "seed is -1",
        lambda: started(tasks(name, 1)[0]).step(None): "an action is a text",
        lambda: env.step("hi"): "call reset first",
        env.expert: "call reset first",
        env.admissible: "call reset first",
        lambda: env.scripted(random.Random(0), 0.0): "call reset first",
        lambda: episode(tasks(name, 1)[0], expert)[2].step("hi"): "over",
    }.items():
        with pytest.raises(HeroError, match=near):
            call()


@every_world
def test_the_command_line_knows_it(name: str) -> None:
    assert cli.build_parser().parse_args(["rollout", "--env", name]).env == name


@every_world
def test_resets_and_clones_are_independent(name: str) -> None:
    for task in tasks(name, 15):
        before = copy.deepcopy(task.world)
        first = episode(task, bad_habits(1))[1]
        assert task.world == before  # an episode leaves its task alone
        assert episode(task, bad_habits(1))[1] == first  # and so the next one is the same
        env, other = started(task), started(task)
        untouched = state(other)
        for action, *_ in first[:-1]:
            held = state(env)
            for guess in [action, *env.admissible()[:3]]:
                env.clone().step(guess)
            assert state(env) == held
            copied = env.clone()
            assert env.step(action) == copied.step(action)
        assert state(other) == untouched


@every_world
def test_out_of_turns_is_no_reward(name: str) -> None:
    for task in tasks(name, 10):
        n = len(episode(task, expert)[1])
        _, steps, _ = episode(task, expert, max_turns=n - 1)
        assert len(steps) == n - 1 and steps[-1][2] == 0.0 and not steps[-1][3]


@every_world
def test_texts_are_short(name: str) -> None:
    longest = 0
    for task in tasks(name, 100):
        for act in (expert, bad_habits(task.index), random_admissible(task.index)):
            opener, steps, _ = episode(task, act)
            longest = max(longest, len(opener), *(len(observation) for _, observation, *_ in steps))
    assert longest <= WORLDS[name].text
    assert len(envs.make(name).system_prompt.split()) <= WORLDS[name].prompt


@every_world
def test_every_verdict_occurs_and_the_right_action_is_never_blamed(name: str) -> None:
    verdicts: Counter = Counter()
    for task in tasks(name, 200):
        env, draw, done = started(task), random.Random(task.index), False
        while not done:
            best, action = env.expert(), env.scripted(draw, 0.5)
            _, _, terminated, truncated, info = env.step(str(action))
            done = terminated or truncated
            judged = info["oracle"]
            verdicts[judged["verdict"]] += 1
            assert judged["better"] == (None if judged["verdict"] == "necessary" else str(best))
            assert action != best or judged["verdict"] == "necessary", (task.id, str(action))
            assert bool(judged["cause"]) == (judged["verdict"] != "necessary")
            assert info["action"] == {"name": action.name, "arguments": action.arguments}
            assert info["error"] is None or not info["changed"]
    assert set(verdicts) == set(VERDICTS)


@every_world
def test_spellings_are_equal(name: str) -> None:
    for task in tasks(name, 40):
        env, draw, done = started(task), random.Random(task.index), False
        while not done:
            action = env.scripted(draw, 0.7)
            as_json = json.dumps({"name": action.name, "arguments": action.arguments})
            other = env.clone()
            mine, theirs = env.step(str(action)), other.step("\n " + as_json + " ")
            assert mine == theirs and world(env) == world(other)
            assert mine[4]["action"] == {"name": action.name, "arguments": action.arguments}
            done = mine[2] or mine[3]


@every_world
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_answered(name: str, text: str) -> None:
    env = started(tasks(name, 1, "test")[0])
    assert_harmless(env, text)
    assert_harmless(env, text)


def test_too_long_is_an_error() -> None:
    assert parse_action("x" * MAX_ACTION_CHARS).error is None
    long = parse_action("x" * (MAX_ACTION_CHARS + 1))
    assert long.error == f"Error: action longer than {MAX_ACTION_CHARS} characters"


@every_world
def test_a_thousand_random_episodes(name: str) -> None:
    draw = random.Random(0)
    alphabet = "get_order_details(order_id='#W12') search[click[Buy Now]] {}[]\"\\,:<|im_end|>é注🙂\n0"

    def garbage(env: Env) -> str:
        kind = draw.random()
        if kind < 0.2:
            return "".join(draw.choices(alphabet, k=draw.randint(0, 60)))
        if kind < 0.3:
            return draw.choice(HOSTILE)
        action = draw.choice(env.admissible())
        if kind < 0.4:  # a well-formed action with a few characters changed
            letters = list(action)
            for _ in range(3):
                letters[draw.randrange(len(letters))] = draw.choice(alphabet)
            return "".join(letters)
        return str(env.scripted(draw, 0.3)) if kind < 0.6 else action

    verdicts: Counter = Counter()
    pool = [task for split in SPLITS for task in tasks(name, 25, split)]
    for index in range(1000):
        _, steps, _ = episode(pool[index % 100], garbage, max_turns=6)
        assert 0.0 <= steps[-1][2] <= 1.0
        verdicts.update(info["oracle"]["verdict"] for *_, info in steps)
    assert set(verdicts) == set(VERDICTS)


@every_world
def test_a_step_takes_less_than_a_millisecond(name: str) -> None:
    seconds = []
    for task in tasks(name, 30):
        env, done = started(task), False
        while not done:
            action = expert(env)
            start = time.process_time()
            *_, terminated, truncated, _ = env.step(action)
            seconds.append(time.process_time() - start)
            done = terminated or truncated
    assert median(seconds) < 1e-3


def test_another_shop_is_another_edition(monkeypatch: pytest.MonkeyPatch) -> None:
    """So results from before a change of the tasks are not taken for results of today."""
    before = {name: envs.edition(name) for name in envs.MINI}
    assert len(set(before.values())) == 3 and before == {name: envs.edition(name) for name in envs.MINI}
    monkeypatch.setattr("hero_mini.envs.webshop_catalogue.FAMILIES", {"plain": 1.0})
    assert [name for name in envs.MINI if envs.edition(name) != before[name]] == ["webshop"]
