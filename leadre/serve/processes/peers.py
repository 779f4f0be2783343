"""A worker's clients of the writer and of the model server, and its queues of records and of clicks for the writer."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from leadre import telemetry
from leadre.auction.budget.messages import Lease, LeaseRequest, LedgerOrder, Release
from leadre.auction.pacing.contract import Rate
from leadre.clock import Clock
from leadre.errors import PeerError, RefusedError
from leadre.serve.events.records import RequestRecord
from leadre.serve.ipc.messages import (
    MAX_BATCH_BYTES,
    MAX_ITEMS,
    AppendRequest,
    CountsReply,
    CountsRequest,
    ErrorReply,
    EventRequest,
    GenerateReply,
    GenerateRequest,
    LedgerReply,
    LedgerRequest,
    MarketShading,
    ModelInfoReply,
    ModelInfoRequest,
    PacingReply,
    PacingRequest,
    ShadingReply,
    ShadingRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.ipc.socket import Client

WRITER_TIMEOUT_S = 2.0  # includes the writer's disk
MODEL_INFO_TIMEOUT_S = 1.0
MAX_QUEUED_RECORDS = 10_000  # kept while the writer is away; later records are dropped
MAX_QUEUED_BYTES = 64 << 20
RECORDS_PER_REQUEST = 500
MAX_QUEUED_CLICKS = 10_000
CLICKS_AT_ONCE = 100


class WriterClient:
    """Client of the writer. ``is_away``: the last request failed, or the writer has not answered any yet.

    ``replied_at_s``: monotonic time of its last reply, or of the start of this client.

    As of the last `counts`: ``failing_tasks`` are background tasks of the writer that keep failing; ``has_counts`` is
    False while its history is counted.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self.replied_at_s = clock.monotonic_s()
        self._client: Client[WriterRequest, WriterReply] = Client(path, WriterReply)
        self.is_away = True
        self.failing_tasks: Sequence[str] = ()
        self.has_counts = True
        self._seen_pacing = PacingRequest()

    async def request(self, request: WriterRequest) -> WriterReply:
        """The writer's reply. PeerError if the writer is away or its disk refuses the write, RefusedError for good."""
        try:
            reply = await self._client.request(request, timeout_s=WRITER_TIMEOUT_S)
            if isinstance(reply, ErrorReply):
                raise PeerError(f"the writer: {reply.why}")
        except RefusedError:
            self._set_present()
            raise
        except PeerError:
            self.is_away = True
            raise
        self._set_present()
        return reply

    def _set_present(self) -> None:
        self.is_away = False
        self.replied_at_s = self._clock.monotonic_s()

    async def send_orders(self, orders: Sequence[LedgerOrder]) -> Sequence[Lease | None]:
        """Send lease requests and releases to the ledger; returns the leases in the order of the requests."""
        leases: list[Lease | None] = []
        for start in range(0, len(orders), MAX_ITEMS):
            part = orders[start : start + MAX_ITEMS]
            requests = [order for order in part if isinstance(order, LeaseRequest)]
            releases = [order for order in part if isinstance(order, Release)]
            reply = await self.request(LedgerRequest(requests, releases))
            assert isinstance(reply, LedgerReply), reply
            leases += reply.leases
        return leases

    async def counts(self) -> tuple[Mapping[str, tuple[int, int, int]], int]:
        """(ad ID -> (impressions, clicks, conversions), number of the last record of the log that they include)."""
        by_ad: dict[str, tuple[int, int, int]] = {}
        start = 0
        while True:
            reply = await self.request(CountsRequest(start))
            assert isinstance(reply, CountsReply), reply
            by_ad |= reply.by_ad
            self.failing_tasks = reply.failing
            self.has_counts = reply.is_whole
            if not reply.next_start:
                return by_ad, reply.last
            start = reply.next_start

    async def pacing(self) -> Mapping[str, Rate]:
        """How campaigns with a plan or a goal bid: those whose rate may have changed since the last call."""
        rates: dict[str, Rate] = {}
        seen = self._seen_pacing
        while True:
            reply = await self.request(seen)
            assert isinstance(reply, PacingReply), reply
            rates |= {paced.campaign_id: paced.rate for paced in reply.campaigns}
            seen = PacingRequest(reply.last, reply.instance)
            if not reply.has_more:
                self._seen_pacing = seen
                return rates

    async def shading(self) -> Sequence[MarketShading]:
        """The best bids of all markets."""
        reply = await self.request(ShadingRequest())
        assert isinstance(reply, ShadingReply), reply
        return reply.markets

    async def close(self) -> None:
        await self._client.close()


