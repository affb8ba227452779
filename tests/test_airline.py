"""Mini airline: its tasks against its own policy, its tools, its user, its reward against a second opinion."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import median

import pytest
from test_retail import HOSTILE, Step, assert_harmless, bad_habits, episode, expert, random_admissible

from hero_mini import cli, envs
from hero_mini.envs import SPLITS, Action, Task, airline, parse_action
from hero_mini.envs.airline import TOOLS, WRITES, Airline
from hero_mini.envs.airline_script import ASK, proposal
from hero_mini.envs.airline_tasks import FAMILIES, WRITE_TOOL, make_task
from hero_mini.envs.base import STOP, VERDICTS
from hero_mini.envs.tau_script import CLOSING, OUT_OF_SCOPE
from hero_mini.runtime import HeroError


def tasks(n: int, split: str = "train", seed: int = 0, family: str | None = None) -> Iterator[Task]:
    found, index = 0, 0
    while found < n:
        task = make_task(split, index, seed)
        index += 1
        if family is None or task.family == family:
            found += 1
            yield task


def started(task: Task, max_turns: int = 10) -> Airline:
    env = Airline(max_turns)
    env.reset(options={"task": task})
    return env


# --- tasks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", SPLITS)
def test_expert_solves_everything_without_a_wasted_turn(split: str) -> None:
    turns, families = [], set()
    for seed in (0, 1):
        for task in tasks(60, split, seed):
            _, steps, _ = episode(task, expert)
            assert steps[-1][2] == 1.0, task.id
            assert all(info["oracle"] == {"verdict": "necessary", "cause": "", "better": None} for *_, info in steps)
            turns.append(len(steps))
            families.add(task.family)
    assert families == set(FAMILIES)
    assert max(turns) <= 7 and 4 < sum(turns) / len(turns) < 6.5


def test_floors_are_low_and_bad_habits_leave_room() -> None:
    wins, wasted, n = Counter(), 0, 50 * len(SPLITS)
    for split in SPLITS:
        for task in tasks(50, split):
            wins["bye"] += episode(task, lambda env: "bye")[1][-1][2]
            wins["random"] += episode(task, random_admissible(task.index))[1][-1][2]
            steps = episode(task, bad_habits(task.index, 0.65))[1]
            wins["habits"] += steps[-1][2]
            wasted += sum(info["oracle"]["verdict"] != "necessary" for *_, info in steps)
    assert wins["bye"] == 0
    assert wins["random"] < 0.05 * n
    assert 0.45 * n < wins["habits"] < 0.65 * n
    assert 1.5 * n < wasted < 3 * n


def test_no_user_stands_in_two_splits() -> None:
    users: dict[str, set] = {s: {u for t in tasks(150, s) for u in t.world["db"]["users"]} for s in SPLITS}
    for a in SPLITS:
        assert len(users[a]) > 200
        assert all(a == b or not users[a] & users[b] for b in SPLITS)
    assert all(len(task.world["db"]["users"]) == 2 for task in tasks(150))


def test_same_seed_same_task() -> None:
    assert list(tasks(20)) == list(tasks(20)) == Airline().tasks("train", 20)
    assert list(tasks(20)) != list(tasks(20, seed=1))
    for task in tasks(5, seed=4):
        assert Airline().task_named(task.id) == task
    assert len({task.id for split in SPLITS for seed in (0, 1) for task in tasks(5, split, seed)}) == 40


def test_nothing_depends_on_the_order_of_sets() -> None:
    code = """if True:
        import random
        from hero_mini.envs import make
        env = make("airline")
        for task in env.tasks("test", 30):
            draw, done = random.Random(task.index), False
            print(task, task.world, env.reset(options={"task": task}))
            while not done:
                step = env.step(str(env.scripted(draw, 0.5)))
                print(step, env.admissible())
                done = step[2] or step[3]"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 10_000


