"""HTTP of a bid worker: raw ASGI, one method per route, deadlines counted from the arrival of a request's bytes.

POST /openrtb2/auction   a page's Prebid.js (CORS for registered origins, macros filled in)
POST /openrtb2/bid       an exchange                                             (configured callers)
POST /v1/recommend       plain JSON for a site's own code                        (scope recommend)
POST /v1/conversions     a conversion from an advertiser's server                (scope convert)
GET  /v1/explain/ID      where each candidate came from, and why it was dropped  (scope explain)
GET  /                   the index of these routes, for people and as JSON
GET  /e/KIND             events of a bid; a click is redirected to the landing page
GET  /metrics            Prometheus, all workers together                        (scope metrics)
GET  /healthz, /readyz   alive; able to bid
"""

from __future__ import annotations

import asyncio
import base64
import gc
import sqlite3
from typing import get_args
from urllib.parse import parse_qsl

import msgspec

from leadre import telemetry
from leadre.errors import BadRequest, PeerError
from leadre.serve.manage import auth, pages
from leadre.serve.manage.attempts import RETRY_AFTER_S
from leadre.serve.plan import Network, Pages
from leadre.serve.processes.admission import AdmissionQueue
from leadre.serve.processes.bid_routes import BidRoutes
from leadre.serve.processes.bodies import Receive, Scope, body_of, header
from leadre.serve.processes.client_limits import ClientLimits
from leadre.serve.processes.connections import ARRIVED
from leadre.serve.processes.event_reading import Conversion
from leadre.serve.processes.identification import Identification
from leadre.serve.processes.recommend import RecommendRequest
from leadre.serve.processes.responses import JSON, RETRY, TEXT, Handler, Send, indented, reply
from leadre.serve.processes.worker import Worker
from leadre.types import EventKind

