"""The scripted side of mini retail: the expert, the judgement of a turn (the oracle), and the bad habits.

The expert and the judgement use only what the agent has been shown so far, so that a corrected action never contains
a fact the agent could not have known. The bad habits are the behaviour that the warm-up teaches on purpose.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hero_mini.envs.base import STOP, Action
from hero_mini.envs.retail_tasks import REASONS, TRANSFER, WRITE_TOOL, WRITES, find_user

if TYPE_CHECKING:
    from hero_mini.envs.retail import Retail

ASK = "What is your email, or your name and zip?"
CLOSING = "It is done. Anything else?"


def _find_user(env: Retail) -> Action:
    """The look-up that fits what the user has told: email, or name and zip."""
    user = env.db["users"][env.task.world["user_id"]]
    return find_user(user, env.task.world["by_email"])


def respond(text: str) -> Action:
    return Action("respond", {"content": text})


def expert(env: Retail) -> Action:
    """The best next action given what the agent has been told (our choice; it solves every task)."""
    world, target = env.task.world, env.task.world["target"]
    family = world["family"]
    if env.wrote:
        return respond(CLOSING)
    if not env.identity_known:
        return respond(ASK)
    if not env.listed:
        return _find_user(env)
    if world["twist"] == "address":
        return Action(TRANSFER, {"summary": "out of scope"})
    if target["order"] not in env.read:
        unread = next(order for order in env.listed if order not in env.read)
        return Action("get_order_details", {"order_id": unread})
    if family == "transfer":
        return Action(TRANSFER, {"summary": "out of scope"})
    if family == "info":
        return respond(f"You paid with {env.db['orders'][target['order']]['payment']}.")
    if family in ("exchange", "modify") and target["product"] not in env.read:
        return Action("get_product_details", {"product_id": target["product"]})
    if not env.confirmed:
        return respond(proposal(env.task.gold[0]))
    return env.task.gold[0]


def proposal(write: Action) -> str:
    """The question that asks the user's yes for a write."""
    a, verb = write.arguments, {tool: family for family, tool in WRITE_TOOL.items()}[write.name]
    if verb == "cancel":
        return f"I will cancel {a['order_id']}, {a['reason']}. Proceed (yes/no)?"
    swap = f" for {a['new_item_ids'][0]}" if "new_item_ids" in a else ""
    return f"I will {verb} item {a['item_ids'][0]}{swap} of {a['order_id']}. Proceed (yes/no)?"


def judge(before: Retail, after: Retail, action: Action, error: str | None, better: Action, observation: str) -> dict:
    """The oracle's diagnosis of one turn: verdict, cause, and the expert's action where the turn was not necessary."""
    verdict, cause = _verdict(before, after, action, error, better, observation)
    return {"verdict": verdict, "cause": cause, "better": None if verdict == "necessary" else str(better)}


def _verdict(
    before: Retail, after: Retail, action: Action, error: str | None, better: Action, observation: str
) -> tuple[str, str]:
    world, target = before.task.world, before.task.world["target"]
    if error is not None:
        if error.startswith("Unknown action") or not error.startswith("Error: "):
            return "invalid", "unknown action"
        known_errors = ("not found", "invalid reason", "cannot be", "should match")
        if not any(part in error for part in known_errors):
            return "invalid", "bad arguments"
        return "failed", error.removeprefix("Error: ")
    if action.name in WRITES:
        if action in before.task.gold:
            return ("necessary", "") if before.confirmed else ("harmful", "no yes from the user")
        return "harmful", "wrong order" if action.arguments["order_id"] != target["order"] else "wrong write"
    if action.name == TRANSFER:
        return ("necessary", "") if better.name == TRANSFER else ("harmful", "no need to transfer")
    if action.name.startswith("find_user"):
        return ("necessary", "") if after.listed and not before.listed else ("unnecessary", "user already known")
    if action.name == "get_order_details":
        order_id = action.arguments["order_id"]
        if order_id in before.read:
            return "unnecessary", "order already read"
        useful = order_id in before.listed and target["order"] not in before.read and world["twist"] != "address"
        return ("necessary", "") if useful else ("unnecessary", "order not needed")
    if action.name == "get_product_details":
        return ("necessary", "") if action == better else ("unnecessary", "product not needed")
    text = str(action).lower()
    if better.name == "respond" and str(better) == CLOSING:
        return "necessary", ""
    if world["family"] == "info" and observation == STOP:
        return ("necessary", "") if after.reward_parts()["outputs"] else ("harmful", "wrong answer")
    if "proceed" in text or "(yes/no)" in text or "confirm" in text:
        if before.confirmed:
            return "unnecessary", "already confirmed"
        return ("necessary", "") if after.confirmed else ("failed", "the user said no")
    if after.identity_known and not before.identity_known:
        return "necessary", ""
    return "unnecessary", "already told" if observation == world["identity_reply"] else "work not done"


