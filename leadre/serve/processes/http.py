"""HTTP of a bid worker: raw ASGI, one method per route, deadlines counted from the arrival of a request's bytes.

POST /openrtb2/auction   a page's Prebid.js (CORS for registered origins, macros filled in)
POST /openrtb2/bid       an exchange
POST /v1/recommend       plain JSON for a site's own code                        (requires a key)
GET  /v1/explain/ID      where each candidate came from, and why it was dropped  (requires a key)
GET  /                   the index of these routes, for people and as JSON
GET  /e/KIND             events of a bid; a click is redirected to the landing page
GET  /metrics            Prometheus, all workers together                        (requires a key)
GET  /healthz, /readyz   alive; able to bid
"""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, get_args
from urllib.parse import parse_qsl

import msgspec

from leadre import telemetry
from leadre.errors import BadRequest, PeerError
from leadre.serve.manage import pages
from leadre.serve.manage.attempts import RETRY_AFTER_S
from leadre.serve.processes.admission import AdmissionQueue
from leadre.serve.processes.bodies import Receive, Scope, UnsupportedCoding, body_of, header, packed
from leadre.serve.processes.client_limits import ClientLimits
from leadre.serve.processes.connections import ARRIVED
from leadre.serve.processes.recommend import RecommendRequest
from leadre.serve.processes.refusals import Refusals
from leadre.serve.processes.worker import Worker
from leadre.serve.protocol import openrtb
from leadre.types import EventKind

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# Thresholds of the garbage collector: one pass over young objects per few hundred requests.
GC_THRESHOLDS = (10_000, 20, 20)
JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
TEXT: tuple[bytes, bytes] = (b"content-type", b"text/plain")
NO_STORE: tuple[bytes, bytes] = (b"cache-control", b"no-store")
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # a transparent GIF, 1 x 1
NO_KEY = b'{"error": "send a key of an operator as `Authorization: Bearer KEY`; `leadre serve key` prints one"}'
_decode_recommend = msgspec.json.Decoder(RecommendRequest).decode
_encode = msgspec.json.Encoder().encode


