"""Questions and answers between the processes of one bidder, over a Unix socket.

A frame is four bytes of length and a msgpack message of `msgspec`. One connection carries many questions at once: each
has a number, and its answer comes when it is ready. Who asks decides how long to wait; a process that has gone, or that
does not answer in time, is a `PeerError` and never a hang.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from leadre.errors import PeerError

LENGTH = 4
LARGEST = 16 << 20  # bytes of a frame; more is a bug, not a message
RETRY_S = 0.2  # between attempts to reach a process that has gone
MAX_UNREAD = 1 << 20  # bytes that a process may leave unread before it is asked no more

Q = TypeVar("Q")
A = TypeVar("A")


class Client(Generic[Q, A]):
    """Asks one server; ``answers`` is the type or union of what it says. Reconnects by itself. For one event loop."""

    def __init__(self, path: Path, answers: Any) -> None:
        self.path = path
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], tuple[int, A]] = msgspec.msgpack.Decoder(tuple[int, answers]).decode
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[A]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._not_before_s = 0.0

    async def ask(self, question: Q, *, timeout_s: float) -> A:
        """The answer. PeerError where the server is not there, goes away, reads nothing or does not answer in time."""
        number = next(self._numbers)
        try:
            async with asyncio.timeout(timeout_s):
                writer = self._writer or await self._connect()
                if writer.is_closing():  # uvloop's transport would raise what is no OSError
                    raise PeerError(f"{self.path.name}: hung up")
                if writer.transport.get_write_buffer_size() > MAX_UNREAD:
                    raise PeerError(f"{self.path.name}: reads nothing")
                future = self._waiting[number] = asyncio.get_running_loop().create_future()
                _send(writer, self._encode((number, question)))
                answer: A = await future
                return answer
        except (TimeoutError, OSError) as error:
            raise PeerError(f"{self.path.name}: no answer within {timeout_s:.3f} s") from error
        finally:
            self._waiting.pop(number, None)

    @property
    def is_connected(self) -> bool:
        """Whether the server that was asked last is still there."""
        return self._writer is not None

    async def close(self) -> None:
        """Give up what is asked and hang up."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                loop = asyncio.get_running_loop()
                if loop.time() < self._not_before_s:  # a socket without a server: not for every request anew
                    raise PeerError(f"{self.path.name}: was not there a moment ago")
                self._not_before_s = loop.time() + RETRY_S
                reader, self._writer = await asyncio.open_unix_connection(self.path)
                self._reading = asyncio.create_task(self._read(reader))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, answer = self._decode(await _receive(reader))
                future = self._waiting.get(number)
                if future is not None and not future.done():
                    future.set_result(answer)
        except (asyncio.IncompleteReadError, OSError):
            pass  # whoever waits learns it below
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionResetError(f"{self.path.name} hung up"))


def ask_once(path: Path, question: object, answers: Any, *, timeout_s: float) -> Any:
    """One question from a thread without an event loop. PeerError as from `Client.ask`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            message = msgspec.msgpack.encode((0, question))
            connection.sendall(len(message).to_bytes(LENGTH, "big") + message)
            with connection.makefile("rb") as stream:
                length = int.from_bytes(stream.read(LENGTH), "big")
                _, answer = msgspec.msgpack.decode(stream.read(length), type=tuple[int, answers])
    except (OSError, msgspec.DecodeError) as error:
        raise PeerError(f"{path.name}: no answer within {timeout_s:.0f} s") from error
    return answer


async def serve(path: Path, questions: Any, answer: Callable[[Q], Awaitable[object]]) -> asyncio.Server:
    """A server on ``path`` that answers ``questions`` (a type or a union) side by side; the caller closes it.

    An error in ``answer`` is told to the loop's exception handler and ends the connection: who asked hears it at once.
    """
    decode: Callable[[bytes], tuple[int, Q]] = msgspec.msgpack.Decoder(tuple[int, questions]).decode
    encode = msgspec.msgpack.Encoder().encode

    async def one(number: int, question: Q, writer: asyncio.StreamWriter) -> None:
        reply = encode((number, await answer(question)))
        if not writer.is_closing():
            _send(writer, reply)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    number, question = decode(await _receive(reader))
                    tasks.create_task(one(number, question, writer))
        except* (asyncio.IncompleteReadError, ConnectionError):
            pass  # the asker has gone
        finally:
            writer.close()

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(connection, path)


def _send(writer: asyncio.StreamWriter, message: bytes) -> None:
    assert len(message) < LARGEST, f"a message of {len(message)} bytes"
    writer.write(len(message).to_bytes(LENGTH, "big") + message)


async def _receive(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(LENGTH), "big")
    assert length < LARGEST, f"a message of {length} bytes"
    return await reader.readexactly(length)
