"""The table writer: keeps the tables for training up to date with the event log, outside the process that books money.

It also removes what is older than the retention time, from tables and log. It only reads what the writer writes: a
table writer that is slow or dead delays no booking, and the next one continues behind the last record in the tables.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime

from leadre import database
from leadre.background import Tasks
from leadre.clock import MachineClock
from leadre.errors import InputError
from leadre.serve.catalogue import database as manage_database
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events import erasure, log_writer, training
from leadre.serve.paths import StatePaths
from leadre.serve.processes.disk_reports import DiskReports
from leadre.serve.processes.steady_clock import SteadyClock
from leadre.types import Ad
from leadre.units import S_PER_HOUR, US_PER_DAY, US_PER_S

FLUSH_S = 20.0  # between two flushes
REFUSALS = (*database.DISK_ERRORS, InputError)  # the last: another program has the catalogue locked
RETAIN_S = S_PER_HOUR  # between two removals of what is older than ``retain_days``


class TableWriter:
    """Flushes and retention of one bidder. ``retain_days``: of log and tables."""

    def __init__(self, paths: StatePaths, *, retain_days: int, clock: MachineClock) -> None:
        self._paths = paths
        self._retain_us = retain_days * US_PER_DAY
        self._clock = SteadyClock(paths.clock, clock)
        self._tasks = Tasks(clock, REFUSALS)
        self._disk = DiskReports("the table writer", clock)
        self._catalogue: CatalogueSnapshot | None = None  # of the last flush; the next one reads what changed
        self._is_recovered = False
        self._retain_at_s = clock.monotonic_s()

    def run(self, stopped: threading.Event) -> None:
        """Flush and remove at intervals until ``stopped`` is set, then flush once more. Errors are tried again."""
        while not stopped.wait(FLUSH_S):
            self._attempt("tables", self.flush)
            self._follow_clock()
            if self._clock.monotonic_s() >= self._retain_at_s:
                self._retain_at_s = self._clock.monotonic_s() + RETAIN_S
                self._attempt("retention", lambda: self.retain(self._clock.now_us()))
        self._attempt("tables", self.flush)

    def flush(self) -> None:
        """Add the log's new records to the tables, unless an erasure replaces files."""
        connection = database.connect(self._paths.manage_database, manage_database.MIGRATIONS, read_only=True)
        with closing(connection):
            known = self._catalogue
            self._catalogue = eligibility.load(connection) if known is None else eligibility.refresh(known, connection)
        while self._flush_some(self._catalogue.ads):  # an erasure that waits for the lock gets it in between
            pass
        self._disk.accepted()

    def _flush_some(self, ads: Sequence[Ad]) -> bool:
        """Add the next records to the tables; whether there may be more."""
        with erasure.replacing(self._paths, wait=False) as may_replace:
            if not may_replace:
                return False
            if not self._is_recovered:
                training.recover(self._paths.tables)
                self._is_recovered = True
            count = training.compact(self._paths.events, self._paths.tables, ads)
        return count == training.MAX_RECORDS

    def _follow_clock(self) -> None:
        """Follow the writer's clock. When a doubt ends, the next removal is due."""
        was_in_doubt = bool(self._clock.doubt())
        self._clock.follow()
        if was_in_doubt and not self._clock.doubt():
            self._retain_at_s = 0.0

    def retain(self, now_us: int) -> None:
        """Remove closed segments and table rows older than the retention time, unless an erasure replaces files."""
        oldest_us = self._clock.forget_us(now_us) - self._retain_us
        with erasure.replacing(self._paths, wait=False) as may_replace:
            if may_replace:
                log_writer.retain(self._paths.events, oldest_us)
                training.retain(self._paths.tables, datetime.fromtimestamp(oldest_us / US_PER_S, UTC).date())
            else:
                self._retain_at_s = 0.0  # after the next flush again

    def _attempt(self, name: str, call: Callable[[], object]) -> None:
        try:
            self._tasks.attempt(name, call)
        except REFUSALS as error:
            self._disk.refused(str(error))