@pytest.mark.parametrize(
    "call, near",
    [
        (lambda: Airline().tasks("trian", 1), "'train'"),
        (lambda: Airline().task_named("airline/tset/0"), "'test'"),
        (lambda: Airline().task_named("retail/test/0"), "no task of airline; write airline/<split>"),
        (lambda: envs.make("airlien"), "'airline'"),
        (lambda: Airline(0), "at least 1"),
        (lambda: Airline().step("hi"), "call reset first"),
    ],
)
def test_errors_name_the_remedy(call: Callable, near: str) -> None:
    with pytest.raises(HeroError, match=near):
        call()


def test_the_command_line_knows_it() -> None:
    assert cli.build_parser().parse_args(["rollout", "--env", "airline"]).env == "airline"


def test_resets_and_clones_are_independent() -> None:
    for task in tasks(20):
        before = copy.deepcopy(task.world)
        first = episode(task, bad_habits(1))[1]
        assert task.world == before  # an episode leaves its task alone
        assert episode(task, bad_habits(1))[1] == first  # and so the next one is the same
        env, other = started(task), started(task)
        for action, *_ in first[:-1]:
            state = (copy.deepcopy(env.db), list(env.spoken), list(env.listed), set(env.read), env.turn, env.done)
            for guess in [action, *env.admissible()[:3]]:
                env.clone().step(guess)
            assert state == (env.db, env.spoken, env.listed, env.read, env.turn, env.done)
            copied = env.clone()
            assert env.step(action) == copied.step(action)
        assert other.turn == 0 and other.db == task.world["db"]


# --- the policy, from what the agent reads ----------------------------------------------------------------------------
def test_tasks_follow_the_policy_that_the_prompt_states() -> None:
    """Allowed and forbidden, and the paid bags, recomputed from the two texts that the tools show."""
    seen = Counter()
    for task in tasks(400):
        env, world = started(task), task.world
        user = env.step(f"get_user_details(user_id='{world['user_id']}')")[0]
        text = env.step(f"get_reservation_details(reservation_id='{world['target']}')")[0]
        level = re.match(r"\w+ (\w+);", user)[1]
        route, flight, people, bags, booked, insurance = text.split("; ")
        cabin, hours, people = route.split()[-1], int(re.search(r"(\d+)h", booked)[1]), len(people.split(", "))
        allowed = {
            "cancel": hours < 24 or cabin == "business" or (insurance == "insured" and "ill" in task.instruction),
            "flight": cabin != "basic_economy",
            "certificate": level in ("silver", "gold") or insurance == "insured" or cabin == "business",
        }
        if task.family == "deny":
            assert not allowed[world["twist"]], task.id
        elif task.family in allowed:
            assert allowed[task.family], task.id
        assert (world["twist"] == "flown") == flight.endswith("landed")
        assert ("was cancelled" in task.instruction) == flight.endswith("cancelled")
        if task.family == "bags":
            free = {"basic_economy": 0, "economy": 1, "business": 2}[cabin] + ["regular", "silver", "gold"].index(level)
            more, now = int(re.search(r"add (\d)", task.instruction)[1]), int(re.search(r"\d", bags)[0])
            gold = task.gold[0].arguments
            assert gold["total_baggages"] == now + more
            assert gold["nonfree_baggages"] == max(0, now + more - people * free)
            seen["paid"] += gold["nonfree_baggages"] > 0
        if task.family == "certificate":
            assert task.gold[0].arguments["amount"] == 100 * people
        seen[task.family, world["twist"]] += 1
    assert seen["paid"] > 5 and len(seen) == 1 + len(FAMILIES) + 3, seen


