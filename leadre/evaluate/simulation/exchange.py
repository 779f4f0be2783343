"""The exchange and the users of a simulation: requests, auctions, notices of wins and losses, clicks and conversions.

A day is driven by its events: the clock moves from one to the next. The exchange reads of a response what a real one
reads, the price and the URLs; the simulation alone compares it with the decision, which knows the other candidates.

Letters: N requests in the order of their time, C campaigns, H hours, K candidates of a request.
"""

from __future__ import annotations

import heapq
import html
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec
import numpy as np

from leadre.auction.budget.days import SLOT_US
from leadre.auction.pacing.plan import HOURS, QUARTERS, QUARTERS_OF_HOUR
from leadre.evaluate.simulation.bidder import STEP_S, Bidder, Notice
from leadre.evaluate.simulation.world import START_US, Auctions, Floats, Ints, World, user_id
from leadre.progress import Advance
from leadre.serve.bidding.budgets import STANDBY_US
from leadre.serve.bidding.context import BidDecision
from leadre.serve.events.clicks import PARAMETER
from leadre.serve.protocol import openrtb
from leadre.types import EventKind, Verdict
from leadre.units import NANOS_PER_CPM, US_PER_DAY, US_PER_HOUR, US_PER_S

STEP_US = round(STEP_S * US_PER_S)
IDLE_STEP_US = 20 * US_PER_S  # between two exchanges while nothing happens: leases and pacing go on
NOTICE_S = 0.2  # from the auction to the notice of its result
RENDER_S, CLICK_S, CONVERSION_S = 2.0, 20.0, 600.0  # mean delays: auction to impression to click to conversion
DRAIN_US = STANDBY_US + US_PER_HOUR // 10  # after the last day, for notices of its bids and the end of all leases
NOBODY = -1
_PIXELS = re.compile(r'https?://[^"\s<>]+/e/(imp|click)\?[^"\s<>]+')
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_INELIGIBLE = Verdict.INELIGIBLE.code


@dataclass(eq=False)
class DayLog:
    """The auctions of a day and their results, [N] each.

    ``campaign_N``: row of the campaign that bid, `NOBODY` without a bid. ``bid_nanos_N``, ``paid_nanos_N``: 0 without a
    bid or win. ``value_nanos_N``: true value of the impression to the campaign that bid.

    ``best_N``: the campaign whose candidate the bidder would select if no budget or pacing held one back, and
    ``best_value_nanos_N`` its true value. ``verdict_N``: `Verdict.code` of that candidate.

    ``demand_nanos_HC``: money that each campaign would spend without pacing or budget, while all others bid as they
    did, by hour. ``eligible_QC``: auctions in which it could bid, by quarter of an hour.
    """

    auctions: Auctions
    campaign_N: Ints
    bid_nanos_N: Ints
    paid_nanos_N: Ints
    value_nanos_N: Floats
    best_N: Ints
    best_value_nanos_N: Floats
    verdict_N: Ints
    demand_nanos_HC: Floats
    eligible_QC: Ints
    bid_ids: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls, auctions: Auctions, campaigns: int) -> DayLog:
        """The log of a day that has not begun."""
        requests = len(auctions.at_us_N)
        return cls(
            auctions=auctions,
            campaign_N=np.full(requests, NOBODY),
            bid_nanos_N=np.zeros(requests, np.int64),
            paid_nanos_N=np.zeros(requests, np.int64),
            value_nanos_N=np.zeros(requests),
            best_N=np.full(requests, NOBODY),
            best_value_nanos_N=np.zeros(requests),
            verdict_N=np.zeros(requests, np.int64),
            demand_nanos_HC=np.zeros((HOURS, campaigns)),
            eligible_QC=np.zeros((QUARTERS, campaigns), np.int64),
        )


class _Wire(NamedTuple):
    """The bid of a response: price in nanos of one impression, IDs and event URLs."""

    bid_id: str
    ad_id: str
    price_nanos: int
    urls: dict[EventKind, str]


