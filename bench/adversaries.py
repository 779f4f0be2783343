"""Claim: hostile accounts and callers cost honest accounts nothing, and all money is accounted for to the nano.

    python bench/adversaries.py [REQUESTS]

Two bid workers and the writer, of the real code, in virtual time: 200 requests a second to 24 honest accounts with
campaigns of all bid types, of which half have a budget below the demand and a third a frequency cap. Then the same
honest requests beside

- three hostile accounts: one cuts its budget to a nano while its bids are out and raises it again, one reports made-up
  conversions of its rivals' clicks and of no click, one claims the objects of others;
- two hostile callers, which send a third of all requests in the names of the same users: one never shows an ad, one
  sends losses of ads that it shows, bills at a price of 0, tokens of other kinds, repetitions and late events.

Figures:

- ``honest_share``: impressions, clicks and conversions of honest accounts at honest callers, of those without the
  hostile ones; the smallest of the three; at least .98;
- ``missing_nanos``: greatest difference of a campaign between its owed money, recounted from the events that were sent,
  and the ledger's charges and write-offs; and between the charges of ledger and log; 0;
- ``over_budget``: campaigns charged above the highest cap that was in force; 0;
- ``free_share``: impressions of the account that cuts its budget which it did not pay, of all that it got; 0.

Ends with one line of JSON.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from simulated_site import START_US, Placed, Site

from leadre import progress
from leadre.errors import LeadreError
from leadre.serve.events import clicks, event_log
from leadre.serve.events.records import EventRecord
from leadre.serve.ipc.messages import EventRequest
from leadre.store.contract import StoredList
from leadre.types import Ad, Campaign, EventKind, Impression, Request
from leadre.units import US_PER_S

REQUESTS_PER_S = 200
STEP_S = 0.25  # between two exchanges of leases, and two batches of events
USERS = 3_000
LISTED = 8  # ads of a user's list
CPM_NANOS = 2_000_000
EVENT_NANOS = {"cpm": CPM_NANOS, "cpc": 200_000_000, "cpa": 2_000_000_000}
SHOWN, CLICKED, CONVERTED = 0.6, 0.02, 0.2
HOSTILE_SHARE = 1 / 3  # of all requests
CUT_AFTER = 60  # open bids of the account that cuts its budget
CUT_FOR_S = 200.0
CUTTER, CONVERTER, CLAIMER = "z-cutter", "z-converter", "z-claimer"
HOSTILE_ACCOUNTS = (CUTTER, CONVERTER, CLAIMER)
HOSTILE_BUDGET_NANOS = 10**9
HONEST_CALLERS = ("exchange-a", "exchange-b")
NEVER_SHOWS, LIES = "exchange-x", "exchange-y"


@dataclass
class Tally:
    """Counts of a replay, and the money that the events that were sent owe."""

    honest: Counter[EventKind] = field(default_factory=Counter)  # events of honest accounts at honest callers
    owed: Counter[str] = field(default_factory=Counter)  # by campaign
    refused: Counter[str] = field(default_factory=Counter)  # by reason


class Events:
    """Events of bids, which are sent after a delay, and their tally."""

    def __init__(self, site: Site) -> None:
        self.tally = Tally()
        self._site = site
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []  # (time, tie, event)
        self._outbox: list[EventRequest] = []
        self._ties = itertools.count()

    def at(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call a function after a delay."""
        at_us = self._site.clock.wall_us + round(delay_s * US_PER_S)
        heapq.heappush(self._agenda, (at_us, next(self._ties), call))

    def flush(self) -> bool:
        """Send what is due to the writer. Returns whether more will come."""
        now_us = self._site.clock.wall_us
        while self._agenda and self._agenda[0][0] <= now_us:
            heapq.heappop(self._agenda)[2]()
        if self._outbox:
            replies = self._site.writer.handle(self._outbox, now_us)
            assert all(reply.outcome in ("new", "known") for reply in replies)  # type: ignore[union-attr]
            self._outbox.clear()
        return bool(self._agenda)

    def later(
        self,
        placed: Placed,
        kind: EventKind,
        delay_s: float,
        *,
        of: EventKind | None = None,
        price: float = 1.0,
        converts: bool = False,
        repeats: int = 1,
    ) -> None:
        """Send an event after a delay, with the token of kind ``of``."""

        def send() -> None:
            query = {"t": placed.tokens[of or kind]}
            price_nanos = 0
            if kind in ("win", "bill"):
                price_nanos = int(placed.price_nanos * price)
                query["price"] = f"{price_nanos / 1e6:.6f}"
            self._send(placed, kind, query, price_nanos, is_genuine=of is None)
            if converts:
                keys = self._site.writer.token_keys
                now_us = self._site.clock.wall_us
                clicked = clicks.click_id(keys, keys.check(query["t"], "click", now_us), now_us)
                for repeat in range(repeats):
                    self._send(placed, "conv", {"t": clicked, "value_nanos": "5", "event_id": str(repeat)}, 0)

        self.at(delay_s, send)

    def _send(
        self, placed: Placed, kind: EventKind, query: dict[str, str], price_nanos: int, *, is_genuine: bool = True
    ) -> None:
        now_us = self._site.clock.wall_us
        campaign_id = placed.campaign.campaign_id
        if is_genuine:
            is_first = kind not in placed.once
            self.tally.owed[campaign_id] += placed.owes(kind, now_us, price_nanos)
            if is_first and placed.caller in HONEST_CALLERS and campaign_id not in HOSTILE_ACCOUNTS:
                self.tally.honest[kind] += 1
        event = self._site.read(kind, query)
        if isinstance(event, EventRequest):
            self._outbox.append(event)
        else:
            self.tally.refused[event.reason] += 1