async def reply(send: Send, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
    """Send a complete response."""
    length = [] if status in (204, 304) else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*length, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


async def health(scope: Scope, receive: Receive, send: Send) -> None:
    """200 while the process lives."""
    await reply(send, 200, b"ok", [TEXT])


def index_route(management_url: str) -> Handler:
    """The handler of the index: HTML, or JSON for a client that accepts JSON and not HTML."""
    html, described = pages.index(management_url)
    security = [(name.lower().encode(), value.encode()) for name, value in pages.HEADERS.items()]

    async def index(scope: Scope, receive: Receive, send: Send) -> None:
        accepted = header(scope, b"accept")
        if b"application/json" in accepted and b"text/html" not in accepted:
            return await reply(send, 200, described, [JSON])
        await reply(send, 200, html.encode(), [(b"content-type", b"text/html; charset=utf-8"), *security])

    return index


async def unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    """404; for people with a way on. An exchange or a page with a wrong URL gets no body."""
    if scope["path"].startswith(("/openrtb2/", "/e/")):
        return await reply(send, 404)
    await reply(send, 404, b"No such route; GET / lists the routes.\n", [TEXT])


class App:
    """Routes of one worker, described in `openapi.py`. uvicorn's lifespan starts and stops the `Worker`.

    ``exact`` and ``prefixes`` map (method, path) and (method, beginning of a path) to handlers.
    """

    def __init__(self, worker: Worker, *, max_wait_s: float, management_url: str) -> None:
        self.worker = worker
        index = index_route(management_url)
        self._clock = worker.clock
        self._queue = AdmissionQueue(max_wait_s, worker.clock)
        self._refusals = Refusals(worker.clock)
        self._limits = ClientLimits(worker.clock)
        self.exact: dict[tuple[str, str], Handler] = {
            ("POST", "/openrtb2/auction"): self._auction,
            ("OPTIONS", "/openrtb2/auction"): self._preflight,
            ("POST", "/openrtb2/bid"): self._exchange,
            ("POST", "/v1/recommend"): self._recommend,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/healthz"): health,
            ("GET", "/readyz"): self._ready,
            ("GET", "/"): index,
        }
        self.prefixes: dict[tuple[str, str], Handler] = {
            ("GET", "/e/"): self._event,
            ("POST", "/e/"): self._event,
            ("GET", "/v1/explain/"): self._explain,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        method = scope["method"]
        path = scope["path"]
        # uvicorn sends no body in response to HEAD. An event is an effect, so a HEAD does not post it.
        handler = self.exact.get(("GET" if method == "HEAD" else method, path))
        if handler is None:
            prefix = path[: path.find("/", 4) + 1] if path.startswith("/v1/") else path[:3]
            handler = self.prefixes.get((method, prefix), unknown_route)
        await handler(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.worker.start()
        gc.freeze()  # the catalogue lives as long as the process: no collection has to traverse it
        gc.set_threshold(*GC_THRESHOLDS)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.worker.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _auction(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page's bid request, refused unless its origin is registered: the page could not read the response."""
        cors = cors_headers(scope, self.worker.state.origins)
        if header(scope, b"origin") and not cors:
            telemetry.ANSWERS.labels("auction", "foreign").inc()
            why = "this origin is not registered; register it by PUT /origins of the management API"
            return await reply(send, 403, _encode({"error": why}), [JSON])
        await self._bid("auction", scope, receive, send, cors)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._bid("bid", scope, receive, send, [])

    async def _bid(self, route: str, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        arrived_s = scope.get(ARRIVED, self._clock.monotonic_s())
        is_pretty = b"pretty" in scope["query_string"] and _is_pretty(scope)
        outcome = "bad"
        status = 400
        body = b""
        if not await self._queue.admit(arrived_s):
            outcome, status = "shed", 204
            if route == "auction":
                status, body = 200, b"{}"  # Prebid.js expects JSON
        else:
            is_page = route == "auction"
            try:
                request = openrtb.read(await body_of(scope, receive))
                self._refusals.left_out(request.left_out)
                outcome, status, body = await self.worker.bid(
                    request, arrived_s, fills_macros=is_page, has_no_bid_body=is_page or is_pretty
                )
            except BadRequest as error:
                self._refusals.refused(route, error)
                body = _encode({"error": str(error)}) if is_pretty else b""
                if isinstance(error, UnsupportedCoding):
                    status = 415
                    headers = [*headers, (b"accept-encoding", b"gzip")]
        if body:
            if is_pretty:
                body = _indented(body)
            body, coding = packed(body, scope)
            headers = [*headers, JSON, (b"x-openrtb-version", b"2.6"), *coding]
        await reply(send, status, body, headers)
        telemetry.ANSWERS.labels(route, outcome).inc()
        telemetry.ANSWER_S.labels(route).observe(self._clock.monotonic_s() - arrived_s)

    async def _preflight(self, scope: Scope, receive: Receive, send: Send) -> None:
        cors = cors_headers(scope, self.worker.state.origins)
        methods = [(b"access-control-allow-methods", b"POST"), (b"access-control-allow-headers", b"content-type")]
        await reply(send, 204 if cors else 403, headers=[*cors, *methods] if cors else [])

    async def _recommend(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not has_key(self.worker, scope):
            return await refuse_key(self._limits, scope, send)
        try:
            request = _decode_recommend(await body_of(scope, receive))
        except (BadRequest, msgspec.DecodeError) as error:
            return await reply(send, 400, _encode({"error": str(error)}), [JSON])
        arrived_s = scope.get(ARRIVED, self._clock.monotonic_s())
        await reply(send, 200, _indented(_encode(await self.worker.recommend(request, arrived_s))), [JSON])

    async def _explain(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not has_key(self.worker, scope):
            return await refuse_key(self._limits, scope, send)
        try:
            explanation = await self.worker.explain(scope["path"].removeprefix("/v1/explain/"))
        except PeerError as error:
            return await reply(send, 503, _encode({"error": str(error)}), [JSON])
        if explanation is None:
            return await reply(send, 404, _encode({"error": "this ID is not among the recent requests"}), [JSON])
        await reply(send, 200, _indented(_encode(explanation)), [JSON])

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An event of a bid, durable before it is acknowledged; a click is redirected even if it cannot be recorded."""
        kind = scope["path"].removeprefix("/e/")
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if kind not in get_args(EventKind):
            return await reply(send, 404)
        is_limited = not self._limits.take_event(kind, scope)
        status, landing_url = await self.worker.event(kind, query, is_limited=is_limited)
        status = self._limits.status_of(status, scope)
        telemetry.EVENTS.labels(kind, str(status)).inc()
        if landing_url:
            return await reply(send, 302, headers=[(b"location", landing_url.encode()), NO_STORE])
        if kind in ("imp", "view") and status == 204:
            return await reply(send, 200, PIXEL, [(b"content-type", b"image/gif"), NO_STORE])
        await reply(send, status, headers=[NO_STORE])

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not has_key(self.worker, scope):
            return await refuse_key(self._limits, scope, send)
        text = await asyncio.to_thread(telemetry.exposition)  # it reads a file of each process, while bids go on
        await reply(send, 200, text, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 as soon as the worker bids; the body lists the parts that are away, without which bids go on."""
        await reply(send, 200, _encode(self.worker.state.readiness()), [JSON])


async def refuse_key(limits: ClientLimits, scope: Scope, send: Send) -> None:
    """The response to a request without an operator's key."""
    if limits.take_failed_login(scope):
        return await reply(send, 401, NO_KEY, [JSON, (b"www-authenticate", b"Bearer")])
    await reply(send, 429, headers=[(b"retry-after", RETRY_AFTER_S.encode())])


def has_key(worker: Worker, scope: Scope) -> bool:
    """Whether the request has an operator's key in force."""
    kind, _, presented = header(scope, b"authorization").decode("latin-1").partition(" ")
    return kind.lower() == "bearer" and worker.state.is_operator(presented.strip())


def _indented(body: bytes) -> bytes:
    """JSON in several lines, for people."""
    return msgspec.json.format(body, indent=2)


def _is_pretty(scope: Scope) -> bool:
    """Whether the query has ``pretty``, with any value but 0 and false."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    return query.get("pretty", "0") not in ("0", "false")


def cors_headers(scope: Scope, origins: frozenset[str]) -> Headers:
    """Headers that let a page of a registered origin read the response, with cookies; none for another origin."""
    origin = header(scope, b"origin")
    if origin.decode("latin-1") not in origins:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"vary", b"Origin"),
    ]
