"""The candidates of a request, valued, paced and ranked: all that is the same for each of its imps.

Letters: C campaigns, K candidates in the order of their source, R candidates that pass the filter, ranked, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from leadre.auction.mechanism import tie_keys
from leadre.serve.bidding import select
from leadre.serve.bidding.context import Candidates, RequestContext
from leadre.serve.bidding.pace import RequestPacing, paced_nanos
from leadre.serve.bidding.select import Bools
from leadre.serve.bidding.value import values
from leadre.serve.rankers.rates import Rates


class Ranking:
    """The candidates of a request with all that is the same for each of its imps.

    value: expected nanos of one impression, the campaign's bid x the rate of the event it pays for, and the fit of the
    ad to the user (`value.values`). Both read the ranker's ``rates``, if there are any.
    pace: the price is the value times the multiplier of the campaign (`pace.RequestPacing`), with a goal at most the
    campaign's own bid (``most_K``; None if no candidate has a goal).
    rank: by fit x price, equal ones by a hash of request and ad. No rate compares two currencies: the one that the
    request names first ranks first.

    ``worth_K``: prices before pacing. ``reserved``: expected charge of each: the price of an impression, or the value
    of the event that the campaign pays for, which a caller's auction does not price. ``limited``: for each candidate,
    whether budget, cap, log or open bids may forbid a bid (`_Offers.limit`).
    """

    def __init__(self, context: RequestContext, candidates: Candidates, rates: Rates | None = None) -> None:
        catalogue = self._catalogue = context.market.catalogue
        counted_K = context.market.expected_nanos_A[candidates.rows_K]
        self.values = values(catalogue, candidates.rows_K, candidates.log_p_K, counted_K, rates)  # value
        self.candidates = candidates
        self.score_K = self.values.log_fit_K
        self.rates = rates
        self.rows_K = candidates.rows_K
        campaign_K = catalogue.campaign_A[self.rows_K]
        self.worth_K = self.price_K = self.values.price_nanos_K
        self.most_K: select.Ints | None = None
        self.pacing = _pacing(context, campaign_K)
        if self.pacing is not None:
            self.most_K = _most_nanos(context, candidates, campaign_K)
            self.price_K = paced_nanos(self.worth_K, self.pacing.multiplier_K, self.most_K)  # pace
        self.currency_K = catalogue.columns.currency_C[campaign_K]
        self._log_value_K = select.log_values(self.score_K, self.price_K)
        self.order_K = select.rank(self._log_value_K, _tie_keys(context, candidates))
        if len(catalogue.currencies) > 1:
            named = [_place(context.request.currencies, currency) for currency in catalogue.currencies]
            is_api_ad_K = np.arange(len(self.rows_K)) >= candidates.first_api_ad
            self.order_K = select.by_currency(self.order_K, is_api_ad_K, np.array(named)[self.currency_K])
        self.rows = self.rows_K.tolist()
        self.campaign_rows: list[int] = campaign_K.tolist()
        self.prices = self.price_K.tolist()
        self.reserved = self.prices
        if self.pacing is not None and not context.request.is_own_auction:
            columns = catalogue.columns
            is_price_K = columns.pays_for_impression_C[campaign_K] | columns.has_goal_C[campaign_K]
            self.reserved = np.where(is_price_K, self.price_K, self.worth_K).tolist()
        if context.request.is_test:  # a test is neither charged nor counted
            self.limited = [False] * len(self.rows)
        elif (
            context.party.bounds
            or context.bidder.logged_verdict is not None
            or not context.bidder.budgets.pays_uncapped
        ):
            self.limited = [True] * len(self.rows)
        else:
            self.limited = catalogue.columns.limited_C[campaign_K].tolist()

    @property
    def unpaced_K(self) -> select.Ints:
        """[K] prices at a multiplier of 1."""
        return self.worth_K if self.most_K is None else np.minimum(self.worth_K, self.most_K)

    def event_nanos(self, positions: Sequence[int]) -> select.Ints:
        """Bids of candidates for the event that their campaigns pay for, paced, at least 1.

        With a goal it is as much below the campaign's bid as the price is below the highest one.
        """
        catalogue = self._catalogue
        campaign_N = catalogue.campaign_A[self.rows_K[positions]]
        bid_nanos_N = catalogue.columns.bid_nanos_C[campaign_N]
        if self.pacing is None:
            return bid_nanos_N
        multiplier_N = self.pacing.multiplier_K[positions]
        if self.most_K is not None:
            share_N = self.price_K[positions] / np.maximum(self.most_K[positions], 1)
            multiplier_N = np.where(catalogue.columns.has_goal_C[campaign_N], np.minimum(share_N, 1.0), multiplier_N)
        return np.maximum(paced_nanos(bid_nanos_N, multiplier_N), 1)

    def loses_by_pacing(self, ranked_R: select.Ints, winner: int) -> Bools | None:
        """[R] whether a candidate would outrank the winner without pacing; None if none has a plan or goal."""
        if self.pacing is None:
            return None
        is_paced_R: Bools = self._log_worth_K[ranked_R] > self._log_value_K[winner]
        is_paced_R &= self.currency_K[ranked_R] == self.currency_K[winner]
        return is_paced_R

    @cached_property
    def _log_worth_K(self) -> NDArray[np.float64]:
        return select.log_values(self.score_K, self.unpaced_K)


def _tie_keys(context: RequestContext, candidates: Candidates) -> Callable[[select.Ints], NDArray[np.uint64]] | None:
    """The order of equal candidates, from their positions; None if they keep that of the source."""
    if context.bidder.has_old_rules:
        return None
    ad_ids = candidates.ad_ids
    return lambda positions: tie_keys(context.request_id, [ad_ids[k] for k in positions.tolist()])


def _place(currencies: Sequence[str], currency: str) -> int:
    """The place of a currency in the request's list, behind all for one that it lacks."""
    return currencies.index(currency) if currency in currencies else len(currencies)


def _most_nanos(context: RequestContext, candidates: Candidates, campaign_K: select.Ints) -> select.Ints | None:
    """[K] the highest price of each candidate, for those with a goal; None if none has one."""
    market = context.market
    has_goal_K = market.catalogue.columns.has_goal_C[campaign_K]
    if market.most_nanos_A is None or not has_goal_K.any():
        return None
    return np.where(has_goal_K, market.most_nanos_A[candidates.rows_K], np.iinfo(np.int64).max)


def _pacing(context: RequestContext, campaign_K: select.Ints) -> RequestPacing | None:
    rates = context.market.pacing
    if rates is None or not rates.is_paced_C[campaign_K].any():
        return None
    return RequestPacing(rates, campaign_K, context.bidder.draws, context.request_id)
