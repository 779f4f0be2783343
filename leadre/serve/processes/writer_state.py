"""What the writer process keeps: the books, the event log, what follows from them, and who was erased.

One thread calls it, in batches (`WriterState.settle`) and between them (`WriterState.tend`).
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from leadre import database, telemetry
from leadre.auction.budget.days import day_of
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Lease
from leadre.errors import StorageError, StoreDown, TokenError
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import eligibility
from leadre.serve.events import event_log, training
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.outcomes import LATE_CONVERSION_US, EventProcessor, EventReport
from leadre.serve.events.records import EventRecord, Record, RequestRecord, StatusRecord, without_user
from leadre.serve.events.tokens import Token, TokenKeys
from leadre.serve.ipc.messages import (
    AppendReply,
    AppendRequest,
    CampaignDay,
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
from leadre.serve.protocol import openrtb
from leadre.store import open_store
from leadre.store.contract import Profile, ProfileEvent
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

COMPACT_US = 20 * US_PER_S
RETAIN_US = US_PER_HOUR
REMEMBERED = 20_000  # requests that can be explained
COUNTED = {"imp": 0, "click": 1, "conv": 2}
NOTHING = (0, 0, 0, 0)


class WriterState:
    """Books, log and counts of one bidder; made in the thread that uses it."""

    def __init__(self, paths: StatePaths, *, retain_days: int) -> None:
        self.paths, self._retain_us = paths, retain_days * US_PER_DAY
        self._keys = TokenKeys.open(paths.keys)
        self.erased = ErasedUsers(paths.erased)
        self.ledger = Ledger(paths.ledger)
        self.log = EventLog(paths.events)
        self.outcomes = EventProcessor(self.ledger, self.log, self.erased.__contains__)
        self._store = open_store(paths.store)
        self._caps_due: list[tuple[str, str]] = []  # (what to do, reservation) that the store did not take yet
        self._book_connection = database.connect(paths.book, records.MIGRATIONS, read_only=True)
        self._book = eligibility.load(self._book_connection)
        self._recent: OrderedDict[str, RequestRecord] = OrderedDict()
        self._by_ad: dict[str, tuple[int, int, int]] = {}
        self._by_day: dict[tuple[str, str], tuple[int, int, int, int]] = defaultdict(lambda: NOTHING)
        self._live: set[str] = set()
        self._counted = 0  # the number of the last record that is in the counts
        self._catch_up()
        self._is_logged = False  # whether the log says of every ad of the book if it is live
        self._compact_at_us = self._retain_at_us = 0
        self._budgets: dict[str, Budget] = {}
        self._budget_campaigns(time.time_ns() // 1000)

    def close(self) -> None:
        """Bring the tables for training up to the log, where the disk allows it, and let go of all files."""
        with contextlib.suppress(StorageError):
            training.compact(self.paths.events, self.paths.tables, self._book.ads)
        self.log.close()
        self.ledger.close()
        self._store.close()
        self._book_connection.close()

    def settle(self, questions: Sequence[WriterRequest], now_us: int) -> list[WriterReply]:
        """Answers in the order of the questions; what they tell is on the disk.

        StorageError: none may be answered. What was done of them is not done again when they are asked again.
        """
        answered = [record for each in questions if isinstance(each, AppendRequest) for record in each.records]
        new = {record.request_id: record for record in answered if not self._has(record)}
        self._append([self._without_erased(record) for record in new.values()], now_us)
        reports = {n: self._report(each) for n, each in enumerate(questions) if isinstance(each, EventRequest)}
        good = {n: report for n, report in reports.items() if isinstance(report, EventReport)}
        told = dict(zip(good, self._take(list(good.values()), now_us), strict=True))
        replies: list[WriterReply] = []
        for n, question in enumerate(questions):
            match question:
                case AppendRequest():
                    replies.append(AppendReply())
                case EventRequest():
                    replies.append(told[n] if n in told else EventReply("refused"))
                case LedgerRequest():
                    found = self.ledger.apply([*question.releases, *question.asks], now_us)[len(question.releases) :]
                    replies.append(LedgerReply([each if isinstance(each, Lease) else None for each in found]))
                case RecordRequest():
                    replies.append(RecordReply(self._found(question.request_id)))
                case CountsRequest():
                    replies.append(CountsReply(dict(self._by_ad), self._counted))  # a copy: the counts go on
                case ReportRequest():
                    replies.append(ReportReply(self._days(question)))
                case EraseRequest():
                    replies.append(EraseReply(self._erase(question.user_id, now_us)))
        return replies

    def tend(self, now_us: int) -> None:
        """What is due by now: the book's changes, leases that ended, tables for training, retention."""
        self._follow_book(now_us)
        self.ledger.expire(now_us)
        self._settle_caps()
        if now_us >= self._compact_at_us:
            self._compact_at_us = now_us + COMPACT_US
            training.compact(self.paths.events, self.paths.tables, self._book.ads)
        if now_us >= self._retain_at_us:
            self._retain_at_us = now_us + RETAIN_US
            oldest_us = now_us - self._retain_us
            self.ledger.forget(now_us)
            self.log.retain(oldest_us)
            for name in [name for name, record in self._recent.items() if record.at_us < oldest_us]:
                del self._recent[name]
            training.retain(self.paths.tables, datetime.fromtimestamp(oldest_us / US_PER_S, UTC).date())

    def _report(self, event: EventRequest) -> EventReport | None:
        """An event as the books want it; None for a token that is not good."""
        late_us = LATE_CONVERSION_US if event.kind == "conv" else 0
        try:
            token = self._keys.check(event.token, event.at_us, late_us)
        except TokenError:
            return None
        price_nanos = openrtb.paid_nanos(event.price) if event.price else None
        return EventReport(
            kind=event.kind,
            token=token,
            at_us=event.at_us,
            price_nanos=price_nanos,
            value_nanos=event.value_nanos,
            event_id=event.event_id,
        )

    def _take(self, reports: Sequence[EventReport], now_us: int) -> list[EventReply]:
        """Book events, then tell caps and profiles."""
        if not reports:
            return []
        self._catch_up()
        if any(report.token.campaign_id not in self._budgets for report in reports):  # made a moment ago
            self._follow_book(now_us)
        effects = self.outcomes.take(reports, now_us)
        for report, effect in zip(reports, effects, strict=True):
            if effect.record is not None:
                self._count(effect.record)
                unpaid_nanos = effect.record.owed_nanos - effect.charged_nanos
                telemetry.WRITTEN_OFF_NANOS.labels(report.token.currency).inc(unpaid_nanos)
            if effect.cap:
                self._caps_due.append((effect.cap, report.token.cap_id))
            if effect.is_new and report.kind in ("click", "conv"):
                self._profile(report.token, report, now_us)
            telemetry.CHARGED_NANOS.labels(report.token.currency).inc(effect.charged_nanos)
        self._counted = self.log.last
        self._settle_caps()
        return [EventReply("new" if effect.is_new else "known") for effect in effects]

    def _settle_caps(self) -> None:
        """Keep and release places under frequency caps; what the store does not take waits for it."""
        try:
            while self._caps_due:
                what, cap_id = self._caps_due[0]
                if what == "keep":
                    self._store.post(cap_id)
                else:
                    self._store.void(cap_id)
                self._caps_due.pop(0)
        except StoreDown:
            pass

    def _profile(self, token: Token, report: EventReport, now_us: int) -> None:
        """Remember what a user did who allowed it; a profile that cannot be written misses one event."""
        row = self._book.row_of_ad.get(token.ad_id)
        if row is None or token.is_test or not token.user_id or not token.may_profile or token.user_id in self.erased:
            return
        seen = ProfileEvent(self._book.ads[row].object_id, report.at_us, "ad", report.value_nanos)
        try:
            old = self._store.read_profile(token.user_id) or Profile(token.user_id)
            new = msgspec.structs.replace(old, recent=(*old.recent, seen), updated_at_us=now_us)
            self._store.write_profiles(new.bounded())
        except StoreDown:
            pass

    def _append(self, records: Sequence[Record], now_us: int) -> None:
        """Write records down and count them."""
        self._catch_up()
        self.log.append(records, now_us)
        for record in records:
            self._count(record)
        self._counted = self.log.last

    def _catch_up(self) -> None:
        """Count what the log has beyond the counts: all of it at first, and what a failed commit left there."""
        if self._counted < self.log.last:
            for entry in event_log.read(self.paths.events, self._counted):
                self._count(entry.record)
            self._counted = self.log.last

    def _has(self, record: RequestRecord) -> bool:
        """Whether it is written down: a worker that did not hear so sends it again."""
        known = self._recent.get(record.request_id)
        return known is not None and known.request_id == record.request_id

    def _count(self, record: Record) -> None:
        """Add a record of the log to what follows from it."""
        if isinstance(record, RequestRecord):
            self._remember(record)
        elif isinstance(record, StatusRecord):
            (self._live.add if record.is_live else self._live.discard)(record.ad_id)
        elif isinstance(record, EventRecord) and not record.is_test:
            done = record.outcome
            place = COUNTED.get(done.kind)
            if place is not None:
                counts = list(self._by_ad.get(done.ad_id, (0, 0, 0)))
                counts[place] += 1
                self._by_ad[done.ad_id] = (counts[0], counts[1], counts[2])
            row = self._book.row_of_campaign.get(done.campaign_id)
            zone = "UTC" if row is None else self._book.campaigns[row].zone
            key = done.campaign_id, day_of(done.at_us, zone).isoformat()
            day = list(self._by_day[key])
            if place is not None:
                day[place] += 1
            day[3] += done.charge_nanos
            self._by_day[key] = (day[0], day[1], day[2], day[3])

    def _remember(self, record: RequestRecord) -> None:
        """Keep it for whoever asks why; by our ID and by the caller's."""
        for name in (record.request_id, record.caller_request_id):
            self._recent[name] = record
        while len(self._recent) > 2 * REMEMBERED:
            self._recent.popitem(last=False)

    def _found(self, name: str) -> RequestRecord | None:
        """The request of this name; "" is the newest."""
        return self._recent.get(name or next(reversed(self._recent), ""))

    def _without_erased(self, record: RequestRecord) -> RequestRecord:
        return without_user(record) if record.user_id and record.user_id in self.erased else record

    def _days(self, asked: ReportRequest) -> list[CampaignDay]:
        """Days of campaigns that touch a span of time, in order."""
        wanted = set(asked.campaigns)
        days = [(key, counts) for key, counts in self._by_day.items() if key[0] in wanted]
        return [CampaignDay(*key, *counts) for key, counts in sorted(days) if self._overlaps(*key, asked)]

    def _overlaps(self, campaign_id: str, day: str, asked: ReportRequest) -> bool:
        row = self._book.row_of_campaign.get(campaign_id)
        zone = "UTC" if row is None else self._book.campaigns[row].zone
        last_us = max(asked.from_us, asked.to_us - 1)
        return day_of(asked.from_us, zone).isoformat() <= day <= day_of(last_us, zone).isoformat()

    def _erase(self, user_id: str, now_us: int) -> int:
        """Take a user out of log and tables, and out of what tokens that are about still say."""
        self.erased.add(user_id)
        for name, record in list(self._recent.items()):
            if record.user_id == user_id:
                self._recent[name] = without_user(record)
        return self.log.erase(user_id) + training.erase(self.paths.tables, user_id)

    def _follow_book(self, now_us: int) -> None:
        """Budgets of campaigns and the times at which ads are live, as the book changes."""
        book = eligibility.refresh(self._book, self._book_connection)
        if book is not self._book:
            self._book, self._is_logged = book, False
            self._budget_campaigns(now_us)
        if self._is_logged:
            return
        live = {ad.ad_id for ad, is_live in zip(book.ads, book.live_A.tolist(), strict=True) if is_live}
        if live != self._live:
            began, ended = sorted(live - self._live), sorted(self._live - live)
            switched = [StatusRecord(at_us=now_us, ad_id=ad_id, is_live=True) for ad_id in began]
            switched += [StatusRecord(at_us=now_us, ad_id=ad_id, is_live=False) for ad_id in ended]
            self._append(switched, now_us)
        self._is_logged = True

    def _budget_campaigns(self, now_us: int) -> None:
        """Tell the ledger what campaigns may spend, where that has changed; it charges none that it does not know."""
        budgets = {
            campaign.campaign_id: Budget(
                total_nanos=campaign.total_nanos, daily_nanos=campaign.daily_nanos, zone=campaign.zone
            )
            for campaign in self._book.campaigns
        }
        changed = {name: budget for name, budget in budgets.items() if self._budgets.get(name) != budget}
        if changed:
            self.ledger.set_budgets(changed, now_us)
        self._budgets = budgets
