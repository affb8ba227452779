"""Seeded generator of mini-airline tasks: a small database, a user with one wish, the gold actions that grant it."""

from __future__ import annotations

import random
from typing import Any

from hero_mini.envs.base import SPLITS, Action, Task, task_id
from hero_mini.envs.tau_script import OUT_OF_SCOPE
from hero_mini.seeds import rng

FIRST = "Ana Ben Cleo Dina Eli Faye Gus Hugo Iris Jack Kira Leo Maya Nils Otto Pia Rosa Sven Tara Uma".split()
LAST = (
    "Adler Baker Costa Duarte Egan Fox Grant Haas Ivey Jensen Klein Lund Mercer Nash Owens Price Quinn Reyes Stone Tran"
).split()
AIRPORTS = "SFO JFK LAX ORD DFW DEN SEA ATL MIA BOS".split()
CABINS = ("basic_economy", "economy", "business")
FREE_BAGS = {"basic_economy": 0, "economy": 1, "business": 2}  # per passenger of a regular member
MORE_BAGS = {"regular": 0, "silver": 1, "gold": 2}  # per passenger, on top
PASSED = "05-14"  # the date of flights that are flown or were cancelled
FAMILIES = {
    "cancel": 0.20,
    "cabin": 0.15,
    "flight": 0.12,
    "bags": 0.15,
    "passenger": 0.12,
    "certificate": 0.08,
    "deny": 0.08,  # a wish that the policy forbids
    "info": 0.06,
    "transfer": 0.04,  # out of scope, or already flown
}
WRITE_TOOL = {
    "cancel": "cancel_reservation",
    "cabin": "update_reservation_flights",
    "flight": "update_reservation_flights",
    "bags": "update_reservation_baggages",
    "passenger": "update_reservation_passengers",
    "certificate": "send_certificate",
}
WRITES = tuple(dict.fromkeys(WRITE_TOOL.values()))


def permitted(wish: str, membership: str, cabin: str, hours_ago: int, insurance: str, ill: bool) -> bool:
    """The airline's policy on cancelling, on other flights and on compensation, as the system prompt has it."""
    if wish == "cancel":
        return hours_ago < 24 or cabin == "business" or (insurance == "yes" and ill)
    if wish == "flight":
        return cabin != "basic_economy"
    if wish == "certificate":
        return membership != "regular" or insurance == "yes" or cabin == "business"
    return True


def paid_bags(membership: str, cabin: str, passengers: int, total: int) -> int:
    """How many of a reservation's checked bags are not free."""
    return max(0, total - passengers * (FREE_BAGS[cabin] + MORE_BAGS[membership]))


def make_task(split: str, index: int, seed: int = 0) -> Task:
    """Task `index` of a split. Last names are dealt out by split, so no user stands in two splits."""
    name = task_id("airline", split, index, seed)
    draw = rng(seed, "airline", split, index)
    family = draw.choices(list(FAMILIES), weights=list(FAMILIES.values()))[0]
    twists = {"deny": ("cancel", "flight", "certificate"), "transfer": ("flown", "email")}
    twist = draw.choice(twists[family]) if family in twists else None
    wish = "cancel" if twist == "flown" else twist or family
    while True:  # until the policy says what the family is about
        ill, membership, terms = draw.random() < 0.4, draw.choice(list(MORE_BAGS)), _terms(draw)
        if permitted(wish, membership, **terms, ill=ill) == (family != "deny"):
            break
    lasts = LAST[SPLITS.index(split) :: len(SPLITS)]
    db, user_id, target = _database(draw, lasts, membership, terms)
    reservation = db["reservations"][target]
    if twist == "flown" or wish == "certificate":
        _let_pass(db, reservation, "landed" if twist == "flown" else "cancelled")
    knows = family == "flight" or draw.random() < 0.5  # the user knows the id of the reservation
    told = knows and family != "deny" and twist != "email"
    search = _other_flights(draw, db, reservation) if wish == "flight" else {}
    which = f"reservation {target}" if told else f"trip to {reservation['destination']}"
    request, write = _wish(draw, wish, db, user_id, target, which, ill, search)
    gold = (write,) if family in WRITE_TOOL else ()
    if family == "transfer":
        gold = (Action("get_user_details", {"user_id": user_id}), OUT_OF_SCOPE)
    opener_identity = draw.random() < 0.5
    world = {
        "db": db,
        "user_id": user_id,
        "family": family,
        "twist": twist,
        "forbidden": family in twists,  # the user wants it, the agent must not do it
        "target": target,
        "told": told,
        "search": {k: search[k] for k in ("origin", "destination", "date")} if search else None,
        "write": write,  # what the user would say yes to
        "opener_identity": opener_identity,
        "identity_reply": f"My user id is {user_id}.",
        "request": request,
        "opener": f"Hi, my user id is {user_id}. {request}" if opener_identity else f"Hi. {request}",
    }
    outputs = {"info": (reservation["flights"][0]["flight_number"],), "deny": (target,)}.get(family, ())
    return Task(name, split, index, family, request, gold, outputs, world)