# --- reward ----------------------------------------------------------------------------------------------------------
def second_opinion(task: Task, steps: list[Step]) -> float:
    """The reward from the list of writes that went through and changed something, with prices worked out by hand."""
    db = copy.deepcopy(task.world["db"])

    def effect(name: str, a: dict) -> str | None:
        """What a write changes, in words; None for nothing."""
        if name in ("cancel_reservation", "send_certificate"):
            return f"{name} {a}"
        r = db["reservations"][a["reservation_id"]]
        a, price = dict(a), 0
        if name == "update_reservation_baggages":
            price = max(0, a["nonfree_baggages"] - r["nonfree_baggages"])
            new = {k: a[k] for k in ("total_baggages", "nonfree_baggages")}
        elif name == "update_reservation_passengers":
            new = {"passengers": a["passengers"]}
        else:
            flights = []
            for number, date in map(str.split, a["flights"]):
                cost = db["flights"][number]["dates"][date]["prices"][a["cabin"]]
                flights.append({"flight_number": number, "date": date, "price": cost})
            price = sum(f["price"] for f in flights) - sum(f["price"] for f in r["flights"])
            new = {"cabin": a["cabin"], "flights": flights}
        if all(r[k] == v for k, v in new.items()):
            return None
        r.update(new)
        return f"{name} {a['reservation_id']} {new} {a['payment_id'] if price else ''}"

    found, done, words = False, [], []
    for _, observation, _, _, info in steps:
        name, arguments = info["action"]["name"], info["action"]["arguments"]
        if name == "respond":
            words += re.split(r"[\s,;:!?()]+", arguments.get("content", ""))
        elif info["error"] is None and name == "get_user_details":
            found = found or observation.startswith(task.world["user_id"])
        elif info["error"] is None and name == "transfer_to_human_agents":
            done.append(f"transfer {found}")
        elif info["error"] is None and name in WRITES:
            done.append(effect(name, arguments))
    db = copy.deepcopy(task.world["db"])  # the gold write is worked out on a fresh one
    gold = ["transfer True"] if task.family == "transfer" else [effect(a.name, a.arguments) for a in task.gold]
    told = all(output in {w.rstrip(".") for w in words} for output in task.outputs)
    return float(steps[-1][3] and [d for d in done if d is not None] == gold and told)


def test_reward_equals_a_second_opinion() -> None:
    seen = Counter()
    for task in tasks(200):
        for act in (bad_habits(task.index, 0.55), bad_habits(task.index, 0.9), random_admissible(task.index)):
            _, steps, _ = episode(task, act)
            assert steps[-1][2] == second_opinion(task, steps), task.id
            assert all(reward == 0.0 for _, _, reward, _, _ in steps[:-1])
            seen[task.family, steps[-1][2]] += 1
    assert all(seen[family, 1.0] and seen[family, 0.0] for family in FAMILIES), seen


def test_out_of_turns_is_no_reward() -> None:
    for task in tasks(5, family="cancel"):
        n = len(episode(task, expert)[1])
        _, steps, _ = episode(task, expert, max_turns=n - 1)  # the write is done, the last word is missing
        assert len(steps) == n - 1 and steps[-1][2] == 0.0 and not steps[-1][3]


def test_writes_cannot_be_undone() -> None:
    """After a write that the user did not want, doing the right thing as well earns nothing."""
    wrong = 0
    for task in tasks(60):
        if task.family not in WRITE_TOOL:
            continue
        env = started(task, 30)
        while env.expert() != task.gold[0]:
            env.step(str(env.expert()))
        for action in map(env._read_action, env.admissible()):
            branch = env.clone()
            if action.name not in WRITES or action == task.gold[0] or not branch.step(str(action))[4]["changed"]:
                continue
            wrong += 1
            branch.step(str(task.gold[0]))
            assert branch.step(CLOSING)[:3] == (STOP, 0.0, True)
    assert wrong > 100


