"""Seeded generator of mini-retail tasks: a small database, a user with one wish, the gold actions that grant it."""

from __future__ import annotations

import random

from hero_mini.envs.base import SPLITS, Action, Task, task_id
from hero_mini.envs.tau_script import OUT_OF_SCOPE
from hero_mini.seeds import rng

REASONS = ("no longer needed", "ordered by mistake")
FIRST = (
    "Mia Noah Yuki Omar Lena Ivan Aisha Liam Sofia Raj Emma Chen Fatima Lucas Olga Ethan Nora Diego Hana Amir".split()
)
LAST = """
Abbott Adler Ahmed Akins Ali Allen Alves Amato Anders Arroyo Atkins Bailey Baker Banks Barone Bauer Becker Bell
Berg Bianchi Blake Bloom Borg Bowen Brandt Brooks Brown Bruno Burke Byrne Campos Cano Carter Castro Chan Chavez
Choi Clark Cohen Conti Costa Cruz Dalton Davis Dawson Delgado Diaz Dixon Dolan Duarte Dubois Duran Eaton Egan
Ellis Engel Erikson Evans Farrell Fermi Fischer Flores Foster Fowler Frank Fuentes Garcia Gibson Gomez Goto
Grant Greco Gupta Hagen Hansen Harper Hayashi Hill Hoffman Holm Howell Huang Hughes Ibarra Ito Ivanov Jain
Jansen Jensen Jones Kaplan Karlsson Kato Keller Khan Kim Klein Koch Kowalski Kumar Lambert Larsen Leone Lopez
Lund Maier Marino Mason Meyer Mishra Moore Morita Muller Nakano Navarro Nguyen Nilsen Novak Ogawa Oliver Olsen
Ortega Osman Palmer Park Patel Perez Petrov Popov Quinn Ramos Rao Reyes Ricci Rojas Romero Rossi Russo Saito
Santos Sato Schmidt Shah Silva Singh Sosa Stone Suzuki Tanaka Torres Vargas Wagner Walker Weber Wong Yilmaz
Young
""".split()  # enough of them that a name has to be read, not known
PRODUCTS: dict[str, tuple[str, ...]] = {
    "lamp": ("white", "black", "brass"),
    "mug": ("small", "medium", "large"),
    "desk": ("oak", "pine", "glass"),
    "chair": ("grey", "green", "blue"),
    "kettle": ("steel", "red", "black"),
    "jacket": ("small", "medium", "large"),
    "shirt": ("white", "blue", "green"),
    "rug": ("wool", "cotton", "jute"),
    "clock": ("round", "square", "oval"),
    "phone": ("black", "silver", "gold"),
    "watch": ("leather", "steel", "nylon"),
    "bottle": ("small", "medium", "large"),
}
FAMILIES = {"cancel": 0.30, "return": 0.25, "exchange": 0.15, "modify": 0.15, "info": 0.10, "transfer": 0.05}
WRITE_TOOL = {
    "cancel": "cancel_pending_order",
    "return": "return_delivered_order_items",
    "exchange": "exchange_delivered_order_items",
    "modify": "modify_pending_order_items",
}
WRITES = tuple(WRITE_TOOL.values())


