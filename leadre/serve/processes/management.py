"""The management process: the API and the status page of `manage`, with access to writer, ledger, log and store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from leadre import database
from leadre.auction.budget import schema, sums
from leadre.background import Tasks
from leadre.clock import Clock, ClockWatch
from leadre.errors import PeerError, RefusedError, StoreDown
from leadre.serve.bidding.explanation import Explanation, explain
from leadre.serve.bidding.value import expected_nanos
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.database import MIGRATIONS, ManageDatabase
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, Record, RequestRecord
from leadre.serve.ipc.messages import (
    CampaignDay,
    CountsReply,
    CountsRequest,
    EraseReply,
    EraseRequest,
    ErrorReply,
    RecordReply,
    RecordRequest,
    ReportReply,
    ReportRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.ipc.socket import request_once
from leadre.serve.manage import api as manage
from leadre.serve.manage.access import Backend, Lists, Spend
from leadre.serve.manage.history import SAMPLE_S, MetricRecorder
from leadre.serve.paths import StatePaths
from leadre.store import erased, open_store
from leadre.store.contract import EVERYBODY
from leadre.units import S_PER_HOUR, US_PER_DAY

if TYPE_CHECKING:
    import polars as pl
    from fastapi import FastAPI

ERASE_TIMEOUT_S = 60.0  # of a request that must not fail because the writer is busy
TIMEOUT_S = 3.0  # of all other requests to the writer
RETRY_S = 1.0  # after a request without a reply
RETAIN_S = 6.0 * S_PER_HOUR  # between two removals of old lists and profiles
PROPAGATE_S = 1.0  # within which every bid worker reads the erased users again


def app(paths: StatePaths, tables: Path, retain_days: int, clock: Clock) -> FastAPI:
    """The management API over the state in ``paths``; imports read the data artifact ``tables``.

    A thread removes lists and profiles older than ``retain_days`` from the store, as the writer does with the log.
    """
    backend = ManagementBackend(paths, tables, clock)
    recorder = MetricRecorder(clock)
    tasks = Tasks(clock, (StoreDown,))
    tasks.start_thread("history", SAMPLE_S, recorder.sample)
    clock_watch = ClockWatch(clock)

    def retain() -> None:
        clock_watch.check()
        backend.retain(retain_days, clock.now_us())

    tasks.start_thread("retention", RETAIN_S, retain)
    return manage.manage_app(
        ManageDatabase(paths.manage_database),
        Backend(
            clock=clock,
            erase=backend.erase,
            export=backend.export,
            spend=backend.spend,
            catalogue=backend.catalogue,
            history=recorder.read,
            charged_today=backend.charged_today,
            counts=backend.counts,
            explain=backend.explain,
            lists=backend.lists,
        ),
    )


class ManagementBackend:
    """Requests of the management API to store, log, ledger and writer. Thread-safe."""

    def __init__(self, paths: StatePaths, tables: Path, clock: Clock) -> None:
        self.store = open_store(paths.store, timeout_ms=1000.0)
        self._paths = paths
        self._tables = tables
        self._clock = clock
        self._snapshot: CatalogueSnapshot | None = None  # of the last explanation; the next one reads what changed
        self._retry_at_s = 0.0  # a page sends several requests, and waits for a stalled writer only once

    def erase(self, user_id: str) -> Mapping[str, int]:
        """Remove a user from log and tables, then from the store: a late event would bring a profile back."""
        from leadre.serve.events import erasure  # polars, which nothing else here needs

        with erased.locked(self._paths.erased):
            reply = self._request(EraseRequest(user_id), ERASE_TIMEOUT_S)
            assert isinstance(reply, EraseReply), reply
            removed = erasure.erase(self._paths.events, self._paths.tables, self._paths.replacing, user_id)
            time.sleep(PROPAGATE_S)
            stored = (self.store.read_profile(user_id), self.store.read_list(user_id))
            self.store.erase(user_id)
        return {"events": removed, "store": sum(item is not None for item in stored)}

    def retain(self, days: int, now_us: int) -> int:
        """Remove lists and events of profiles older than ``days`` from the store; returns how many entries changed."""
        return self.store.retain(now_us - days * US_PER_DAY, now_us)

    def export(self, user_id: str) -> Mapping[str, object]:
        """All data about a user: profile, stored list, records of the log."""
        records = [entry.record for entry in event_log.read(self._paths.events) if _is_about(entry.record, user_id)]
        return {
            "profile": msgspec.to_builtins(self.store.read_profile(user_id)),
            "list": msgspec.to_builtins(self.store.read_list(user_id)),
            "events": msgspec.to_builtins(records),
        }

    def spend(self, campaigns: Sequence[str], from_us: int, to_us: int) -> Sequence[Spend]:
        """Events and charges of campaigns, by day."""
        days: list[CampaignDay] = []
        has_more = True
        while has_more:
            after = (days[-1].campaign_id, days[-1].day) if days else ("", "")
            reply = self._request(ReportRequest(list(campaigns), from_us, to_us, after))
            assert isinstance(reply, ReportReply), reply
            days += reply.days
            has_more = reply.has_more
        return [Spend(**msgspec.structs.asdict(day)) for day in days]

    def charged_today(self) -> Sequence[sums.SpendToday]:
        """Charges of today by campaign, read from the ledger itself: they are known while the writer is away."""
        with closing(database.connect(self._paths.ledger, schema.MIGRATIONS, read_only=True)) as connection:
            return sums.spend_today(connection, self._clock.now_us())

    def counts(self) -> Mapping[str, tuple[int, int, int]]:
        """Ad ID -> (impressions, clicks, conversions) since the log began."""
        return self._counts()[0]

    def explain(self, request_id: str) -> Explanation | None:
        """A recent request with its candidates and their verdicts; "" is the newest. None if it is unknown."""
        reply = self._request(RecordRequest(request_id))
        assert isinstance(reply, RecordReply), reply
        if reply.record is None:
            return None
        by_ad, last = self._counts()
        with closing(database.connect(self._paths.manage_database, MIGRATIONS, read_only=True)) as connection:
            known = self._snapshot
            self._snapshot = eligibility.load(connection) if known is None else eligibility.refresh(known, connection)
            catalogue = self._snapshot
        return explain(reply.record, catalogue, expected_nanos(catalogue, by_ad), last)

    def lists(self) -> Lists:
        """Version of the current lists, and when they were generated."""
        version = self.store.versions().current
        popular = self.store.read_list(EVERYBODY)
        return Lists(version=version or "", made_at_us=popular.made_at_us if popular else 0)

    def catalogue(self) -> pl.DataFrame:
        """The run's table of ads."""
        import polars as pl

        return pl.read_parquet(self._tables / "ads.parquet")

    def _counts(self) -> tuple[dict[str, tuple[int, int, int]], int]:
        """(counts by ad, number of the last record of the log that they include)."""
        by_ad: dict[str, tuple[int, int, int]] = {}
        start = 0
        while True:
            reply = self._request(CountsRequest(start))
            assert isinstance(reply, CountsReply), reply
            by_ad |= reply.by_ad
            if not reply.next_start:
                return by_ad, reply.last
            start = reply.next_start

    def _request(self, request: WriterRequest, timeout_s: float = TIMEOUT_S) -> Any:
        """The writer's reply. PeerError if it is away, did not reply a moment ago, or its disk refuses."""
        name = self._paths.writer_socket.name
        if timeout_s == TIMEOUT_S and self._clock.monotonic_s() < self._retry_at_s:
            raise PeerError(f"{name}: no reply a moment ago")
        try:
            reply = request_once(self._paths.writer_socket, request, WriterReply, timeout_s=timeout_s)
        except RefusedError:
            raise
        except PeerError:
            self._retry_at_s = self._clock.monotonic_s() + RETRY_S
            raise
        if isinstance(reply, ErrorReply):
            raise PeerError(f"the writer: {reply.why}")
        return reply


def _is_about(record: Record, user_id: str) -> bool:
    """Whether a record of the log names the user."""
    if isinstance(record, RequestRecord):
        return record.user_id == user_id
    return isinstance(record, EventRecord) and record.outcome.user_id == user_id