class Exchange:
    """Sends the requests of days to a bidder, decides the auctions, and plays the users."""

    def __init__(self, bidder: Bidder, world: World, seed: int) -> None:
        self._bidder = bidder
        self._world = world
        self._row_of_ad = {ad.ad_id: row for row, ad in enumerate(world.ads)}
        self._generator = np.random.default_rng([seed, 2])
        self._due: list[tuple[int, int, Notice, int, int]] = []  # a heap: time, number, notice, user, ad
        self._numbers = itertools.count()
        self._requests = itertools.count()

    async def run_day(self, auctions: Auctions, advance: Advance) -> DayLog:
        """Send the requests of a day, and the notices that are due in it."""
        log = DayLog.empty(auctions, len(self._world.campaigns))
        for n, at_us in enumerate(auctions.at_us_N.tolist()):
            await self._notify_until(at_us)
            if at_us >= self._bidder.stepped_us + STEP_US:
                await self._step(at_us)
            await self._request(n, at_us, log)
            advance()
        return log

    async def drain(self, end_us: int) -> None:
        """Send the notices of the last bids, those that come within `DRAIN_US`. Then their reservations end."""
        await self._notify_until(end_us + DRAIN_US)
        await self._step(end_us + DRAIN_US)

    async def _notify_until(self, until_us: int) -> None:
        """Send the notices that are due before a time, those of one step at once. Background tasks run meanwhile."""
        while True:
            due_us = self._due[0][0] if self._due else until_us
            stepped_us = self._bidder.stepped_us
            at_us = min(max(due_us, stepped_us + STEP_US), stepped_us + IDLE_STEP_US)
            if at_us >= until_us:
                return
            await self._step(at_us)

    async def _step(self, now_us: int) -> None:
        due = []
        while self._due and self._due[0][0] <= now_us:
            due.append(heapq.heappop(self._due))
        pages = await self._bidder.step(now_us, [notice for _, _, notice, _, _ in due])
        for (_, _, notice, user, ad), page in zip(due, pages, strict=True):
            if notice.kind == "click" and self._generator.random() < self._world.conversion_A[ad]:
                click_id = dict(parse_qsl(urlsplit(page).query))[PARAMETER]
                self._later(now_us, CONVERSION_S, Notice("conv", {"t": click_id}), user, ad)

    async def _request(self, n: int, at_us: int, log: DayLog) -> None:
        """One auction: request, response, result, and the notices that follow."""
        auctions = log.auctions
        user = int(auctions.user_N[n])
        is_first_price = bool(auctions.is_first_price_N[n])
        body = _encode(
            {
                "id": f"request-{next(self._requests)}",
                "at": 1 if is_first_price else 2,
                "tmax": 200,
                "site": {"domain": f"site-{auctions.site_N[n]}.example"},
                "user": {"id": user_id(user)},
                "imp": [{"id": "1", "banner": {"w": 300, "h": 250}, "secure": 1}],
            }
        )
        response, decision = await self._bidder.bid(body, at_us)
        price_nanos = int(auctions.price_nanos_N[n])
        bid = _read(response)
        self._compare(n, user, price_nanos, decision, log)
        if bid is None:
            return
        ad = self._row_of_ad[bid.ad_id]
        log.campaign_N[n] = self._world.campaign_A[ad]
        log.bid_nanos_N[n] = bid.price_nanos
        log.value_nanos_N[n] = self._world.value_nanos(user, ad)
        log.bid_ids.append(bid.bid_id)
        if bid.price_nanos < price_nanos:
            self._later(at_us, 0.0, _notice("loss", bid.urls["loss"]), user, ad)
            return
        paid_nanos = bid.price_nanos if is_first_price else price_nanos
        log.paid_nanos_N[n] = paid_nanos
        self._show(at_us, bid, paid_nanos, user, ad)

    def _show(self, at_us: int, bid: _Wire, paid_nanos: int, user: int, ad: int) -> None:
        """The notices of a won auction. The impression is shown some seconds later, and now and then clicked."""
        self._later(at_us, 0.0, _notice("win", bid.urls["win"], paid_nanos), user, ad)
        shown_us = at_us + round(self._generator.exponential(RENDER_S) * US_PER_S)
        self._later(shown_us, 0.0, _notice("bill", bid.urls["bill"], paid_nanos), user, ad)
        self._later(shown_us, 0.0, _notice("imp", bid.urls["imp"]), user, ad)
        if self._generator.random() < self._world.click_rate(user, ad):
            self._later(shown_us, CLICK_S, _notice("click", bid.urls["click"]), user, ad)

    def _later(self, now_us: int, mean_s: float, notice: Notice, user: int, ad: int) -> None:
        """Send a notice `NOTICE_S` from now, and a random time after that if ``mean_s`` is above 0."""
        delay_s = NOTICE_S + (self._generator.exponential(mean_s) if mean_s else 0.0)
        heapq.heappush(self._due, (now_us + round(delay_s * US_PER_S), next(self._numbers), notice, user, ad))

    def _compare(self, n: int, user: int, price_nanos: int, decision: BidDecision, log: DayLog) -> None:
        """Add to the log what each campaign would do without pacing or budget, all others as they are."""
        if decision.candidates is None or decision.values is None:
            return
        state = decision.imps[0]
        eligible_K = np.flatnonzero(state.verdict_K != _INELIGIBLE)
        if not len(eligible_K):
            return
        catalogue = self._bidder.catalogue
        rows_K = decision.candidates.rows_K[eligible_K]
        worth_K = decision.values.price_nanos_K[eligible_K]
        fit_K = decision.values.log_fit_K[eligible_K]
        score_K = fit_K + np.log(np.maximum(worth_K, 1))
        campaign_K = catalogue.campaign_A[rows_K]
        order_K = np.argsort(-score_K, kind="stable")
        campaigns, first = np.unique(campaign_K[order_K], return_index=True)
        candidate = order_K[first]  # the best of each campaign
        best = int(order_K[0])
        log.best_N[n] = self._campaign_row(int(campaign_K[best]))
        log.verdict_N[n] = state.verdict_K[eligible_K[best]]
        log.best_value_nanos_N[n] = self._value_nanos(user, int(rows_K[best]))
        wins = worth_K[candidate] >= price_nanos
        if state.bid is not None:
            winner = int(np.flatnonzero(rows_K == catalogue.row_of_ad[state.bid.ad_id])[0])
            rival = fit_K[winner] + np.log(state.bid.price_nanos)
            wins &= (score_K[candidate] >= rival) | (campaigns == campaign_K[winner])
        quarter = int((log.auctions.at_us_N[n] - START_US) % US_PER_DAY // SLOT_US)
        log.eligible_QC[quarter, [self._campaign_row(row) for row in campaigns.tolist()]] += 1
        for row, k in zip(campaigns[wins].tolist(), candidate[wins].tolist(), strict=True):
            campaign = catalogue.campaigns[row]
            if campaign.bid_type != "cpm":
                cost_nanos = self._value_nanos(user, int(rows_K[k]))
            else:
                cost_nanos = float(worth_K[k]) if log.auctions.is_first_price_N[n] else price_nanos
            log.demand_nanos_HC[quarter // QUARTERS_OF_HOUR, self._campaign_row(row)] += cost_nanos

    def _campaign_row(self, row: int) -> int:
        """The row of the world of a campaign of the catalogue."""
        return int(self._bidder.catalogue.campaigns[row].campaign_id.rpartition("-")[2])

    def _value_nanos(self, user: int, row: int) -> float:
        return self._world.value_nanos(user, self._row_of_ad[self._bidder.catalogue.ads[row].ad_id])


def _read(response: bytes) -> _Wire | None:
    """The bid of a response, None for a no-bid."""
    if not response:
        return None
    (bid,) = _decode(response)["seatbid"][0]["bid"]
    urls: dict[EventKind, str] = {"win": bid["nurl"], "bill": bid["burl"], "loss": bid["lurl"]}
    urls |= dict(_pixels(bid["adm"]))
    return _Wire(bid["id"], bid["crid"], openrtb.nanos(bid["price"], up=False), urls)


def _pixels(adm: str) -> Iterator[tuple[EventKind, str]]:
    """The event URLs in a creative, by kind."""
    for pixel in _PIXELS.finditer(adm):
        kind: EventKind = "imp" if pixel[1] == "imp" else "click"
        yield kind, html.unescape(pixel[0])


def _notice(kind: EventKind, url: str, paid_nanos: int = 0) -> Notice:
    """The notice of a URL, with the price paid in place of its macro."""
    query = dict(parse_qsl(urlsplit(url).query))
    if paid_nanos:
        query["price"] = f"{paid_nanos / NANOS_PER_CPM:.6f}"
    return Notice(kind, query)
