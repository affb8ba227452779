"""The scripted side of mini retail, a `tau_script.Script`: the expert, the judgement of reads, the bad habits.

The expert and the judgement use only what the agent has been shown so far, so that a corrected action never contains
a fact the agent could not have known. The bad habits are the behaviour that the warm-up teaches on purpose.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hero_mini.envs.base import Action, Verdict
from hero_mini.envs.retail_tasks import REASONS, WRITE_TOOL, find_user
from hero_mini.envs.tau_script import CLOSING, OUT_OF_SCOPE, respond

if TYPE_CHECKING:
    from hero_mini.envs.retail import Retail

ASK = "What is your email, or your name and zip?"


def _find_user(env: Retail) -> Action:
    """The look-up that fits what the user has told: email, or name and zip."""
    user = env.db["users"][env.task.world["user_id"]]
    return find_user(user, env.task.world["by_email"])


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
        return OUT_OF_SCOPE
    if target["order"] not in env.read:
        unread = next(order for order in env.listed if order not in env.read)
        return Action("get_order_details", {"order_id": unread})
    if family == "transfer":
        return OUT_OF_SCOPE
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


def wrong_write(before: Retail, action: Action) -> str:
    """Why a write that is not the gold one is harmful."""
    return "wrong order" if action.arguments["order_id"] != before.task.world["target"]["order"] else "wrong write"


def judge_read(before: Retail, after: Retail, action: Action, better: Action) -> tuple[Verdict, str]:
    """Verdict and cause of a look-up that found something."""
    world, target = before.task.world, before.task.world["target"]
    if action.name.startswith("find_user"):
        return ("necessary", "") if after.listed and not before.listed else ("unnecessary", "user already known")
    if action.name == "get_order_details":
        order_id = action.arguments["order_id"]
        if order_id in before.read:
            return "unnecessary", "order already read"
        useful = order_id in before.listed and target["order"] not in before.read and world["twist"] != "address"
        return ("necessary", "") if useful else ("unnecessary", "order not needed")
    return ("necessary", "") if action == better else ("unnecessary", "product not needed")


def habits(env: Retail, draw: random.Random) -> list[tuple[float, Action]]:
    """Weighted bad habits that apply in this state: guessed ids, repeats, needless questions, wrong or early writes.

    A guess is always the same placeholder: random digits would be noise that nothing can be learned from.
    """
    world, target = env.task.world, env.task.world["target"]
    user, done = env.db["users"][world["user_id"]], env.confirmed or env.wrote
    found: list[tuple[float, Action]] = [
        (1.0, Action("get_order_details", {"order_id": "#W1234"})),
        (0.5, Action(draw.choice(("lookup_user", "get_user", "list_orders")), {"email": user["email"]}))
        if env.identity_known
        else (0.5, Action("list_orders", {"name": target["name"]})),
        (0.5, OUT_OF_SCOPE),
        (1.0, respond(CLOSING)),
    ]
    if env.identity_known:
        found.append((1.5, respond(ASK)))
    elif not done:
        found.append((1.0, Action("find_user_id_by_email", {"email": "user@mail.com"})))
    if env.listed:
        found.append((1.0, _find_user(env)))
        found += [
            (2.0 if order in env.read else 0.5, Action("get_order_details", {"order_id": order}))
            for order in env.listed
            if order in env.read or target["order"] in env.read
        ]
        found += _writes(env, draw)
    best = expert(env)
    products = {p: None for order in env.listed if order in env.read for p in env.db["orders"][order]["items"].values()}
    found += [
        (0.5, Action("get_product_details", {"product_id": product}))
        for product in products
        if best != Action("get_product_details", {"product_id": product})
    ]
    return found


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


def admissible(env: Retail) -> list[Action]:
    """Well-formed actions on what has been seen so far, for the random floor (our choice)."""
    actions = [respond(ASK), respond(CLOSING), OUT_OF_SCOPE]
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
    return actions