class RecordQueue:
    """Queue of request records for the writer: FIFO, bounded in number and bytes. A record stays until the writer
    acknowledges it. Each record that no log will have is counted (`telemetry.RECORDS_DROPPED`).
    """

    def __init__(self, writer: WriterClient) -> None:
        self._writer = writer
        self._encode = msgspec.msgpack.Encoder().encode
        self._records: deque[bytes] = deque()
        self._bytes = 0
        self._alone = 0  # records that are sent alone, as the writer has refused them together

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: RequestRecord) -> None:
        """Queue a record; a full queue drops it."""
        packed = self._encode(record)
        if len(self._records) >= MAX_QUEUED_RECORDS or self._bytes + len(packed) > MAX_QUEUED_BYTES:
            telemetry.RECORDS_DROPPED.labels("queue full").inc()
            return
        self._records.append(packed)
        self._bytes += len(packed)

    async def flush(self) -> None:
        """Send all records. PeerError if the writer does not acknowledge them; they stay in the queue.

        Of a batch that the writer refuses for good, each record is sent alone; those refused again are dropped.
        """
        while self._records:
            batch = self._batch()
            try:
                # The packed records are those of an `AppendRequest`; the writer decodes them.
                await self._writer.request(AppendRequest([msgspec.Raw(packed) for packed in batch]))  # type: ignore[misc]
            except RefusedError:
                if len(batch) > 1:
                    self._alone = len(batch)
                    continue
                telemetry.RECORDS_DROPPED.labels("refused").inc()
            self._alone = max(0, self._alone - len(batch))
            for packed in batch:
                self._records.popleft()
                self._bytes -= len(packed)

    def _batch(self) -> list[bytes]:
        """The oldest records that fit into one request; at least one."""
        batch: list[bytes] = []
        size = 0
        for packed in itertools.islice(self._records, 1 if self._alone else RECORDS_PER_REQUEST):
            size += len(packed)
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(packed)
        return batch


class ClickQueue:
    """Queue of clicks that the writer did not acknowledge: their users are on the landing page, and send none again.

    Bounded in number. A click that is sent twice counts once, so each stays until the writer has taken or refused it.
    """

    def __init__(self, writer: WriterClient) -> None:
        self._writer = writer
        self._clicks: dict[str, EventRequest] = {}  # by token, as a user may click again

    def __len__(self) -> int:
        return len(self._clicks)

    def add(self, click: EventRequest) -> None:
        """Queue a click; a full queue drops it."""
        if len(self._clicks) >= MAX_QUEUED_CLICKS:
            telemetry.RECORDS_DROPPED.labels("click queue full").inc()
            return
        self._clicks.setdefault(click.token, click)

    async def flush(self) -> None:
        """Send all clicks. PeerError if the writer is away; those that it has not taken stay in the queue."""
        while self._clicks:
            batch = list(itertools.islice(self._clicks.values(), CLICKS_AT_ONCE))
            replies = await asyncio.gather(*map(self._writer.request, batch), return_exceptions=True)
            away: BaseException | None = None
            for click, reply in zip(batch, replies, strict=True):
                if isinstance(reply, BaseException) and not isinstance(reply, RefusedError):
                    away = reply
                else:
                    del self._clicks[click.token]
            if away is not None:
                raise away


class ModelClient:
    """Client of the model server."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._client: Client[ModelInfoRequest | GenerateRequest, ModelInfoReply | GenerateReply] = Client(
            path, ModelInfoReply | GenerateReply
        )
        self._clock = clock

    @property
    def is_connected(self) -> bool:
        """Whether the connection that the last request used is still open."""
        return self._client.is_connected

    async def info(self, start: int = 0) -> ModelInfoReply:
        """The objects that the model can generate, from number ``start`` on, and its version.

        PeerError if the model server is away.
        """
        object_ids: list[str] = []
        while True:
            request = ModelInfoRequest(start + len(object_ids))
            reply = await self._client.request(request, timeout_s=MODEL_INFO_TIMEOUT_S)
            assert isinstance(reply, ModelInfoReply), reply
            object_ids += reply.object_ids
            if not reply.next_start:
                return ModelInfoReply(object_ids, reply.version, instance=reply.instance)

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Objects that the model generated before the request's deadline. PeerError if no reply arrives in time."""
        started_s = self._clock.monotonic_s()
        outcome = "gone"
        try:
            reply = await self._client.request(request, timeout_s=max(0.0, request.until_s - started_s))
            assert isinstance(reply, GenerateReply), reply
            outcome = "complete" if reply.is_complete else "cut" if reply.objects else "late"
        finally:
            telemetry.GENERATIONS.labels(outcome).inc()
            telemetry.GENERATE_S.observe(self._clock.monotonic_s() - started_s)
        return reply

    async def close(self) -> None:
        await self._client.close()
