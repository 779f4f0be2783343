"""Honest traffic: users browse at a steady rate, and every bid has a fate; events are sent until acknowledged."""

from __future__ import annotations

import json
import math
import random
import time
from email.message import Message
from fractions import Fraction
from functools import partial
from urllib.parse import urlsplit

from ..bidder import bid_request, click_id, event_urls
from .agenda import Agenda
from .campaigns import Group
from .connection import Connections, Unanswered
from .memory import Memory, PlacedBid

TMAX_MS = 1000
TOKEN_S = 720
CLICK_S = TOKEN_S + 3600
CONVERSION_S = 7 * 86_400
POOL = 2000  # users without a list
CLEARING = ("1", "1/2", "7/9", "1")  # of the bid's price
PAUSE_S = 10.0  # in which every worker has followed a pause, although it may be stopped meanwhile
CONVERTED = 0.5  # chance that a click is followed by a conversion
AGAIN = 0.2  # chance that an acknowledged event is sent once more


class Traffic:
    """Requests of users, and events of their bids. ``pauses``: times between which the paused ad must not be bid."""

    def __init__(
        self, port: int, groups: dict[str, Group], bid_types: dict[str, str], memory: Memory, events: Agenda, seed: int
    ) -> None:
        self._bids = Connections(port)
        self._events = Connections(port)
        self._groups = groups
        self._group_of = {group.campaign_id: group for group in groups.values()}
        self._bid_types = bid_types
        self._memory = memory
        self._agenda = events
        self._rng = random.Random(seed)
        self.pauses: list[tuple[float, float]] = []

    def close(self) -> None:
        """Close all connections."""
        self._bids.close()
        self._events.close()

    def visit(self) -> None:
        """One request, and the events of its bid."""
        user_id = self.user()
        body = json.dumps(bid_request(user={"id": user_id}, tmax=TMAX_MS)).encode()
        start_s = time.monotonic()
        self._memory.count("requests")
        try:
            status, content = self._bids.send("POST", "/openrtb2/bid", body)
        except Unanswered:
            return self._memory.count("requests without a response")
        if status not in (200, 204):
            return self._memory.complain(f"a bid request got {status}")
        bids = [bid for seat in json.loads(content).get("seatbid", []) for bid in seat["bid"]] if content else []
        if not bids:
            return self._memory.count("no-bids")
        self._memory.note_bids([bid["cid"] for bid in bids])
        for bid in bids:
            self._check_pause(bid["crid"], start_s)
            price_nanos = math.floor(Fraction(str(bid["price"])) * 10**6)
            placed = PlacedBid(
                bid["id"], bid["cid"], bid["crid"], user_id, price_nanos, start_s, end_s=time.monotonic()
            )
            self._decide(placed, {kind: _path(url) for kind, url in event_urls(bid).items()})

    def user(self) -> str:
        """A user of a group, by its share, or one of the others."""
        draw = self._rng.random()
        for group in self._groups.values():
            draw -= group.share
            if draw < 0:
                return self._rng.choice(group.users)
        return self.other_user()

    def other_user(self) -> str:
        """A user without a list."""
        return f"soak-other-{self._rng.randrange(POOL):04d}"

    def _check_pause(self, ad_id: str, start_s: float) -> None:
        if ad_id == self._groups["paused"].ad_id:
            now_s = time.monotonic()
            if any(since_s + PAUSE_S < start_s and now_s < until_s for since_s, until_s in self.pauses):
                self._memory.complain("a paused ad was bid")

    def _decide(self, bid: PlacedBid, paths: dict[str, str]) -> None:
        """Plan the events of a bid: four fifths are shown and billed, most others lost, a few without any event."""
        rng = self._rng
        fate = rng.random()
        plan: list[tuple[str, float]] = []
        if fate < 0.8:
            plan = [("win", 0.1), ("bill", rng.expovariate(1)), ("imp", rng.expovariate(0.5))]
            if fate < 0.2:
                plan += [("view", 2.0), ("click", 3 + rng.expovariate(0.2))]
        elif fate < 0.96:
            plan = [("loss", rng.expovariate(0.5))]
        paths["view"] = paths["imp"].replace("/e/imp", "/e/view")
        price = Fraction(rng.choice(CLEARING)) * bid.price_nanos / 10**6
        paid = f"{price.numerator * 10**9 // price.denominator / 10**9:.9f}"
        for kind in ("win", "bill"):
            paths[kind] = paths[kind].partition("&price=")[0] + f"&price={paid}"
        for kind, delay_s in plan:
            owed_nanos = self._owed_nanos(bid, kind, paid)
            self._agenda.add(partial(self._report, bid, kind, paths[kind], owed_nanos), delay_s)

    def _owed_nanos(self, bid: PlacedBid, kind: str, paid: str) -> int:
        """The price of an event by the terms of its campaign."""
        bid_type = self._bid_types[bid.campaign_id]
        if (bid_type, kind) == ("cpm", "bill"):
            return min(math.floor(Fraction(paid) * 10**6), bid.price_nanos)
        if (bid_type, kind) in (("cpc", "click"), ("cpa", "conv")):
            return self._group_of[bid.campaign_id].bid_nanos
        return 0

    def _report(self, bid: PlacedBid, kind: str, path: str, owed_nanos: int) -> None:
        """Send an event, and again later until it is acknowledged or too late."""
        memory = self._memory
        memory.send(bid, kind, owed_nanos)
        again = partial(self._report, bid, kind, path, owed_nanos)
        try:
            status, _, headers = self._events.exchange("POST" if kind == "conv" else "GET", path)
        except Unanswered:
            status = 503
            headers = Message()
        if status == 503:
            memory.count("refused for now")
            self._agenda.add(again, self._rng.uniform(0.5, 3.0))
        elif kind == "click" and status == 302:
            memory.count("clicks redirected")  # no acknowledgement: a click is redirected though the writer is away
            if self._rng.random() < CONVERTED:
                sold = f"/e/conv?t={click_id(headers['location'])}&value_nanos=5"
                owed_nanos = self._owed_nanos(bid, "conv", "")
                self._agenda.add(partial(self._report, bid, "conv", sold, owed_nanos), self._rng.expovariate(0.1))
        elif status in (200, 204):
            memory.acknowledge(bid, kind)
            if self._rng.random() < AGAIN:
                self._agenda.add(again, self._rng.expovariate(0.1))
        elif status in (403, 429):
            valid_s = {"conv": CONVERSION_S, "click": CLICK_S}.get(kind, TOKEN_S)
            memory.count("too late")
            if not memory.may_be_late(bid, time.monotonic(), valid_s):
                memory.complain(f"{kind} of a valid token got {status}")
        else:
            memory.complain(f"{kind} got {status}")


def _path(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"
