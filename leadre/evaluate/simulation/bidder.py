"""A bidder in one process on a clock that the simulation moves: worker, writer and ledger are those that serve.

The worker sends its messages to the writer as in serving, msgpack included, but over no socket. Its background tasks
and the writer's run in turn, less often than in serving (`simulated_s`). There some run every 20 ms, so that no bid
waits; here no time passes while they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from leadre.background import Expected, Tasks
from leadre.clock import ManualClock
from leadre.evaluate.simulation.world import START_US, VERSION, World, user_id
from leadre.serve.bidding.context import BidDecision
from leadre.serve.callers.party import Party
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events import durable
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import WriterReply, WriterRequest
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Timing
from leadre.serve.processes import count_snapshot
from leadre.serve.processes.count_snapshot import CountSnapshot
from leadre.serve.processes.peers import WriterClient
from leadre.serve.processes.worker import Worker
from leadre.serve.processes.writer import MAINTAIN_S
from leadre.serve.processes.writer_state import WriterState
from leadre.serve.protocol import openrtb
from leadre.serve.settings import Settings
from leadre.store import open_store, spec_in
from leadre.types import EventKind, Request
from leadre.units import US_PER_S

STEP_S = 1.0  # of simulated time, between two exchanges of worker and writer
SLOWER = 20.0
MAX_INTERVAL_S = 5.0
LISTS_AT_ONCE = 1_000
# Background tasks of a worker that run once, as no simulated day changes what they read.
RUN_ONCE = ("catalogue", "erased users", "callers", "token keys", "popular list")
EXCHANGE = Party(name="simulation", share="simulation")  # without a bound on its open bids


class Notice(NamedTuple):
    """An event for the bidder: its kind and the query of its URL."""

    kind: EventKind
    query: Mapping[str, str]


class Bidder:
    """One worker and one writer over a new state folder with the campaigns and lists of a world.

    Use it in an ``async with``. `run_until` moves the clock.
    """

    def __init__(self, folder: Path, world: World, settings: Settings, seed: int) -> None:
        self._seed = seed
        self.clock = ManualClock(START_US)
        self.paths = StatePaths(folder=folder, store=spec_in(folder))
        self._world = world
        self._settings = settings
        self.stepped_us = START_US
        self._maintain_at_s = 0.0

    async def __aenter__(self) -> Bidder:
        _fill(self.paths, self._world, self._seed)
        self.writer = WriterState(self.paths, retain_days=90, clock=self.clock, exp_s=self._settings.exp_s)
        self.writer.maintain(self.clock.now_us())  # reads campaigns and budgets
        client = _DirectClient(self.writer, self.paths.writer_socket, self.clock)
        self._schedule = _Schedule(self.clock)
        self._worker = _ObservedWorker(self.paths, self._settings, self.clock, client, self._schedule)
        await self._worker.start()
        numbers = itertools.count()
        self._worker.state.bidder.new_id = lambda: f"simulated-{next(numbers):x}"  # equal seeds explore alike
        await self._step()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._worker.stop()
        self.writer.close()

    @property
    def catalogue(self) -> CatalogueSnapshot:
        """The campaigns and ads by which the worker bids."""
        return self._worker.state.bidder.market.catalogue

    async def bid(self, body: bytes, now_us: int) -> tuple[bytes, BidDecision]:
        """(response, the decision that it was written from) to a bid request at a moment since the last step."""
        self._set_clock(now_us)
        request = openrtb.read(body)
        _, _, response = await self._worker.bid(
            request, self.clock.monotonic_s(), EXCHANGE, fills_macros=False, has_no_bid_body=False
        )
        assert self._worker.decision is not None
        return response, self._worker.decision

    async def step(self, now_us: int, notices: list[Notice]) -> list[str]:
        """Move the clock on, send notices to the bidder at once, and run all background tasks that are due.

        Returns the landing page of each click; "" for other notices.
        """
        self._set_clock(now_us)
        replies = await asyncio.gather(*(self._worker.event(notice.kind, notice.query) for notice in notices))
        await self._step()
        for notice, (status, _) in zip(notices, replies, strict=True):
            assert status in (204, 302), f"{notice.kind}: the bidder replied {status} at {now_us}"
        return [landing_url for _, landing_url in replies]

    async def _step(self) -> None:
        self.stepped_us = self.clock.now_us()
        await self._schedule.run_due()
        if self.clock.monotonic_s() >= self._maintain_at_s:
            self._maintain_at_s = self.clock.monotonic_s() + simulated_s(MAINTAIN_S)
            self.writer.maintain(self.clock.now_us())

    def _set_clock(self, now_us: int) -> None:
        assert now_us >= self.clock.now_us(), f"the clock would go back to {now_us}"
        self.clock.advance((now_us - self.clock.now_us()) / US_PER_S)


class _ObservedWorker(Worker):
    """A worker whose last decision is kept. ``schedule`` runs its background tasks."""

    def __init__(
        self, paths: StatePaths, settings: Settings, clock: ManualClock, writer: WriterClient, schedule: _Schedule
    ) -> None:
        super().__init__(paths, settings, Timing(), has_model=False, clock=clock, writer=writer, tasks=schedule)
        self.decision: BidDecision | None = None

    async def _decide(self, request: Request, arrived_s: float, party: Party) -> BidDecision:
        self.decision = await super()._decide(request, arrived_s, party)
        return self.decision


def simulated_s(interval_s: float) -> float:
    """The interval of a background task in simulated time: `SLOWER` times that of serving, at most `MAX_INTERVAL_S`."""
    return max(interval_s, min(SLOWER * interval_s, MAX_INTERVAL_S))


class _Schedule(Tasks):
    """Background tasks that run when they are due by the clock of the simulation. An error of a task is raised."""

    def __init__(self, clock: ManualClock, expected: Expected = ()) -> None:
        super().__init__(clock, expected)
        self._manual_clock = clock
        self._due_s: dict[Callable[[], Awaitable[object]], float] = {}
        self._interval_s: dict[Callable[[], Awaitable[object]], float] = {}

    def start(self, name: str, interval_s: float, call: Callable[[], Awaitable[object]]) -> None:
        self._due_s[call] = 0.0
        self._interval_s[call] = math.inf if name in RUN_ONCE else simulated_s(interval_s)

    async def run_due(self) -> None:
        """Run the tasks whose interval is over."""
        now_s = self._manual_clock.monotonic_s()
        for call, due_s in self._due_s.items():
            if due_s <= now_s:
                self._due_s[call] = now_s + self._interval_s[call]
                await call()


class _DirectClient(WriterClient):
    """A client of a writer in the same process. Requests of one turn of the event loop are one batch."""

    def __init__(self, state: WriterState, path: Path, clock: ManualClock) -> None:
        super().__init__(path, clock)
        self.is_away = False
        self._state = state
        self._manual_clock = clock
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(WriterRequest).decode
        self._batch: list[tuple[WriterRequest, asyncio.Future[WriterReply]]] = []

    async def request(self, request: WriterRequest) -> WriterReply:
        future: asyncio.Future[WriterReply] = asyncio.get_running_loop().create_future()
        self._batch.append((self._decode(self._encode(request)), future))
        self.replied_at_s = self._manual_clock.monotonic_s()
        if len(self._batch) == 1:
            await asyncio.sleep(0)  # further requests of this turn join
            batch = self._batch
            self._batch = []
            replies = self._state.handle([request for request, _ in batch], self._manual_clock.now_us())
            for (_, pending), reply in zip(batch, replies, strict=True):
                pending.set_result(reply)
        return await future

    async def close(self) -> None:
        """A writer of the same process has no connection to close."""


def _fill(paths: StatePaths, world: World, seed: int) -> None:
    """Create the state folder: secret keys, campaigns and ads, a list for each user, the counts of earlier days."""
    paths.folder.mkdir(parents=True)
    TokenKeys.open(paths.token_keys)
    durable.replace(paths.exploration_key, f"{seed:064x}\n".encode(), mode=0o600)  # of `ExplorationDraws.open`
    ErasedUsers(paths.erased)
    counts = [(row[0], row[1], row[2]) for row in world.counts_A3.tolist()]
    by_ad = dict(zip((ad.ad_id for ad in world.ads), counts, strict=True))
    count_snapshot.write(paths.counts, CountSnapshot(last=0, by_ad=by_ad, by_day=[], live=[]))
    with contextlib.closing(ManageDatabase(paths.manage_database)) as database:
        added = CampaignStore(database).add(world.campaigns, world.ads)
    assert not added.refused, added.refused[:3]
    with contextlib.closing(open_store(paths.store)) as store:
        users = list(enumerate(world.lists))
        for start in range(0, len(users), LISTS_AT_ONCE):
            store.put_lists(VERSION, {user_id(user): stored for user, stored in users[start : start + LISTS_AT_ONCE]})
        store.switch(VERSION)
