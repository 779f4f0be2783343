"""The management process: the API and the status page of `manage`, with access to writer, ledger, log and store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from leadre import database
from leadre.auction.budget import schema, sums
from leadre.background import Tasks
from leadre.clock import Clock, MachineClock
from leadre.errors import PeerError, RefusedError, StorageError, StoreDown
from leadre.serve.bidding.explanation import Explanation, explain
from leadre.serve.bidding.value import ad_prices
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.database import MIGRATIONS, ManageDatabase
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events import user_records
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.ipc.messages import (
    CampaignDay,
    CampaignPacing,
    ClockReply,
    ConfirmClockRequest,
    CountsReply,
    CountsRequest,
    EraseReply,
    EraseRequest,
    ErrorReply,
    PacingReply,
    PacingRequest,
    RecordReply,
    RecordRequest,
    ReportReply,
    ReportRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.ipc.socket import request_once
from leadre.serve.manage import api as manage
from leadre.serve.manage.access import Backend, Lists, Ranker, Spend
from leadre.serve.manage.history import SAMPLE_S, MetricRecorder
from leadre.serve.paths import StatePaths
from leadre.serve.processes import process_setup
from leadre.serve.processes.erasures import Erasures
from leadre.serve.processes.steady_clock import SteadyClock
from leadre.store import open_store
from leadre.store.contract import EVERYBODY
from leadre.units import S_PER_HOUR, US_PER_DAY

if TYPE_CHECKING:
    import polars as pl
    from fastapi import FastAPI

ERASE_TIMEOUT_S = 60.0  # of a request that must not fail because the writer is busy
TIMEOUT_S = 3.0  # of all other requests to the writer
ERASURES_S = 0.1  # between two passes of erasures
RETRY_S = 1.0  # after a request without a reply
FOLLOW_S = 0.5  # between two looks for a new file of the writer's clock
RETAIN_S = 6.0 * S_PER_HOUR  # between two removals of old lists and profiles


def app(paths: StatePaths, tables: Path, retain_days: int, machine: MachineClock, *, reviews_accounts: bool) -> FastAPI:
    """The management API over the state in ``paths``; imports read the data artifact ``tables``.

    A thread removes lists and profiles older than ``retain_days`` from the store, as the writer does with the log.
    ``reviews_accounts``: whether ads of accounts wait for an operator's approval.
    """
    clock = SteadyClock(paths.clock, machine)
    backend = ManagementBackend(paths, tables, clock)
    recorder = MetricRecorder(clock)
    tasks = Tasks(clock, (StoreDown, PeerError, StorageError))
    tasks.start_thread("history", SAMPLE_S, recorder.sample)
    tasks.start_thread("clock", FOLLOW_S, clock.follow)
    tasks.start_thread("retention", RETAIN_S, lambda: backend.retain(retain_days, clock.certain_us()))
    tasks.start_thread("erasures", ERASURES_S, backend.erasures.run, nice=process_setup.NICE)

    def confirm_clock(by: str) -> ClockReply:
        reply = backend.confirm_clock(by)
        clock.follow()
        return reply

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
            used_budget=backend.used_budget,
            pacing=backend.pacing,
            counts=backend.counts,
            explain=backend.explain,
            lists=backend.lists,
            ranker=backend.ranker,
            time_state=clock.state,
            confirm_clock=confirm_clock,
            reviews_accounts=reviews_accounts,
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
        self.erasures = Erasures(paths, self.store, self._hide)
        self._retry_at_s = 0.0  # a page sends several requests, and waits for a stalled writer only once

    def erase(self, user_id: str) -> Mapping[str, int]:
        """Remove a user from log, tables and store; returns when no file names the user."""
        return self.erasures.erase(user_id)

    def _hide(self, user_id: str) -> None:
        """Let the writer name a user in no further record and reply. PeerError if it is away."""
        reply = self._request(EraseRequest(user_id), ERASE_TIMEOUT_S)
        assert isinstance(reply, EraseReply), reply

    def confirm_clock(self, by: str) -> ClockReply:
        """Let the writer take the machine's wall time as right. PeerError if it cannot."""
        reply = self._request(ConfirmClockRequest(by))
        assert isinstance(reply, ClockReply), reply
        return reply

    def retain(self, days: int, now_us: int) -> int:
        """Remove lists and events of profiles older than ``days`` from the store; returns how many entries changed."""
        return self.store.retain(now_us - days * US_PER_DAY, now_us)

    def export(self, user_id: str) -> Mapping[str, object]:
        """All data about a user: profile, stored list, records of the log; none of an erased user."""
        if user_id in ErasedUsers(self._paths.erased):
            return {"profile": None, "list": None, "events": []}
        records = list(user_records.find(self._paths.events, user_id))
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
            _refuse_partial(reply)
            days += reply.days
            has_more = reply.has_more
        return [Spend(**msgspec.structs.asdict(day)) for day in days]

    def charged_today(self) -> Sequence[sums.SpendToday]:
        """Charges of today by campaign, read from the ledger itself: they are known while the writer is away."""
        with closing(database.connect(self._paths.ledger, schema.MIGRATIONS, read_only=True)) as connection:
            return sums.spend_today(connection, self._clock.now_us())

    def used_budget(self, campaign_id: str) -> tuple[sums.UsedBudget, sums.UsedBudget]:
        """The charges and reservations of a campaign, in all and today, read from the ledger itself."""
        with closing(database.connect(self._paths.ledger, schema.MIGRATIONS, read_only=True)) as connection:
            return sums.used_budget(connection, campaign_id, self._clock.now_us())

    def pacing(self) -> Mapping[str, CampaignPacing]:
        """Campaign ID -> its pacing as of its last tick, of the campaigns with a plan or a goal."""
        campaigns: list[CampaignPacing] = []
        request = PacingRequest()
        while True:
            reply = self._request(request)
            assert isinstance(reply, PacingReply), reply
            campaigns += reply.campaigns
            if not reply.has_more:
                return {campaign.campaign_id: campaign for campaign in campaigns}
            request = PacingRequest(reply.last, reply.instance)

    def counts(self) -> Mapping[str, tuple[int, int, int]]:
        """Ad ID -> (impressions, clicks, conversions) since the log began."""
        return self._counts(may_be_partial=False)[0]

    def explain(self, request_id: str) -> Explanation | None:
        """A recent request with its candidates and their verdicts; "" is the newest. None if it is unknown."""
        reply = self._request(RecordRequest(request_id))
        assert isinstance(reply, RecordReply), reply
        if reply.record is None:
            return None
        by_ad, last = self._counts(may_be_partial=True)
        with closing(database.connect(self._paths.manage_database, MIGRATIONS, read_only=True)) as connection:
            known = self._snapshot
            self._snapshot = eligibility.load(connection) if known is None else eligibility.refresh(known, connection)
            catalogue = self._snapshot
        prices = ad_prices(catalogue, by_ad)
        return explain(reply.record, catalogue, prices.expected_nanos_A, last, prices.most_nanos_A)

    def lists(self) -> Lists:
        """Version of the current lists, and when they were generated."""
        version = self.store.versions().current
        popular = self.store.read_list(EVERYBODY)
        return Lists(version=version or "", made_at_us=popular.made_at_us if popular else 0)

    def ranker(self) -> Ranker:
        """The current version of the published rankers. InputError if their files are damaged."""
        from leadre.serve.rankers.published import NONE, PublishedRankers  # SciPy, which no other part here loads

        rankers = PublishedRankers(self._paths.rankers)
        version = rankers.current()
        if version == NONE:
            return Ranker(version="", published_at_us=0)
        return Ranker(version=version, published_at_us=rankers.published_at_us(version))

    def catalogue(self) -> pl.DataFrame:
        """The run's table of ads."""
        import polars as pl

        return pl.read_parquet(self._tables / "ads.parquet")

    def _counts(self, *, may_be_partial: bool) -> tuple[dict[str, tuple[int, int, int]], int]:
        """(counts by ad, number of the last record of the log that they include).

        PeerError if the counts are partial and may not be.
        """
        by_ad: dict[str, tuple[int, int, int]] = {}
        start = 0
        while True:
            reply = self._request(CountsRequest(start))
            assert isinstance(reply, CountsReply), reply
            if not may_be_partial:
                _refuse_partial(reply)
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


def _refuse_partial(reply: CountsReply | ReportReply) -> None:
    """PeerError if the counts of a reply lack a part of the log."""
    if not reply.is_whole:
        raise PeerError("the writer still counts the events of its log; try again in some minutes")
