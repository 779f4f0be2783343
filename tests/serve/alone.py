"""One bidder inside the test's process: real catalogue, store, writer state and keys; a clock that the test moves."""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import re
from pathlib import Path
from typing import Any

from leadre import database
from leadre.auction.budget.messages import Lease, LeaseRequest, LedgerOrder, Release
from leadre.clock import ManualClock
from leadre.serve.bidding import context as bidder
from leadre.serve.bidding import record, respond
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.pace import campaign_rates
from leadre.serve.bidding.ranking import RankingGuard
from leadre.serve.bidding.select import verdicts_of
from leadre.serve.bidding.user_store import POPULAR_LIST_S, UserStore
from leadre.serve.bidding.value import ad_prices
from leadre.serve.callers.party import ANYBODY, Party
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.audit import Author
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.ipc.messages import (
    AppendRequest,
    CampaignPacing,
    EventRequest,
    LedgerReply,
    LedgerRequest,
    PacingReply,
    PacingRequest,
)
from leadre.serve.paths import StatePaths
from leadre.serve.processes.writer_state import WriterState
from leadre.serve.protocol import openrtb
from leadre.serve.settings import Settings
from leadre.store import open_store
from leadre.store.contract import Profile, ProfileEvent, StoredList
from leadre.types import Request, Verdict

NOON_US = 1_772_366_400_000_000  # 2026-03-01T12:00:00Z
VERSION = "lists-1"
IMP = {"id": "1", "banner": {"w": 300, "h": 250}}


class Spy:
    """A store that notes each call: (method, first argument)."""

    def __init__(self, store):
        self.store = store
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name):
        method = getattr(self.store, name)

        def noted(*arguments, **named):
            self.calls.append((name, arguments[0] if arguments else None))
            return method(*arguments, **named)

        return noted


def banner_request(**fields: Any) -> Request:
    """A request for one banner, from its JSON; ``fields`` replace or extend it."""
    return openrtb.read(json.dumps({"id": "r", "imp": [IMP]} | fields).encode())


def pacing_of(writer: WriterState, now_us: int) -> list[CampaignPacing]:
    """The pacing of all campaigns with a plan or a goal, as the writer replies it."""
    (reply,) = writer.handle([PacingRequest()], now_us)
    assert isinstance(reply, PacingReply)
    return reply.campaigns


