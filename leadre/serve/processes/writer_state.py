"""State owned by the writer process: ledger, event log, derived counters, erased users.

One thread calls it: `WriterState.handle` with a batch of requests, and `WriterState.maintain` between batches. The
caller passes the time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Lease
from leadre.background import Tasks
from leadre.clock import Clock, ClockWatch
from leadre.errors import StorageError
from leadre.serve.events import erasure, training
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.outcomes import EventProcessor
from leadre.serve.events.records import RequestRecord, without_user
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import (
    AppendReply,
    AppendRequest,
    CountsReply,
    CountsRequest,
    EraseReply,
    EraseRequest,
    EventReply,
    EventRequest,
    LedgerReply,
    LedgerRequest,
    RecordReply,
    RecordRequest,
    ReportRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.paths import StatePaths
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.derived_state import DerivedState
from leadre.serve.processes.event_posting import EventPosting
from leadre.serve.processes.set_aside import SetAsideRequests
from leadre.serve.processes.user_updates import UserUpdates
from leadre.store import open_store
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

COMPACT_US = 20 * US_PER_S  # between two compactions of the log into tables
FORGET_US = US_PER_S // 5  # between two batches of events that the ledger forgets
SNAPSHOT_US = 60 * US_PER_S  # between two snapshots of the counts; a start after a kill reads the log of this time
RETAIN_US = US_PER_HOUR  # between two removals of what is older than ``retain_days``
RETENTION = "retention"  # the name of that part of `WriterState.maintain`


class WriterState:
    """Ledger, event log and counters of one bidder. The thread that uses it creates it."""

    def __init__(self, paths: StatePaths, *, retain_days: int, clock: Clock) -> None:
        self._paths = paths
        self._retain_us = retain_days * US_PER_DAY
        self.token_keys = TokenKeys.open(paths.token_keys)
        self.erased = ErasedUsers(paths.erased)
        self.ledger = Ledger(paths.ledger)
        self.log = EventLog(paths.events, known=max(self.ledger.log_number, training.position(paths.tables)))
        self.refused = SetAsideRequests(paths.refused, self.token_keys)
        self._clock_watch = ClockWatch(clock)
        self._is_steady = True
        self._tasks = Tasks(clock, (StorageError, sqlite3.OperationalError))
        processor = EventProcessor(self.ledger, self.log, self.erased.__contains__)
        self.users = UserUpdates(open_store(paths.store), self.erased)
        self._catalogue_sync = CatalogueSync(paths, self.ledger)
        self._derived = DerivedState(paths.counts, self.log, self._catalogue_sync, self._without_erased)
        self._posting = EventPosting(self.token_keys, processor, self._derived, self._catalogue_sync, self.users)
        self._due_us: dict[str, int] = {}  # periodic part of `maintain` -> time of its next call
        self._derived.load()
        with erasure.replacing(paths.replacing, wait=False) as may_replace:
            if may_replace:
                training.recover(paths.tables)

    def close(self) -> None:
        """Save counts and compact the log into the tables, unless the disk refuses, and close all files."""
        for save in (self._derived.save, self._compact):
            with contextlib.suppress(StorageError):
                save()
        self.log.close()
        self.ledger.close()
        self.users.store.close()
        self._catalogue_sync.close()

    def handle(self, requests: Sequence[WriterRequest], now_us: int) -> list[WriterReply]:
        """Replies in the order of the requests; all data that they acknowledge is durable.

        StorageError: no request may be acknowledged. A repeated request does not repeat the part that was done.
        """
        self._catalogue_sync.set_budgets(now_us)
        self._append_requests(requests, now_us)
        outcomes = self._posting.post_batch(requests, now_us)
        return [self._reply(request, outcomes.get(index, ""), now_us) for index, request in enumerate(requests)]

    def _reply(self, request: WriterRequest, outcome: str, now_us: int) -> WriterReply:
        """The reply to one request of a batch; ``outcome`` is that of an `EventRequest`, which is posted already."""
        match request:
            case AppendRequest():
                return AppendReply()
            case EventRequest():
                return EventReply(outcome)
            case LedgerRequest(leases=leases, releases=releases):
                results = self.ledger.apply([*releases, *leases], now_us)[len(releases) :]
                return LedgerReply([result if isinstance(result, Lease) else None for result in results])
            case RecordRequest(request_id=request_id):
                return RecordReply(self._derived.recent.find(request_id))
            case CountsRequest(start=start):
                by_ad, next_start = self._derived.counts.by_ad(start)
                return CountsReply(by_ad, self._derived.last, next_start, self._tasks.failing())
            case ReportRequest():
                return self._derived.counts.days(request)
            case EraseRequest(user_id=user_id):
                self._hide(user_id)
                return EraseReply()

    def maintain(self, now_us: int) -> None:
        """Do what is due: follow the catalogue, expire leases, flush caps, compact tables, remove old records.

        A part that fails is counted, reported and tried again; the other parts follow. StorageError, OperationalError:
        the disk refuses.
        """
        self._tasks.attempt("follow catalogue", lambda: self._derived.follow_catalogue(now_us))
        self._tasks.attempt("clock", self._check_clock)
        if self._is_steady:
            self._tasks.attempt("expire leases", lambda: self.ledger.expire(now_us))
        self._tasks.attempt("frequency caps", self.users.flush_cap_updates)
        if self._is_steady:
            self._every(FORGET_US, "forget events", now_us, lambda: self.ledger.forget(now_us))
        self._every(COMPACT_US, "compact tables", now_us, self._compact)
        self._every(SNAPSHOT_US, "snapshot of counts", now_us, self._derived.save)
        if self._is_steady:
            self._every(RETAIN_US, RETENTION, now_us, lambda: self._retain(now_us))

    def _every(self, interval_us: int, name: str, now_us: int, call: Callable[[], object]) -> None:
        if now_us >= self._due_us.get(name, 0):
            self._due_us[name] = now_us + interval_us
            self._tasks.attempt(name, call)

    def set_aside(self, request: WriterRequest, why: str, now_us: int) -> None:
        """Append a request that cannot be handled to ``refused.jsonl``, without its user. StorageError: disk full."""
        self.refused.add(request, why, now_us)

    def _append_requests(self, requests: Sequence[WriterRequest], now_us: int) -> None:
        """Append the records of the batch that the log does not have, without erased users."""
        recent = self._derived.recent
        records = [record for request in requests if isinstance(request, AppendRequest) for record in request.records]
        unknown = {record.request_id: record for record in records if record not in recent}
        self._derived.append([self._without_erased(record) for record in unknown.values()], now_us)

    def _compact(self) -> None:
        """Bring the tables for training up to the log, unless an erasure replaces files."""
        with erasure.replacing(self._paths.replacing, wait=False) as may_replace:
            if may_replace:
                training.compact(self._paths.events, self._paths.tables, self._catalogue_sync.catalogue.ads)

    def _check_clock(self) -> None:
        """ClockError, and leases and records do not grow old, while wall time has jumped."""
        self._is_steady = False
        self._clock_watch.check()
        self._is_steady = True

    def _retain(self, now_us: int) -> None:
        """Remove records and table rows older than ``retain_days``."""
        oldest_us = now_us - self._retain_us
        self._derived.recent.forget_before(oldest_us)
        with erasure.replacing(self._paths.replacing, wait=False) as may_replace:
            if may_replace:
                self.log.retain(oldest_us)
                training.retain(self._paths.tables, datetime.fromtimestamp(oldest_us / US_PER_S, UTC).date())
            else:
                self._due_us[RETENTION] = now_us + COMPACT_US  # an erasure replaces files

    def _without_erased(self, record: RequestRecord) -> RequestRecord:
        return without_user(record) if record.user_id and record.user_id in self.erased else record

    def _hide(self, user_id: str) -> None:
        """Name the user in no further reply and record, not of tokens in circulation either, and close the segment."""
        self.erased.add(user_id)
        self._derived.recent.erase(user_id)
        self.log.rotate()
