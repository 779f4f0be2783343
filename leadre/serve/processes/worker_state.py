"""State of a bid worker: all that a request is answered from is in memory, or in the store's shared pages."""

from __future__ import annotations

import itertools
import os
import secrets
import sqlite3

from leadre import database, telemetry
from leadre.background import Tasks
from leadre.clock import Clock
from leadre.errors import PeerError
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.context import Bidder, Market
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import Counts, expected_nanos
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.manage import auth
from leadre.serve.paths import StatePaths
from leadre.serve.processes.peers import ModelClient, RecordQueue, WriterClient
from leadre.serve.settings import Settings
from leadre.store import open_store

# The worker waits so long for a lock of the store; meanwhile it answers no other request.
LOCK_MS = 5.0


class WorkerState:
    """The catalogue, users, budgets and peers of one worker; `Renewals` replaces what changes.

    ``has_model``: whether the plan has a model server. InputError if the state folder has no catalogue yet.
    """

    def __init__(self, paths: StatePaths, settings: Settings, *, has_model: bool, clock: Clock) -> None:
        self.clock = clock
        self.has_model = has_model
        self.tasks = Tasks(clock, (PeerError, sqlite3.OperationalError))
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._numbers = itertools.count()
        self.writer = WriterClient(paths.writer_socket, clock)
        self.records = RecordQueue(self.writer)
        self.model = ModelClient(paths.model_server_socket, clock)
        self.connection = database.connect(paths.manage_database, records.MIGRATIONS, read_only=True)
        catalogue = eligibility.load(self.connection, settings.seat)
        self.connection.execute("PRAGMA busy_timeout=0")  # a refresh that finds a lock is repeated, and blocks no bid
        self.counts: Counts = {}
        self.keys = TokenKeys.open(paths.token_keys)
        self.erased = ErasedUsers(paths.erased)
        self.origins = auth.read_origins(self.connection)
        self.bidder = Bidder(
            settings=settings,
            market=Market(catalogue, expected_nanos(catalogue, {}), ObjectIndex((), catalogue.ads, "")),
            user_store=UserStore(open_store(paths.store, lock_ms=LOCK_MS), clock),
            budgets=Budgets(self._name, self.writer.send_orders),
            generate=None,
            sign=self.keys.sign,
            new_id=self.new_id,
            draws=ExplorationDraws.open(paths.exploration_key),
            clock=clock,
        )

    def new_id(self) -> str:
        """A request ID that no other worker creates."""
        return f"{self._name}-{next(self._numbers):x}"

    def is_operator(self, presented: str) -> bool:
        """Whether ``presented`` is an operator's key in force."""
        key = auth.find(self.connection, presented)
        return key is not None and key.is_operator

    def degraded(self) -> list[str]:
        """The parts (`telemetry.PARTS`) that are away; bids are made without them."""
        is_away = (
            self.bidder.user_store.is_down,
            self.writer.is_away,
            self.has_model and self.bidder.generate is None,
            bool(self.failing_tasks()),
        )
        return [part for part, part_is_away in zip(telemetry.PARTS, is_away, strict=True) if part_is_away]

    def failing_tasks(self) -> list[str]:
        """Background tasks of this worker and of the writer that keep failing."""
        return [*self.tasks.failing(), *self.writer.failing_tasks]

    def readiness(self) -> dict[str, object]:
        """The body of `/readyz`."""
        away = self.degraded()
        return {
            "status": "degraded" if away else "ready",
            "away": away,
            "failing_tasks": self.failing_tasks(),
            "stopped": [] if self.bidder.budgets.pays_uncapped else ["campaigns without a budget"],
        }

    async def close(self) -> None:
        """Disconnect from the peers, and close store and database."""
        await self.writer.close()
        await self.model.close()
        self.bidder.user_store.store.close()
        self.connection.close()
