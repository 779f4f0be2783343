"""The HTTP of a bid worker: raw ASGI, one function a route, the deadline counted from the bytes' arrival.

POST /openrtb2/auction   a page's Prebid.js (CORS for registered origins, macros filled in)
POST /openrtb2/bid       an exchange
POST /v1/recommend       plain JSON for a site's own use                        (wants a key)
GET  /v1/explain/ID      where each candidate came from, and why it was dropped (wants a key)
GET  /e/KIND             events of a bid; a click goes on to the landing page
GET  /metrics            Prometheus, all workers together                       (wants a key)
GET  /healthz, /readyz   alive; able to bid
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leadre import telemetry
from leadre.errors import BadRequest

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MOST_BODY = 256 << 10  # bytes, unpacked too
ARRIVED = "leadre.arrived_s"


class Stamped(HttpToolsProtocol):
    """uvicorn's protocol, which notes when a request's bytes were read: a queue of tasks lies behind that moment."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[ARRIVED] = time.monotonic()  # type: ignore[typeddict-unknown-key]


async def body_of(scope: Scope, receive: Receive) -> bytes:
    """The body, unpacked. BadRequest where it is too long or no gzip."""
    parts, length = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        length += len(part)
        if length > MOST_BODY:
            raise BadRequest("body", f"has more than {MOST_BODY} bytes")
        parts.append(part)
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    if header(scope, b"content-encoding") == b"gzip":
        unpack = zlib.decompressobj(wbits=31)
        try:
            body = unpack.decompress(body, MOST_BODY)
        except zlib.error as error:
            raise BadRequest("body", f"is no gzip ({error})") from error
        if unpack.unconsumed_tail or not unpack.eof:
            raise BadRequest("body", f"is cut short, or has more than {MOST_BODY} bytes unpacked")
    return body


def header(scope: Scope, name: bytes) -> bytes:
    """A header's first value; "" where there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


async def reply(send: Send, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
    """One whole answer."""
    length = [] if status in (204, 304) else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*length, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


class App:
    """Routes of one worker. uvicorn's lifespan starts and drains the `Worker`."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._exact: dict[tuple[str, str], Handler] = {
            ("POST", "/openrtb2/auction"): self._auction,
            ("OPTIONS", "/openrtb2/auction"): self._preflight,
            ("POST", "/openrtb2/bid"): self._exchange,
            ("POST", "/v1/recommend"): self._recommend,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/healthz"): self._health,
            ("GET", "/readyz"): self._ready,
        }
        self._below: dict[tuple[str, str], Handler] = {
            ("GET", "/e/"): self._event,
            ("POST", "/e/"): self._event,
            ("GET", "/v1/explain/"): self._explain,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        method, path = scope["method"], scope["path"]
        handler = self._exact.get((method, path))
        if handler is None:
            below = path[: path.find("/", 4) + 1] if path.startswith("/v1/") else path[:3]
            handler = self._below.get((method, below), self._unknown)
        await handler(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.worker.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.worker.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _auction(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._bid("auction", scope, receive, send, cors(scope, self.worker.origins))

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._bid("bid", scope, receive, send, [])

    async def _bid(self, route: str, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        arrived_s = scope.get(ARRIVED, time.monotonic())
        outcome, status, body = "bad", 400, b""
        if time.monotonic() - arrived_s > self.worker.shed_s:  # too many before it: quick words are the best help
            outcome, status = "shed", 204
        else:
            with contextlib.suppress(BadRequest):
                packed = await body_of(scope, receive)
                answer = await self.worker.bid(packed, arrived_s, fills_macros=route == "auction")
                outcome, status, body = "no_bid" if answer.reason else "bid", answer.status, answer.body
        if body:
            headers = [*headers, JSON, (b"x-openrtb-version", b"2.6")]
            if len(body) > LEAST_PACKED and b"gzip" in header(scope, b"accept-encoding"):
                body, headers = gzip.compress(body, 1), [*headers, (b"content-encoding", b"gzip")]
        await reply(send, status, body, headers)
        telemetry.ANSWERS.labels(route, outcome).inc()
        telemetry.ANSWER_S.labels(route).observe(time.monotonic() - arrived_s)
