"""The scripted side of mini airline, a `tau_script.Script`: the expert, the judgement of reads, the bad habits.

The expert and the judgement use only what the agent has been shown so far, so that a corrected action never contains
a fact the agent could not have known. The bad habits are the behaviour that the warm-up teaches on purpose.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hero_mini.envs.airline_tasks import CABINS, WRITES, spell
from hero_mini.envs.base import Action, Verdict
from hero_mini.envs.tau_script import CLOSING, OUT_OF_SCOPE, respond

if TYPE_CHECKING:
    from hero_mini.envs.airline import Airline

ASK = "What is your user id?"
PROPOSALS = {  # I will ...
    "cancel_reservation": "cancel {reservation_id}",
    "update_reservation_flights": "change {reservation_id} to {cabin} on {flights}, {payment_id}",
    "update_reservation_baggages": "give {reservation_id} {total_baggages} bags, {nonfree_baggages} paid, {payment_id}",
    "update_reservation_passengers": "set the passengers of {reservation_id} to {passengers}",
    "send_certificate": "send {user_id} a certificate of ${amount}",
}


def proposal(write: Action) -> str:
    """The question that asks the user's yes for a write."""
    joined = {k: ", ".join(v) if isinstance(v, list) else v for k, v in write.arguments.items()}
    return f"I will {PROPOSALS[write.name].format(**joined)}. Proceed (yes/no)?"


def essentials(write: Action) -> list[str]:
    """What a proposal must name as whole tokens for the user to recognise their wish: every argument of the write.

    Each is looked for by itself, so where two bags are wished for and both paid, "2 bags, 1 paid" names all of it.
    """
    values = [v if isinstance(v, list) else [str(v)] for v in write.arguments.values()]
    verb = {"cancel_reservation": "cancel", "send_certificate": "certificate"}.get(write.name)
    return [text for value in values for text in value] + [verb] * (verb is not None)


def deny(reservation_id: str) -> Action:
    return respond(f"I cannot do that for {reservation_id}.")


def answer(env: Airline, reservation_id: str) -> Action:
    return respond(f"It is on {env.db['reservations'][reservation_id]['flights'][0]['flight_number']}.")


def details(reservation_id: str) -> Action:
    return Action("get_reservation_details", {"reservation_id": reservation_id})


def search(env: Airline) -> Action | None:
    """The search for the flights that the user asks for, once it has not been made and its route is known."""
    wanted = env.task.world["search"]
    if wanted is None or " ".join(wanted.values()) in env.read or env.task.world["target"] not in env.read:
        return None
    return Action("search_direct_flight", wanted)


def expert(env: Airline) -> Action:
    """The best next action given what the agent has been told (our choice; it solves every task)."""
    world, target = env.task.world, env.task.world["target"]
    if env.wrote:
        return respond(CLOSING)
    if not env.identity_known:
        return respond(ASK)
    if not env.listed:
        return Action("get_user_details", {"user_id": world["user_id"]})
    if world["twist"] == "email":
        return OUT_OF_SCOPE
    if target not in env.read:
        return details(target if world["told"] else next(r for r in env.listed if r not in env.read))
    if world["family"] == "transfer":
        return OUT_OF_SCOPE
    if world["family"] == "info":
        return answer(env, target)
    if world["family"] == "deny":
        return deny(target)
    if (needed := search(env)) is not None:
        return needed
    return env.task.gold[0] if env.confirmed else respond(proposal(env.task.gold[0]))


def wrong_write(before: Airline, action: Action) -> str:
    """Why a write that is not the gold one is harmful."""
    world = before.task.world
    if world["forbidden"] and action == world["write"]:
        return "against the policy"
    elsewhere = action.arguments.get("reservation_id", world["target"]) != world["target"]
    return "wrong reservation" if elsewhere else "wrong write"


def judge_read(before: Airline, after: Airline, action: Action, better: Action) -> tuple[Verdict, str]:
    """Verdict and cause of a look-up that found something."""
    world = before.task.world
    if action.name == "get_user_details":
        return ("necessary", "") if after.listed and not before.listed else ("unnecessary", "user already known")
    if action.name == "search_direct_flight":
        return ("necessary", "") if action == better else ("unnecessary", "search not needed")
    reservation_id = action.arguments["reservation_id"]
    if reservation_id in before.read:
        return "unnecessary", "reservation already read"
    known = reservation_id == world["target"] if world["told"] else reservation_id in before.listed
    useful = known and world["target"] not in before.read and world["twist"] != "email"
    return ("necessary", "") if useful else ("unnecessary", "reservation not needed")


