"""The candidates of a request, priced and ranked: all that is the same for each of its imps.

A bid decision and its explanation rank by the same class, one from the market of the moment, one from the log.

Letters: C campaigns, K candidates in the order of their source, N some of them, R candidates that pass the filter,
ranked, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.auction.mechanism import squashed, tie_keys
from leadre.serve.bidding import select
from leadre.serve.bidding.context import Candidates, RequestContext
from leadre.serve.bidding.pace import RequestPacing, paced_nanos
from leadre.serve.bidding.select import Bools, Ints
from leadre.serve.bidding.value import Values, values
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.rankers.rates import Rates

TieKeys = Callable[[Ints], NDArray[np.uint64]]  # positions -> the order of equal candidates


class PacedBids(NamedTuple):
    """How the campaigns of candidates bid. ``multiplier_K``: of their values; None: each is 1.

    ``most_K``: the highest price of each; None if no candidate has a goal.
    """

    multiplier_K: NDArray[np.float64] | None = None
    most_K: Ints | None = None


class Ranking:
    """The candidates of a request with all that is the same for each of its imps.

    value: ``values``: expected nanos of one impression, the campaign's bid x the rate of the event it pays for, and the
    fit of the ad to the user (`value.values`).
    pace: the price is the value times the multiplier of the campaign, with a goal at most the campaign's own bid.
    rank: by fit x price, the latter as the bid for an event x its rate to the power ``squashing``; equal ones by
    ``ties``; None keeps the order of the source. No rate compares two currencies: the one that comes first in
    ``currencies`` ranks first.

    ``worth_K``: prices before pacing. ``rates``: of the ranker that ``values`` read. ``logged_nanos``: position -> the
    price that the log has.
    """

    def __init__(
        self,
        catalogue: CatalogueSnapshot,
        candidates: Candidates,
        values: Values,
        paced: PacedBids,
        rates: Rates | None,
        *,
        currencies: Sequence[str],
        ties: TieKeys | None,
        squashing: float = 1.0,
        logged_nanos: Mapping[int, int] | None = None,
    ) -> None:
        self._columns = catalogue.columns
        self.candidates = candidates
        self.values = values
        self.rates = rates
        self.score_K = values.log_fit_K
        self.rows_K = candidates.rows_K
        self.campaign_K = catalogue.campaign_A[self.rows_K]
        self.multiplier_K, self.most_K = paced
        self.worth_K = self.price_K = values.price_nanos_K
        if self.multiplier_K is not None:
            self.price_K = paced_nanos(self.worth_K, self.multiplier_K, self.most_K)  # pace
        if logged_nanos:
            self.price_K = self.price_K.copy()
            self.price_K[list(logged_nanos)] = list(logged_nanos.values())
        self.currency_K = self._columns.currency_C[self.campaign_K]
        self.squashing = squashing
        self._rank_score_K = self.score_K
        if squashing != 1.0:
            rate_K = np.maximum(self.price_K, 1) / self.event_nanos(range(len(self.rows_K)))
            self._rank_score_K = self.score_K + np.log(squashed(rate_K, squashing) / rate_K)
        self._log_value_K = select.log_values(self._rank_score_K, self.price_K)
        self.order_K = select.rank(self._log_value_K, ties)
        if len(catalogue.currencies) > 1:
            places = [_place(currencies, currency) for currency in catalogue.currencies]
            is_api_ad_K = np.arange(len(self.rows_K)) >= candidates.first_api_ad
            self.order_K = select.by_currency(self.order_K, is_api_ad_K, np.array(places)[self.currency_K])
        self.rows: list[int] = self.rows_K.tolist()
        self.campaign_rows: list[int] = self.campaign_K.tolist()
        self.prices: list[int] = self.price_K.tolist()

    @property
    def unpaced_K(self) -> Ints:
        """[K] prices at a multiplier of 1."""
        return self.worth_K if self.most_K is None else np.minimum(self.worth_K, self.most_K)

    def event_nanos(self, positions_N: Sequence[int]) -> Ints:
        """[N] bids of candidates for the event that their campaigns pay for, paced, at least 1.

        With a goal it is as much below the campaign's bid as the price is below the highest one.
        """
        campaign_N = self.campaign_K[positions_N]
        bid_nanos_N = self._columns.bid_nanos_C[campaign_N]
        if self.multiplier_K is None:
            return bid_nanos_N
        multiplier_N = self.multiplier_K[positions_N]
        if self.most_K is not None:
            share_N = self.price_K[positions_N] / np.maximum(self.most_K[positions_N], 1)
            multiplier_N = np.where(self._columns.has_goal_C[campaign_N], np.minimum(share_N, 1.0), multiplier_N)
        return np.maximum(paced_nanos(bid_nanos_N, multiplier_N), 1)

    def loses_by_pacing(self, ranked_R: Ints, winner: int) -> Bools | None:
        """[R] whether a candidate would outrank the winner without pacing; None if none has a plan or goal."""
        if self.multiplier_K is None:
            return None
        is_paced_R: Bools = self._log_worth_K[ranked_R] > self._log_value_K[winner]
        is_paced_R &= self.currency_K[ranked_R] == self.currency_K[winner]
        return is_paced_R

    @cached_property
    def _log_worth_K(self) -> NDArray[np.float64]:
        return select.log_values(self._rank_score_K, self.unpaced_K)


def ranked(
    context: RequestContext, candidates: Candidates, rates: Rates | None, pacing: RequestPacing | None
) -> Ranking:
    """The ranking of a request's candidates. Values and fit read the ranker's ``rates``, if there are any."""
    market = context.market
    counted_K = market.expected_nanos_A[candidates.rows_K]
    return Ranking(
        market.catalogue,
        candidates,
        values(market.catalogue, candidates.rows_K, candidates.log_p_K, counted_K, rates),
        PacedBids()
        if pacing is None
        else PacedBids(pacing.multiplier_K, most_nanos(market.catalogue, market.most_nanos_A, candidates.rows_K)),
        rates,
        currencies=context.request.currencies,
        squashing=context.bidder.settings.squashing if context.request.is_own_auction else 1.0,
        ties=None if context.bidder.has_old_rules else ties(context.request_id, candidates.ad_ids),
    )


def request_pacing(context: RequestContext, candidates: Candidates) -> RequestPacing | None:
    """The pacing of a request's candidates; None if no campaign of them has a plan or a goal."""
    rates = context.market.pacing
    campaign_K = context.market.catalogue.campaign_A[candidates.rows_K]
    if rates is None or not rates.is_paced_C[campaign_K].any():
        return None
    return RequestPacing(rates, campaign_K, context.bidder.draws, context.request_id)


def ties(request_id: str, ad_ids: Sequence[str]) -> TieKeys:
    """The order of equal candidates, from their positions in ``ad_ids`` [K]."""
    return lambda positions: tie_keys(request_id, [ad_ids[k] for k in positions.tolist()])


def most_nanos(catalogue: CatalogueSnapshot, most_nanos_A: Ints | None, rows_K: Ints) -> Ints | None:
    """[K] the highest price of each candidate, for those with a goal; None if none has one."""
    has_goal_K = catalogue.columns.has_goal_C[catalogue.campaign_A[rows_K]]
    if most_nanos_A is None or not has_goal_K.any():
        return None
    return np.where(has_goal_K, most_nanos_A[rows_K], np.iinfo(np.int64).max)


def _place(currencies: Sequence[str], currency: str) -> int:
    """The place of a currency in the request's list, behind all for one that it lacks."""
    return currencies.index(currency) if currency in currencies else len(currencies)
