"""One bid worker: what it holds, what it renews in the background, and how it answers.

Everything a request needs is in memory or in the store's shared pages; budgets, records and counts travel to the writer
process off the request's path. Whatever is away leaves the last thing known in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from leadre import database, telemetry
from leadre.auction.budget.messages import Lease, LeaseRequest, LedgerOrder, Release
from leadre.errors import PeerError, TokenError
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.context import BidDecision, Bidder, Market
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.record import digest, record
from leadre.serve.bidding.respond import respond
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import Counts as ByAd
from leadre.serve.bidding.value import expected_nanos
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.records import RequestRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import (
    AppendRequest,
    CountsReply,
    CountsRequest,
    ErrorReply,
    EventRequest,
    GenerateReply,
    GenerateRequest,
    LedgerReply,
    LedgerRequest,
    ModelInfoReply,
    ModelInfoRequest,
    RecordReply,
    RecordRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.ipc.socket import Client
from leadre.serve.manage import auth
from leadre.serve.paths import StatePaths
from leadre.serve.protocol import openrtb
from leadre.serve.protocol.openrtb import Rendered
from leadre.serve.settings import Settings
from leadre.store import open_store
from leadre.types import EventKind, Impression, Request, Signals
from leadre.units import US_PER_DAY, US_PER_S

BOOK_S, BUDGETS_S, RECORDS_S, COUNTS_S = 0.2, 0.05, 0.02, 5.0  # between renewals
HELLO_S, STORE_S, TELL_S = 1.0, 1.0, 1.0
WRITER_S = 2.0  # how long an event waits for the disk
LATE_US = 7 * US_PER_DAY  # conversions come so late; the writer is stricter with the others
MAX_WAITING = 10_000  # records that a stalled writer may leave with us; later ones are lost
AT_ONCE = 500  # of them


class Recommend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a site asks for itself. ``tmax_ms`` 0 is the bidder's default; consent as in OpenRTB."""

    user_id: str = ""
    count: Annotated[int, msgspec.Meta(ge=1, le=20)] = 5
    site: str = ""
    categories: list[str] = []
    tmax_ms: Annotated[int, msgspec.Meta(ge=0)] = 0
    gdpr: bool | None = None
    consent: str = ""

    def request(self, request_id: str) -> Request:
        """As a bid request for so many places of any size."""
        return Request(
            request_id=request_id,
            imps=tuple(Impression(imp_id=str(number), sizes=()) for number in range(1, self.count + 1)),
            user_id=self.user_id,
            signals=Signals(gdpr=self.gdpr, consent=self.consent),
            tmax_ms=self.tmax_ms,
            site=self.site.lower(),
            categories=tuple(self.categories),
        )