# Thresholds of the garbage collector: one pass over young objects per few hundred requests.
GC_THRESHOLDS = (10_000, 20, 20)
NO_STORE: tuple[bytes, bytes] = (b"cache-control", b"no-store")
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # a transparent GIF, 1 x 1
NO_KEY = b'{"error": "send a key that is in force as `Authorization: Bearer KEY`; `leadre serve key` prints one"}'
PIXELS = ("imp", "view", "bill")  # kinds that a page reports by an image
CONVERSION_ERRORS = {
    403: "the click ID is not one of yours, or is older than 7 days",
    422: "the writer cannot process this conversion and has set it aside; do not send it again",
    503: "the writer is away; send the conversion again",
}
BAD_BODY = (BadRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what reading a body raises
_decode_recommend = msgspec.json.Decoder(RecommendRequest).decode
_decode_conversion = msgspec.json.Decoder(Conversion).decode
_encode = msgspec.json.Encoder().encode


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

    def __init__(
        self, worker: Worker, *, max_wait_s: float, management_url: str, identification: Identification | None = None
    ) -> None:
        self.worker = worker
        identification = identification or Identification(Network(), Pages(), 1, worker.clock)
        bids = BidRoutes(worker, AdmissionQueue(max_wait_s, worker.clock), identification)
        index = index_route(management_url)
        self._clock = worker.clock
        self._limits = ClientLimits(worker.clock)
        self.exact: dict[tuple[str, str], Handler] = {
            ("POST", "/openrtb2/auction"): bids.auction,
            ("OPTIONS", "/openrtb2/auction"): bids.preflight,
            ("POST", "/openrtb2/bid"): bids.exchange,
            ("POST", "/v1/recommend"): self._recommend,
            ("POST", "/v1/conversions"): conversion_route(worker, self._limits),
            ("GET", "/metrics"): metrics_route(worker, self._limits),
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

    async def _recommend(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await admits(self.worker, self._limits, scope, send, "recommend"):
            return
        try:
            request = _decode_recommend(await body_of(scope, receive))
        except BAD_BODY as error:
            return await reply(send, 400, _encode({"error": str(error)}), [JSON])
        arrived_s = scope.get(ARRIVED, self._clock.monotonic_s())
        await reply(send, 200, indented(_encode(await self.worker.recommend(request, arrived_s))), [JSON])

    async def _explain(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (key := await admits(self.worker, self._limits, scope, send, "explain")) is None:
            return
        try:
            explanation = await self.worker.explain(scope["path"].removeprefix("/v1/explain/"), key.advertiser_id)
        except PeerError as error:
            return await reply(send, 503, _encode({"error": str(error)}), [JSON, RETRY])
        if explanation is None:
            return await reply(send, 404, _encode({"error": "this ID is not among the recent requests"}), [JSON])
        await reply(send, 200, indented(_encode(explanation)), [JSON])

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
        if kind in PIXELS and status == 204:
            return await reply(send, 200, PIXEL, [(b"content-type", b"image/gif"), NO_STORE])
        await reply(send, status, headers=[NO_STORE])

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 as soon as the worker bids; the body lists the parts that are away, without which bids go on."""
        failing = await asyncio.to_thread(telemetry.failing_tasks)  # of all processes, also of management
        await reply(send, 200, _encode(self.worker.state.readiness(failing)), [JSON])


def metrics_route(worker: Worker, limits: ClientLimits) -> Handler:
    """The handler of the metrics of all processes."""

    async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
        if await admits(worker, limits, scope, send, "metrics") is None:
            return
        text = await asyncio.to_thread(telemetry.exposition)  # it reads a file of each process, while bids go on
        await reply(send, 200, text, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    return metrics


def conversion_route(worker: Worker, limits: ClientLimits) -> Handler:
    """The handler of a conversion from an advertiser's server, which has a key of its account."""

    async def convert(scope: Scope, receive: Receive, send: Send) -> None:
        key = await admits(worker, limits, scope, send, "convert")
        if key is None:
            return
        try:
            conversion = _decode_conversion(await body_of(scope, receive))
        except BAD_BODY as error:
            return await reply(send, 400, _encode({"error": str(error)}), [JSON])
        status, outcome = await worker.conversion(conversion, key.advertiser_id)
        telemetry.EVENTS.labels("conv", str(status)).inc()
        if status == 204:
            return await reply(send, 200, _encode({"outcome": outcome}), [JSON])
        headers = [JSON, RETRY] if status == 503 else [JSON]
        await reply(send, status, _encode({"error": CONVERSION_ERRORS[status]}), headers)

    return convert


async def admits(
    worker: Worker, limits: ClientLimits, scope: Scope, send: Send, needed: auth.Scope
) -> auth.ApiKey | None:
    """The key of the request if it has the scope ``needed``; otherwise the refusal is sent.

    503 if the keys cannot be read.
    """
    try:
        key = await presented_key(worker, scope)
    except sqlite3.DatabaseError as error:  # locked by another program, its disk is full, or damaged
        why = f"manage.db: {error}; close the program that has it open, or free its disk, and send the request again"
        await reply(send, 503, _encode({"error": why}), [JSON, RETRY])
        return None
    if key is None:
        await refuse_key(limits, scope, send)
        return None
    if needed not in key.scopes:
        await reply(send, 403, _encode({"error": auth.missing_scope(key, needed)}), [JSON])
        return None
    return key


async def refuse_key(limits: ClientLimits, scope: Scope, send: Send) -> None:
    """The response to a request without a key in force."""
    if limits.take_failed_login(scope):
        return await reply(send, 401, NO_KEY, [JSON, (b"www-authenticate", b"Bearer")])
    await reply(send, 429, headers=[(b"retry-after", RETRY_AFTER_S.encode())])


async def presented_key(worker: Worker, scope: Scope) -> auth.ApiKey | None:
    """The key of the request, if it is in force."""
    kind, _, presented = header(scope, b"authorization").decode("latin-1").partition(" ")
    return await worker.state.key(presented.strip()) if kind.lower() == "bearer" else None