def _wish(
    draw: random.Random, wish: str, db: dict, user_id: str, target: str, which: str, ill: bool, search: dict
) -> tuple[str, Action | None]:
    """A wish in words, and the write that grants it."""
    user, reservation = db["users"][user_id], db["reservations"][target]
    card = next(p for p in user["payment_methods"] if p.startswith("credit_card"))
    here, people = {"reservation_id": target}, reservation["passengers"]
    flights = [spell(f) for f in reservation["flights"]]
    arguments: dict[str, Any]
    if wish == "cancel":
        arguments = here
        request = f"Please cancel my {which}. {'I am ill.' if ill else 'My plans changed.'}"
    elif wish == "cabin":
        cabin = draw.choice([c for c in CABINS if c != reservation["cabin"]])
        arguments = {**here, "cabin": cabin, "flights": flights, "payment_id": card}
        request = f"Please change my {which} to {cabin}, by credit card."
    elif wish == "flight":
        when = draw.choice(("morning", "evening"))
        arguments = {**here, "cabin": reservation["cabin"], "flights": [search[when]], "payment_id": card}
        request = f"Please move my {which} to the {when} flight on {search['date']}, by credit card."
    elif wish == "bags":
        add = draw.choice((1, 2))
        total = reservation["total_baggages"] + add
        paid = paid_bags(user["membership"], reservation["cabin"], len(people), total)
        arguments = {**here, "total_baggages": total, "nonfree_baggages": paid, "payment_id": card}
        request = f"Please add {add} more checked {'bag' if add == 1 else 'bags'} to my {which}, by credit card."
    elif wish == "passenger":
        old = draw.choice(people)
        first, last = old.split()
        new = f"{first} {draw.choice([name for name in LAST if name != last])}"
        arguments = {**here, "passengers": [new if p == old else p for p in people]}
        request = f"On my {which}, {old} should be {new}."
    elif wish == "certificate":
        arguments = {"user_id": user_id, "amount": 100 * len(people)}
        request = f"The flight of my {which} was cancelled. I want compensation."
    else:
        asks = {"info": f"Which flight is my {which} on?", "email": "Please change the email of my account."}
        return asks[wish], None
    return request, Action(WRITE_TOOL[wish], arguments)


def spell(flight: dict) -> str:
    """A flight of a reservation as the tools take it: number and date."""
    return f"{flight['flight_number']} {flight['date']}"


# --- the database ----------------------------------------------------------------------------------------------------
def _terms(draw: random.Random) -> dict[str, Any]:
    """What the policy asks about a reservation."""
    hours_ago = draw.randint(1, 20) if draw.random() < 0.3 else draw.randint(30, 50)
    return {"cabin": draw.choice(CABINS), "hours_ago": hours_ago, "insurance": draw.choice(("no", "no", "yes"))}


