"""Requests and replies between the processes of one bidder, over a Unix socket.

A frame is four bytes of length and a msgpack message of `msgspec`: (number, request), or (number, reply, error). One
connection carries many requests at once: each has a number, and its reply is sent as soon as it is ready. The caller
sets the timeout of each request. A peer that is gone or does not reply in time raises `PeerError`; no request waits for
ever. A message above `MAX_FRAME_BYTES` is not sent: its producer gets `RefusedError`, the other requests go on.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from leadre.background import TaskHealth
from leadre.clock import SystemClock
from leadre.errors import LeadreError, PeerError, RefusedError

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 16 << 20  # producers of lists cut them well below it
RETRY_S = 0.2  # between attempts to connect to a peer that is gone
MAX_UNREAD_BYTES = 1 << 20  # sent and not yet read by the peer; requests beyond it fail at once

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
        self._writer: asyncio.StreamWriter | None = None
        self._read_task: asyncio.Task[None] | None = None
        self._connect_lock = asyncio.Lock()
        self._not_before_s = 0.0

    async def request(self, request: RequestT, *, timeout_s: float) -> ReplyT:
        """The server's reply. PeerError if it is absent, hangs up, stops reading or does not reply in time.

        RefusedError if the request is too large, or the server fails at it: the same request would fail again.
        """
        number = next(self._numbers)
        message = _checked(self._encode((number, request)))
        try:
            async with asyncio.timeout(timeout_s):
                writer = self._writer or await self._connect()
                if writer.is_closing():  # uvloop's transport would raise an error that is no OSError
                    raise PeerError(f"{self.path.name}: hung up")
                if writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                    raise PeerError(f"{self.path.name}: does not read its requests")
                future = self._pending[number] = asyncio.get_running_loop().create_future()
                _send(writer, message)
                reply: ReplyT = await future
                return reply
        except (TimeoutError, OSError) as error:
            raise PeerError(f"{self.path.name}: no reply within {timeout_s:.3f} s") from error
        finally:
            self._pending.pop(number, None)

    @property
    def is_connected(self) -> bool:
        """Whether the connection of the last request is still open."""
        return self._writer is not None

    async def close(self) -> None:
        """Disconnect; pending requests raise PeerError."""
        if self._read_task is not None:
            self._read_task.cancel()
            await asyncio.gather(self._read_task, return_exceptions=True)

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connect_lock:
            if self._writer is None:
                loop = asyncio.get_running_loop()
                if loop.time() < self._not_before_s:  # do not connect again for every request
                    raise PeerError(f"{self.path.name}: was not there a moment ago")
                self._not_before_s = loop.time() + RETRY_S
                reader, self._writer = await asyncio.open_unix_connection(self.path)
                self._read_task = asyncio.create_task(self._read_replies(reader))
            return self._writer

    async def _read_replies(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, reply, error = self._decode(await _receive(reader))
                future = self._pending.get(number)
                if future is None or future.done():
                    continue
                if reply is None:
                    future.set_exception(RefusedError(f"{self.path.name}: {error}"))
                else:
                    future.set_result(reply)
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            pass  # the pending requests fail below
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(ConnectionResetError(f"{self.path.name} hung up"))


def request_once(path: Path, request: object, replies: Any, *, timeout_s: float) -> Any:
    """The reply to one request, for a thread without an event loop. Errors as from `Client.request`."""
    message = _checked(msgspec.msgpack.encode((0, request)))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(len(message).to_bytes(LENGTH_BYTES, "big") + message)
            with connection.makefile("rb") as stream:
                length = _length(stream.read(LENGTH_BYTES))
                _, reply, fault = msgspec.msgpack.decode(stream.read(length), type=tuple[int, replies | None, str])
    except (OSError, msgspec.DecodeError) as error:
        raise PeerError(f"{path.name}: no reply within {timeout_s:.0f} s") from error
    if reply is None:
        raise RefusedError(f"{path.name}: {fault}")
    return reply


async def serve(path: Path, requests: Any, handle: Callable[[RequestT], Awaitable[object]]) -> asyncio.Server:
    """Start a server on ``path`` that handles ``requests`` (a type or a union) concurrently; the caller closes it.

    A request that cannot be decoded, or an error in ``handle``, fails this request alone, at once and for good
    (`RefusedError`); an unexpected error is counted and reported.
    """
    health = TaskHealth(f"requests to {path.name}", SystemClock(), (LeadreError, msgspec.DecodeError))
    split: Callable[[bytes], tuple[int, msgspec.Raw]] = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
    decode: Callable[[msgspec.Raw], RequestT] = msgspec.msgpack.Decoder(requests).decode
    encode = msgspec.msgpack.Encoder().encode

    async def handle_request(number: int, packed: msgspec.Raw, writer: asyncio.StreamWriter) -> None:
        async def answer() -> bytes:
            return _checked(encode((number, await handle(decode(packed)), "")))

        try:
            message = await health.attempt_async(answer)
        except (LeadreError, msgspec.DecodeError) as error:
            message = encode((number, None, str(error)))
        if not writer.is_closing():
            _send(writer, message)

    async def handle_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    number, packed = split(await _receive(reader))
                    tasks.create_task(handle_request(number, packed, writer))
        except* (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            pass  # the client has gone, or is none of ours
        finally:
            writer.close()

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(handle_connection, path)


def _checked(message: bytes) -> bytes:
    """The message. RefusedError if it is longer than a frame."""
    if len(message) > MAX_FRAME_BYTES:
        raise RefusedError(f"a message of {len(message):,} bytes; at most {MAX_FRAME_BYTES:,} are sent")
    return message


def _length(head: bytes) -> int:
    """The length of a frame. ConnectionError for one that no process of ours sends."""
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME_BYTES:
        raise ConnectionError(f"a frame of {length:,} bytes")
    return length


def _send(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(len(message).to_bytes(LENGTH_BYTES, "big") + message)


async def _receive(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(_length(await reader.readexactly(LENGTH_BYTES)))