def habits(env: Airline, draw: random.Random) -> list[tuple[float, Action]]:
    """Weighted bad habits that apply in this state: guessed ids, repeats, needless questions, wrong or early writes."""
    world = env.task.world
    guess = f"{draw.choice('BCDFGHJK')}{draw.randint(2, 9)}{draw.choice('LMNPQRTV')}{draw.randint(2, 9)}"
    lookup = Action("get_user_details", {"user_id": world["user_id"]})
    found: list[tuple[float, Action]] = [
        (1.0, details(guess)),
        (0.5, Action(draw.choice(("get_user", "list_reservations", "get_booking")), {"reservation_id": guess})),
        (0.75, OUT_OF_SCOPE),
        (1.0, respond(CLOSING)),
    ]
    if env.identity_known:
        found.append((1.5, respond(ASK)))
    elif not (env.confirmed or env.wrote):
        wrong = f"{draw.choice(('sam', 'alex', 'kim'))}_{draw.choice(('fox', 'lund', 'nash'))}_{draw.randint(10, 99)}"
        found.append((1.0, Action("get_user_details", {"user_id": wrong})))
    if env.listed:
        found.append((1.0, lookup))
        found += [
            (2.0 if r in env.read else 0.5, details(r))
            for r in env.listed
            if r in env.read or world["target"] in env.read
        ]
        wrong_id = draw.choice(env.listed)
        found += _wrong_writes(env, draw, wrong_id)
        if not (world["family"] == "deny" and wrong_id == world["target"]):
            found.append((0.75, deny(wrong_id)))
    return found


def _wrong_writes(env: Airline, draw: random.Random, reservation_id: str) -> list[tuple[float, Action]]:
    """A write that is not the gold one, from seen facts and guesses, and its proposal."""
    world, r = env.task.world, env.db["reservations"][reservation_id]
    known = reservation_id in env.read
    tool = world["write"].name if world["write"] is not None else draw.choice(WRITES)
    here = {"reservation_id": reservation_id}
    paid = {"payment_id": draw.choice([*env.db["users"][world["user_id"]]["payment_methods"], "credit_card_11"])}
    if tool == "cancel_reservation":
        arguments = here
    elif tool == "update_reservation_flights":
        guess = f"HAT{draw.randint(10, 99)} 05-{draw.randint(20, 29)}"
        flights = [spell(f) for f in r["flights"]] if known else [guess]
        arguments = {**here, "cabin": draw.choice(CABINS), "flights": flights, **paid}
    elif tool == "update_reservation_baggages":
        total = draw.randint(1, 4)
        arguments = {**here, "total_baggages": total, "nonfree_baggages": draw.randint(0, total), **paid}
    elif tool == "update_reservation_passengers":
        people = r["passengers"] if known else ["Sam Fox"]
        arguments = {**here, "passengers": people[: draw.randint(1, len(people))]}
    else:
        arguments = {"user_id": world["user_id"], "amount": draw.choice((50, 100, 150, 200, 300))}
    wrong = Action(tool, arguments)
    return [] if wrong in env.task.gold else [(1.5, wrong), (1.0, respond(proposal(wrong)))]


def admissible(env: Airline) -> list[Action]:
    """Well-formed actions on what has been seen so far, for the random floor (our choice)."""
    world = env.task.world
    actions = [respond(ASK), respond(CLOSING), OUT_OF_SCOPE]
    if env.identity_known:
        actions.append(Action("get_user_details", {"user_id": world["user_id"]}))
    if world["told"] and world["target"] not in env.listed:
        actions.append(details(world["target"]))
    if (needed := search(env)) is not None:
        actions.append(needed)
    for reservation_id in env.listed:
        actions.append(details(reservation_id))
        if reservation_id not in env.read:
            continue
        writes = _writes(env, reservation_id)
        actions += writes + [respond(proposal(w)) for w in writes]
        actions += [answer(env, reservation_id)] if env.db["reservations"][reservation_id]["flights"] else []
        actions.append(deny(reservation_id))
    return actions


def _writes(env: Airline, reservation_id: str) -> list[Action]:
    """Writes on a reservation that has been read."""
    world, r = env.task.world, env.db["reservations"][reservation_id]
    here, people, bags = {"reservation_id": reservation_id}, r["passengers"], r["total_baggages"]
    card = {"payment_id": next(iter(env.db["users"][world["user_id"]]["payment_methods"]))}
    flights = [[spell(f) for f in r["flights"]]]
    if world["search"] is not None and " ".join(world["search"].values()) in env.read:
        date = world["search"]["date"]
        flights += [[f"{number} {date}"] for number, f in env.db["flights"].items() if date in f["dates"]]
    other = [{**here, "cabin": cabin, "flights": f, **card} for cabin in CABINS for f in flights]
    more = [{**here, "total_baggages": bags + n, "nonfree_baggages": n, **card} for n in (1, 2)]
    return [
        Action("cancel_reservation", here),
        *(Action("update_reservation_flights", arguments) for arguments in other),
        *(Action("update_reservation_baggages", arguments) for arguments in more),
        Action("update_reservation_passengers", {**here, "passengers": people}),
        Action("send_certificate", {"user_id": world["user_id"], "amount": 100 * len(people)}),
    ]