class Replay:
    """One run over the requests. ``is_hostile``: beside the hostile accounts and callers."""

    def __init__(self, site: Site, requests: int, *, is_hostile: bool) -> None:
        self.site = site
        self.events = Events(site)
        self._requests = requests
        self._is_hostile = is_hostile
        self._rng = random.Random("hostile")
        self._open = 0  # bids of the account that cuts its budget
        self.highest: Counter[str] = Counter()  # campaign -> highest cap that was in force
        self._set_up()

    def _set_up(self) -> None:
        spent_nanos = self._requests * SHOWN * CPM_NANOS / 24  # by one of 24 campaigns, if all bid alike
        ads = []
        for number in range(24):
            bid_type = ("cpm", "cpc", "cpa")[number % 3]
            self._add(
                f"a{number}",
                f"a{number}",
                bid_type=bid_type,
                bid_nanos=EVENT_NANOS[bid_type] * (10 + number) // 20,
                total_nanos=int(spent_nanos * 0.4) if number % 2 else 0,
                cap_per_day=3 if number % 3 == 0 else 0,
            )
            ads.append(f"a{number}")
        if self._is_hostile:
            for name in HOSTILE_ACCOUNTS:
                self._add(name, name, bid_type="cpm", bid_nanos=3 * CPM_NANOS, total_nanos=HOSTILE_BUDGET_NANOS)
            for number in range(24):
                with suppress(LeadreError):  # the objects of others
                    ad = self._ad(f"{CLAIMER}-{number}", CLAIMER)
                    self.site.campaigns.put_ad(dataclasses.replace(ad, object_id=f"o-a{number}"))
                    self.events.tally.refused["claim accepted"] += 1
        rng = random.Random("lists")
        lists = {}
        for user in [*(f"user-{n}" for n in range(USERS)), *(f"{LIES}-{n}" for n in range(USERS))]:
            listed = rng.sample(ads, LISTED)
            if rng.random() < 0.3:
                listed.insert(0, rng.choice(HOSTILE_ACCOUNTS))
            log_p = tuple(-0.2 * place for place in range(len(listed)))
            lists[user] = StoredList("lists-1", START_US, tuple(listed), log_p)
        self.site.store.put_lists("lists-1", lists)
        self.site.store.switch("lists-1")

    def _ad(self, ad_id: str, account: str) -> Ad:
        landing_url = f"https://{account}.test/"
        return Ad(
            ad_id=ad_id,
            object_id=f"o-{ad_id}",
            campaign_id=account,
            advertiser_id=account,
            title=ad_id,
            landing_url=landing_url,
        )

    def _add(self, ad_id: str, account: str, **fields: object) -> None:
        campaign = Campaign(campaign_id=account, advertiser_id=account, name=account, **fields)  # type: ignore[arg-type]
        self.site.campaigns.put_campaign(campaign)
        self.site.campaigns.put_ad(self._ad(ad_id, account))
        self.highest[account] = campaign.total_nanos

    def run(self) -> None:
        """All requests, and their events until the last can come."""
        clock = self.site.clock
        per_step = int(REQUESTS_PER_S * STEP_S)
        self.site.renew()
        label = f"adversaries, {'beside hostile' if self._is_hostile else 'honest alone'}"
        for step in progress.bar(range(-(-self._requests // per_step)), -(-self._requests // per_step), label):
            start = step * per_step
            self._step()
            for number in range(start, min(start + per_step, self._requests)):
                self._honest_request(number)
                if self._is_hostile and self._rng.random() < HOSTILE_SHARE / (1 - HOSTILE_SHARE):
                    self._hostile_request()
            clock.advance(STEP_S)
        while self._step():
            clock.advance(60.0)

    def _step(self) -> bool:
        if self._is_hostile:
            self._cut_or_raise()
        is_more = self.events.flush()
        self.site.renew()
        return is_more

    def _honest_request(self, number: int) -> None:
        rng = random.Random(f"honest/{number}")
        caller = rng.choice(HONEST_CALLERS)
        placed = self.site.bid(_request(number, f"user-{rng.randrange(USERS)}"), caller)
        fate, clicked, converted, price, delay_s = (rng.random() for _ in range(5))
        if placed is None:
            return
        self._open += placed.campaign.campaign_id == CUTTER
        if fate >= SHOWN:
            return self.events.later(placed, "loss", 0.5)
        self.events.later(placed, "bill", 1.0 + 10 * delay_s, price=price)
        self.events.later(placed, "imp", 1.0 + 10 * delay_s)
        if clicked < CLICKED:
            self.events.later(placed, "click", 15.0 + 60 * delay_s, converts=converted < CONVERTED)

    def _hostile_request(self) -> None:
        rng = self._rng
        number = rng.randrange(1 << 40)
        if rng.random() < 0.5:
            self.site.bid(_request(number, f"user-{rng.randrange(USERS)}"), NEVER_SHOWS)
            return
        placed = self.site.bid(_request(number, f"{LIES}-{rng.randrange(USERS)}"), LIES)
        if placed is None:
            return
        for kind, delay_s in (("loss", 0.5), ("imp", 1.0), ("imp", 2.0), ("bill", 800.0)):
            self.events.later(placed, kind, delay_s)  # type: ignore[arg-type]
        self.events.later(placed, "bill", 1.5, price=0.0)
        self.events.later(placed, "conv", 3.0, of="click")
        self.events.later(placed, "bill", 3.5, of="win")
        if rng.random() < CLICKED:
            self.events.later(placed, "click", 5.0, converts=True, repeats=20)

    def _cut_or_raise(self) -> None:
        campaign = self.site.campaigns.campaign(CUTTER)
        assert campaign is not None
        if self._open >= CUT_AFTER and campaign.total_nanos > 1:
            self.site.campaigns.put_campaign(dataclasses.replace(campaign, total_nanos=1))

            def restore() -> None:
                self.site.campaigns.put_campaign(dataclasses.replace(campaign))
                self._open = 0

            self.events.at(CUT_FOR_S, restore)


def _request(number: int, user_id: str) -> Request:
    return Request(
        request_id=f"r-{number}", imps=(Impression(imp_id="1", sizes=((300, 250),)),), user_id=user_id, tmax_ms=1000
    )


def measure(requests: int, *, is_hostile: bool) -> tuple[Replay, dict[str, tuple[int, int, int]]]:
    """A replay, and by campaign what was charged, written off, and charged by the log's records."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder) / "state", (*HONEST_CALLERS, NEVER_SHOWS, LIES))
        replay = Replay(site, requests, is_hostile=is_hostile)
        replay.run()
        ledger = site.writer.ledger
        assert ledger.verify() == []
        logged: Counter[str] = Counter()
        for entry in event_log.read(site.paths.events):
            if isinstance(entry.record, EventRecord):
                logged[entry.record.outcome.campaign_id] += entry.record.outcome.charge_nanos
        sums = {
            campaign.campaign_id: (
                ledger.spent(campaign.campaign_id),
                ledger.written_off(campaign.campaign_id),
                logged[campaign.campaign_id],
            )
            for campaign in site.catalogue.campaigns
        }
        site.close()
    return replay, sums


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    honest = round(total * (1 - HOSTILE_SHARE))
    alone, _ = measure(honest, is_hostile=False)
    beside, sums = measure(honest, is_hostile=True)
    tally = beside.events.tally
    shares = {kind: tally.honest[kind] / alone.events.tally.honest[kind] for kind in ("imp", "click", "conv")}
    differences = [
        max(abs(tally.owed[name] - charged - written_off), abs(charged - logged))
        for name, (charged, written_off, logged) in sums.items()
    ]
    owed = tally.owed[CUTTER]
    print(
        json.dumps(
            {
                "honest_share": round(min(shares.values()), 4),
                "honest_shares": {kind: round(share, 4) for kind, share in shares.items()},
                "missing_nanos": max(differences),
                "over_budget": sum(charged > beside.highest[name] > 0 for name, (charged, _, _) in sums.items()),
                "free_share": round(sums[CUTTER][1] / owed, 4) if owed else None,
                "written_off": sum(written_off for _, written_off, _ in sums.values()),
                "refused": dict(tally.refused),
                "requests": total,
            }
        )
    )


if __name__ == "__main__":
    main()