class Alone:
    """Use it in a ``with``. ``clock`` stays until the test moves it."""

    def __init__(self, folder: Path, *, seed: int = 0, **settings: Any) -> None:
        self.clock = ManualClock(NOON_US)
        self.paths = StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")
        self._records = ManageDatabase(self.paths.manage_database)
        self.campaign_store = CampaignStore(self._records, Author(clock=self.clock))
        self._reader = database.connect(self.paths.manage_database, records.MIGRATIONS, read_only=True)
        self.writer = WriterState(self.paths, retain_days=90, clock=self.clock)
        self.store = Spy(open_store(self.paths.store))
        self.writer.users.store.close()
        self.writer.users.store = self.store  # type: ignore[assignment]
        self.store.put_lists(VERSION, {})
        self.store.switch(VERSION)
        self.budgets = Budgets("alone", self._send)
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self.bidder = bidder.Bidder(
            settings=Settings(**{"public_url": "https://ads.test", "exploration": 0.0} | settings),
            market=self._market({}),
            user_store=UserStore(self.store, self.clock),  # type: ignore[arg-type]
            budgets=self.budgets,
            generate=None,
            encrypt=self.writer.token_keys.encrypt_each,
            new_id=lambda: f"id-{next(self._numbers)}",
            draws=ExplorationDraws(seed.to_bytes(32)),
            clock=self.clock,
            ranking=RankingGuard(self.clock),
        )

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.close()
        self._reader.close()
        self._records.close()
        self.writer.close()  # and with it the store

    def renew(self, counts=None, object_ids=()) -> None:
        """The background tasks of a worker, once: refresh the catalogue, and exchange leases with the ledger."""
        self.clock.elapsed_s += POPULAR_LIST_S  # the next request reads the popular list again
        self.writer.maintain(self.clock.wall_us)
        self.bidder.market = self._market(counts or {}, object_ids)
        self._loop.run_until_complete(self.budgets.renew(self.clock.wall_us))

    def put_list(self, user_id: str, *ad_ids: str, log_p=None) -> None:
        """Store the list of a user, best first; "*" is the popular list."""
        log_p = log_p or [-float(position) for position in range(len(ad_ids))]
        self.store.put_lists(VERSION, {user_id: StoredList(VERSION, NOON_US, ad_ids, tuple(log_p))})

    def put_profile(self, user_id: str, *object_ids: str, segments=()) -> None:
        """Store the profile of a user."""
        recent = tuple(ProfileEvent(name, NOON_US - 1000 + position, "ad") for position, name in enumerate(object_ids))
        self.store.write_profiles(Profile(user_id, recent, tuple(segments)))

    def bid(self, *, tmax_s: float = 1.0, party: Party = ANYBODY, **fields: Any) -> bidder.BidDecision:
        """The decision on `banner_request` of the fields."""
        return self.respond(banner_request(**fields), tmax_s, party)

    def bid_logged(self, **fields: Any) -> bidder.BidDecision:
        """The decision on `banner_request` of the fields, whose record the log gets."""
        request = banner_request(**fields)
        decision = self.respond(request)
        self.writer.handle([AppendRequest([self.record(request, decision)])], self.clock.wall_us)
        return decision

    def respond(self, request: Request, tmax_s: float = 1.0, party: Party = ANYBODY) -> bidder.BidDecision:
        """The decision on a request of a sender."""
        decision = respond.respond(request, self.bidder, self.clock.wall_us, self.clock.elapsed_s + tmax_s, party)
        return self._loop.run_until_complete(decision)

    def record(self, request, decision):
        """The log record that a worker would send."""
        return record.record(request, decision, self.clock.wall_us, "", is_degraded=False)

    def post_events(self, *events: tuple[str, str]) -> list[str]:
        """Outcomes of events, (kind, URL), that the writer gets in one batch."""
        requests = [
            EventRequest(kind=kind, token=re.search(r"[?&]t=([^&]+)", url)[1], at_us=self.clock.wall_us)
            for kind, url in events
        ]
        return [reply.outcome for reply in self.writer.handle(requests, self.clock.wall_us)]

    def _market(self, counts, object_ids=()) -> bidder.Market:
        catalogue = eligibility.load(self._reader)
        rates = {paced.campaign_id: paced.rate for paced in pacing_of(self.writer, self.clock.wall_us)}
        prices = ad_prices(catalogue, counts)
        return bidder.Market(
            catalogue,
            prices.expected_nanos_A,
            ObjectIndex(object_ids, catalogue.ads, "model-1"),
            pacing=campaign_rates(catalogue, rates),
            most_nanos_A=prices.most_nanos_A,
        )

    async def _send(self, orders: list[LedgerOrder]) -> list[Lease | None]:
        requests = [order for order in orders if isinstance(order, LeaseRequest)]
        releases = [order for order in orders if isinstance(order, Release)]
        (reply,) = self.writer.handle([LedgerRequest(requests, releases)], self.clock.wall_us)
        assert isinstance(reply, LedgerReply)
        return list(reply.leases)


def chosen(decision: bidder.BidDecision) -> list[str]:
    """The ads of the bids, imp by imp."""
    return [rendered.bid.ad_id for rendered in decision.rendered]


def verdicts(alone: Alone, decision: bidder.BidDecision, imp: int = 0) -> dict[str, Verdict]:
    """Ad -> verdict, of the candidates for one imp."""
    ads = alone.bidder.market.catalogue.ads
    state = decision.imps[imp]
    rows = decision.candidates.rows_K.tolist()
    return {ads[row].ad_id: verdict for row, verdict in zip(rows, verdicts_of(state.verdict_K), strict=True)}


def urls_of(rendered) -> dict[str, str]:
    """Event URLs of a bid, by kind."""
    return {"win": rendered.nurl, "bill": rendered.burl, "loss": rendered.lurl} | {
        kind: html.unescape(url) for kind, url in (("click", rendered.click_url), ("imp", rendered.impression_url))
    }
