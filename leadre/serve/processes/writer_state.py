"""State owned by the writer process: ledger, event log, derived counters, erased users.

One thread calls it: `WriterState.handle` with a batch of requests, and `WriterState.maintain` between batches. The
caller passes the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Lease
from leadre.background import Tasks
from leadre.clock import MachineClock
from leadre.database import DISK_ERRORS
from leadre.serve.events import event_log, table_position, user_texts
from leadre.serve.events.caller_ids import CallerIds, clean_ledger
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.outcomes import EventProcessor
from leadre.serve.events.records import RequestRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import (
    MAX_ITEMS,
    AppendReply,
    AppendRequest,
    ConfirmClockRequest,
    CountsReply,
    CountsRequest,
    EraseReply,
    EraseRequest,
    EventReply,
    EventRequest,
    LedgerReply,
    LedgerRequest,
    PacingRequest,
    RecordReply,
    RecordRequest,
    ReportRequest,
    ShadingReply,
    ShadingRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.paths import StatePaths
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.derived_state import DerivedState
from leadre.serve.processes.event_posting import EventPosting
from leadre.serve.processes.set_aside import SetAsideRequests
from leadre.serve.processes.steady_clock import ClockKeeper
from leadre.serve.processes.user_updates import UserUpdates
from leadre.serve.settings import EXP_S
from leadre.store import open_store
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

FORGET_US = US_PER_S // 5  # between two batches of events that the ledger forgets
SNAPSHOT_US = 60 * US_PER_S  # between two snapshots of the counts; a start after a kill reads the log of this time
PACING_US = US_PER_S  # between two searches for campaigns whose tick is due
SHADING_US = 10 * US_PER_S  # between two fits, of one market each: bookings wait for up to a quarter of a second
RECOUNT_US = 60 * US_PER_S  # between two starts of the process that counts the history, if it fails
RETAIN_US = US_PER_HOUR  # between two removals of what is older than ``retain_days``


class WriterState:
    """Ledger, event log and counters of one bidder. The thread that uses it creates it.

    Callers of `handle` and `maintain` take the time from ``clock``. ``exp_s``: that of `Settings`.
    """

    def __init__(self, paths: StatePaths, *, retain_days: int, clock: MachineClock, exp_s: int = EXP_S) -> None:
        self._paths = paths
        self._retain_us = retain_days * US_PER_DAY
        self.token_keys = TokenKeys.open(paths.token_keys)
        self.caller_ids = CallerIds.open(paths.caller_id_key)
        self.erased = ErasedUsers(paths.erased)
        self.ledger = Ledger(paths.ledger)
        self.log = EventLog(paths.events, known=max(self.ledger.log_number, table_position.read(paths.tables)))
        self.refused = SetAsideRequests(paths.refused, self.token_keys)
        self.clock = ClockKeeper(paths.clock, clock, lambda: event_log.last_written_us(paths.events))
        self._tasks = Tasks(clock, DISK_ERRORS)
        processor = EventProcessor(self.ledger, self.log, self.erased.__contains__)
        clean_ledger(self.ledger.connection, self.caller_ids)
        self.users = UserUpdates(open_store(paths.store), self.erased)
        self._catalogue_sync = CatalogueSync(paths, self.ledger, exp_s, clock)
        self._derived = DerivedState(paths.counts, self.log, self._catalogue_sync, self._as_known, exp_s)
        self._posting = EventPosting(
            self.token_keys, self.caller_ids, processor, self._derived, self._catalogue_sync, self.users
        )
        self._due_us: dict[str, int] = {}  # periodic part of `maintain` -> time of its next call
        self._derived.load()

    def close(self) -> None:
        """Save the counts, unless the disk refuses, and close all files."""
        self.clock.keep(at_once=True)
        self._derived.close()
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
        outcomes = self._posting.post_batch(requests, now_us, self.clock.forget_us(now_us))
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
                return RecordReply(self._find(request_id))
            case CountsRequest(start=start):
                by_ad, next_start = self._derived.counts.by_ad(start)
                is_whole = self._derived.is_whole
                return CountsReply(by_ad, self._derived.last, next_start, self._tasks.failing(), is_whole)
            case PacingRequest(after=after, instance=instance):
                return self._derived.pacing.changes(after, instance, MAX_ITEMS)
            case ShadingRequest():
                return ShadingReply(self._derived.shading.markets())
            case ReportRequest():
                return self._derived.counts.days(request, is_whole=self._derived.is_whole)
            case EraseRequest(user_id=user_id):
                self._hide(user_id)
                return EraseReply()
            case ConfirmClockRequest(by=by):
                confirmed = self.clock.confirm(by)
                self._due_us.clear()  # all parts run now
                return confirmed

    def maintain(self, now_us: int) -> None:
        """Do what is due: follow the catalogue, expire leases, flush caps, count, pace, save counts, remove old.

        A part that fails is counted, reported and tried again; the other parts follow. StorageError, OperationalError:
        the disk refuses.
        """
        self._tasks.attempt("follow catalogue", lambda: self._derived.follow_catalogue(now_us))
        self._tasks.attempt("clock", self.clock.keep)
        self._tasks.attempt("token keys", self.token_keys.follow)
        certain_us = self.clock.forget_us(now_us)
        self._tasks.attempt("expire leases", lambda: self.ledger.expire(now_us, self.clock.settled_before_us()))
        self._tasks.attempt("frequency caps", self.users.flush_cap_updates)
        self._every(FORGET_US, "forget events", now_us, lambda: self.ledger.forget(certain_us))
        self._every(RECOUNT_US, "start of the history count", now_us, self._derived.start_count)
        self._tasks.attempt("history count", self._derived.add_history)
        derived = self._derived
        self._every(PACING_US, "pacing", now_us, lambda: derived.pacing.tick(self.ledger.connection, now_us))
        self._every(SHADING_US, "shading", now_us, lambda: derived.shading.tick(now_us))
        self._every(SNAPSHOT_US, "snapshot of counts", now_us, self._derived.save)
        self._every(RETAIN_US, "retention", now_us, lambda: self._retain(certain_us))

    def _every(self, interval_us: int, name: str, now_us: int, call: Callable[[], object]) -> None:
        due_us = self._due_us.get(name, 0)
        if not due_us - interval_us <= now_us < due_us:  # a call that is due later was set by a clock that went back
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
        self._derived.append([self._as_logged(record) for record in unknown.values()], now_us)

    def _retain(self, certain_us: int) -> None:
        """Forget records older than ``retain_days``; the table writer deletes them from the disk."""
        oldest_us = certain_us - self._retain_us
        self._derived.recent.forget_before(oldest_us)
        self.log.rotate_before(oldest_us)

    def _as_logged(self, record: RequestRecord) -> RequestRecord:
        """The record of a worker without an erased user, and with the hash of the caller's ID."""
        hashed = self.caller_ids.hash("request", record.caller_request_id)
        return self._without_erased(msgspec.structs.replace(record, caller_request_id=hashed))

    def _as_known(self, record: RequestRecord) -> RequestRecord:
        """The same for a record of the log, which an earlier release may have written."""
        hashed = self.caller_ids.hash_once("request", record.caller_request_id)
        if hashed != record.caller_request_id:
            record = msgspec.structs.replace(record, caller_request_id=hashed)
        return self._without_erased(record)

    def _without_erased(self, record: RequestRecord) -> RequestRecord:
        return user_texts.erased(record) if record.user_id and record.user_id in self.erased else record

    def _find(self, request_id: str) -> RequestRecord | None:
        """A recent record by our request ID, or by the caller's, which it then shows as it was presented."""
        record = self._derived.recent.find(request_id)
        if record is None:
            record = self._derived.recent.find(self.caller_ids.hash("request", request_id))
            return record and msgspec.structs.replace(record, caller_request_id=request_id)
        return record

    def _hide(self, user_id: str) -> None:
        """Name the user in no further reply and record, not of tokens in circulation either, and close the segment."""
        self.erased.add(user_id)
        self._derived.recent.erase(user_id)
        self.refused.erase(user_id)
        self.log.rotate()
