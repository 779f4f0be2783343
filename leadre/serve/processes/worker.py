"""A bid worker: answers bid requests, recommendations, explanations and events from its `WorkerState`.

Background tasks (`Renewals`) exchange budgets, records and counts with the writer, so that no bid request waits for it.
While the writer or the model server is away, the worker answers from the last state that it has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import msgspec

from leadre import telemetry
from leadre.background import Tasks
from leadre.clock import MachineClock
from leadre.errors import PeerError, RefusedError
from leadre.serve.bidding.account_explanation import AccountExplanation, of_account
from leadre.serve.bidding.context import BidDecision
from leadre.serve.bidding.explanation import Explanation, explain
from leadre.serve.bidding.record import digest, record
from leadre.serve.bidding.respond import respond
from leadre.serve.callers.open_bids import OpenBids
from leadre.serve.callers.party import ANYBODY, RECOMMEND, Party
from leadre.serve.catalogue.reviews import clicked_url
from leadre.serve.events import clicks, user_texts
from leadre.serve.events.tokens import Token
from leadre.serve.ipc.messages import EventReply, EventRequest, RecordReply, RecordRequest
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Timing
from leadre.serve.processes import event_reading
from leadre.serve.processes.event_reading import Conversion, Refusal
from leadre.serve.processes.peers import WriterClient
from leadre.serve.processes.recommend import RecommendRequest, RecommendResponse, recommend_response
from leadre.serve.processes.renewals import Renewals
from leadre.serve.processes.worker_state import WorkerState
from leadre.serve.protocol import openrtb
from leadre.serve.protocol.consent import has_newer_policy
from leadre.serve.settings import Settings
from leadre.types import EventKind, Request
from leadre.units import US_PER_S


class Worker:
    """One bid worker. `start` opens its state; `stop` releases its budgets and sends its records to the writer.

    ``writer``, ``tasks``: as in `WorkerState`.
    """

    def __init__(
        self,
        paths: StatePaths,
        settings: Settings,
        timing: Timing,
        *,
        has_model: bool,
        clock: MachineClock,
        ranks: bool = False,
        writer: WriterClient | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        self._open_state = partial(
            WorkerState, paths, settings, has_model=has_model, clock=clock, ranks=ranks, writer=writer, tasks=tasks
        )
        self._settings = settings
        self._timing = timing
        self._options = digest(settings)
        self.clock = clock

    async def start(self) -> None:
        """Open the state and start its renewals. InputError if the state folder has no catalogue yet."""
        self.state = self._open_state()
        self._renewals = Renewals(self.state, self._timing.writer_away_s)
        await self._renewals.follow_ranker()  # before the first request, which would be priced without it
        self._renewals.start()

    async def stop(self) -> None:
        """Flush records and release budgets; records that the writer does not acknowledge in time are lost."""
        await self._renewals.stop()
        with contextlib.suppress(PeerError):
            await self.state.records.flush()
            await self.state.clicks.flush()
            await self.state.bidder.budgets.close()
        await self.state.close()

    async def bid(
        self, request: Request, arrived_s: float, party: Party = ANYBODY, *, fills_macros: bool, has_no_bid_body: bool
    ) -> tuple[str, int, bytes]:
        """(outcome, HTTP status, body) of the response to a bid request of a sender.

        A test request costs nothing, so only a sender that may test learns a user's own ads from it.
        ``fills_macros``: the worker fills the auction macros, because the caller is a page: its Prebid.js fills none.
        ``has_no_bid_body``: a no-bid is JSON with its reason, which Prebid.js expects, and not a 204.
        """
        if request.is_test and not party.may_test:
            request = replace(request, user_id="", other_user_ids=())
        decision = await self._decide(request, arrived_s, party)
        if decision.reason is not None:
            status, no_bid = openrtb.no_bid(request, decision.reason, is_debug=has_no_bid_body)
            return "no_bid", status, no_bid
        seat = self._settings.seat
        return "bid", 200, openrtb.write(request, decision.rendered, seat=seat, fills_macros=fills_macros)

    async def recommend(self, request: RecommendRequest, arrived_s: float) -> RecommendResponse:
        """Ads for a page of the site itself, without an auction, as plain JSON."""
        decision = await self._decide(request.bid_request(self.state.new_id()), arrived_s, RECOMMEND)
        return recommend_response(decision, self.state.bidder.market.catalogue)

    async def explain(self, request_id: str, account: str) -> Explanation | AccountExplanation | None:
        """A recent request with its candidates and their verdicts; None if unknown. PeerError: writer away.

        ``account``: the account to which alone the explanation is shown; "" = an operator.
        """
        reply = await self.state.writer.request(RecordRequest(request_id))
        assert isinstance(reply, RecordReply), reply
        market = self.state.bidder.market
        if reply.record is None:
            return None
        explanation = explain(
            reply.record, market.catalogue, market.expected_nanos_A, market.log_position, market.most_nanos_A
        )
        return of_account(explanation, account) if account else explanation

    async def event(self, kind: EventKind, query: Mapping[str, str], *, is_limited: bool = False) -> tuple[int, str]:
        """Have the writer post an event. Returns (HTTP status, landing page of a click or "").

        400, 403 and 422 are final: the price is none, the token is invalid or late, or the writer failed at this event
        alone and has set it aside. 503: the writer is away or its disk refuses; the same event may be sent again. No
        user sends a click again, so it is queued for the writer if it has a landing page. ``is_limited``: the address
        has sent too many (429); a click is redirected, and the writer does not post the event.
        """
        state = self.state
        now_us = state.clock.now_us()
        catalogue = state.bidder.market.catalogue
        token, event = event_reading.read(
            kind, query, state.keys, catalogue, now_us, post_view=self._settings.post_view
        )
        # A token of a time before a restore may name an ad that is newer than the backup, and so unknown.
        row = catalogue.row_of_ad.get(token.ad_id) if token is not None and kind == "click" else None
        landing_url = "" if row is None else clicked_url(catalogue.ads[row])
        if isinstance(event, Refusal):
            telemetry.REFUSED_EVENTS.labels(kind, event.reason).inc()
            return event.status, clicks.landing_url(landing_url, "")
        if is_limited:
            return 429, clicks.landing_url(landing_url, "")
        if landing_url:
            assert token is not None
            landing_url = clicks.landing_url(landing_url, clicks.click_id(state.keys, token, now_us))
        status, outcome = await _post(self.state.writer, event)
        if token is not None and outcome == "new":
            close_open_bid(state.bidder.open_bids, kind, token)
        if status == 503 and landing_url:
            state.clicks.add(event)
        return status, landing_url

    async def conversion(self, conversion: Conversion, advertiser_id: str) -> tuple[int, str]:
        """Post a conversion that an advertiser's server has sent: (HTTP status, outcome as in `EventReply` or "").

        ``advertiser_id``: of the server's key, "" for an operator's. 403: the click ID is invalid, late, or of a click
        on another advertiser's ad. Other statuses are those of `event`.
        """
        now_us = self.state.clock.now_us()
        catalogue = self.state.bidder.market.catalogue
        token, event = event_reading.read("conv", {"t": conversion.click_id}, self.state.keys, catalogue, now_us)
        if isinstance(event, Refusal):
            telemetry.REFUSED_EVENTS.labels("conv", event.reason).inc()
            return event.status, ""
        assert token is not None
        row = catalogue.row_of_campaign.get(token.campaign_id)
        if advertiser_id and (row is None or catalogue.campaigns[row].advertiser_id != advertiser_id):
            telemetry.REFUSED_EVENTS.labels("conv", "foreign").inc()
            return 403, ""
        value_nanos = event_reading.bounded_value_nanos(token, conversion.value_nanos, catalogue)
        event = msgspec.structs.replace(event, event_id=conversion.event_id, value_nanos=value_nanos)
        return await _post(self.state.writer, event)

    async def _decide(self, request: Request, arrived_s: float, party: Party) -> BidDecision:
        """Decide a request of a sender before its deadline, and queue its record for the writer."""
        timing = self._timing
        budget_ms = (request.tmax_ms or timing.tmax_ms) - timing.network_ms
        now_us = self.state.clock.now_us()
        user_ids = (request.user_id, *request.other_user_ids)
        if any(user_id in self.state.erased for user_id in user_ids):
            request = replace(request, user_id="", other_user_ids=())
        if has_newer_policy(request.signals, self._settings.vendor_id):
            telemetry.NEWER_POLICIES.inc()
        decision = await respond(request, self.state.bidder, now_us, arrived_s + budget_ms / 1000, party)
        _count(decision, now_us)
        is_degraded = self.state.bidder.user_store.is_down
        logged = record(request, decision, now_us, self._options, is_degraded=is_degraded, caller=party.name)
        self.state.records.add(user_texts.anonymous(logged, user_ids))
        return decision


async def _post(writer: WriterClient, event: EventRequest) -> tuple[int, str]:
    """(HTTP status, outcome as in `EventReply` or "") of an event that the writer posts."""
    try:
        reply = await writer.request(event)
    except RefusedError:
        return 422, ""
    except PeerError:
        return 503, ""
    assert isinstance(reply, EventReply), reply
    return 403 if reply.outcome == "refused" else 204, reply.outcome


def close_open_bid(open_bids: OpenBids, kind: EventKind, token: Token) -> None:
    """End an open bid by the first event that shows or loses it: its impression, or its bill if none is recorded."""
    is_shown = kind == "imp" or (kind == "bill" and not token.may_measure)
    if (is_shown or kind == "loss") and not token.is_test:
        campaign_id = token.campaign_id if token.lease_id else ""
        until_us = token.shown_until_us
        nanos = token.open_nanos or token.reserved_nanos or token.price_cap_nanos
        open_bids.close(token.sender, campaign_id, token.currency, nanos, until_us, is_shown=is_shown)


def _count(decision: BidDecision, now_us: int) -> None:
    """Add a decision to the metrics."""
    if decision.reason is not None:
        telemetry.NO_BIDS.labels(decision.reason.name.lower()).inc()
    sources = [rendered.bid.source for rendered in decision.rendered]
    for source in set(sources):
        telemetry.BIDS.labels(source).inc(sources.count(source))
    candidates = decision.candidates
    if candidates is not None and candidates.source == "stored" and candidates.made_at_us:
        telemetry.LIST_AGE_S.observe((now_us - candidates.made_at_us) / US_PER_S)
