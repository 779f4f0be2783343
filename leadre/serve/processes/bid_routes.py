"""Routes of bid requests: of exchanges, which are configured callers, and of pages, whose origins are registered."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from urllib.parse import parse_qsl

import msgspec

from leadre import telemetry
from leadre.errors import BadRequest
from leadre.serve.callers.party import OPERATOR, Party
from leadre.serve.processes.admission import AdmissionQueue
from leadre.serve.processes.bodies import Receive, Scope, UnsupportedCoding, body_of, header, packed
from leadre.serve.processes.connections import ARRIVED
from leadre.serve.processes.identification import Identification, Refusal, bearer
from leadre.serve.processes.refusals import Refusals
from leadre.serve.processes.responses import JSON, Headers, Send, indented, reply
from leadre.serve.processes.worker import Worker
from leadre.serve.protocol import openrtb
from leadre.serve.protocol.signals import is_yes
from leadre.types import Request

FOREIGN = b'{"error": "this origin is not registered; register it by PUT /origins of the management API"}'
_encode = msgspec.json.Encoder().encode


class BidRoutes:
    """The handlers of bid requests. ``queue`` admits them one by one."""

    def __init__(self, worker: Worker, queue: AdmissionQueue, identification: Identification) -> None:
        self.worker = worker
        self._clock = worker.clock
        self._queue = queue
        self._identification = identification
        self._refusals = Refusals(worker.clock)

    async def auction(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page's bid request, refused unless its origin is registered: the page could not read the response."""
        cors = cors_headers(scope, self.worker.state.origins)
        party = self._identification.page(self.worker.state.origins, scope)
        if isinstance(party, Refusal):
            return await refuse_party("auction", party, send, cors)
        await self._bid("auction", party, scope, receive, send, cors)

    async def exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        party = self._identification.exchange(self.worker.state.callers, scope)
        if isinstance(party, Refusal):
            if party.reason != "token" or not await is_operator(self.worker, scope):
                return await refuse_party("bid", party, send, [])
            party = OPERATOR
        await self._bid("bid", party, scope, receive, send, [])

    async def _bid(
        self, route: str, party: Party, scope: Scope, receive: Receive, send: Send, headers: Headers
    ) -> None:
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
                if is_page:
                    request = _of_page(request, scope)
                self._refusals.left_out(request.left_out)
                if request.is_test and not party.may_test and await is_operator(self.worker, scope):
                    party = OPERATOR
                outcome, status, body = await self.worker.bid(
                    request, arrived_s, party, fills_macros=is_page, has_no_bid_body=is_page or is_pretty
                )
            except BadRequest as error:
                self._refusals.refused(route, error)
                body = _encode({"error": str(error)}) if is_pretty else b""
                if isinstance(error, UnsupportedCoding):
                    status = 415
                    headers = [*headers, (b"accept-encoding", b"gzip")]
        if body:
            if is_pretty:
                body = indented(body)
            body, coding = packed(body, scope)
            headers = [*headers, JSON, (b"x-openrtb-version", b"2.6"), *coding]
        await reply(send, status, body, headers)
        telemetry.ANSWERS.labels(route, outcome).inc()
        if party.name:
            telemetry.CALLER_REQUESTS.labels(party.name, outcome).inc()
        telemetry.ANSWER_S.labels(route).observe(self._clock.monotonic_s() - arrived_s)

    async def preflight(self, scope: Scope, receive: Receive, send: Send) -> None:
        cors = cors_headers(scope, self.worker.state.origins)
        methods = [(b"access-control-allow-methods", b"POST"), (b"access-control-allow-headers", b"content-type")]
        await reply(send, 204 if cors else 403, headers=[*cors, *methods] if cors else [])


async def is_operator(worker: Worker, scope: Scope) -> bool:
    """Whether the request has an operator's key of scope ``recommend``; False if the keys cannot be read."""
    presented = bearer(scope)
    with contextlib.suppress(sqlite3.DatabaseError):
        key = await worker.state.key(presented) if presented else None
        return key is not None and key.is_operator and "recommend" in key.scopes
    return False


async def refuse_party(route: str, refusal: Refusal, send: Send, headers: Headers) -> None:
    """The response to a sender that is unknown, or has sent too many requests. An exchange gets no body."""
    if refusal.status == 429:
        is_caller = route == "bid"
        telemetry.LIMITED.labels("caller" if is_caller else refusal.reason).inc()
        telemetry.ANSWERS.labels(route, "limited").inc()
        if is_caller:
            telemetry.CALLER_REQUESTS.labels(refusal.reason, "limited").inc()
        return await reply(send, 429, headers=[*headers, (b"retry-after", str(refusal.retry_after_s).encode())])
    telemetry.ANSWERS.labels(route, "foreign").inc()
    telemetry.UNKNOWN_CALLERS.labels(route, refusal.reason).inc()
    if route == "auction":
        return await reply(send, 403, FOREIGN, [JSON])
    await reply(send, refusal.status, headers=[(b"www-authenticate", b"Bearer")] if refusal.status == 401 else [])


def _of_page(request: Request, scope: Scope) -> Request:
    """The request with the privacy signals of the reader's browser; an exchange's headers are those of its server.

    A page is no exchange with prices to learn, also if its ``at`` is 1: bids to it are not shaded.
    """
    request = replace(request, is_first_price=False)
    gpc = is_yes(header(scope, b"sec-gpc").decode("latin-1"))
    dnt = is_yes(header(scope, b"dnt").decode("latin-1"))
    if not (gpc or dnt):
        return request
    signals = request.signals
    return replace(request, signals=replace(signals, gpc=gpc or signals.gpc, dnt=dnt or signals.dnt))


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
