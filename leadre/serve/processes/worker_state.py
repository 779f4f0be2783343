"""State of a bid worker: all that a request is answered from is in memory, or in the store's shared pages."""

from __future__ import annotations

import itertools
import os
import secrets
import sqlite3
from collections.abc import Collection
from contextlib import closing

from leadre import database, telemetry
from leadre.auction.pacing.contract import Rate
from leadre.background import Tasks
from leadre.clock import MachineClock
from leadre.errors import PeerError
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.context import Bidder, Market
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.pace import campaign_rates
from leadre.serve.bidding.ranking import RankingGuard
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import Counts, ad_prices
from leadre.serve.callers.open_bids import OpenBids
from leadre.serve.callers.registry import Callers
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.manage import auth
from leadre.serve.manage.auth import ApiKey, Scope
from leadre.serve.paths import StatePaths
from leadre.serve.processes.database_reader import DatabaseReader
from leadre.serve.processes.peers import ClickQueue, ModelClient, RecordQueue, WriterClient
from leadre.serve.processes.ranker_follower import RankerFollower
from leadre.serve.processes.steady_clock import SteadyClock
from leadre.serve.settings import Settings
from leadre.store import open_store

# The worker waits so long for a lock of the store; meanwhile it answers no other request.
LOCK_MS = 5.0


class WorkerState:
    """The catalogue, users, budgets and peers of one worker; `Renewals` replaces what changes.

    ``has_model``: whether the plan has a model server, ``ranks``: whether the published ranker prices ads, ``writer``:
    None for the writer at the socket of ``paths``, ``tasks``: None for those that the event loop repeats. InputError if
    the state folder has no catalogue yet.
    """

    def __init__(
        self,
        paths: StatePaths,
        settings: Settings,
        *,
        has_model: bool,
        clock: MachineClock,
        ranks: bool = False,
        writer: WriterClient | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        self.clock = SteadyClock(paths.clock, clock)
        self.has_model = has_model
        self.ranker = RankerFollower(paths.rankers) if ranks else None
        self.tasks = tasks or Tasks(clock, (PeerError, sqlite3.OperationalError))
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._numbers = itertools.count()
        self.writer = writer or WriterClient(paths.writer_socket, clock)
        self.records = RecordQueue(self.writer)
        self.clicks = ClickQueue(self.writer)
        self.model = ModelClient(paths.model_server_socket, clock)
        with closing(database.connect(paths.manage_database, records.MIGRATIONS, read_only=True)) as connection:
            catalogue = eligibility.load(connection, settings.seat, settings.ignored_rules)
            self.origins = auth.read_origins(connection)
        self.callers = Callers(paths.callers, is_required=settings.require_callers)
        self.database = DatabaseReader(paths.manage_database, records.MIGRATIONS)
        self.counts: Counts = {}
        self.rates: dict[str, Rate] = {}  # campaign -> how it bids, if it has a plan
        self.keys = TokenKeys.open(paths.token_keys)
        self.erased = ErasedUsers(paths.erased)
        prices = ad_prices(catalogue, {})
        self.bidder = Bidder(
            settings=settings,
            market=Market(
                catalogue,
                prices.expected_nanos_A,
                ObjectIndex((), catalogue.ads, ""),
                pacing=campaign_rates(catalogue, {}),
                most_nanos_A=prices.most_nanos_A,
            ),
            user_store=UserStore(open_store(paths.store, lock_ms=LOCK_MS), self.clock, self.erased.__contains__),
            budgets=Budgets(self._name, self.writer.send_orders, settings.workers),
            generate=None,
            encrypt=self.keys.encrypt_each,
            new_id=self.new_id,
            draws=ExplorationDraws.open(paths.exploration_key),
            clock=self.clock,
            ranking=RankingGuard(self.clock),
            open_bids=OpenBids(settings.workers),
        )

    def new_id(self) -> str:
        """A request ID that no other worker creates."""
        return f"{self._name}-{next(self._numbers):x}"

    async def key(self, presented: str) -> ApiKey | None:
        """The key in force whose text is ``presented``. Errors as from `DatabaseReader.read`."""
        return await self.database.read(lambda connection: auth.find(connection, presented))

    async def is_allowed(self, presented: str, scope: Scope) -> ApiKey | None:
        """The key whose text is ``presented`` if it is in force and has the scope. Errors as from `key`.

        The caller compares ``advertiser_id`` of an account's key with the account that it acts for.
        """
        return await self.database.read(lambda connection: auth.is_allowed(connection, presented, scope))

    def degraded(self) -> list[str]:
        """The parts (`telemetry.PARTS`) that are away; bids are made without them."""
        is_away = (
            self.bidder.user_store.is_down,
            self.writer.is_away,
            self.has_model and self.bidder.generate is None,
            bool(self.failing_tasks()),
            bool(self.clock.doubt()),
            self.bidder.ranking.is_failing or (self.ranker is not None and self.ranker.is_behind),
        )
        return [part for part, part_is_away in zip(telemetry.PARTS, is_away, strict=True) if part_is_away]

    def failing_tasks(self) -> list[str]:
        """Background tasks of this worker and of the writer that keep failing."""
        return [*self.tasks.failing(), *self.writer.failing_tasks]

    def readiness(self, failing_elsewhere: Collection[str] = ()) -> dict[str, object]:
        """The body of `/readyz`. ``failing_elsewhere``: tasks of any process of the bidder that keep failing."""
        failing = sorted({*self.failing_tasks(), *failing_elsewhere})
        away = self.degraded()
        if failing and "tasks" not in away:
            away.append("tasks")
        return {
            "status": "degraded" if away else "ready",
            "away": away,
            "failing_tasks": failing,
            "clock": self.clock.doubt(),
            "counting": not self.writer.has_counts,
            "stopped": [] if self.bidder.budgets.pays_uncapped else ["campaigns without a budget"],
        }

    async def close(self) -> None:
        """Disconnect from the peers, and close store and database."""
        await self.writer.close()
        await self.model.close()
        self.bidder.user_store.store.close()
        self.database.close()
