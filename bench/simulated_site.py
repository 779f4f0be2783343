"""A bidder in virtual time: two workers and a writer, of the real code, and what the events of a bid owe."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from leadre import database
from leadre.auction.budget.messages import Lease, LeaseRequest, LedgerOrder, Release
from leadre.clock import ManualClock
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.context import Bidder, Market
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.respond import respond
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import ad_prices
from leadre.serve.callers.open_bids import OpenBids
from leadre.serve.callers.registry import parse, token_hash
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.ipc.messages import EventRequest, LedgerReply, LedgerRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes import event_reading
from leadre.serve.processes.worker import close_open_bid
from leadre.serve.processes.writer_state import WriterState
from leadre.serve.settings import Settings
from leadre.store import open_store
from leadre.types import Campaign, EventKind, Request
from leadre.units import US_PER_S

WORKERS = 2
START_US = 1_773_144_000 * US_PER_S  # 2026-03-10T12:00:00Z
EXP_US = 120 * US_PER_S
TOKEN_US = EXP_US + 600 * US_PER_S  # as docs/events.md states them
CLICK_US = TOKEN_US + 3_600 * US_PER_S


@dataclass(kw_only=True)
class Placed:
    """A bid, and what its events owe by the rules of docs/events.md."""

    caller: str
    campaign: Campaign
    price_nanos: int
    at_us: int
    tokens: dict[EventKind, str]
    once: set[EventKind] = field(default_factory=set)

    def owes(self, kind: EventKind, at_us: int, price_nanos: int) -> int:
        """Nanos owed for an event that is sent."""
        end_us = self.at_us + {"click": CLICK_US}.get(kind, TOKEN_US)
        if kind in self.once or (kind != "conv" and at_us > end_us) or (kind == "bill" and price_nanos <= 0):
            return 0
        self.once.add(kind)
        match self.campaign.bid_type, kind:
            case "cpm", "bill":
                return min(price_nanos, self.price_nanos)
            case ("cpc", "click") | ("cpa", "conv"):
                return self.campaign.bid_nanos
        return 0


class Site:
    """Two workers and a writer over one state folder, in virtual time. ``callers``: configured with the defaults."""

    def __init__(self, folder: Path, callers: Sequence[str]) -> None:
        sections = (f'[{name}]\ntokens = ["{token_hash(name)}"]\n' for name in callers)
        self._parties = {name: caller.party for name, caller in parse("".join(sections)).items()}
        self.clock = ManualClock(START_US)
        self.paths = StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")
        self._manage = ManageDatabase(self.paths.manage_database)
        self.campaigns = CampaignStore(self._manage)
        self._reader = database.connect(self.paths.manage_database, records.MIGRATIONS, read_only=True)
        self.writer = WriterState(self.paths, retain_days=90, clock=self.clock)
        self.store = open_store(self.paths.store)
        self.catalogue = eligibility.load(self._reader)
        self._numbers = iter(range(1, 1 << 40))
        self.bidders = [self._bidder(number) for number in range(WORKERS)]
        self._loop = asyncio.new_event_loop()

    def _bidder(self, number: int) -> Bidder:
        return Bidder(
            settings=Settings(public_url="https://ads.test", exploration=0.0),
            market=self._market(),
            user_store=UserStore(open_store(self.paths.store), self.clock),
            budgets=Budgets(f"worker-{number}", self._send),
            generate=None,
            encrypt=self.writer.token_keys.encrypt_each,
            new_id=lambda: f"id-{next(self._numbers)}",
            draws=ExplorationDraws(bytes(32)),
            clock=self.clock,
            open_bids=OpenBids(WORKERS),
        )

    def _market(self) -> Market:
        expected_nanos_A = ad_prices(self.catalogue, {}).expected_nanos_A
        return Market(self.catalogue, expected_nanos_A, ObjectIndex((), self.catalogue.ads, ""))

    async def _send(self, orders: list[LedgerOrder]) -> list[Lease | None]:
        leases = [order for order in orders if isinstance(order, LeaseRequest)]
        releases = [order for order in orders if isinstance(order, Release)]
        (reply,) = self.writer.handle([LedgerRequest(leases, releases)], self.clock.wall_us)
        assert isinstance(reply, LedgerReply), reply
        return list(reply.leases)

    def renew(self) -> None:
        """The background tasks of writer and workers, once."""
        now_us = self.clock.wall_us
        self.writer.maintain(now_us)
        fresh = eligibility.refresh(self.catalogue, self._reader)
        if fresh is not self.catalogue:
            self.catalogue = fresh
            for bidder in self.bidders:
                bidder.market = self._market()
        for bidder in self.bidders:
            self._loop.run_until_complete(bidder.budgets.renew(now_us))

    def bid(self, request: Request, caller: str) -> Placed | None:
        """The bid for a request of a caller, if there is one."""
        bidder = self._any_bidder()
        now_us = self.clock.wall_us
        until_s = self.clock.elapsed_s + 1.0
        decision = self._loop.run_until_complete(respond(request, bidder, now_us, until_s, self._parties[caller]))
        if not decision.rendered:
            return None
        rendered = decision.rendered[0]
        urls = (rendered.nurl, rendered.burl, rendered.lurl, rendered.click_url, rendered.impression_url)
        tokens = {url.split("/e/")[1].split("?")[0]: parse_qsl(urlsplit(url).query)[0][1] for url in urls}
        campaign = self.catalogue.campaigns[self.catalogue.row_of_campaign[rendered.bid.campaign_id]]
        return Placed(
            caller=caller,
            campaign=campaign,
            price_nanos=rendered.bid.price_nanos,
            at_us=now_us,
            tokens=tokens,  # type: ignore[arg-type]
        )

    def read(self, kind: EventKind, query: dict[str, str]) -> EventRequest | event_reading.Refusal:
        """An event as a worker reads it, and ends the open bid by it."""
        now_us = self.clock.wall_us
        token, event = event_reading.read(kind, query, self.writer.token_keys, self.catalogue, now_us)
        if token is not None and isinstance(event, EventRequest):
            close_open_bid(self._any_bidder().open_bids, kind, token)
        return event

    def _any_bidder(self) -> Bidder:
        """One of the workers in turn, as connections are spread over them."""
        return self.bidders[next(self._numbers) % len(self.bidders)]

    def close(self) -> None:
        self._loop.close()
        self._reader.close()
        self._manage.close()
        for bidder in self.bidders:
            bidder.user_store.store.close()
        self.store.close()
        self.writer.close()
