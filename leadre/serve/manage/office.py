"""The management process: the API of `manage`, and what it reaches beyond its own database."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from leadre.errors import PeerError, StoreDown
from leadre.serve.book.records import Records
from leadre.serve.events import eventlog
from leadre.serve.manage import api as manage
from leadre.serve.manage.api import Outside, Spend
from leadre.serve.paths import Paths
from leadre.serve.processes.messages import Erase, Erased, Failed, Question, Reply, Reported, Reports
from leadre.serve.processes.peers import ask_once
from leadre.store import erased, open_store
from leadre.store.contract import US_PER_DAY

if TYPE_CHECKING:
    import polars as pl
    from fastapi import FastAPI

WRITER_S = 60.0  # an erasure rewrites files
RETAIN_S = 6 * 3600.0
HEARD_S = 1.0  # within which every bid worker knows of it, and remembers the user no more


def app(paths: Paths, tables: Path, retain_days: int) -> FastAPI:
    """The management API over the state in ``paths``; imports read the data artifact ``tables``.

    A thread takes out of the store what is older than ``retain_days``, as the writer does with the log.
    """
    office = Office(paths, tables)
    threading.Thread(target=office.retain_forever, args=(retain_days,), name="leadre-retention", daemon=True).start()
    return manage.manage_app(
        Records(paths.book),
        Outside(
            now_us=lambda: time.time_ns() // 1000,
            erase=office.erase,
            export=office.export,
            spend=office.spend,
            catalogue=office.catalogue,
        ),
    )


class Office:
    """What the API asks of store, log and writer; any thread may call."""

    def __init__(self, paths: Paths, tables: Path) -> None:
        self.paths, self.tables = paths, tables
        self.store = open_store(paths.store, timeout_ms=1000.0)

    def erase(self, user_id: str) -> Mapping[str, int]:
        """Remove a user from log and tables first, whose events could bring a profile back, then from the store."""
        with erased.held(self.paths.erased):
            answer = self._ask(Erase(user_id))
            assert isinstance(answer, Erased), answer
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
        records = [entry.record for entry in eventlog.read(self.paths.events) if _is_about(entry.record, user_id)]
        return {
            "profile": msgspec.to_builtins(self.store.read_profile(user_id)),
            "list": msgspec.to_builtins(self.store.read_list(user_id)),
            "events": msgspec.to_builtins(records),
        }

    def spend(self, campaigns: Sequence[str], from_us: int, to_us: int) -> Sequence[Spend]:
        """What campaigns did and cost, by day."""
        answer = self._ask(Reports(list(campaigns), from_us, to_us))
        assert isinstance(answer, Reported), answer
        return [Spend(**msgspec.structs.asdict(day)) for day in answer.days]

    def catalogue(self) -> pl.DataFrame:
        """The table of ads of the run."""
        import polars as pl

        return pl.read_parquet(self.tables / "ads.parquet")

    def _ask(self, question: Question) -> Any:
        answer = ask_once(self.paths.writer, question, Reply, timeout_s=WRITER_S)
        if isinstance(answer, Failed):
            raise PeerError(f"the writer: {answer.why}")
        return answer


def _is_about(record: eventlog.Record, user_id: str) -> bool:
    if isinstance(record, eventlog.Answered):
        return record.user_id == user_id
    return isinstance(record, eventlog.Happened) and record.outcome.user_id == user_id
