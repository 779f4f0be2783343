"""The management process: the API and the status page of `manage`, and what they reach beyond its own database."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from leadre import database
from leadre.auction.budget import schema, sums
from leadre.errors import PeerError, StoreDown
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, Record, RequestRecord
from leadre.serve.ipc.messages import (
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
from leadre.serve.ipc.socket import ask_once
from leadre.serve.manage import api as manage
from leadre.serve.manage.access import Backend, Lists, Spend
from leadre.serve.manage.history import MetricRecorder
from leadre.serve.paths import StatePaths
from leadre.store import erased, open_store
from leadre.store.contract import EVERYBODY
from leadre.units import S_PER_HOUR, US_PER_DAY

if TYPE_CHECKING:
    import polars as pl
    from fastapi import FastAPI

ERASED_S = 60.0  # for the writer's answer: an erasure rewrites files
SOON_S, RETRY_S = 3.0, 1.0  # for all others; after silence
RETAIN_S = 6.0 * S_PER_HOUR
HEARD_S = 1.0  # within which every bid worker knows of it, and remembers the user no more


def app(paths: StatePaths, tables: Path, retain_days: int) -> FastAPI:
    """The management API over the state in ``paths``; imports read the data artifact ``tables``.

    A thread takes out of the store what is older than ``retain_days``, as the writer does with the log.
    """
    office = ManagementBackend(paths, tables)
    recorder = MetricRecorder()
    threading.Thread(target=recorder.keep, name="leadre-history", daemon=True).start()
    threading.Thread(target=office.retain_forever, args=(retain_days,), name="leadre-retention", daemon=True).start()
    return manage.manage_app(
        ManageDatabase(paths.book),
        Backend(
            now_us=lambda: time.time_ns() // 1000,
            erase=office.erase,
            export=office.export,
            spend=office.spend,
            catalogue=office.catalogue,
            history=recorder.read,
            charged_today=office.charged_today,
            counts=office.counts,
            explain=office.explain,
            lists=office.lists,
        ),
    )


class ManagementBackend:
    """What the API asks of store, log and writer; any thread may call."""

    def __init__(self, paths: StatePaths, tables: Path) -> None:
        self.paths, self.tables = paths, tables
        self.store = open_store(paths.store, timeout_ms=1000.0)
        self._silent_until_s = 0.0  # a page asks several times, and one wait for a stalled writer is enough

    def erase(self, user_id: str) -> Mapping[str, int]:
        """Remove a user from log and tables first, whose events could bring a profile back, then from the store."""
        with erased.locked(self.paths.erased):
            answer = self._ask(EraseRequest(user_id), ERASED_S)
            assert isinstance(answer, EraseReply), answer
            time.sleep(HEARD_S)
            had = sum(each is not None for each in (self.store.read_profile(user_id), self.store.read_list(user_id)))
            self.store.erase(user_id)
        return {"events": answer.removed, "store": had}

    def retain_forever(self, days: int) -> None:
        """Hold retention, now and a few times a day; a store that is down holds it later."""
        while True:
            with contextlib.suppress(StoreDown):
                self.retain(days, time.time_ns() // 1000)
            time.sleep(RETAIN_S)

    def retain(self, days: int, now_us: int) -> int:
        """Take out of the store what is older than so many days; how many lists and profiles that changed."""
        return self.store.retain(now_us - days * US_PER_DAY, now_us)

    def export(self, user_id: str) -> Mapping[str, object]:
        """All that is kept of a user."""
        records = [entry.record for entry in event_log.read(self.paths.events) if _is_about(entry.record, user_id)]
        return {
            "profile": msgspec.to_builtins(self.store.read_profile(user_id)),
            "list": msgspec.to_builtins(self.store.read_list(user_id)),
            "events": msgspec.to_builtins(records),
        }

    def spend(self, campaigns: Sequence[str], from_us: int, to_us: int) -> Sequence[Spend]:
        """What campaigns did and cost, by day."""
        answer = self._ask(ReportRequest(list(campaigns), from_us, to_us), SOON_S)
        assert isinstance(answer, ReportReply), answer
        return [Spend(**msgspec.structs.asdict(day)) for day in answer.days]

    def charged_today(self) -> Sequence[sums.SpendToday]:
        """From the ledger itself, so that it is known while the writer is away."""
        with closing(database.connect(self.paths.ledger, schema.MIGRATIONS, read_only=True)) as connection:
            return sums.spend_today(connection, time.time_ns() // 1000)

    def counts(self) -> Mapping[str, tuple[int, int, int]]:
        """Ad -> impressions, clicks, conversions since the log begins."""
        answer = self._ask(CountsRequest(), SOON_S)
        assert isinstance(answer, CountsReply), answer
        return answer.by_ad

    def explain(self, request_id: str) -> RequestRecord | None:
        """One of the last requests, "" the newest."""
        answer = self._ask(RecordRequest(request_id), SOON_S)
        assert isinstance(answer, RecordReply), answer
        return answer.record

    def lists(self) -> Lists:
        """Which lists are current, and when they were made."""
        version, everybody = self.store.versions().current, self.store.read_list(EVERYBODY)
        return Lists(version=version or "", made_at_us=everybody.made_at_us if everybody else 0)

    def catalogue(self) -> pl.DataFrame:
        """The table of ads of the run."""
        import polars as pl

        return pl.read_parquet(self.tables / "ads.parquet")

    def _ask(self, question: WriterRequest, timeout_s: float) -> Any:
        if timeout_s == SOON_S and time.monotonic() < self._silent_until_s:
            raise PeerError(f"{self.paths.writer.name}: no answer a moment ago")
        try:
            answer = ask_once(self.paths.writer, question, WriterReply, timeout_s=timeout_s)
        except PeerError:
            self._silent_until_s = time.monotonic() + RETRY_S
            raise
        if isinstance(answer, ErrorReply):
            raise PeerError(f"the writer: {answer.why}")
        return answer


def _is_about(record: Record, user_id: str) -> bool:
    if isinstance(record, RequestRecord):
        return record.user_id == user_id
    return isinstance(record, EventRecord) and record.outcome.user_id == user_id
