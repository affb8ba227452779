"""Mini TauBench retail: real tool, argument and error names, a scripted user, irreversible writes, a hashed database.

Kept from tau-bench: authenticate first, an explicit yes before a write (asked by the policy, not enforced by the
tools), once-only modify and exchange, transfer of what is out of scope, reward 0/1 from the final database against a
replay of the gold actions, required outputs as whole tokens. Ours: short ids and texts (a whole episode is about 500
tokens), find_user_* also lists the user's orders, and a transfer is written into the database with the user it is for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
from collections.abc import Callable

from hero_mini.envs import retail_script as script
from hero_mini.envs.base import STOP, Action, Task, parse_action, said
from hero_mini.envs.retail_tasks import REASONS, TRANSFER, WRITES, make_task
from hero_mini.runtime import HeroError

SYSTEM_PROMPT = """Retail agent. Find the user, read the order, get a yes before a write, transfer what is out of scope.
Tools: find_user_id_by_email find_user_id_by_name_zip get_order_details get_product_details cancel_pending_order \
modify_pending_order_items return_delivered_order_items exchange_delivered_order_items transfer_to_human_agents"""

TOOLS: dict[str, tuple[str, ...]] = {  # name -> required arguments, in the order of the real tools
    "find_user_id_by_email": ("email",),
    "find_user_id_by_name_zip": ("first_name", "last_name", "zip"),
    "get_order_details": ("order_id",),
    "get_product_details": ("product_id",),
    "cancel_pending_order": ("order_id", "reason"),
    "modify_pending_order_items": ("order_id", "item_ids", "new_item_ids", "payment_method_id"),
    "return_delivered_order_items": ("order_id", "item_ids", "payment_method_id"),
    "exchange_delivered_order_items": ("order_id", "item_ids", "new_item_ids", "payment_method_id"),
    TRANSFER: ("summary",),
}


class ToolError(Exception):
    """The tool's own refusal; its text is the observation, verbatim as in tau-bench."""


