"""Connections of an HTTP server: limits on the head of a request, on silence, and on the number of connections.

uvicorn limits none of them with httptools. Each connection is in one phase, set by the parser's callbacks, and one task
of the process closes connections that stay in a phase for too long. So a request costs no timer.
"""

from __future__ import annotations

import asyncio
import enum
import resource
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leadre import telemetry
from leadre.clock import Clock

STATUS_LINE = b"HTTP/1.1 "
CONTINUE = b"HTTP/1.1 100"  # the client waits for it before it sends the body
ARRIVED = "leadre.arrived_s"  # key of the ASGI scope
PEER = "leadre.peer"  # key of the address of the other end of the connection, a proxy or the client
SWEEP_S = 0.5
RESERVED_FILES = 128  # descriptors of a process for other uses than connections of clients
EVICTED_AT_ONCE = 64  # idle connections that are closed together, as the search for them costs a pass over all


class Phase(enum.Enum):
    """The part of a request that a connection is in."""

    HEAD = "head"  # the head is not complete: a new connection, or an idle one after its first byte
    BODY = "body"  # the head is complete
    REPLY = "reply"  # the request is complete: the application answers, or the connection is idle


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one process. Lengths are bytes."""

    url: int = 8 << 10  # a token of an event has up to 4 KiB
    headers: int = 100
    head: int = 32 << 10  # URL and headers together
    head_s: float = 10.0  # from the first byte to the end of the head; also of a connection that sends nothing
    body_s: float = 10.0
    reply_s: float = 60.0  # of a client that does not read its response; uvicorn closes idle connections
    connections: int = 4096
    silent_share: float = 0.25  # of the connections: those without a whole request so far

    def fitted(self) -> int:
        """The number of connections that the limit of open files permits, after raising it as far as possible."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < self.connections + RESERVED_FILES:
            soft = self.connections + RESERVED_FILES
            soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return self.connections if soft == resource.RLIM_INFINITY else min(self.connections, soft - RESERVED_FILES)


class Refused(Exception):
    """The head of a request exceeds a limit. ``status``: the HTTP status of the response."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Connections:
    """All connections of one process. ``sweep`` closes those that exceed a time."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.limits = limits
        self.clock = clock
        self.max = limits.fitted()
        self.max_silent = max(1, int(self.max * limits.silent_share))
        self.all: dict[GuardedProtocol, None] = {}
        self.silent: OrderedDict[GuardedProtocol, None] = OrderedDict()  # without a whole request so far, oldest first

    def add(self, connection: GuardedProtocol) -> None:
        """Add a new connection, and close older ones if there are too many."""
        self.all[connection] = None
        self.silent[connection] = None
        if len(self.silent) > self.max_silent or len(self.all) > self.max:
            self._make_room()

    def remove(self, connection: GuardedProtocol) -> None:
        self.all.pop(connection, None)
        self.silent.pop(connection, None)

    def _make_room(self) -> None:
        """Close the oldest silent connection, or else those that have been idle longest: the newcomer is served."""
        if len(self.silent) > 1:
            return next(iter(self.silent)).close("silent")
        idle = sorted((other for other in self.all if other.is_idle), key=lambda other: other.since_s)
        for other in idle[:EVICTED_AT_ONCE]:
            other.close("idle")
        if not idle:
            next(reversed(self.all)).close("full")

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """Close connections that have been in their phase for too long."""
        now_s = self.clock.monotonic_s()
        limits = self.limits
        seconds = {Phase.HEAD: limits.head_s, Phase.BODY: limits.body_s, Phase.REPLY: limits.reply_s}
        late = [other for other in self.all if not other.is_idle and now_s - other.since_s > seconds[other.phase]]
        for connection in late:
            connection.close(f"{connection.phase.value}_timeout")


class ResponseTransport:
    """The transport of a connection, to which the head of a response leaves in one write with its body.

    uvicorn writes them one after the other, and each write costs a call of the kernel and wakes the client.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send bytes. The head of a response waits for the next call.

        Nothing is sent on a connection that is closed, of which uvicorn may not know yet: uvloop would raise.
        """
        if self._transport.is_closing():
            return
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(STATUS_LINE) and not data.startswith(CONTINUE):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send a head that waits: a response without a body is complete."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the limits of `Connections`, one of which each subclass by `protocol` has.

    It also stamps each request with the time at which its first bytes were read: the application runs later, as a task
    that waits behind others.
    """

    guard: Connections

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.transport: Any = ResponseTransport(transport)
        self._enter(Phase.HEAD)
        self._refusal = 0
        self._messages = 0  # requests that have begun
        self.guard.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.is_idle:
            self._enter(Phase.HEAD)
        message = self._messages
        super().data_received(data)
        if self.phase is Phase.HEAD and message == self._messages:  # the parser keeps a header until its end
            self._head_bytes += len(data)
            if self._head_bytes > 2 * self.guard.limits.head and not self.transport.is_closing():
                self._refusal = 431
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._messages += 1
        self._enter(Phase.HEAD)
        self.scope[ARRIVED] = self.since_s  # type: ignore[literal-required]
        self.scope[PEER] = self.client[0] if self.client else ""  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        if len(self.url) + len(url) > self.guard.limits.url:
            self._refuse(414)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if len(self.headers) >= self.guard.limits.headers:
            self._refuse(431)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._enter(Phase.BODY)
        self.guard.silent.pop(self, None)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter(Phase.REPLY)

    def on_response_complete(self) -> None:
        self.transport.flush()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """The response to bytes that are no request, and to a head that exceeds a limit."""
        status = self._refusal or 400
        telemetry.CLOSED_CONNECTIONS.labels(f"status_{status}").inc()
        phrase = {400: b"Bad Request", 414: b"URI Too Long", 431: b"Request Header Fields Too Large"}[status]
        head = b"HTTP/1.1 %d %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % (status, phrase)
        self.transport.write(head)
        self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether all requests so far are answered, so that uvicorn's own timer runs."""
        return self.phase is Phase.REPLY and (self.cycle is None or self.cycle.response_complete)

    def close(self, reason: str) -> None:
        """Close at once, without sending the rest of a response that the client does not read."""
        self.guard.remove(self)
        telemetry.CLOSED_CONNECTIONS.labels(reason).inc()
        self.transport.abort()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since_s = self.guard.clock.monotonic_s()
        self._head_bytes = 0

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > self.guard.limits.head:
            self._refuse(431)

    def _refuse(self, status: int) -> None:
        self._refusal = status
        raise Refused(status)  # httptools passes it on as a parser error, and uvicorn calls send_400_response


def protocol(guard: Connections) -> type[GuardedProtocol]:
    """The protocol class of a server with the limits of ``guard``."""
    return type("ServerProtocol", (GuardedProtocol,), {"guard": guard})


def sweeping(app: Callable[..., Any], guard: Connections) -> Callable[..., Any]:
    """The ASGI application, with a task that sweeps the connections from its startup on."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        task = asyncio.create_task(guard.run())
        try:
            await app(scope, receive, send)
        finally:
            task.cancel()

    return wrapped
