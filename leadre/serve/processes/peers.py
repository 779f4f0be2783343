"""A worker's clients of the writer and of the model server, and its queue of records for the writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leadre import telemetry
from leadre.auction.budget.messages import Lease, LeaseRequest, LedgerOrder, Release
from leadre.clock import Clock
from leadre.errors import PeerError
from leadre.serve.events.records import RequestRecord
from leadre.serve.ipc.messages import (
    AppendRequest,
    ErrorReply,
    GenerateReply,
    GenerateRequest,
    LedgerReply,
    LedgerRequest,
    ModelInfoReply,
    ModelInfoRequest,
    WriterReply,
    WriterRequest,
)
from leadre.serve.ipc.socket import Client

WRITER_TIMEOUT_S = 2.0  # includes the writer's disk
MODEL_INFO_TIMEOUT_S = 1.0
MAX_QUEUED_RECORDS = 10_000  # kept while the writer is away; later records are dropped
RECORDS_PER_REQUEST = 500


class WriterClient:
    """Client of the writer. ``is_away``: the last request failed, or the writer has not answered any yet."""

    def __init__(self, path: Path) -> None:
        self._client: Client[WriterRequest, WriterReply] = Client(path, WriterReply)
        self.is_away = True

    async def request(self, request: WriterRequest) -> WriterReply:
        """The writer's reply. PeerError if the writer is away or its disk refuses the write."""
        try:
            reply = await self._client.request(request, timeout_s=WRITER_TIMEOUT_S)
            if isinstance(reply, ErrorReply):
                raise PeerError(f"the writer: {reply.why}")
        except PeerError:
            self.is_away = True
            raise
        self.is_away = False
        return reply

    async def send_orders(self, orders: Sequence[LedgerOrder]) -> Sequence[Lease | None]:
        """Send lease requests and releases to the ledger; returns the leases in the order of the requests."""
        requests = [order for order in orders if isinstance(order, LeaseRequest)]
        releases = [order for order in orders if isinstance(order, Release)]
        reply = await self.request(LedgerRequest(requests, releases))
        assert isinstance(reply, LedgerReply), reply
        return reply.leases

    async def close(self) -> None:
        await self._client.close()


class RecordQueue:
    """Queue of request records for the writer: FIFO, bounded. A record stays until the writer acknowledges it."""

    def __init__(self, writer: WriterClient) -> None:
        self._writer = writer
        self._records: list[RequestRecord] = []

    @property
    def is_full(self) -> bool:
        """Whether the queue holds `MAX_QUEUED_RECORDS`; the caller then drops new records."""
        return len(self._records) >= MAX_QUEUED_RECORDS

    def add(self, record: RequestRecord) -> None:
        self._records.append(record)

    async def flush(self) -> None:
        """Send all records. PeerError if the writer does not acknowledge them; they stay in the queue."""
        while self._records:
            batch = self._records[:RECORDS_PER_REQUEST]
            await self._writer.request(AppendRequest(batch))
            del self._records[: len(batch)]


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

    async def info(self) -> ModelInfoReply:
        """The objects that the model can generate, and its version. PeerError if the model server is away."""
        reply = await self._client.request(ModelInfoRequest(), timeout_s=MODEL_INFO_TIMEOUT_S)
        assert isinstance(reply, ModelInfoReply), reply
        return reply

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
