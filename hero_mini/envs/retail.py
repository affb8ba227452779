"""Mini TauBench retail: orders, items and products behind real tool, argument and error names (see `tau.Tau`).

Kept from tau-bench: authenticate first, an explicit yes before a write (asked by the policy, not enforced by the
tools), once-only modify and exchange, transfer of what is out of scope. Ours: a whole episode is about 500 tokens, and
find_user_* also lists the user's orders.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hero_mini.envs import retail_script
from hero_mini.envs.retail_tasks import REASONS, WRITES, make_task
from hero_mini.envs.tau import Tau, ToolError
from hero_mini.envs.tau_script import TRANSFER

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


class Retail(Tau):
    """One retail episode at a time."""

    name = "retail"
    system_prompt = SYSTEM_PROMPT
    tools = TOOLS
    writes = WRITES
    lists = {"item_ids": (), "new_item_ids": ()}
    refusals = ("not found", "invalid reason", "cannot be", "should match")
    identity_question = re.compile(r"\b(email|e-mail|name|zip)\b")
    script = retail_script
    make_task = staticmethod(make_task)

    # -- the scripted user --------------------------------------------------------------------------------------

    def _settles(self, text: str) -> bool:
        """An answer that names a payment method settles a question."""
        return self.task.world["family"] == "info" and re.search(r"\w_\d", text) is not None

    def _wanted(self, text: str) -> bool:
        world, low = self.task.world, text.lower()
        return world["target"]["order"] in text and all(word in low for word in world["proposal_words"])

    # -- the tools ----------------------------------------------------------------------------------------------

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
                raise ToolError(f"Error: new item {new[:40]} not found or available")
        for old, new in zip(item_ids, new_item_ids, strict=True):
            order["items"][new] = order["items"].pop(old)
        order["paid_difference"] = payment_method_id
