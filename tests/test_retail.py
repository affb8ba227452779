"""Mini retail: its tasks, its tools, its user, its reward against a second opinion, and hostile text."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from worlds import Step, assert_harmless, bad_habits, episode, expert, random_admissible

from hero_mini.envs import SPLITS, Action, Task, parse_action
from hero_mini.envs.base import STOP, said
from hero_mini.envs.retail import TOOLS, WRITES, Retail
from hero_mini.envs.retail_script import ASK, CLOSING, proposal
from hero_mini.envs.retail_tasks import FAMILIES, WRITE_TOOL, make_task


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
    users: dict[str, set] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed in (0, 3):
            for task in tasks(150, split, seed):
                users[split] |= set(task.world["db"]["users"])
    for a in SPLITS:
        assert len(users[a]) > 200
        assert all(a == b or not users[a] & users[b] for b in SPLITS)


@pytest.mark.parametrize("split, index", [("warmup", 245), ("warmup", 5104), ("train", 9646), ("test", 4305)])
def test_the_two_users_of_a_task_are_two(split: str, index: int) -> None:
    """In these tasks both users were once drawn with the same name and number, and the first lost their orders."""
    task = make_task(split, index)
    assert len({user["email"] for user in task.world["db"]["users"].values()}) == 2
    assert episode(task, expert)[1][-1][2] == 1.0


def test_retail_is_what_it_was() -> None:
    """Every byte of 48 episodes, what was trained on retail stays comparable."""
    seen = hashlib.sha256()
    for split in SPLITS:
        for task in tasks(4, split):
            for skill in (0.0, 0.5, 1.0):
                opener, steps, env = episode(task, bad_habits(task.index, skill))
                seen.update(json.dumps([opener, steps, env.db, env._admissible()]).encode())
    assert seen.hexdigest() == "c405ceab2ac58ad645ef5bf35819676ff1926bcb67aec39a690f829eaeaca575"


# --- reward ----------------------------------------------------------------------------------------------------------
def second_opinion(task: Task, steps: list[Step]) -> float:
    """The reward from the list of writes that went through, without any database."""

    def wrote(name: str, a: dict) -> tuple:
        items, new = a.get("item_ids", ()), a.get("new_item_ids")
        what = frozenset(items) if new is None else frozenset(zip(items, new, strict=True))
        return name, a["order_id"], what, a.get("payment_method_id"), a.get("reason")

    found, done, words = False, [], []
    for _, observation, _, _, info in steps:
        name, arguments = info["action"]["name"], info["action"]["arguments"]
        if name == "respond":
            words += re.split(r"[\s,;:!?()]+", arguments.get("content", ""))
        if info["error"] is not None:
            continue
        if name.startswith("find_user"):
            found = found or observation.startswith(task.world["user_id"] + ";")
        elif name == "transfer_to_human_agents":
            done.append(("transfer", found))
        elif name not in ("respond", "get_order_details", "get_product_details"):
            done.append(wrote(name, arguments))
    if task.family == "transfer":
        gold = [("transfer", True)]
    else:
        gold = [wrote(a.name, a.arguments) for a in task.gold]
    told = all(output in {w.rstrip(".") for w in words} for output in task.outputs)
    return float(steps[-1][3] and Counter(done) == Counter(gold) and told)


def test_reward_equals_a_second_opinion() -> None:
    seen = Counter()
    for task in tasks(120):
        for act in (bad_habits(task.index, 0.55), bad_habits(task.index, 0.9), random_admissible(task.index)):
            _, steps, _ = episode(task, act)
            assert steps[-1][2] == second_opinion(task, steps), task.id
            assert all(reward == 0.0 for _, _, reward, _, _ in steps[:-1])
            seen[task.family, steps[-1][2]] += 1
    assert all(seen[family, 1.0] and seen[family, 0.0] for family in FAMILIES), seen


def test_required_outputs_are_whole_tokens() -> None:
    for output, text, expected in [
        ("10", "10.5", False),
        ("10", "210", False),
        ("10", "It is 10.", True),
        ("paypal_31", "(paypal_31)", True),
        ("paypal_31", "paypal_311", False),
        ("paypal_31", "a.paypal_31", False),
    ]:
        assert said([output], text) is expected, (output, text)
    assert said([], "")


def test_writes_cannot_be_undone() -> None:
    """After a write that the user did not want, doing the right thing as well earns nothing."""
    wrong = 0
    for task in tasks(60):
        if task.family not in WRITE_TOOL:
            continue
        env = Retail(30)
        env.reset(options={"task": task})
        env.step(ASK)
        while str(env.expert()) not in map(str, task.gold) and not env.confirmed:
            env.step(str(env.expert()))
        for action in map(parse_action, env.admissible()):
            branch = env.clone()
            if action.name not in WRITES or action == task.gold[0] or branch.step(str(action))[4]["error"]:
                continue
            wrong += 1
            branch.step(str(task.gold[0]))
            observation, reward, terminated, _, _ = branch.step(CLOSING)
            assert (observation, reward, terminated) == (STOP, 0.0, True)
    assert wrong > 20


@pytest.mark.parametrize("family", WRITE_TOOL)
def test_a_write_happens_once(family: str) -> None:
    refusals = {
        "cancel": "Error: non-pending order cannot be cancelled",
        "modify": "Error: non-pending order cannot be modified",
        "return": "Error: non-delivered order cannot be returned",
        "exchange": "Error: non-delivered order cannot be exchanged",
    }
    for task in tasks(5, family=family):
        env = Retail()
        env.reset(options={"task": task})
        write = str(task.gold[0])
        assert env.step(write)[4]["changed"]  # the tools enforce neither authentication nor a yes
        after = copy.deepcopy(env.db)
        observation, _, _, _, info = env.step(write)
        assert observation == info["error"] == refusals[family]
        assert not info["changed"] and env.db == after


# --- the tools' errors -----------------------------------------------------------------------------------------------
def with_both_states() -> tuple[Retail, dict]:
    """An episode whose user has a pending and a delivered order, and the pieces of calls on them."""
    for task in tasks(1000):
        env = Retail(50)
        env.reset(options={"task": task})
        of_status = {order["status"]: (number, order) for number, order in env.db["orders"].items()}
        if {"pending", "delivered"} <= set(of_status):
            (pending, p), (delivered, d) = of_status["pending"], of_status["delivered"]
            item = next(iter(d["items"]))
            values = {"P": pending, "D": delivered, "pi": next(iter(p["items"])), "di": item}
            return env, {**values, "pp": p["payment"], "dp": d["payment"]}
    raise AssertionError("no such task")


ERRORS = [
    ("find_user_id_by_email(email='no@mail.com')", "Error: user not found"),
    ("find_user_id_by_name_zip(first_name='A', last_name='B', zip='12345')", "Error: user not found"),
    ("get_order_details(order_id='#W1')", "Error: order not found"),
    ("cancel_pending_order(order_id='#W1', reason='no longer needed')", "Error: order not found"),
    ("get_product_details(product_id='p1')", "Error: product not found"),
    (
        "return_delivered_order_items(order_id='{D}', item_ids=['{di}'], payment_method_id='cash')",
        "Error: payment method not found",
    ),
    (
        "cancel_pending_order(order_id='{D}', reason='no longer needed')",
        "Error: non-pending order cannot be cancelled",
    ),
    (
        "modify_pending_order_items(order_id='{D}', item_ids=['{di}'], new_item_ids=['1'], payment_method_id='{dp}')",
        "Error: non-pending order cannot be modified",
    ),
    (
        "return_delivered_order_items(order_id='{P}', item_ids=['{pi}'], payment_method_id='{pp}')",
        "Error: non-delivered order cannot be returned",
    ),
    (
        "exchange_delivered_order_items(order_id='{P}', item_ids=['{pi}'], new_item_ids=['1'],"
        " payment_method_id='{pp}')",
        "Error: non-delivered order cannot be exchanged",
    ),
    ("cancel_pending_order(order_id='{P}', reason='changed my mind')", "Error: invalid reason"),
    (
        "return_delivered_order_items(order_id='{D}', item_ids=['1'], payment_method_id='{dp}')",
        "Error: some item not found",
    ),
    (
        "return_delivered_order_items(order_id='{D}', item_ids=[], payment_method_id='{dp}')",
        "Error: some item not found",
    ),
    (
        "exchange_delivered_order_items(order_id='{D}', item_ids=['{di}'], new_item_ids=['1', '2'],"
        " payment_method_id='{dp}')",
        "Error: the number of items to be exchanged should match",
    ),
    (
        "exchange_delivered_order_items(order_id='{D}', item_ids=['{di}'], new_item_ids=['1'],"
        " payment_method_id='{dp}')",
        "Error: new item 1 not found or available",
    ),
    ("foo()", "Unknown action foo"),
]


@pytest.mark.parametrize("call, error", ERRORS)
def test_errors_are_verbatim_and_change_nothing(call: str, error: str) -> None:
    env, values = with_both_states()
    before = copy.deepcopy(env.db)
    observation, reward, terminated, truncated, info = env.step(call.format(**values))
    assert observation == info["error"] == error
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert env.db == before and not info["changed"]
    assert info["oracle"]["verdict"] == ("invalid" if error.startswith("Unknown") else "failed")


def test_sold_out_variants_are_refused() -> None:
    for task in tasks(200, family="exchange"):
        gold = task.gold[0].arguments
        variants = task.world["db"]["products"][task.world["target"]["product"]]["variants"]
        gone = [i for i, v in variants.items() if not v["available"]]
        if gone:
            env = Retail()
            env.reset(options={"task": task})
            call = Action("exchange_delivered_order_items", {**gold, "new_item_ids": gone[:1]})
            assert env.step(str(call))[0] == f"Error: new item {gone[0]} not found or available"
            return
    raise AssertionError("no sold out variant")


# --- the scripted user -----------------------------------------------------------------------------------------------
def test_the_user_gives_one_slot_at_a_time() -> None:
    for family in ("cancel", "exchange"):
        for task in tasks(8, family=family):
            world, gold = task.world, task.gold[0]
            user = world["db"]["users"][world["user_id"]]
            env = Retail(20)
            opener, info = env.reset(options={"task": task})
            assert info["role"] == "user" and world["request"] in opener
            secrets = (user["email"], user["zip"]) if not world["opener_identity"] else ()
            assert not any(secret in opener for secret in secrets)
            assert not any(number in opener for number in world["db"]["orders"])  # ids come from the tools
            assert env.step("Hello!")[0] == f"Not yet. {world['request']}"
            answer = env.step(ASK)[0]
            assert answer == world["identity_reply"] and world["request"] not in answer
            assert (user["email"] in answer) is world["by_email"] and (user["zip"] in answer) is not world["by_email"]
            assert env.step(f"I will {family} #W1. Proceed (yes/no)?")[0] == "No, that is not what I want."
            assert not env.confirmed
            assert env.step(proposal(gold))[0] == "Yes, please." and env.confirmed
            assert env.step(CLOSING)[0] != STOP  # a yes is not a write
            assert env.step(str(gold))[1:3] == (0.0, False)
            assert env.step(CLOSING)[:3] == (STOP, 1.0, True)


def test_the_user_stops_only_after_the_work() -> None:
    for task in tasks(150):
        for act in (bad_habits(task.index), random_admissible(task.index)):
            wrote = False
            for action, observation, _, _, info in episode(task, act)[1]:
                if observation == STOP:
                    assert wrote or (task.family == "info" and "paid" in action)
                wrote = wrote or (info["action"]["name"] in WRITES and info["error"] is None)


# --- what the agent reads --------------------------------------------------------------------------------------------
IDS = re.compile(r"#W\d+|[\w.]+@[\w.]+|\b(?:paypal|credit_card|gift_card)_\d+|\bp\d\d\b|\b\d{4,5}\b")


def test_corrections_hold_nothing_the_agent_was_not_told() -> None:
    checked = 0
    for task in tasks(150):
        for act in (bad_habits(task.index), bad_habits(task.index, 0.8), random_admissible(task.index)):
            shown, steps, _ = episode(task, act)
            for _, observation, _, _, info in steps:
                better = info["oracle"]["better"]
                if better is not None:
                    parsed = parse_action(better)
                    assert parsed.error is None and (parsed.name == "respond" or parsed.name in TOOLS)
                    for word in IDS.findall(better):
                        assert word in shown, (task.id, better)
                        checked += 1
                    for name in ("first_name", "last_name"):
                        assert parsed.arguments.get(name, "") in shown
                shown += "\n" + observation
    assert checked > 500


# --- spelling and hostile text ---------------------------------------------------------------------------------------
def test_text_is_never_evaluated(tmp_path) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')"
    env = Retail(50)
    env.reset(options={"task": make_task("test", 0)})
    for text in (
        code,
        f"get_order_details(order_id={code})",
        f"get_order_details(order_id=[{code}])",
        f"get_order_details(**{{'order_id': {code}}})",
        f"__import__('os').system('touch {canary}')",
        f'exec("{code}")',
        json.dumps({"name": f"exec('{code}')", "arguments": {"__class__": code}}),
        json.dumps({"name": "_transfer_to_human_agents", "arguments": {"summary": ""}}),
        json.dumps({"name": "__init__", "arguments": {}}),
        json.dumps({"name": "reset", "arguments": {}}),
    ):
        assert_harmless(env, text)
    assert not canary.exists()
