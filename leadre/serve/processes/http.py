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

import base64
import contextlib
import gc
import gzip
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, get_args
from urllib.parse import parse_qsl

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leadre import telemetry
from leadre.errors import BadRequest, PeerError
from leadre.serve.processes.admission import AdmissionQueue
from leadre.serve.processes.worker import Recommend, Worker
from leadre.types import EventKind

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_BODY = 256 << 10  # bytes, unpacked too
MIN_PACKED = 4096  # a shorter answer is not worth packing
COLLECTED = (
    10_000,
    20,
    20,
)  # thresholds of the garbage collector: a pass over young objects every few hundred requests
ARRIVED = "leadre.arrived_s"
JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
NEVER_KEPT: tuple[bytes, bytes] = (b"cache-control", b"no-store")
_RECOMMEND = msgspec.json.Decoder(Recommend)
_encode = msgspec.json.Encoder().encode
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # a transparent GIF of one pixel


class Stamped(HttpToolsProtocol):
    """uvicorn's protocol, which notes when a request's bytes were read: a queue of tasks lies behind that moment."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[ARRIVED] = time.monotonic()  # type: ignore[literal-required]


async def body_of(scope: Scope, receive: Receive) -> bytes:
    """The body, unpacked. BadRequest where it is too long or no gzip."""
    parts, length = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        length += len(part)
        if length > MAX_BODY:
            raise BadRequest("body", f"has more than {MAX_BODY} bytes")
        parts.append(part)
        if not message.get("more_body"):
            break
    body = b"".join(parts)
    if header(scope, b"content-encoding") == b"gzip":
        unpack = zlib.decompressobj(wbits=31)
        try:
            body = unpack.decompress(body, MAX_BODY)
        except zlib.error as error:
            raise BadRequest("body", f"is no gzip ({error})") from error
        if unpack.unconsumed_tail or not unpack.eof:
            raise BadRequest("body", f"is cut short, or has more than {MAX_BODY} bytes unpacked")
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
        self.worker, self._queue = worker, AdmissionQueue(worker.shed_s)
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
        gc.freeze()  # the book lives as long as the process: no collection need go through it
        gc.set_threshold(*COLLECTED)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.worker.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _auction(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page's request. One that is not registered could not read the answer: nothing is set aside for it."""
        allowed = cors(scope, self.worker.origins)
        if header(scope, b"origin") and not allowed:
            telemetry.ANSWERS.labels("auction", "foreign").inc()
            why = "pages of this origin may not ask; register it by PUT /origins of the management API"
            return await reply(send, 403, _encode({"error": why}), [JSON])
        await self._bid("auction", scope, receive, send, allowed)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._bid("bid", scope, receive, send, [])

    async def _bid(self, route: str, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        arrived_s = scope.get(ARRIVED, time.monotonic())
        outcome, status, body = "bad", 400, b""
        if not await self._queue.turn(arrived_s):  # too many before it: quick words are the best help
            outcome, status, body = "shed", 204, b""
            if route == "auction":
                status, body = 200, b"{}"  # Prebid.js wants JSON
        else:
            with contextlib.suppress(BadRequest):
                asked = await body_of(scope, receive)
                outcome, status, body = await self.worker.bid(asked, arrived_s, fills_macros=route == "auction")
        if body:
            headers = [*headers, JSON, (b"x-openrtb-version", b"2.6")]
            if len(body) > MIN_PACKED and b"gzip" in header(scope, b"accept-encoding"):
                body, headers = gzip.compress(body, 1), [*headers, (b"content-encoding", b"gzip")]
        await reply(send, status, body, headers)
        telemetry.ANSWERS.labels(route, outcome).inc()
        telemetry.ANSWER_S.labels(route).observe(time.monotonic() - arrived_s)

    async def _preflight(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = cors(scope, self.worker.origins)
        more = [(b"access-control-allow-methods", b"POST"), (b"access-control-allow-headers", b"content-type")]
        await reply(send, 204 if allowed else 403, headers=[*allowed, *more] if allowed else [])

    async def _recommend(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._has_key(scope):
            return await reply(send, 401)
        try:
            wanted = _RECOMMEND.decode(await body_of(scope, receive))
        except (BadRequest, msgspec.DecodeError) as error:
            return await reply(send, 400, _encode({"error": str(error)}), [JSON])
        await reply(
            send, 200, _encode(await self.worker.recommend(wanted, scope.get(ARRIVED, time.monotonic()))), [JSON]
        )

    async def _explain(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._has_key(scope):
            return await reply(send, 401)
        try:
            told = await self.worker.explain(scope["path"].removeprefix("/v1/explain/"))
        except PeerError as error:
            return await reply(send, 503, _encode({"error": str(error)}), [JSON])
        if told is None:
            return await reply(send, 404, _encode({"error": "not among the last requests"}), [JSON])
        await reply(send, 200, _encode(told), [JSON])

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An event of a bid: durable before it is acknowledged; a click goes on even where it cannot be counted."""
        kind = scope["path"].removeprefix("/e/")
        given = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if kind not in get_args(EventKind):
            return await reply(send, 404)
        status, landing_url = await self.worker.event(kind, given)
        telemetry.EVENTS.labels(kind, str(status)).inc()
        if landing_url:
            return await reply(send, 302, headers=[(b"location", landing_url.encode()), NEVER_KEPT])
        if kind in ("imp", "view") and status == 204:
            return await reply(send, 200, PIXEL, [(b"content-type", b"image/gif"), NEVER_KEPT])
        await reply(send, status, headers=[NEVER_KEPT])

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._has_key(scope):
            return await reply(send, 401)
        await reply(send, 200, telemetry.exposition(), [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 200, b"ok")

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 where bids are made; what is away stands in the answer, as bids go on without it."""
        degraded = self.worker.degraded()
        await reply(send, 200, _encode({"status": "degraded" if degraded else "ready", "away": degraded}), [JSON])

    async def _unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, 404)

    def _has_key(self, scope: Scope) -> bool:
        kind, _, presented = header(scope, b"authorization").decode("latin-1").partition(" ")
        return kind.lower() == "bearer" and self.worker.is_operator(presented.strip())


def cors(scope: Scope, origins: frozenset[str]) -> Headers:
    """What lets a registered page read the answer, cookies and all; nothing for another."""
    origin = header(scope, b"origin")
    if origin.decode("latin-1") not in origins:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"vary", b"Origin"),
    ]
