"""Mini airline: its tasks against its own policy, its tools, its user, its reward against a second opinion."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from worlds import Step, bad_habits, episode, random_admissible, started

from hero_mini.envs import SPLITS, Action, Task, airline, parse_action
from hero_mini.envs.airline import TOOLS, WRITES, Airline
from hero_mini.envs.airline_script import ASK, proposal
from hero_mini.envs.airline_tasks import FAMILIES, WRITE_TOOL, make_task
from hero_mini.envs.base import STOP
from hero_mini.envs.tau_script import CLOSING, OUT_OF_SCOPE


def tasks(n: int, split: str = "train", seed: int = 0, family: str | None = None) -> Iterator[Task]:
    found, index = 0, 0
    while found < n:
        task = make_task(split, index, seed)
        index += 1
        if family is None or task.family == family:
            found += 1
            yield task


# --- tasks -----------------------------------------------------------------------------------------------------------
def test_no_user_stands_in_two_splits() -> None:
    users: dict[str, set] = {s: {u for t in tasks(150, s) for u in t.world["db"]["users"]} for s in SPLITS}
    for a in SPLITS:
        assert len(users[a]) > 200
        assert all(a == b or not users[a] & users[b] for b in SPLITS)
    assert all(len(task.world["db"]["users"]) == 2 for task in tasks(150))


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


def test_a_reservation_may_lose_all_its_flights() -> None:
    task = next(task for task in tasks(60) if task.family in WRITE_TOOL)
    env = started(task)
    while not env.confirmed:
        env.step(str(env.expert()))
    reservation = next(iter(env.db["reservations"]))
    env.db["reservations"][reservation]["flights"] = []
    env.read.add(reservation)
    assert all(isinstance(action, str) for action in env.admissible())


def test_writes_cannot_be_undone() -> None:
    """After a write that the user did not want, doing the right thing as well earns nothing."""
    wrong = 0
    for task in tasks(60):
        if task.family not in WRITE_TOOL:
            continue
        env = started(task, max_turns=30)
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
            env = started(task, max_turns=20)
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
        env = started(task, max_turns=20)
        assert env.step(proposal(task.world["write"]))[0] == "Yes, please."
        info = env.step(str(task.world["write"]))[4]
        assert info["changed"] or task.world["twist"] == "flight" and info["error"] is None
        assert info["oracle"]["verdict"] == "harmful" and info["oracle"]["cause"] == "against the policy"
        assert env.step(CLOSING)[:3] == (STOP, 0.0, True)


# --- the tools' errors -----------------------------------------------------------------------------------------------
def equipped() -> tuple[Airline, dict[str, str]]:
    """An episode whose user has a gift card and a certificate, with a flight that is gone and one that is full."""
    env = started(next(tasks(1, family="flight")), max_turns=50)
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


# --- spelling and hostile text ---------------------------------------------------------------------------------------
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


def test_transfer_before_the_user_is_known_is_for_nobody() -> None:
    for task in tasks(5, family="transfer"):
        env = started(task)
        assert env.step(str(OUT_OF_SCOPE))[1:3] == (0.0, True)
        known = started(task)
        known.step(str(Action("get_user_details", {"user_id": task.world["user_id"]})))
        assert known.step(str(OUT_OF_SCOPE))[1:3] == (1.0, True)
