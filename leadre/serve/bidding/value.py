"""Expected value of one impression of an ad to its advertiser: the campaign's bid x the rate of the event it pays for,
or the target of its goal x the rate of the action that it aims at.

The rate is a ranker's, for the user of the request, or else the ad's observed one; `leadre.data.bids` has its
smoothing. Scores of the generator rank ads; they are no probabilities of an event and have no part in it.

Letters: A ads, C campaigns, E kinds of event, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.data import bids
from leadre.serve.catalogue.columns import Bools, CatalogueColumns, Ints, valued_at, worth_nanos
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.rankers.rates import Rates
from leadre.types import BidType, Campaign

Floats = NDArray[np.float64]
EVENTS: Mapping[str, Literal["click", "conv"]] = {"click": "click", "conversion": "conv"}  # by action
NO_LOG_P = -1e5  # below it, a source has no probability: `api_ads` ranks its ads last
MIN_P = 1e-9  # of a rate, so that its logarithm is finite
Counts = Mapping[str, tuple[int, int, int]]  # ad -> impressions, clicks, conversions


class AdPrices(NamedTuple):
    """Nanos of one impression of each ad, as in `Market`."""

    expected_nanos_A: Ints
    most_nanos_A: Ints | None


def ad_prices(catalogue: CatalogueSnapshot, counts: Counts) -> AdPrices:
    """The expected value of one impression of each ad, by its goal or its bid, which it is itself for CPM; and the
    highest price, at the campaign's bid, if any campaign has a goal.
    """
    counts_AE = np.zeros((len(catalogue.ads), len(bids.ACTIONS)))
    for ad_id, counts_E in counts.items():  # mostly of few ads
        row = catalogue.row_of_ad.get(ad_id)
        if row is not None:
            counts_AE[row] = counts_E

    def nanos(bid_type_of: Callable[[Campaign], BidType], nanos_of: Callable[[Campaign], int]) -> Ints:
        bid_type_C = np.array([bid_type_of(campaign) for campaign in catalogue.campaigns])
        nanos_C = np.array([nanos_of(campaign) for campaign in catalogue.campaigns], np.int64)
        return bids.expected_nanos(bid_type_C[catalogue.campaign_A], nanos_C[catalogue.campaign_A], counts_AE)

    has_goals = any(campaign.has_goal for campaign in catalogue.campaigns)
    most_nanos_A = nanos(attrgetter("bid_type"), attrgetter("bid_nanos")) if has_goals else None
    return AdPrices(nanos(valued_at, worth_nanos), most_nanos_A)


@dataclass(frozen=True, eq=False)
class Values:
    """Price and fit of each candidate, [K]; their product ranks the candidates.

    ``log_fit_K``: logarithm of how well an ad fits the user: the log-probability of the source, or with a ranker the
    rate over the mean rate of the candidates. 0 where the price contains the user's rate already (``is_ranked_K``).
    """

    price_nanos_K: Ints
    log_fit_K: Floats
    is_ranked_K: Bools


def values(
    catalogue: CatalogueSnapshot, rows_K: Ints, log_p_K: Floats, counted_nanos_K: Ints, rates: Rates | None
) -> Values:
    """Values of candidates from the log-probabilities of their source, the prices of their counts, and a ranker.

    A rate prices the bids that pay for its event or aim at it, and is the fit of the others. The fit of an ad without a
    rate is the probability of its source. Each fit is relative to the mean of its kind, so that all ads compete on one
    scale.
    """
    is_ranked_K = np.zeros(len(rows_K), np.bool_)
    if rates is None or not (has_rate_K := np.isfinite(rates.p_K)).any():
        return Values(counted_nanos_K, log_p_K, is_ranked_K)
    log_fit_K = log_p_K - _log_mean(log_p_K[log_p_K > NO_LOG_P])
    log_fit_K[has_rate_K] = np.log(np.maximum(rates.p_K[has_rate_K], MIN_P))
    log_fit_K[has_rate_K] -= _log_mean(log_fit_K[has_rate_K])
    if not rates.is_price:
        return Values(counted_nanos_K, log_fit_K, is_ranked_K)
    columns = catalogue.columns
    campaign_K = catalogue.campaign_A[rows_K]
    is_ranked_K = has_rate_K & (columns.valued_C[campaign_K] == rates.event)
    ranked_nanos_K = bids.nanos(columns.worth_nanos_C[campaign_K], np.where(is_ranked_K, rates.p_K, 0.0))
    log_fit_K[is_ranked_K] = 0.0
    return Values(np.where(is_ranked_K, ranked_nanos_K, counted_nanos_K), log_fit_K, is_ranked_K)


class BidRate(NamedTuple):
    """The probability of an event for one impression, as a bid assumes it, and the slice that it is compared in."""

    p: float
    event: Literal["click", "conv"]
    slice: str


def bid_rate(
    columns: CatalogueColumns, campaign_row: int, k: int, values: Values, rates: Rates | None
) -> BidRate | None:
    """The rate of candidate ``k``: the ranker's if it is one of an impression, else that of its counts.

    None if neither is: a bid for impressions without a ranker.
    """
    pays_for = str(columns.valued_C[campaign_row])
    has_rate = rates is not None and rates.is_price and math.isfinite(rates.p_K[k])
    if rates is not None and has_rate and (values.is_ranked_K[k] or pays_for not in EVENTS) and rates.event in EVENTS:
        return BidRate(float(rates.p_K[k]), EVENTS[rates.event], "new" if rates.is_new_K[k] else "seen")
    if pays_for not in EVENTS:
        return None
    p = int(values.price_nanos_K[k]) / max(int(columns.worth_nanos_C[campaign_row]), 1)
    return BidRate(p, EVENTS[pays_for], "counts")


def _log_mean(log_N: Floats) -> float:
    """Logarithm of the mean of exp(log_N), 0 without any."""
    if not len(log_N):
        return 0.0
    largest = float(log_N.max())
    return largest + math.log(float(np.exp(log_N - largest).mean()))