def make_task(split: str, index: int, seed: int = 0) -> Task:
    """Task `index` of a split. Last names are dealt out by split, so no user stands in two splits."""
    name_of_task = task_id("retail", split, index, seed)
    draw = rng(seed, "retail", split, index)
    family = draw.choices(list(FAMILIES), weights=list(FAMILIES.values()))[0]
    lasts = LAST[SPLITS.index(split) :: len(SPLITS)]
    db, user_id, orders = _database(draw, lasts)
    user = db["users"][user_id]
    wanted_status = {"cancel": "pending", "modify": "pending", "return": "delivered", "exchange": "delivered"}
    twist = draw.choice(("address", "cancel", "return")) if family == "transfer" else None  # why it is out of scope
    target = draw.choice(orders)
    order = db["orders"][target]
    if family in wanted_status:
        order["status"] = wanted_status[family]
    elif twist in ("cancel", "return"):
        order["status"] = "delivered" if twist == "cancel" else "pending"
    item = draw.choice(list(order["items"]))
    product = order["items"][item]
    name = db["products"][product]["name"]
    reason = draw.choice(REASONS)
    variants = db["products"][product]["variants"]
    new_item = draw.choice([i for i in variants if i != item])
    variants[new_item]["available"] = True
    because = {"no longer needed": "I no longer need it.", "ordered by mistake": "I ordered it by mistake."}[reason]
    request = {
        "cancel": f"Please cancel my order with the {name}. {because}",
        "return": f"I want to return the {name}.",
        "exchange": f"I want to exchange the {name} for {variants[new_item]['option']}.",
        "modify": f"Please change the {name} in my order to {variants[new_item]['option']}.",
        "info": f"Which payment method did I use for the {name}?",
        "address": f"Please change the address of my order with the {name}.",
    }[twist or family]
    arguments: dict = {"order_id": target}
    words: list[str] = []
    if family == "cancel":
        arguments["reason"], words = reason, ["cancel", reason]
    elif family in WRITE_TOOL:
        arguments["item_ids"], words = [item], [family, item]
        if family != "return":
            arguments["new_item_ids"] = [new_item]
            words.append(new_item)
        arguments["payment_method_id"] = order["payment"]
    by_email = draw.random() < 0.5
    gold: tuple[Action, ...] = ()
    if family in WRITE_TOOL:
        gold = (Action(WRITE_TOOL[family], arguments),)
    elif family == "transfer":
        gold = (find_user(user, by_email), OUT_OF_SCOPE)
    opener_identity = draw.random() < 0.5
    reply = user["email"] if by_email else f"{user['first_name']} {user['last_name']}, zip {user['zip']}"
    world = {
        "db": db,
        "user_id": user_id,
        "family": family,
        "twist": twist,
        "target": {"order": target, "item": item, "product": product, "new_item": new_item, "name": name},
        "reason": reason,
        "by_email": by_email,
        "opener_identity": opener_identity,
        "identity_reply": f"I am {reply}.",
        "request": request,
        "proposal_words": words,
        "opener": f"Hi, I am {reply}. {request}" if opener_identity else f"Hi. {request}",
    }
    outputs = (order["payment"],) if family == "info" else ()
    return Task(name_of_task, split, index, family, request, gold, outputs, world)


def find_user(user: dict, by_email: bool) -> Action:
    """The look-up of a user by what this user tells about themselves."""
    if by_email:
        return Action("find_user_id_by_email", {"email": user["email"]})
    return Action("find_user_id_by_name_zip", {k: user[k] for k in ("first_name", "last_name", "zip")})


def _database(draw: random.Random, lasts: list[str]) -> tuple[dict, str, list[str]]:
    """Six products, two users; the first has two or three orders, and a product stands in one of them at most."""
    names = draw.sample(list(PRODUCTS), 6)
    numbers = draw.sample(range(1000, 10000), 30)
    products, stock = {}, iter(numbers[:18])
    for product_id, name in zip(draw.sample(range(10, 100), 6), names, strict=True):
        options = {str(next(stock)): {"option": o, "available": draw.random() < 0.8} for o in PRODUCTS[name]}
        products[f"p{product_id}"] = {"name": name, "variants": options}
    users, orders, mine = {}, {}, []
    order_ids = iter(numbers[18:])
    for who, n_orders in enumerate((draw.choice((2, 2, 3)), 1)):
        first, last = draw.choice(FIRST), draw.choice(lasts)
        tag = draw.randint(10, 99)
        while any(user["email"] == f"{first.lower()}{tag}@mail.com" for user in users.values()):
            tag = draw.randint(10, 99)  # one user per email, and so per id
        user_id = f"{first}_{last}_{tag}".lower()
        payments = [f"{kind}_{draw.randint(10, 99)}" for kind in draw.sample(("paypal", "credit_card", "gift_card"), 2)]
        shelf = draw.sample(list(products), 6)
        held = []
        for _ in range(n_orders):
            order_id = f"#W{next(order_ids)}"
            chosen = [shelf.pop() for _ in range(draw.choice((1, 1, 2)))]
            items = {draw.choice(list(products[p]["variants"])): p for p in chosen}
            status = draw.choice(("pending", "delivered"))
            orders[order_id] = {"user": user_id, "status": status, "items": items, "payment": draw.choice(payments)}
            held.append(order_id)
        users[user_id] = {
            "first_name": first,
            "last_name": last,
            "email": f"{first.lower()}{tag}@mail.com",
            "zip": str(draw.randint(10000, 99999)),
            "payments": payments,
            "orders": held,
        }
        if who == 0:
            mine = held
    return {"users": users, "orders": orders, "products": products, "transferred": None}, next(iter(users)), mine