class Worker:
    """A `Bidder` that keeps itself current.

    ``has_model``: whether there should be one to ask. ``shed_s``: a request that has waited longer is refused at once.
    """

    def __init__(
        self,
        paths: StatePaths,
        settings: Settings,
        *,
        has_model: bool,
        network_ms: float,
        default_tmax_ms: int,
        shed_ms: float,
    ) -> None:
        self.paths, self.settings, self._has_model = paths, settings, has_model
        self.network_s, self.default_tmax_s, self.shed_s = network_ms / 1000, default_tmax_ms / 1000, shed_ms / 1000
        self._options = digest(settings)
        self._records: list[RequestRecord] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._writer_is_away = True  # until it has answered
        self.writer: Client[WriterRequest, WriterReply] = Client(paths.writer, WriterReply)
        self.generator: Client[ModelInfoRequest | GenerateRequest, ModelInfoReply | GenerateReply] = Client(
            paths.generator, ModelInfoReply | GenerateReply
        )

    async def start(self) -> None:
        """Read what there is and begin to renew it. InputError where the state folder has no book yet."""
        self._connection = database.connect(self.paths.book, records.MIGRATIONS, read_only=True)
        book = eligibility.load(self._connection, self.settings.seat)
        self._counts: ByAd = {}
        self._keys = TokenKeys.open(self.paths.keys)
        self._erased = ErasedUsers(self.paths.erased)
        self.bidder = Bidder(
            settings=self.settings,
            market=Market(book, expected_nanos(book, {}), ObjectIndex((), book.ads, "")),
            memory=UserStore(open_store(self.paths.store)),
            budgets=Budgets(self._name, self._send_orders),
            generate=None,
            sign=self._keys.sign,
            new_id=self._new_id,
            draws=ExplorationDraws.open(self.paths.draws),
        )
        self.origins = auth.read_origins(self._connection)
        for every_s, renew in (
            (BOOK_S, self._renew_book),
            (BOOK_S, self._renew_erased),
            (STORE_S, self._renew_everybody),
            (BUDGETS_S, self._renew_budgets),
            (RECORDS_S, self._flush),
            (COUNTS_S, self._renew_counts),
            (HELLO_S, self._greet),
            (TELL_S, self._tell_degraded),
        ):
            task = asyncio.create_task(_repeat(every_s, renew))
            task.add_done_callback(_end_with)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Give budgets back and hand over what is not yet written; what the writer does not take in time is lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(PeerError):
            await self._flush()
            await self.bidder.budgets.close()
        await self.writer.close()
        await self.generator.close()
        self.bidder.memory.store.close()
        self._connection.close()

    async def bid(self, body: bytes, arrived_s: float, *, fills_macros: bool) -> tuple[str, int, bytes]:
        """(outcome, status, body) of a bid request; ``fills_macros`` for a page. BadRequest where it is none."""
        request = openrtb.read(body)
        answer = await self._respond(request, arrived_s)
        if answer.reason is not None:
            status, nothing = openrtb.no_bid(request, answer.reason, is_debug=fills_macros)  # Prebid.js wants JSON
            return "no_bid", status, nothing
        seat = self.settings.seat
        return "bid", 200, openrtb.write(request, answer.rendered, seat=seat, fills_macros=fills_macros)

    async def recommend(self, wanted: Recommend, arrived_s: float) -> dict[str, Any]:
        """Ads for a page of the site itself, without an auction, as plain JSON."""
        answer = await self._respond(wanted.request(self._new_id()), arrived_s)
        book = self.bidder.market.book
        ads = [_plain(each, book) for each in answer.rendered]
        return {
            "request_id": answer.request_id,
            "ads": ads,
            "reason": answer.reason.name.lower() if answer.reason else None,
        }

    async def explain(self, request_id: str) -> dict[str, object] | None:
        """Where each candidate of one of the last requests came from and what became of it. PeerError: no writer."""
        found = await self._ask(RecordRequest(request_id))
        assert isinstance(found, RecordReply), found
        return None if found.record is None else msgspec.to_builtins(found.record)

    async def event(self, kind: EventKind, given: Mapping[str, str]) -> tuple[int, str]:
        """(status, where a click goes on to) of something that came back for a bid."""
        now_us = time.time_ns() // 1000
        try:
            token = self._keys.check(given.get("t", ""), now_us, late_us=LATE_US)
        except TokenError:
            return 403, ""
        book = self.bidder.market.book
        # none for an ad that came after the backup from which we went on
        row = book.row_of_ad.get(token.ad_id) if kind == "click" else None
        landing_url = "" if row is None else book.ads[row].landing_url
        value = given.get("value_nanos", "")
        event = EventRequest(
            kind=kind,
            token=given["t"],
            at_us=now_us,
            price=given.get("price", ""),
            event_id=given.get("event_id", ""),
            value_nanos=int(value) if value.isdecimal() and len(value) < 18 else 0,
        )
        try:
            await self._ask(event)
        except PeerError:
            return 503, landing_url
        return 204, landing_url

    def is_operator(self, presented: str) -> bool:
        """Whether this is an operator's key that is in force."""
        key = auth.find(self._connection, presented)
        return key is not None and key.is_operator

    def degraded(self) -> list[str]:
        """What is away: bids go on without it."""
        is_away = (
            self.bidder.memory.is_down,
            self._writer_is_away,
            self._has_model and self.bidder.generate is None,
        )
        return [name for name, this_is in zip(telemetry.PARTS, is_away, strict=True) if this_is]

    async def _respond(self, request: Request, arrived_s: float) -> BidDecision:
        tmax_s = request.tmax_ms / 1000 if request.tmax_ms else self.default_tmax_s
        now_us = time.time_ns() // 1000
        if request.user_id in self._erased:
            request = replace(request, user_id="")
        answer = await respond(request, self.bidder, now_us, arrived_s + tmax_s - self.network_s)
        self._remember(request, answer, now_us)
        return answer

    def _remember(self, request: Request, answer: BidDecision, now_us: int) -> None:
        """Count it, and keep its record for the writer."""
        if answer.reason is not None:
            telemetry.NO_BIDS.labels(answer.reason.name.lower()).inc()
        for place in answer.places:
            if place.bid is not None:
                telemetry.BIDS.labels(place.bid.source).inc()
        found = answer.candidates
        if found is not None and found.source == "stored" and found.made_at_us:
            telemetry.LIST_AGE_S.observe((now_us - found.made_at_us) / US_PER_S)
        if len(self._records) < MAX_WAITING:
            is_down, book = self.bidder.memory.is_down, self.bidder.market.book
            self._records.append(record(request, answer, now_us, book, self._options, is_degraded=is_down))

    async def _flush(self) -> None:
        """Hand over what was answered; it stays with us until the writer has said that it has it."""
        while self._records:
            some = self._records[:AT_ONCE]
            await self._ask(AppendRequest(some))
            del self._records[: len(some)]

    async def _renew_book(self) -> None:
        market = self.bidder.market
        book = eligibility.refresh(market.book, self._connection)
        if book is market.book:
            return
        self.origins = auth.read_origins(self._connection)
        objects = market.objects
        if book.ads is not market.book.ads:
            objects = ObjectIndex(objects.ids, book.ads, objects.version)
        self.bidder.market = replace(
            market, book=book, expected_nanos_A=expected_nanos(book, self._counts), objects=objects
        )

    async def _renew_erased(self) -> None:
        self._erased.follow()

    async def _renew_everybody(self) -> None:
        """Ask the store where no request does, so that `degraded` knows of it."""
        self.bidder.memory.everybody()

    async def _tell_degraded(self) -> None:
        away = self.degraded()
        for part in telemetry.PARTS:
            telemetry.DEGRADED.labels(part).set(part in away)

    async def _renew_budgets(self) -> None:
        await self.bidder.budgets.renew(time.time_ns() // 1000)

    async def _renew_counts(self) -> None:
        answer = await self._ask(CountsRequest())
        assert isinstance(answer, CountsReply), answer
        self._counts = answer.by_ad
        market = self.bidder.market
        worth_A = expected_nanos(market.book, self._counts)
        self.bidder.market = replace(market, expected_nanos_A=worth_A, counted=answer.last)

    async def _greet(self) -> None:
        """Learn which objects the language model knows, whenever there is a new one."""
        if not self._has_model or (self.bidder.generate is not None and self.generator.is_connected):
            return
        self.bidder.generate = None
        greeting = await self.generator.ask(ModelInfoRequest(), timeout_s=HELLO_S)
        assert isinstance(greeting, ModelInfoReply), greeting
        market = self.bidder.market
        objects = ObjectIndex(greeting.object_ids, market.book.ads, greeting.version)
        self.bidder.market = replace(market, objects=objects)
        self.bidder.generate = self._generate

    async def _generate(self, wanted: GenerateRequest) -> GenerateReply:
        start_s, outcome = time.monotonic(), "gone"
        try:
            answer = await self.generator.ask(wanted, timeout_s=max(0.0, wanted.until_s - start_s))
            assert isinstance(answer, GenerateReply), answer
            outcome = "complete" if answer.is_complete else "cut" if answer.objects else "late"
        finally:
            telemetry.GENERATIONS.labels(outcome).inc()
            telemetry.GENERATE_S.observe(time.monotonic() - start_s)
        return answer

    async def _send_orders(self, orders: Sequence[LedgerOrder]) -> Sequence[Lease | None]:
        """Answers to the asks, in their order."""
        asks = [order for order in orders if isinstance(order, LeaseRequest)]
        releases = [order for order in orders if isinstance(order, Release)]
        reply = await self._ask(LedgerRequest(asks, releases))
        assert isinstance(reply, LedgerReply), reply
        return reply.leases

    async def _ask(self, question: WriterRequest) -> WriterReply:
        """The writer's answer. PeerError where it is away or its disk is full."""
        try:
            reply = await self.writer.ask(question, timeout_s=WRITER_S)
            if isinstance(reply, ErrorReply):
                raise PeerError(f"the writer: {reply.why}")
        except PeerError:
            self._writer_is_away = True
            raise
        self._writer_is_away = False
        return reply

    def _new_id(self) -> str:
        return f"{self._name}-{next(self._numbers):x}"


async def _repeat(every_s: float, renew: Callable[[], Awaitable[None]]) -> None:
    """Call it again and again; a process or a disk that is away is asked again next time."""
    while True:
        with contextlib.suppress(PeerError, sqlite3.OperationalError):
            await renew()
        await asyncio.sleep(every_s)


def _end_with(task: asyncio.Task[None]) -> None:
    """Renewal ended by a mistake of ours: end the process rather than go stale; another takes its place."""
    if not task.cancelled() and (error := task.exception()) is not None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise error


def _plain(rendered: Rendered, book: CatalogueSnapshot) -> dict[str, Any]:
    """An ad as a site's own code wants it."""
    bid = rendered.bid
    ad = book.ads[book.row_of_ad[bid.ad_id]]
    return {
        "ad_id": ad.ad_id,
        "title": ad.title,
        "brand": ad.brand,
        "image_url": ad.image_url,
        "click_url": rendered.click_url,
        "impression_url": rendered.impression_url,
        "source": bid.source,
        "propensity": bid.propensity,
    }
