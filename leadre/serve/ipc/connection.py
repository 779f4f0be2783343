"""Messages over one connection between two processes, in frames: four bytes of length, then the message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from leadre.errors import RefusedError

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 16 << 20  # producers of lists cut them well below it


class Connection(asyncio.Protocol):
    """One end of a connection. The messages sent in one turn of the event loop leave in one write.

    ``receive`` handles a message that arrived; ConnectionError or msgspec.DecodeError: the peer is none of ours, and
    the connection is closed. ``lost`` is called once, when it is closed.
    """

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unread_bytes(self) -> int:
        """Bytes that were sent and that have not left this process, because the peer does not read."""
        return self._unsent_bytes + (self._transport.get_write_buffer_size() if self._transport else 0)

    def send(self, message: bytes) -> None:
        """Send a message, unless the connection is closed before the end of this turn of the event loop."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += (len(message).to_bytes(LENGTH_BYTES, "big"), message)
        self._unsent_bytes += LENGTH_BYTES + len(message)

    def close(self) -> None:
        """Close the connection now; what was not sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    def set_reading(self, is_reading: bool) -> None:
        """Read on, or leave further messages to the peer until the next call."""
        if self._transport is not None and self.is_open and is_reading != self._transport.is_reading():
            (self._transport.resume_reading if is_reading else self._transport.pause_reading)()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            for message in self._messages():
                self._receive(message)
        except (ConnectionError, msgspec.DecodeError):
            self.close()

    def _messages(self) -> list[bytes]:
        """The whole messages among the received bytes, which are dropped. ConnectionError as from `length_of`."""
        messages = []
        begin = LENGTH_BYTES
        with memoryview(self._received) as received:
            while begin <= len(received):
                end = begin + length_of(received[begin - LENGTH_BYTES : begin])
                if end > len(received):
                    break
                messages.append(bytes(received[begin:end]))
                begin = end + LENGTH_BYTES
        del self._received[: begin - LENGTH_BYTES]
        return messages

    def _flush(self) -> None:
        if self._transport is not None and self.is_open:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self._unsent_bytes = 0


def checked(message: bytes) -> bytes:
    """The message. RefusedError if it is longer than a frame."""
    if len(message) > MAX_FRAME_BYTES:
        raise RefusedError(f"a message of {len(message):,} bytes; at most {MAX_FRAME_BYTES:,} are sent")
    return message


def length_of(head: bytes | memoryview) -> int:
    """The length of a frame. ConnectionError for one that no process of ours sends."""
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME_BYTES:
        raise ConnectionError(f"a frame of {length:,} bytes")
    return length
