"""State owned by the writer process: ledger, event log, derived counters, erased users.

One thread calls it: `WriterState.handle` with a batch of requests, and `WriterState.maintain` between batches. The
caller passes the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime

from leadre import telemetry
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Lease
from leadre.errors import StorageError, TokenError
from leadre.serve.events import event_log, training
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.outcomes import LATE_CONVERSION_US, EventProcessor, EventReport
from leadre.serve.events.records import EventRecord, Record, RequestRecord, StatusRecord, without_user
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
    ReportReply,
    ReportRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.paths import StatePaths
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.event_counts import EventCounts
from leadre.serve.processes.recent_records import RecentRecords
from leadre.serve.processes.user_updates import UserUpdates
from leadre.serve.protocol import openrtb
from leadre.store import open_store
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

COMPACT_US = 20 * US_PER_S  # between two compactions of the log into tables
RETAIN_US = US_PER_HOUR  # between two removals of what is older than ``retain_days``


class WriterState:
    """Ledger, event log and counters of one bidder. The thread that uses it creates it."""

    def __init__(self, paths: StatePaths, *, retain_days: int) -> None:
        self._paths = paths
        self._retain_us = retain_days * US_PER_DAY
        self.token_keys = TokenKeys.open(paths.token_keys)
        self.erased = ErasedUsers(paths.erased)
        self.ledger = Ledger(paths.ledger)
        self.log = EventLog(paths.events)
        self._processor = EventProcessor(self.ledger, self.log, self.erased.__contains__)
        self.users = UserUpdates(open_store(paths.store), self.erased)
        self._sync = CatalogueSync(paths, self.ledger)
        self._counts = EventCounts(self._sync.zone_of)
        self._recent = RecentRecords()
        self._counted = 0  # number of the last log record that the counters contain
        self._compact_at_us = 0
        self._retain_at_us = 0
        self._catch_up()

    def close(self) -> None:
        """Compact the log into the tables, unless the disk refuses, and close all files."""
        with contextlib.suppress(StorageError):
            self._compact()
        self.log.close()
        self.ledger.close()
        self.users.store.close()
        self._sync.close()

    def handle(self, requests: Sequence[WriterRequest], now_us: int) -> list[WriterReply]:
        """Replies in the order of the requests; all data that they acknowledge is durable.

        StorageError: no request may be acknowledged. A repeated request does not repeat the part that was done.
        """
        self._sync.set_budgets(now_us)
        self._append_requests(requests, now_us)
        outcomes = self._post_events(requests, now_us)
        return [self._reply(number, request, outcomes, now_us) for number, request in enumerate(requests)]

    def _reply(self, number: int, request: WriterRequest, outcomes: dict[int, str], now_us: int) -> WriterReply:
        """The reply to one request; ``outcomes`` are those of the batch's events, by the request's number."""
        match request:
            case AppendRequest():
                return AppendReply()
            case EventRequest():
                return EventReply(outcomes[number])
            case LedgerRequest(leases=leases, releases=releases):
                results = self.ledger.apply([*releases, *leases], now_us)[len(releases) :]
                return LedgerReply([result if isinstance(result, Lease) else None for result in results])
            case RecordRequest(request_id=request_id):
                return RecordReply(self._recent.find(request_id))
            case CountsRequest():
                return CountsReply(self._counts.by_ad(), self._counted)
            case ReportRequest():
                return ReportReply(self._counts.days(request))
            case EraseRequest(user_id=user_id):
                return EraseReply(self._erase(user_id))

    def maintain(self, now_us: int) -> None:
        """Do what is due: follow the catalogue, expire leases, flush caps, compact tables, remove old records."""
        self._follow_catalogue(now_us)
        self.ledger.expire(now_us)
        self.users.flush_cap_updates()
        if now_us >= self._compact_at_us:
            self._compact_at_us = now_us + COMPACT_US
            self._compact()
        if now_us >= self._retain_at_us:
            self._retain_at_us = now_us + RETAIN_US
            self._retain(now_us)

    def _append_requests(self, requests: Sequence[WriterRequest], now_us: int) -> None:
        """Append the records of the batch that the log does not have, without erased users."""
        records = [record for request in requests if isinstance(request, AppendRequest) for record in request.records]
        unknown = {record.request_id: record for record in records if record not in self._recent}
        self._append([self._without_erased(record) for record in unknown.values()], now_us)

    def _post_events(self, requests: Sequence[WriterRequest], now_us: int) -> dict[int, str]:
        """Post the events of the batch together: number of the request -> outcome as in `EventReply`."""
        outcomes: dict[int, str] = {}
        reports: dict[int, EventReport] = {}
        for number, request in enumerate(requests):
            if isinstance(request, EventRequest):
                report = self._report(request)
                if report is None:
                    outcomes[number] = "refused"
                else:
                    reports[number] = report
        if reports:
            are_new = self._post(list(reports.values()), now_us)
            for number, is_new in zip(reports, are_new, strict=True):
                outcomes[number] = "new" if is_new else "known"
        return outcomes

    def _report(self, request: EventRequest) -> EventReport | None:
        """The event with its verified token; None if the token is invalid or expired."""
        late_us = LATE_CONVERSION_US if request.kind == "conv" else 0
        try:
            token = self.token_keys.check(request.token, request.at_us, late_us)
        except TokenError:
            return None
        return EventReport(
            kind=request.kind,
            token=token,
            at_us=request.at_us,
            price_nanos=openrtb.paid_nanos(request.price) if request.price else None,
            value_nanos=request.value_nanos,
            event_id=request.event_id,
        )

    def _post(self, reports: Sequence[EventReport], now_us: int) -> list[bool]:
        """Post events to ledger and log, then update counters, caps and profiles. Returns which events are new."""
        self._catch_up()
        if not all(self._sync.has_budget(report.token.campaign_id) for report in reports):
            self._follow_catalogue(now_us)  # the campaign is newer than the loaded catalogue
        effects = self._processor.process(reports, now_us)
        for report, effect in zip(reports, effects, strict=True):
            if effect.record is not None:
                self._count(effect.record)
                unpaid_nanos = effect.record.owed_nanos - effect.charged_nanos
                telemetry.WRITTEN_OFF_NANOS.labels(report.token.currency).inc(unpaid_nanos)
            if effect.cap:
                self.users.add_cap_update(effect.cap, report.token.cap_id)
            if effect.is_new and report.kind in ("click", "conv"):
                self.users.add_to_profile(report, self._sync.catalogue, now_us)
            telemetry.CHARGED_NANOS.labels(report.token.currency).inc(effect.charged_nanos)
        self._counted = self.log.last
        self.users.flush_cap_updates()
        return [effect.is_new for effect in effects]

    def _append(self, records: Sequence[Record], now_us: int) -> None:
        """Append records to the log and count them."""
        self._catch_up()
        self.log.append(records, now_us)
        for record in records:
            self._count(record)
        self._counted = self.log.last

    def _catch_up(self) -> None:
        """Count log records that the counters lack: all of them at the start, later those of a failed commit."""
        if self._counted < self.log.last:
            for entry in event_log.read(self._paths.events, self._counted):
                self._count(entry.record)
            self._counted = self.log.last

    def _count(self, record: Record) -> None:
        """Add one log record to the state that is derived from the log."""
        if isinstance(record, RequestRecord):
            self._recent.add(record)
        elif isinstance(record, StatusRecord):
            self._sync.add(record)
        elif isinstance(record, EventRecord):
            self._counts.add(record)

    def _follow_catalogue(self, now_us: int) -> None:
        """Load changes of the catalogue, and log which ads went live or ended."""
        self._sync.refresh(now_us)
        changes = self._sync.status_changes(now_us)
        if changes:
            self._append(changes, now_us)
        self._sync.set_logged()

    def _compact(self) -> None:
        """Bring the tables for training up to the log."""
        training.compact(self._paths.events, self._paths.tables, self._sync.catalogue.ads)

    def _retain(self, now_us: int) -> None:
        """Remove records and table rows older than ``retain_days``, and ended leases of the ledger."""
        oldest_us = now_us - self._retain_us
        self.ledger.forget(now_us)
        self.log.retain(oldest_us)
        self._recent.forget_before(oldest_us)
        training.retain(self._paths.tables, datetime.fromtimestamp(oldest_us / US_PER_S, UTC).date())

    def _without_erased(self, record: RequestRecord) -> RequestRecord:
        return without_user(record) if record.user_id and record.user_id in self.erased else record

    def _erase(self, user_id: str) -> int:
        """Remove a user from log, tables and recent records; tokens still in circulation cannot add the user again."""
        self.erased.add(user_id)
        self._recent.erase(user_id)
        return self.log.erase(user_id) + training.erase(self._paths.tables, user_id)
