"""A bid worker: answers bid requests, recommendations, explanations and events from its `WorkerState`.

Background tasks (`Renewals`) exchange budgets, records and counts with the writer, so that no bid request waits for it.
While the writer or the model server is away, the worker answers from the last state that it has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from leadre import telemetry
from leadre.clock import Clock
from leadre.errors import PeerError, RefusedError, TokenError
from leadre.serve.bidding.context import BidDecision
from leadre.serve.bidding.explanation import Explanation, explain
from leadre.serve.bidding.record import digest, record
from leadre.serve.bidding.respond import respond
from leadre.serve.events.outcomes import LATE_CONVERSION_US
from leadre.serve.ipc.messages import EventReply, EventRequest, RecordReply, RecordRequest
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Timing
from leadre.serve.processes.recommend import RecommendRequest, RecommendResponse, recommend_response
from leadre.serve.processes.renewals import Renewals
from leadre.serve.processes.worker_state import WorkerState
from leadre.serve.protocol import openrtb
from leadre.serve.settings import Settings
from leadre.types import EventKind, Request
from leadre.units import US_PER_S


class Worker:
    """One bid worker. `start` opens its state; `stop` releases its budgets and sends its records to the writer."""

    def __init__(self, paths: StatePaths, settings: Settings, timing: Timing, *, has_model: bool, clock: Clock) -> None:
        self._paths = paths
        self._settings = settings
        self._timing = timing
        self._has_model = has_model
        self._options = digest(settings)
        self.clock = clock

    async def start(self) -> None:
        """Open the state and start its renewals. InputError if the state folder has no catalogue yet."""
        self.state = WorkerState(self._paths, self._settings, has_model=self._has_model, clock=self.clock)
        self._renewals = Renewals(self.state, self._timing.writer_away_s)
        self._renewals.start()

    async def stop(self) -> None:
        """Flush records and release budgets; records that the writer does not acknowledge in time are lost."""
        await self._renewals.stop()
        with contextlib.suppress(PeerError):
            await self.state.records.flush()
            await self.state.bidder.budgets.close()
        await self.state.close()

    async def bid(
        self, request: Request, arrived_s: float, *, fills_macros: bool, has_no_bid_body: bool
    ) -> tuple[str, int, bytes]:
        """(outcome, HTTP status, body) of the response to a bid request.

        ``fills_macros``: the worker fills the auction macros, because the caller is a page: its Prebid.js fills none.
        ``has_no_bid_body``: a no-bid is JSON with its reason, which Prebid.js expects, and not a 204.
        """
        decision = await self._decide(request, arrived_s)
        if decision.reason is not None:
            status, no_bid = openrtb.no_bid(request, decision.reason, is_debug=has_no_bid_body)
            return "no_bid", status, no_bid
        seat = self._settings.seat
        return "bid", 200, openrtb.write(request, decision.rendered, seat=seat, fills_macros=fills_macros)

    async def recommend(self, request: RecommendRequest, arrived_s: float) -> RecommendResponse:
        """Ads for a page of the site itself, without an auction, as plain JSON."""
        decision = await self._decide(request.bid_request(self.state.new_id()), arrived_s)
        return recommend_response(decision, self.state.bidder.market.catalogue)

    async def explain(self, request_id: str) -> Explanation | None:
        """A recent request with its candidates and their verdicts; None if unknown. PeerError: writer away."""
        reply = await self.state.writer.request(RecordRequest(request_id))
        assert isinstance(reply, RecordReply), reply
        market = self.state.bidder.market
        if reply.record is None:
            return None
        return explain(reply.record, market.catalogue, market.expected_nanos_A, market.log_position)

    async def event(self, kind: EventKind, query: Mapping[str, str], *, is_limited: bool = False) -> tuple[int, str]:
        """Have the writer post an event. Returns (HTTP status, landing page of a click or "").

        403 and 422 are final: the token is invalid, or the writer failed at this event alone and has set it aside. 503:
        the writer is away or its disk refuses; the same event may be sent again. ``is_limited``: the address has sent
        too many (429); a click is redirected, and the writer does not post the event.
        """
        now_us = self.clock.now_us()
        try:
            # the writer refuses late events of other kinds
            token = self.state.keys.check(query.get("t", ""), now_us, late_us=LATE_CONVERSION_US)
        except TokenError:
            return 403, ""
        catalogue = self.state.bidder.market.catalogue
        # A token signed before a restore may name an ad that is newer than the backup, and so unknown.
        row = catalogue.row_of_ad.get(token.ad_id) if kind == "click" else None
        landing_url = "" if row is None else catalogue.ads[row].landing_url
        if is_limited:
            return 429, landing_url
        value = query.get("value_nanos", "")
        event = EventRequest(
            kind=kind,
            token=query["t"],
            at_us=now_us,
            price=query.get("price", ""),
            event_id=query.get("event_id", ""),
            value_nanos=int(value) if value.isdecimal() and len(value) < 18 else 0,
        )
        try:
            reply = await self.state.writer.request(event)
        except RefusedError:
            return 422, landing_url
        except PeerError:
            return 503, landing_url
        assert isinstance(reply, EventReply), reply
        return 403 if reply.outcome == "refused" else 204, landing_url

    async def _decide(self, request: Request, arrived_s: float) -> BidDecision:
        """Decide a request before its deadline, and queue its record for the writer."""
        timing = self._timing
        budget_ms = (request.tmax_ms or timing.tmax_ms) - timing.network_ms
        now_us = self.clock.now_us()
        if request.user_id in self.state.erased:
            request = replace(request, user_id="")
        decision = await respond(request, self.state.bidder, now_us, arrived_s + budget_ms / 1000)
        _count(decision, now_us)
        bidder = self.state.bidder
        self.state.records.add(
            record(
                request,
                decision,
                now_us,
                bidder.market.catalogue,
                self._options,
                is_degraded=bidder.user_store.is_down,
            )
        )
        return decision


def _count(decision: BidDecision, now_us: int) -> None:
    """Add a decision to the metrics."""
    if decision.reason is not None:
        telemetry.NO_BIDS.labels(decision.reason.name.lower()).inc()
    for imp_state in decision.imps:
        if imp_state.bid is not None:
            telemetry.BIDS.labels(imp_state.bid.source).inc()
    candidates = decision.candidates
    if candidates is not None and candidates.source == "stored" and candidates.made_at_us:
        telemetry.LIST_AGE_S.observe((now_us - candidates.made_at_us) / US_PER_S)