def scripted(env: Retail, draw: random.Random, skill: float) -> Action:
    """The expert's action with probability `skill` (0..1), a bad habit otherwise."""
    if draw.random() < skill:
        return expert(env)
    habits = _habits(env, draw)
    return draw.choices([a for _, a in habits], weights=[w for w, _ in habits])[0]


def _habits(env: Retail, draw: random.Random) -> list[tuple[float, Action]]:
    """Weighted bad habits that apply in this state: guessed ids, repeats, needless questions, wrong or early writes.

    A guess is always the same placeholder: random digits would be noise that nothing can be learned from.
    """
    world, target = env.task.world, env.task.world["target"]
    user, done = env.db["users"][world["user_id"]], env.confirmed or env.wrote
    habits: list[tuple[float, Action]] = [
        (1.0, Action("get_order_details", {"order_id": "#W1234"})),
        (0.5, Action(draw.choice(("lookup_user", "get_user", "list_orders")), {"email": user["email"]}))
        if env.identity_known
        else (0.5, Action("list_orders", {"name": target["name"]})),
        (0.5, Action(TRANSFER, {"summary": "out of scope"})),
        (1.0, respond(CLOSING)),
    ]
    if env.identity_known:
        habits.append((1.5, respond(ASK)))
    elif not done:
        habits.append((1.0, Action("find_user_id_by_email", {"email": "user@mail.com"})))
    if env.listed:
        habits.append((1.0, _find_user(env)))
        habits += [
            (2.0 if order in env.read else 0.5, Action("get_order_details", {"order_id": order}))
            for order in env.listed
            if order in env.read or target["order"] in env.read
        ]
        habits += _writes(env, draw)
    best = expert(env)
    products = {p: None for order in env.listed if order in env.read for p in env.db["orders"][order]["items"].values()}
    habits += [
        (0.5, Action("get_product_details", {"product_id": product}))
        for product in products
        if best != Action("get_product_details", {"product_id": product})
    ]
    return habits


def _writes(env: Retail, draw: random.Random) -> list[tuple[float, Action]]:
    """Proposals and writes on a wrong order, a wrong item, a guessed variant, or with a reason that is not allowed."""
    world, target = env.task.world, env.task.world["target"]
    family = world["family"]
    tool = WRITE_TOOL.get(family, "cancel_pending_order")
    order_id = draw.choice(env.listed)
    order = env.db["orders"][order_id]
    arguments: dict = {"order_id": order_id}
    if tool == "cancel_pending_order":
        right = order_id == target["order"] and family == "cancel"
        arguments["reason"] = "changed my mind" if right or draw.random() < 0.2 else draw.choice(REASONS)
    else:
        items = [i for i in order["items"] if i != target["item"]] if order_id in env.read else []
        arguments["item_ids"] = [draw.choice(items) if items else "1234"]
        if tool != "return_delivered_order_items":
            arguments["new_item_ids"] = ["5678"]
        arguments["payment_method_id"] = order["payment"] if order_id in env.read else "paypal_11"
    wrong = Action(tool, arguments)
    return [(1.0, wrong), (1.0, respond(proposal(wrong)))]


def admissible(env: Retail) -> list[str]:
    """Well-formed actions on what has been seen so far, for the random floor (our choice)."""
    actions = [respond(ASK), respond(CLOSING), Action(TRANSFER, {"summary": "out of scope"})]
    if env.identity_known:
        actions.append(_find_user(env))
    for order_id in env.listed:
        actions.append(Action("get_order_details", {"order_id": order_id}))
        if order_id not in env.read:
            continue
        order = env.db["orders"][order_id]
        writes = [Action("cancel_pending_order", {"order_id": order_id, "reason": r}) for r in REASONS]
        for item, product in order["items"].items():
            actions.append(Action("get_product_details", {"product_id": product}))
            back = {"order_id": order_id, "item_ids": [item]}
            pay = {"payment_method_id": order["payment"]}
            writes.append(Action("return_delivered_order_items", {**back, **pay}))
            new = [v for v in env.db["products"][product]["variants"] if v != item] if product in env.read else []
            for tool in ("modify_pending_order_items", "exchange_delivered_order_items"):
                writes += [Action(tool, {**back, "new_item_ids": [n], **pay}) for n in new]
        actions += writes + [respond(proposal(w)) for w in writes]
        actions.append(respond(f"You paid with {order['payment']}."))
    return [str(a) for a in actions]
