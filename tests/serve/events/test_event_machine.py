"""Bids and their events in random order, late, repeated, forged, across cuts of budgets and restarts of the writer."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from leadre.serve.events import clicks, event_log
from leadre.serve.events.records import EventRecord
from leadre.serve.ipc.messages import EventRequest
from leadre.serve.processes import event_reading
from leadre.serve.processes.writer_state import WriterState
from leadre.store import open_store
from leadre.units import US_PER_S

from ..alone import Alone, urls_of
from ..conftest import make_ad, make_campaign

# Seconds from the bid to the last event of a kind, as docs/events.md has them.
LAST_S = {"click": 120 + 600 + 3_600, "conv": 7 * 86_400}
OTHERS_S = 120 + 600
KINDS = ("win", "bill", "loss", "imp", "click")
RECENT = 8  # bids whose events may still come
WAITS_S = [*([1] * 8), *([60] * 6), 130, 130, 800, 5_000, 100_000, 700_000]
ACTIONS = [
    *(["bid"] * 5),
    *(["report"] * 8),
    *(["convert"] * 4),
    *(["advance"] * 3),
    *("forge", "set_budget", "restart"),
]
CAMPAIGNS = {
    "cpm": {"bid_type": "cpm", "bid_nanos": 2_000_000, "total_nanos": 9_000_001, "cap_per_day": 6},
    "cpc": {"bid_type": "cpc", "bid_nanos": 50_000_000, "total_nanos": 120_000_000},
    "cpa": {"bid_type": "cpa", "bid_nanos": 70_000_000, "daily_nanos": 300_000_000},
}


@dataclasses.dataclass
class Placed:
    """A bid, the tokens of its events, and its click IDs with the time of their click."""

    campaign_id: str
    price_nanos: int
    at_us: int
    tokens: dict[str, str]
    click_ids: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    seen: set[str] = dataclasses.field(default_factory=set)


class EventMachine:
    """``owed``: what each campaign owes by a model of the rules; ``highest``: the highest cap that was in force."""

    def __init__(self, alone: Alone, seed: int) -> None:
        self.alone = alone
        self.rng = random.Random(seed)
        self.alone.campaign_store.add(
            [make_campaign(name, **fields) for name, fields in CAMPAIGNS.items()],
            [make_ad(f"ad-{name}", campaign_id=name, object_id=f"o-{name}") for name in CAMPAIGNS],
        )
        for name in CAMPAIGNS:
            self.alone.put_list(name, f"ad-{name}")
        self.alone.renew()
        self.placed: list[Placed] = []
        self.owed: Counter[str] = Counter()
        self.bid_nanos = {name: fields["bid_nanos"] for name, fields in CAMPAIGNS.items()}
        self.highest = {name: fields.get("total_nanos", 0) for name, fields in CAMPAIGNS.items()}

    def act(self) -> None:
        """One random action."""
        getattr(self, self.rng.choice(ACTIONS))()

    def bid(self) -> None:
        name = self.rng.choice(sorted(CAMPAIGNS))
        is_test = self.rng.random() < 0.1
        self.alone.bid(user={"id": name}, test=1)
        self.alone.budgets.request_lease(name, self.bid_nanos[name])
        self.alone.renew()
        decision = self.alone.bid(user={"id": name}, **({"test": 1} if is_test else {}))
        for rendered in decision.rendered:
            urls = urls_of(rendered) | {"loss": rendered.lurl}
            tokens = {kind: re.search(r"[?&]t=([^&]+)", url)[1] for kind, url in urls.items()}  # type: ignore[index]
            campaign_id = "" if is_test else rendered.bid.campaign_id
            self.placed.append(Placed(campaign_id, rendered.bid.price_nanos, self.alone.clock.wall_us, tokens))

    def report(self) -> None:
        if not self.placed:
            return
        placed = self.rng.choice(self.placed[-RECENT:])
        kind = self.rng.choice(KINDS)
        price = self.rng.choice(["1", "1.5", "0.000001", "99", "0", "x"])
        query = {"t": placed.tokens[kind]} | ({"price": price} if kind in ("win", "bill") else {})
        is_read = self._send(kind, query)
        is_late = self._age_s(placed.at_us) > LAST_S.get(kind, OTHERS_S)
        is_billable = kind != "bill" or price in ("1", "1.5", "0.000001", "99")
        assert is_read == (not is_late and is_billable)
        if not is_read:
            return
        if kind == "click":
            keys = self.alone.writer.token_keys
            now_us = self.alone.clock.wall_us
            placed.click_ids.append((now_us, clicks.click_id(keys, keys.check(query["t"], "click", now_us), now_us)))
        if kind not in placed.seen:
            placed.seen.add(kind)
            if (placed.campaign_id, kind) == ("cpm", "bill"):
                self.owed["cpm"] += min(round(float(price) * 1_000_000), placed.price_nanos)
            elif (placed.campaign_id, kind) == ("cpc", "click"):
                self.owed["cpc"] += self.bid_nanos["cpc"]

    def convert(self) -> None:
        clicked = [placed for placed in self.placed if placed.click_ids]
        if not clicked:
            return
        placed = self.rng.choice(clicked)
        event_id = self.rng.choice(["", "order-1", "order-2", "order-3"])
        clicked_us, click_id = self.rng.choice(placed.click_ids)
        before = self._known_orders()
        is_read = self._send("conv", {"t": click_id}, event_id=event_id)
        assert is_read == (self._age_s(clicked_us) <= LAST_S["conv"])
        is_new = is_read and self._known_orders() > before
        if is_new and "conv" not in placed.seen:
            placed.seen.add("conv")
            self.owed["cpa"] += self.bid_nanos["cpa"] * (placed.campaign_id == "cpa")

    def forge(self) -> None:
        if not self.placed:
            return
        kind = self.rng.choice([*KINDS, "conv"])
        of = self.rng.choice(KINDS)
        token = self.rng.choice(self.placed).tokens[of]
        if kind == of:  # a changed character
            place = self.rng.randrange(len(token))
            token = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        assert not self._send(kind, {"t": token, "price": "1"})

    def advance(self) -> None:
        self.alone.clock.advance(self.rng.choice(WAITS_S))
        self.alone.renew()

    def set_budget(self) -> None:
        name = self.rng.choice(["cpm", "cpc"])
        nanos = self.rng.choice([1, 3_000_000, 300_000_000, 2_000_000_000])
        campaign = self.alone.campaign_store.campaign(name)
        assert campaign is not None
        self.alone.campaign_store.put_campaign(dataclasses.replace(campaign, total_nanos=nanos))
        self.alone.renew()
        self.highest[name] = max(self.highest[name], nanos)

    def restart(self) -> None:
        alone = self.alone
        alone.writer.users.store = open_store(alone.paths.store)  # the bidder's own stays open
        alone.writer.close()
        alone.writer = WriterState(alone.paths, retain_days=90, clock=alone.clock)
        alone.writer.users.store.close()
        alone.writer.users.store = alone.store  # type: ignore[assignment]
        alone.renew()

    def check_money(self) -> None:
        ledger = self.alone.writer.ledger
        assert ledger.verify() == []
        logged: Counter[str] = Counter()
        for entry in event_log.read(self.alone.paths.events):
            if isinstance(entry.record, EventRecord):
                logged[entry.record.outcome.campaign_id] += entry.record.outcome.charge_nanos
        for name in CAMPAIGNS:
            charged_nanos = ledger.spent(name)
            assert charged_nanos == logged[name]
            assert charged_nanos + ledger.written_off(name) == self.owed[name], name
            assert charged_nanos <= self.highest[name] or not self.highest[name]

    def _send(self, kind: str, query: dict[str, str], event_id: str = "") -> bool:
        """Whether an event is accepted, as a worker reads it and the writer posts it."""
        alone = self.alone
        catalogue = alone.bidder.market.catalogue
        now_us = alone.clock.wall_us
        _, event = event_reading.read(kind, query, alone.writer.token_keys, catalogue, now_us)  # type: ignore[arg-type]
        if not isinstance(event, EventRequest):
            return False
        (reply,) = alone.writer.handle([msgspec.structs.replace(event, event_id=event_id)], now_us)
        assert reply.outcome in ("new", "known")
        return True

    def _known_orders(self) -> int:
        return sum(1 for entry in event_log.read(self.alone.paths.events) if _is_conversion(entry.record))

    def _age_s(self, since_us: int) -> float:
        return (self.alone.clock.wall_us - since_us) / US_PER_S


def _is_conversion(record: object) -> bool:
    return isinstance(record, EventRecord) and record.outcome.kind == "conv"


@pytest.mark.parametrize("seed", range(6))
def test_charges_and_write_offs_equal_a_recount(tmp_path: Path, seed: int) -> None:
    with Alone(tmp_path / "state") as alone:
        machine = EventMachine(alone, seed)
        for step in range(500):
            machine.act()
            if step % 10 == 9:
                machine.check_money()
        assert sum(machine.owed.values()) and len(machine.placed) > 50, "something was bid, and owed"
