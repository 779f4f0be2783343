"""Requests and replies between the processes of one bidder, over a Unix socket.

A message (`leadre.serve.ipc.connection`) is msgpack of `msgspec`: (number, request), or (number, reply, error). One
connection carries many requests at once: each has a number, and its reply is sent as soon as it is ready. The caller
sets the timeout of each request. A peer that is gone or does not reply in time raises `PeerError`; no request waits for
ever. A message longer than a frame is not sent: its producer gets `RefusedError`, the other requests go on. A server
leaves further requests unread while `MAX_UNANSWERED_BYTES` of one client have no reply.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from leadre.background import TaskHealth
from leadre.clock import SystemClock
from leadre.errors import LeadreError, PeerError, RefusedError
from leadre.serve.ipc.connection import LENGTH_BYTES, Connection, checked, length_of

RETRY_S = 0.2  # between attempts to connect to a peer that is gone
MAX_UNREAD_BYTES = 1 << 20  # sent and not yet read by the peer; requests beyond it fail at once
MAX_UNANSWERED_BYTES = 4 << 20  # of the requests of one client that a server handles at once; the last may exceed it

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")


class Client(Generic[RequestT, ReplyT]):
    """Connection to one server, for one event loop; it reconnects by itself.

    ``replies`` is the type, or the union of types, that the server sends.
    """

    def __init__(self, path: Path, replies: Any) -> None:
        self.path = path
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], tuple[int, ReplyT | None, str]] = msgspec.msgpack.Decoder(
            tuple[int, replies | None, str]
        ).decode
        self._numbers = itertools.count()
        self._pending: dict[int, asyncio.Future[ReplyT]] = {}
        self._connection: Connection | None = None
        self._connect_lock = asyncio.Lock()
        self._not_before_s = 0.0

    async def request(self, request: RequestT, *, timeout_s: float) -> ReplyT:
        """The server's reply. PeerError if it is absent, hangs up, stops reading or does not reply in time.

        RefusedError if the request is too large, or the server fails at it: the same request would fail again.
        """
        number = next(self._numbers)
        message = checked(self._encode((number, request)))
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._connection or await self._connect()
                if not connection.is_open:
                    raise PeerError(f"{self.path.name}: hung up")
                if connection.unread_bytes > MAX_UNREAD_BYTES:
                    raise PeerError(f"{self.path.name}: does not read its requests")
                future = self._pending[number] = asyncio.get_running_loop().create_future()
                connection.send(message)
                reply: ReplyT = await future
                return reply
        except (TimeoutError, OSError) as error:
            raise PeerError(f"{self.path.name}: no reply within {timeout_s:.3f} s") from error
        finally:
            self._pending.pop(number, None)

    @property
    def is_connected(self) -> bool:
        """Whether the connection of the last request is still open."""
        return self._connection is not None

    async def close(self) -> None:
        """Disconnect; pending requests raise PeerError."""
        if self._connection is not None:
            self._connection.close()
            await asyncio.sleep(0)  # the event loop closes it

    async def _connect(self) -> Connection:
        async with self._connect_lock:
            if self._connection is None:
                loop = asyncio.get_running_loop()
                if loop.time() < self._not_before_s:  # do not connect again for every request
                    raise PeerError(f"{self.path.name}: was not there a moment ago")
                self._not_before_s = loop.time() + RETRY_S
                connection = Connection(self._receive, self._disconnected)
                await loop.create_unix_connection(lambda: connection, str(self.path))
                self._connection = connection
            return self._connection

    def _receive(self, message: bytes) -> None:
        number, reply, error = self._decode(message)
        future = self._pending.get(number)
        if future is None or future.done():
            return
        if reply is None:
            future.set_exception(RefusedError(f"{self.path.name}: {error}"))
        else:
            future.set_result(reply)

    def _disconnected(self) -> None:
        self._connection = None
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionResetError(f"{self.path.name} hung up"))


def request_once(path: Path, request: object, replies: Any, *, timeout_s: float) -> Any:
    """The reply to one request, for a thread without an event loop. Errors as from `Client.request`."""
    message = checked(msgspec.msgpack.encode((0, request)))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(len(message).to_bytes(LENGTH_BYTES, "big") + message)
            with connection.makefile("rb") as stream:
                length = length_of(stream.read(LENGTH_BYTES))
                _, reply, fault = msgspec.msgpack.decode(stream.read(length), type=tuple[int, replies | None, str])
    except (OSError, msgspec.DecodeError) as error:
        raise PeerError(f"{path.name}: no reply within {timeout_s:.0f} s") from error
    if reply is None:
        raise RefusedError(f"{path.name}: {fault}")
    return reply


async def serve(path: Path, requests: Any, handle: Callable[[RequestT], Awaitable[object]]) -> asyncio.Server:
    """Start a server on ``path`` that handles ``requests`` (a type or a union) concurrently; the caller closes it.

    ``handle`` returns an awaitable at once. A request that cannot be decoded, or an error of its awaitable, fails this
    request alone, at once and for good (`RefusedError`); an unexpected error is counted and reported.
    """
    health = TaskHealth(f"requests to {path.name}", SystemClock(), (LeadreError, msgspec.DecodeError))
    decode: Callable[[msgspec.Raw], RequestT] = msgspec.msgpack.Decoder(requests).decode
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return await asyncio.get_running_loop().create_unix_server(
        lambda: _Session(decode, handle, health).connection, str(path)
    )


class _Session(Generic[RequestT]):
    """The requests of one connection to a server. Those without a reply are cancelled when their client has gone."""

    _split = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
    _encode = msgspec.msgpack.Encoder().encode

    def __init__(
        self,
        decode: Callable[[msgspec.Raw], RequestT],
        handle: Callable[[RequestT], Awaitable[object]],
        health: TaskHealth,
    ) -> None:
        self.connection = Connection(self._receive, self._disconnected)
        self._decode = decode
        self._handle = handle
        self._health = health
        self._unanswered: set[asyncio.Future[object]] = set()
        self._unanswered_bytes = 0
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        """Close the connection with its event loop, which cancels its tasks at its end."""
        try:
            await self._lost
        finally:
            self.connection.close()

    def _receive(self, message: bytes) -> None:
        number, packed = self._split(message)
        try:
            future = asyncio.ensure_future(self._handle(self._decode(packed)))
        except msgspec.DecodeError as error:
            self.connection.send(self._encode((number, None, str(error))))
            return
        self._unanswered.add(future)
        self._unanswered_bytes += len(message)
        self.connection.set_reading(self._unanswered_bytes <= MAX_UNANSWERED_BYTES)
        future.add_done_callback(functools.partial(self._reply, number, len(message)))

    def _reply(self, number: int, size: int, future: asyncio.Future[object]) -> None:
        """Send the result of a request of ``size`` bytes."""
        self._unanswered.discard(future)
        self._unanswered_bytes -= size
        if future.cancelled():
            return
        try:
            reply = self._health.attempt(lambda: checked(self._encode((number, future.result(), ""))))
        except (LeadreError, msgspec.DecodeError) as error:
            reply = self._encode((number, None, str(error)))
        self.connection.send(reply)
        self.connection.set_reading(self._unanswered_bytes <= MAX_UNANSWERED_BYTES)

    def _disconnected(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)
        for future in list(self._unanswered):
            future.cancel()