def test_the_same_write_again_is_blamed() -> None:
    verdicts = set()
    for family in WRITE_TOOL:
        for task in tasks(3, family=family):
            env = started(task, 20)
            while env.expert() != task.gold[0]:
                env.step(str(env.expert()))
            env.step(str(task.gold[0]))
            info = env.step(str(task.gold[0]))[4]
            assert info["oracle"]["verdict"] == ("harmful" if info["changed"] else "unnecessary")
            assert info["oracle"]["cause"] == "already done" and info["oracle"]["better"] == CLOSING
            assert info["changed"] is (env.step(CLOSING)[1] == 0.0)
            verdicts.add(info["oracle"]["verdict"])
    assert verdicts == {"harmful", "unnecessary"}


def test_the_tools_do_not_check_the_policy() -> None:
    """What the policy forbids is asked for, agreed to and carried out; only the judgement and the outcome tell."""
    for task in tasks(20, family="deny"):
        env = started(task, 20)
        assert env.step(proposal(task.world["write"]))[0] == "Yes, please."
        info = env.step(str(task.world["write"]))[4]
        assert info["changed"] or task.world["twist"] == "flight" and info["error"] is None
        assert info["oracle"]["verdict"] == "harmful" and info["oracle"]["cause"] == "against the policy"
        assert env.step(CLOSING)[:3] == (STOP, 0.0, True)


# --- the tools' errors -----------------------------------------------------------------------------------------------
def equipped() -> tuple[Airline, dict[str, str]]:
    """An episode whose user has a gift card and a certificate, with a flight that is gone and one that is full."""
    env = started(next(tasks(1, family="flight")), 50)
    target = env.task.world["target"]
    reservation, user = env.db["reservations"][target], env.db["users"][env.task.world["user_id"]]
    user["payment_methods"] |= {"gift_card_99": 0, "certificate_99": 500}
    number, date = env.task.world["write"].arguments["flights"][0].split()
    other = next(n for n, f in env.db["flights"].items() if date in f["dates"] and n != number)
    env.db["flights"][number]["dates"][date]["seats"] = 0
    env.db["flights"][other]["dates"][date]["status"] = "landed"
    return env, {
        "u": env.task.world["user_id"],
        "r": target,
        "card": next(iter(user["payment_methods"])),
        "full": f"{number} {date}",
        "gone": f"{other} {date}",
        "mine": reservation["flights"][0]["flight_number"],
    }


FLIGHTS = "update_reservation_flights(reservation_id='{r}', cabin='%s', flights=['%s'], payment_id='%s')"
BAGS = "update_reservation_baggages(reservation_id='{r}', total_baggages=9, nonfree_baggages=9, payment_id='%s')"
PEOPLE = "update_reservation_passengers(reservation_id='{r}', passengers=%s)"
ERRORS = [
    ("get_user_details(user_id='sam_fox_11')", "Error: User sam_fox_11 not found"),
    ("send_certificate(user_id='sam_fox_11', amount=100)", "Error: User sam_fox_11 not found"),
    ("get_reservation_details(reservation_id='A1A1')", "Error: Reservation A1A1 not found"),
    ("cancel_reservation(reservation_id='A1A1')", "Error: Reservation A1A1 not found"),
    (FLIGHTS % ("economy", "HAT1 05-20", "{card}"), "Error: Flight HAT1 not found"),
    (FLIGHTS % ("economy", "{mine} 06-01", "{card}"), "Error: Flight {mine} not found on date 06-01"),
    (FLIGHTS % ("economy", "{gone}", "{card}"), "Error: Flight {gone[0]} not available on date {gone[1]}"),
    (FLIGHTS % ("economy", "{full}", "{card}"), "Error: Not enough seats on flight {full[0]}"),
    (BAGS % "cash", "Error: Payment method not found"),
    (BAGS % "certificate_99", "Error: Certificate cannot be used to update reservation"),
    (BAGS % "gift_card_99", "Error: Gift card balance is not enough"),
    (
        "update_reservation_passengers(reservation_id='{r}', passengers=[])",
        "Error: Number of passengers does not match",
    ),
    ("foo()", "Unknown action foo"),
    ("_send_certificate(user_id='{u}', amount=1)", "Unknown action _send_certificate"),
    (FLIGHTS % ("first", "{gone}", "{card}"), "Error: the argument cabin has the wrong type"),
    ("send_certificate(user_id='{u}', amount=1.5)", "Error: the argument amount has the wrong type"),
    ("send_certificate(user_id='{u}', amount=123456)", "Error: the argument amount has the wrong type"),
    ('{{"name": "send_certificate", "arguments": {{"user_id": "{u}", "amount": true}}}}', "the argument amount has"),
    ("send_certificate(user_id='{u}')", "Error: send_certificate needs the argument amount"),
    ("cancel_reservation(reservation_id='{r}', reason='ill')", "Error: cancel_reservation got an unexpected argument"),
]


