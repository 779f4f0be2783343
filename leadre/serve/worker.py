"""One bid worker: what it holds, what it renews in the background, and how it answers.

Everything a request needs is in memory or in the store's shared pages; budgets, records and counts travel to the writer
process off the request's path. Whatever is away leaves the last thing known in its place.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leadre import database, telemetry
from leadre.auction.orders import Lease, Order
from leadre.errors import PeerError
from leadre.serve import auth, eligibility, openrtb, records
from leadre.serve.budgets import Budgets
from leadre.serve.eventlog import Answered
from leadre.serve.generator import Generated, Hello, Known as KnownObjects, Wanted
from leadre.serve.memory import Memory
from leadre.serve.messages import Append, Appended, Counts, Orders, Reply
from leadre.serve.objects import Objects
from leadre.serve.peers import Client
from leadre.serve.respond import Answer, Bidder, Settings, respond
from leadre.serve.tokens import Keys
from leadre.serve.values import expected_nanos
from leadre.store import open_store

BOOK_S, BUDGETS_S, RECORDS_S, COUNTS_S, HELLO_S = 0.2, 0.05, 0.02, 5.0, 1.0
MOST_WAITING = 10_000  # records that a stalled writer may leave with us; later ones are dropped and counted


class Worker:
    """A `Bidder` that keeps itself current. ``shed_s``: a request that has waited longer is refused at once."""

    def __init__(
        self, paths: Paths, settings: Settings, *, network_ms: float, default_tmax_ms: int, shed_ms: float
    ) -> None:
        self.paths, self.settings = paths, settings
        self.network_s, self.default_tmax_s, self.shed_s = network_ms / 1000, default_tmax_ms / 1000, shed_ms / 1000
        self._records: list[Answered] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.writer: Client[Question, Reply] = Client(paths.writer, Reply)
        self.generator: Client[Hello | Wanted, Greeting | Generated] = Client(paths.generator, Greeting | Generated)

    async def start(self) -> None:
        """Read what there is and begin to renew it. InputError where the state folder has no book yet."""
        self._connection = database.connect(self.paths.book, records.MIGRATIONS, read_only=True)
        book = eligibility.load(self._connection, self.settings.seat)
        self._counts: Counts = {}
        self.bidder = Bidder(
            settings=self.settings,
            market=Market(book, expected_nanos(book, {}), Objects((), book.ads, "")),
            memory=Memory(open_store(self.paths.store)),
            budgets=Budgets(self._name, self._send_orders),
            generate=None,
            sign=Keys.open(self.paths.keys).sign,
            new_id=self._new_id,
            rng=np.random.default_rng(),
        )
        self.origins = auth.origins(self._connection)
        for every_s, renew in (
            (BOOK_S, self._renew_book),
            (BUDGETS_S, self._renew_budgets),
            (RECORDS_S, self._flush),
            (COUNTS_S, self._renew_counts),
            (HELLO_S, self._greet),
        ):
            self._tasks.append(asyncio.create_task(_repeat(every_s, renew)))

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
            return ("no_bid", *openrtb.no_bid(request, answer.reason))
        seat = self.settings.seat
        return "bid", 200, openrtb.write(request, answer.rendered, seat=seat, fills_macros=fills_macros)

    async def recommend(self, wanted: Wanted, arrived_s: float) -> dict[str, object]:
        """Ads for a page of the site itself, without an auction, as plain JSON."""
        imps = tuple(Impression(imp_id=str(number + 1), sizes=()) for number in range(wanted.count))
        answer = await self._respond(wanted.request(self._new_id(), imps), arrived_s)
        return {"ads": [_plain(each, self.bidder.market.book) for each in answer.rendered]} | (
            {"reason": answer.reason.name.lower()} if answer.reason is not None else {}
        )

    async def explain(self, request_id: str) -> dict[str, object] | None:
        """Where each candidate of one of the last requests came from and what became of it. PeerError: no writer."""
        found = await self._ask(Recent(request_id))
        assert isinstance(found, Found), found
        return None if found.record is None else msgspec.to_builtins(found.record)

    async def event(self, kind: EventKind, given: Mapping[str, str]) -> tuple[int, str]:
        """(status, where a click goes on to) of something that came back for a bid."""
        now_us = time.time_ns() // 1000
        landing_url, status = "", 403
        try:
            token = self._keys.check(given.get("t", ""), now_us, late_us=LATE_US)
        except TokenError:
            return 403, ""
        if kind == "click":
            book = self.bidder.market.book
            landing_url = book.ads[book.row_of_ad[token.ad_id]].landing_url
        event = Event(kind, given["t"], now_us, given.get("price", ""), given.get("event_id", ""), _whole(given.get("value_nanos", "")))
        try:
            await self._ask(event)
            status = 204
        except PeerError:
            status = 503
        return status, landing_url

    def is_operator(self, presented: str) -> bool:
        """Whether this is an operator's key that is in force."""
        key = auth.find(self._connection, presented)
        return key is not None and key.is_operator

    def degraded(self) -> list[str]:
        """What is away: bids go on without it."""
        away = {"store": self.bidder.memory.is_down, "writer": self._writer_is_away, "model": self._model_is_away}
        return [name for name, is_away in away.items() if is_away]

    async def _respond(self, request: Request, arrived_s: float) -> Answer:
        tmax_s = request.tmax_ms / 1000 if request.tmax_ms else self.default_tmax_s
        now_us = time.time_ns() // 1000
        answer = await respond(request, self.bidder, now_us, arrived_s + tmax_s - self.network_s)
        self._remember(request, answer, now_us)
        return answer

    def _remember(self, request: Request, answer: Answer, now_us: int) -> None:
        """Count it, and keep its record for the writer."""
        if answer.reason is not None:
            telemetry.NO_BIDS.labels(answer.reason.name.lower()).inc()
        for place in answer.places:
            if place.bid is not None:
                telemetry.BIDS.labels(place.bid.source).inc()
        found = answer.candidates
        if found is not None and found.source == "stored" and found.made_at_us:
            telemetry.LIST_AGE_S.observe((now_us - found.made_at_us) / 1e6)
        if len(self._records) < MOST_WAITING:
            self._records.append(record_of(request, answer, self._new_id(), now_us, self.bidder))

    async def _flush(self) -> None:
        records, self._records = self._records, []
        if not records:
            return
        try:
            await self._ask(Append(records))
        except PeerError:
            self._records = (records + self._records)[:MOST_WAITING]
            raise

    async def _renew_book(self) -> None:
        market = self.bidder.market
        book = eligibility.refresh(market.book, self._connection)
        if book is market.book:
            return
        self.origins = auth.origins(self._connection)
        objects = market.objects
        if book.ads is not market.book.ads:
            objects = Objects(objects.ids, book.ads, objects.version)
        self.bidder.market = Market(book, expected_nanos(book, self._counts), objects)

    async def _renew_budgets(self) -> None:
        await self.bidder.budgets.renew(time.time_ns() // 1000)

    async def _renew_counts(self) -> None:
        answer = await self._ask(Counts())
        assert isinstance(answer, Counted), answer
        self._counts = answer.by_ad
        market = self.bidder.market
        self.bidder.market = replace(market, expected_nanos_A=expected_nanos(market.book, self._counts))

    async def _greet(self) -> None:
        """Learn which objects the language model knows, once it is there."""
        if self.bidder.generate is not None:
            return
        greeting = await self.generator.ask(Hello(), timeout_s=HELLO_S)
        assert isinstance(greeting, Greeting), greeting
        market = self.bidder.market
        objects = Objects(greeting.object_ids, market.book.ads, greeting.version)
        self.bidder.market = replace(market, objects=objects)
        self.bidder.generate = self._generate

    async def _generate(self, wanted: Wanted) -> Generated:
        answer = await self.generator.ask(wanted, timeout_s=max(0.0, wanted.until_s - time.monotonic()))
        assert isinstance(answer, Generated), answer
        return answer

    async def _send_orders(self, orders: Sequence[Order]) -> Sequence[Lease | None]: ...

    async def _ask(self, question: Question) -> Reply:
        """The writer's answer. PeerError where it is away or its disk is full."""
        reply = await self.writer.ask(question, timeout_s=WRITER_S)
        if isinstance(reply, Failed):
            raise PeerError(f"the writer: {reply.why}")
        return reply

    def _new_id(self) -> str:
        return f"{self._name}-{next(self._numbers):x}"


async def _repeat(every_s: float, renew: Callable[[], Awaitable[None]]) -> None:
    """Call it again and again; a process that is away is asked again next time."""
    while True:
        with contextlib.suppress(PeerError):
            await renew()
        await asyncio.sleep(every_s)