def _database(draw: random.Random, lasts: list[str], membership: str, terms: dict) -> tuple[dict, str, str]:
    """Two users, two reservations of the first and one of the second; the target, one of the two, is on these terms."""
    db: dict[str, Any] = {"users": {}, "reservations": {}, "flights": {}, "transferred": None}
    firsts, letters, airports = draw.sample(FIRST, 3), draw.sample("BCDFGHJKLMNPQRTVWXZ", 6), draw.sample(AIRPORTS, 6)
    flights, cards = draw.sample(range(10, 100), 3), draw.sample(range(10, 100), 4)
    for first, level in zip(firsts[:2], (membership, draw.choice(list(MORE_BAGS))), strict=True):
        last = draw.choice(lasts)
        other = draw.choice(("gift_card", "certificate"))
        db["users"][f"{first}_{last}_{draw.randint(10, 99)}".lower()] = {
            "name": f"{first} {last}",
            "membership": level,
            "payment_methods": {f"credit_card_{cards.pop()}": None, f"{other}_{cards.pop()}": 10},  # dollars left
            "reservations": [],
        }
    me, someone = db["users"]
    targeted = draw.randrange(2)
    for n, user_id in enumerate((me, me, someone)):
        user, mine = db["users"][user_id], terms if n == targeted else _terms(draw)
        reservation_id = f"{letters.pop()}{draw.randint(2, 9)}{letters.pop()}{draw.randint(2, 9)}"
        people = [user["name"], f"{firsts[2]} {draw.choice(lasts)}"][: draw.choice((1, 2))]
        origin, destination, number = airports.pop(), airports.pop(), f"HAT{flights.pop()}"
        date = f"05-{draw.randint(20, 24)}"
        db["flights"][number] = _flight(draw, origin, destination, draw.choice(("07:00", "12:00")), date)
        price = db["flights"][number]["dates"][date]["prices"][mine["cabin"]]
        bags = draw.choice((0, 1, 2))
        paid = paid_bags(user["membership"], mine["cabin"], len(people), bags)
        db["reservations"][reservation_id] = {
            "user_id": user_id,
            "origin": origin,
            "destination": destination,
            **mine,
            "flights": [{"flight_number": number, "date": date, "price": price}],
            "passengers": people,
            "total_baggages": bags,
            "nonfree_baggages": paid,
            "payment_history": [[next(iter(user["payment_methods"])), price * len(people) + 50 * paid]],
            "status": "booked",
            "changes": 0,
        }
        user["reservations"].append(reservation_id)
    return db, me, db["users"][me]["reservations"][targeted]


def _flight(draw: random.Random, origin: str, destination: str, time: str, date: str) -> dict:
    base = draw.randrange(80, 300, 10)
    prices = {"basic_economy": base, "economy": base + 40, "business": 3 * base}
    day = {"status": "available", "seats": draw.randint(2, 9), "prices": prices}
    return {"origin": origin, "destination": destination, "time": time, "dates": {date: day}}


def _let_pass(db: dict, reservation: dict, status: str) -> None:
    """Move a reservation's flight to yesterday, where it has landed or was cancelled."""
    flight = reservation["flights"][0]
    dates = db["flights"][flight["flight_number"]]["dates"]
    dates[PASSED] = dates.pop(flight["date"]) | {"status": status}
    flight["date"] = PASSED
    reservation["hours_ago"] += 48  # booked before


def _other_flights(draw: random.Random, db: dict, reservation: dict) -> dict[str, str]:
    """Two more flights of the same route on another day, in the morning and in the evening, and how to search them."""
    origin, destination = reservation["origin"], reservation["destination"]
    date = f"05-{draw.randint(25, 29)}"
    numbers = draw.sample([n for n in range(10, 100) if f"HAT{n}" not in db["flights"]], 2)
    found = {"origin": origin, "destination": destination, "date": date}
    for number, (when, time) in zip(numbers, {"morning": "08:00", "evening": "19:00"}.items(), strict=True):
        db["flights"][f"HAT{number}"] = _flight(draw, origin, destination, time, date)
        found[when] = f"HAT{number} {date}"
    return found