@pytest.mark.parametrize("call, error", ERRORS)
def test_errors_are_verbatim_and_change_nothing(call: str, error: str) -> None:
    env, values = equipped()
    before = copy.deepcopy(env.db)
    observation, reward, terminated, truncated, info = env.step(call.format(**values))
    assert observation == info["error"]
    split = {k: v.split() if k in ("gone", "full") else v for k, v in values.items()}
    assert error.format(**split) in observation
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert env.db == before and not info["changed"]
    wrong_call = not info["valid"]
    assert info["oracle"]["verdict"] == ("invalid" if wrong_call else "failed")
    assert wrong_call or info["oracle"]["cause"] == observation.removeprefix("Error: ")


def test_a_fourth_certificate_is_one_too_many() -> None:
    env, values = equipped()
    for _ in range(3):
        assert env.step("send_certificate(user_id='{u}', amount=50)".format(**values))[4]["changed"]
    answer = env.step("send_certificate(user_id='{u}', amount=50)".format(**values))
    assert answer[0] == "Error: Too many certificates" and answer[4]["oracle"]["verdict"] == "failed"


def test_every_error_text_is_reached() -> None:
    texts = re.findall(r'ToolError\(f?"([^"]*)"\)', open(airline.__file__).read())
    reached = [error for _, error in ERRORS] + ["Error: Too many certificates"]
    patterns = [re.sub(r"\\\{.*?\\\}", ".+", re.escape(text)) for text in texts]
    assert len(texts) > 10 and all(any(re.fullmatch(p, error) for error in reached) for p in patterns), texts


# --- the scripted user -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", WRITE_TOOL)
def test_the_user_gives_one_slot_at_a_time(family: str) -> None:
    for task in tasks(5, family=family):
        world, gold = task.world, task.gold[0]
        env = Airline(20)
        opener, info = env.reset(options={"task": task})
        assert info["role"] == "user" and world["request"] in opener
        assert (world["user_id"] in opener) is world["opener_identity"]
        assert {r for r in world["db"]["reservations"] if r in opener} == (
            {world["target"]} if world["told"] else set()
        )
        assert env.step("Hello!")[0] == f"Not yet. {world['request']}"
        assert env.step(ASK)[0] == f"My user id is {world['user_id']}."
        assert env.step("I will cancel A1A1. Proceed (yes/no)?")[0] == "No, that is not what I want."
        assert not env.confirmed
        assert env.step(proposal(gold))[0] == "Yes, please." and env.confirmed
        assert env.step(CLOSING)[0] != STOP  # a yes is not a write
        assert env.step(str(gold))[1:3] == (0.0, False)
        assert env.step(CLOSING)[:3] == (STOP, 1.0, True)


def test_the_user_stops_only_after_the_work_an_answer_or_a_denial() -> None:
    for task in tasks(100):
        for act in (bad_habits(task.index), random_admissible(task.index)):
            wrote = False
            for action, observation, reward, _, info in episode(task, act)[1]:
                if observation == STOP:
                    denied = "cannot" in action
                    assert wrote or denied or (task.family == "info" and "HAT" in action)
                    assert not (denied and not wrote and reward) or task.family == "deny"
                wrote = wrote or (info["action"]["name"] in WRITES and info["error"] is None)