class Retail:
    """One retail episode at a time. See `hero_mini.envs.base` for the protocol."""

    name = "retail"
    system_prompt = SYSTEM_PROMPT

    def __init__(self, max_turns: int = 10):
        if max_turns < 1:
            raise HeroError(f"max_turns is {max_turns}; an episode needs at least 1 turn")
        self.max_turns = max_turns
        self.task: Task | None = None

    def tasks(self, split: str, n: int, seed: int = 0) -> list[Task]:
        """The first `n` tasks of a split; every split is endless, and no user stands in two of them."""
        return [make_task(split, index, seed) for index in range(n)]

    def task_named(self, task_id: str) -> Task:
        """The task with this id: "retail/<split>/<index>", with "@<seed>" behind it for a seed other than 0."""
        found = re.fullmatch(r"retail/(\w+)/(\d{1,9})(?:@(\d{1,9}))?", task_id)
        if found is None:
            raise HeroError(f"{task_id!r} is not a retail task; write retail/<split>/<index>, such as retail/test/0")
        return make_task(found[1], int(found[2]), int(found[3] or 0))

    # -- the episode --------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        """Start `options["task"]` (a Task or its id); without one, draw a train task by `seed`."""
        task = (options or {}).get("task")
        if task is None:
            task = make_task("train", seed or 0)
        elif isinstance(task, str):
            task = self.task_named(task)
        self.task = task
        self.db = copy.deepcopy(task.world["db"])
        self.turn = 0
        self.done = False
        self.spoken: list[str] = []
        # What the agent has been told so far: the expert and the judgement of a turn may use nothing else.
        self.identity_known = bool(task.world["opener_identity"])
        self.listed: list[str] = []
        self.read: set[str] = set()  # order and product ids
        self.confirmed = False
        self.wrote = False
        self.calls: set[str] = set()
        return task.world["opener"], {"role": "user", "turn": 0}

    def clone(self) -> Retail:
        """An independent copy of the episode, to look at what another action would have done."""
        other = copy.copy(self)
        other.db = copy.deepcopy(self.db)
        other.spoken, other.listed = list(self.spoken), list(self.listed)
        other.read, other.calls = set(self.read), set(self.calls)
        return other

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        if self.task is None or self.done:
            raise HeroError("this episode is over or was never started; call reset first")
        parsed = parse_action(action)
        before, better = self.clone(), self.expert()
        repeated = str(parsed) in self.calls
        self.calls.add(str(parsed))
        self.turn += 1
        role, error, changed, terminated = "tool", parsed.error, False, False
        if error is None and parsed.name == "respond":
            role, observation = "user", self._user(str(parsed.arguments.get("content", "")))
            terminated = observation == STOP
        elif error is None:
            try:
                observation = self._call(parsed)
                changed = self.db != before.db
                terminated = parsed.name == TRANSFER
            except ToolError as refusal:
                error = str(refusal)
        if error is not None:
            observation = error
        truncated = not terminated and self.turn >= self.max_turns
        self.done = terminated or truncated
        parts = self.reward_parts() if terminated else {"database": 0.0, "outputs": 0.0}
        reward = float(all(parts.values())) if terminated else 0.0
        info = {
            "role": role,
            "action": {"name": parsed.name, "arguments": parsed.arguments},
            "valid": parsed.error is None and _bad(parsed) is None,
            "changed": changed,
            "error": error,
            "repeated": repeated,
            "turn": self.turn,
            "reward_parts": parts,
            "oracle": script.judge(before, self, parsed, error, better, observation),
        }
        return observation, reward, terminated, truncated, info

    def reward_parts(self) -> dict[str, float]:
        """1.0 or 0.0 each: the final database equals the gold replay's, and every required output was said."""
        gold = Retail()
        gold.reset(options={"task": self.task})
        for action in self.task.gold:
            gold._call(action)
        return {
            "database": float(_hash(gold.db) == _hash(self.db)),
            "outputs": float(said(self.task.outputs, " ".join(self.spoken))),
        }

    # -- the scripted agents --------------------------------------------------------------------------------------

    def expert(self) -> Action:
        """The best next action given what the agent has been told so far."""
        return script.expert(self)

    def scripted(self, draw: random.Random, skill: float) -> Action:
        """The expert's action with probability `skill` (0..1), a bad habit otherwise."""
        return script.scripted(self, draw, skill)

    def admissible(self) -> list[str]:
        """Well-formed actions on ids seen so far: what the random-admissible floor draws from."""
        return script.admissible(self)

    # -- the scripted user --------------------------------------------------------------------------------------

    def _user(self, text: str) -> str:
        """A state machine: gives the identity when asked, answers a proposal, stops once the work is done."""
        world, low = self.task.world, text.lower()
        self.spoken.append(text)
        if self.wrote or (world["family"] == "info" and re.search(r"\w_\d", text)):
            return STOP
        if "(yes/no)" in low or "proceed" in low or "confirm" in low:
            if world["target"]["order"] in text and all(word in low for word in world["proposal_words"]):
                self.confirmed = True
                return "Yes, please."
            return "No, that is not what I want."
        if re.search(r"\b(email|e-mail|name|zip)\b", low):
            self.identity_known = True
            return world["identity_reply"]
        return f"Not yet. {world['request']}"

    # -- the tools ----------------------------------------------------------------------------------------------

    def _call(self, action: Action) -> str:
        if (problem := _bad(action)) is not None:
            raise ToolError(problem)
        result = getattr(self, f"_{action.name}")(**action.arguments)
        self.wrote = self.wrote or action.name in WRITES
        return result

    def _find(self, matches: Callable[[dict], bool]) -> str:
        for user_id, user in self.db["users"].items():
            if matches(user):
                if user_id == self.task.world["user_id"]:
                    self.listed = user["orders"]
                return f"{user_id}; orders {' '.join(user['orders'])}"
        raise ToolError("Error: user not found")

    def _find_user_id_by_email(self, email: str) -> str:
        return self._find(lambda user: user["email"] == email)

    def _find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:
        return self._find(lambda u: (u["first_name"], u["last_name"], u["zip"]) == (first_name, last_name, zip))

    def _get_order_details(self, order_id: str) -> str:
        order = self._order(order_id)
        self.read.add(order_id)
        products = self.db["products"]
        items = "; ".join(
            f"{products[p]['name']} {p} item {i} {products[p]['variants'][i]['option']}"
            for i, p in order["items"].items()
        )
        return f"{order_id} {order['status']}; {items}; paid {order['payment']}"

    def _get_product_details(self, product_id: str) -> str:
        if product_id not in self.db["products"]:
            raise ToolError("Error: product not found")
        self.read.add(product_id)
        product = self.db["products"][product_id]
        variants = "; ".join(
            f"{i} {v['option']}{'' if v['available'] else ' sold out'}" for i, v in product["variants"].items()
        )
        return f"{product['name']} {product_id}; {variants}"

    def _cancel_pending_order(self, order_id: str, reason: str) -> str:
        order = self._order(order_id)
        if order["status"] != "pending":
            raise ToolError("Error: non-pending order cannot be cancelled")
        if reason not in REASONS:
            raise ToolError("Error: invalid reason")
        order["status"], order["reason"] = "cancelled", reason
        return f"{order_id} cancelled"

    def _modify_pending_order_items(
        self, order_id: str, item_ids: list, new_item_ids: list, payment_method_id: str
    ) -> str:
        order = self._order(order_id)
        if order["status"] != "pending":
            raise ToolError("Error: non-pending order cannot be modified")
        self._swap(order, item_ids, new_item_ids, payment_method_id)
        order["status"] = "pending (item modified)"
        return f"{order_id} modified"

    def _return_delivered_order_items(self, order_id: str, item_ids: list, payment_method_id: str) -> str:
        order = self._order(order_id)
        if order["status"] != "delivered":
            raise ToolError("Error: non-delivered order cannot be returned")
        self._check(order, item_ids, payment_method_id)
        order.update(status="return requested", returned=sorted(item_ids), refund=payment_method_id)
        return f"{order_id} return requested"

    def _exchange_delivered_order_items(
        self, order_id: str, item_ids: list, new_item_ids: list, payment_method_id: str
    ) -> str:
        order = self._order(order_id)
        if order["status"] != "delivered":
            raise ToolError("Error: non-delivered order cannot be exchanged")
        self._swap(order, item_ids, new_item_ids, payment_method_id)
        order["status"] = "exchange requested"
        return f"{order_id} exchange requested"

    def _transfer_to_human_agents(self, summary: str) -> str:
        self.db["transferred"] = self.task.world["user_id"] if self.listed else "nobody"
        return "Transfer successful"

    def _order(self, order_id: str) -> dict:
        if order_id not in self.db["orders"]:
            raise ToolError("Error: order not found")
        return self.db["orders"][order_id]

    def _check(self, order: dict, item_ids: list, payment_method_id: str) -> None:
        if payment_method_id not in self.db["users"][order["user"]]["payments"]:
            raise ToolError("Error: payment method not found")
        if not item_ids or any(i not in order["items"] for i in item_ids) or len(set(item_ids)) < len(item_ids):
            raise ToolError("Error: some item not found")

    def _swap(self, order: dict, item_ids: list, new_item_ids: list, payment_method_id: str) -> None:
        self._check(order, item_ids, payment_method_id)
        if len(item_ids) != len(new_item_ids):
            raise ToolError("Error: the number of items to be exchanged should match")
        for old, new in zip(item_ids, new_item_ids, strict=True):
            variants = self.db["products"][order["items"][old]]["variants"]
            if new not in variants or not variants[new]["available"]:
                raise ToolError(f"Error: new item {new} not found or available")
        for old, new in zip(item_ids, new_item_ids, strict=True):
            order["items"][new] = order["items"].pop(old)
        order["paid_difference"] = payment_method_id


def _bad(action: Action) -> str | None:
    """The error of a call whose arguments do not fit the tool's signature, or None."""
    wanted = TOOLS.get(action.name, ())
    if action.name not in TOOLS:
        return None if action.name == "respond" else f"Unknown action {action.name[:40]}"
    for key in action.arguments:
        if key not in wanted:
            return f"Error: {action.name} got an unexpected argument {key[:40]}"
    for key in wanted:
        if key not in action.arguments:
            return f"Error: {action.name} needs the argument {key}"
        value = action.arguments[key]
        strings = value if key.endswith("item_ids") and isinstance(value, list) else [value]
        if key.endswith("item_ids") != isinstance(value, list) or not all(isinstance(v, str) for v in strings):
            return f"Error: the argument {key} has the wrong type"
    return None


def _hash(db: dict) -> str:
    return hashlib.sha256(json.dumps(db, sort_keys=True).encode()).hexdigest()