# --- what the agent reads --------------------------------------------------------------------------------------------
FACTS = re.compile(r"\b(?:[A-Z]\d[A-Z]\d|HAT\d+|\d\d-\d\d|[A-Z]{3}|[A-Z][a-z]+ [A-Z][a-z]+|\w+_\d+)\b")


def test_corrections_hold_nothing_the_agent_was_not_told() -> None:
    checked = 0
    for task in tasks(150):
        for act in (bad_habits(task.index), bad_habits(task.index, 0.8), random_admissible(task.index)):
            shown, steps, _ = episode(task, act)
            for _, observation, _, _, info in steps:
                better = info["oracle"]["better"]
                if better is not None and better not in (ASK, CLOSING):
                    parsed = parse_action(better)
                    assert parsed.error is None and (parsed.name == "respond" or parsed.name in TOOLS)
                    for fact in FACTS.findall(better):
                        for word in fact.split():  # a corrected name is made of words that were said
                            assert word in shown, (task.id, better)
                        checked += 1
                shown += "\n" + observation
    assert checked > 500


def test_texts_are_short() -> None:
    longest = 0
    for task in tasks(150):
        for act in (expert, bad_habits(task.index), random_admissible(task.index)):
            opener, steps, _ = episode(task, act)
            longest = max(longest, len(opener), *(len(observation) for _, observation, *_ in steps))
    assert longest <= 120
    assert len(Airline.system_prompt.split()) <= 120


def test_every_verdict_occurs_and_the_right_action_is_never_blamed() -> None:
    verdicts: Counter = Counter()
    for task in tasks(200):
        env, draw, done = started(task), random.Random(task.index), False
        while not done:
            best, action = env.expert(), env.scripted(draw, 0.55)
            _, _, terminated, truncated, info = env.step(str(action))
            done = terminated or truncated
            oracle = info["oracle"]
            verdicts[oracle["verdict"]] += 1
            assert (oracle["better"] is None) == (oracle["verdict"] == "necessary")
            if action == best:
                assert oracle["verdict"] == "necessary", (task.id, str(action))
            assert info["action"] == {"name": action.name, "arguments": action.arguments}
            assert (info["error"] is None) or not info["changed"]
    assert set(verdicts) == set(VERDICTS)


# --- spelling and hostile text ---------------------------------------------------------------------------------------
def test_spellings_are_equal() -> None:
    for task in tasks(60):
        env, draw, done = started(task), random.Random(task.index), False
        while not done:
            action = env.scripted(draw, 0.7)
            as_json = json.dumps({"name": action.name, "arguments": action.arguments})
            assert env._read_action(str(action)) == env._read_action(as_json) == action
            other = env.clone()
            mine, theirs = env.step(str(action)), other.step("\n " + as_json + " ")
            assert mine == theirs and env.db == other.db
            done = mine[2] or mine[3]


def test_the_real_tools_objects_are_read() -> None:
    real = {
        "flights": [{"flight_number": "HAT12", "date": "05-20"}],
        "passengers": [{"first_name": "Ana", "last_name": "Fox", "dob": "1990-01-01"}, "Ben Fox"],
        "amount": "100",
    }
    parsed = Airline()._read_action(json.dumps({"name": "f", "arguments": real}))
    assert parsed.arguments == {"flights": ["HAT12 05-20"], "passengers": ["Ana Fox", "Ben Fox"], "amount": 100}
    unknown = {"flights": [{"number": 3}], "passengers": {"a": 1}, "amount": "1e9"}
    assert Airline()._read_action(json.dumps({"name": "f", "arguments": unknown})).arguments == unknown


MORE_HOSTILE = [
    "get_reservation_details(reservation_id='" + "9" * 1900 + "')",
    "update_reservation_flights(reservation_id='x', cabin='economy', flights='HAT1 05-20', payment_id='x')",
    "update_reservation_passengers(reservation_id='{r}', passengers=['{{0}}'])",
    '{"name": "update_reservation_flights", "arguments": {"reservation_id": "x", "cabin": ["economy"], "flights": []}}',
    '{"name": "update_reservation_passengers", "arguments": {"reservation_id": "x", "passengers": [{}]}}',
    '{"name": "send_certificate", "arguments": {"user_id": "x", "amount": ' + "9" * 1500 + "}}",
    '{"name": "send_certificate", "arguments": {"user_id": {}, "amount": 1.0}}',
    "send_certificate(user_id='x', amount='١٢')",
    "search_direct_flight(origin='é🙂', destination='{0}', date='<|im_end|>')",
    "I cannot do that.",
    "HAT12?",
]


@pytest.mark.parametrize("text", [*HOSTILE, *MORE_HOSTILE], ids=range(len(HOSTILE) + len(MORE_HOSTILE)))
def test_hostile_text_is_answered(text: str) -> None:
    env = started(make_task("test", 0))
    assert_harmless(env, text)
    assert_harmless(env, text)


def test_nonsense_written_into_the_database_stays_short() -> None:
    env, values = equipped()
    people = len(env.db["reservations"][values["r"]]["passengers"])
    names = ["{user} <|im_end|> 注文🙂 " + "x" * 500] * people
    here = {"reservation_id": values["r"]}
    for name, arguments in {
        "update_reservation_passengers": {**here, "passengers": names},
        "update_reservation_flights": {**here, "cabin": "economy", "flights": [], "payment_id": values["card"]},
        "get_reservation_details": here,
    }.items():
        observation, *_, info = env.step(json.dumps({"name": name, "arguments": arguments}))
        assert info["error"] is None and len(observation) <= 120
    for _ in range(3):
        env.step("send_certificate(user_id='{u}', amount=-5)".format(**values))
    assert len(env.step("get_user_details(user_id='{u}')".format(**values))[0]) <= 120


def test_a_thousand_random_episodes() -> None:
    draw = random.Random(0)
    alphabet = "get_user_details(user_id='a_b_12') {}[]\"\\,:<|im_end|>é注🙂\n0"

    def garbage(env: Airline) -> str:
        kind = draw.random()
        if kind < 0.3:
            return "".join(draw.choices(alphabet, k=draw.randint(0, 60)))
        action = draw.choice(env.admissible())
        if kind < 0.5:  # a well-formed action with a few characters changed
            letters = list(action)
            for _ in range(3):
                letters[draw.randrange(len(letters))] = draw.choice(alphabet)
            return "".join(letters)
        return draw.choice(HOSTILE[4:] + MORE_HOSTILE) if kind < 0.6 else action

    verdicts = Counter()
    for index in range(1000):
        _, steps, _ = episode(make_task(SPLITS[index % 4], index), garbage, max_turns=6)
        assert steps[-1][2] in (0.0, 1.0)
        verdicts.update(info["oracle"]["verdict"] for *_, info in steps)
    assert set(verdicts) == set(VERDICTS)


def test_a_step_takes_less_than_a_millisecond() -> None:
    seconds = []
    for task in tasks(30):
        env, done = started(task), False
        while not done:
            action = str(env.expert())
            start = time.process_time()
            _, _, terminated, truncated, _ = env.step(action)
            seconds.append(time.process_time() - start)
            done = terminated or truncated
    assert median(seconds) < 1e-3


def test_transfer_before_the_user_is_known_is_for_nobody() -> None:
    for task in tasks(5, family="transfer"):
        env = started(task)
        assert env.step(str(OUT_OF_SCOPE))[1:3] == (0.0, True)
        known = started(task)
        known.step(str(Action("get_user_details", {"user_id": task.world["user_id"]})))
        assert known.step(str(OUT_OF_SCOPE))[1:3] == (1.0, True)
