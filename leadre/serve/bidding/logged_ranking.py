"""The ranking of a logged request, made again by the class that ranked it.

The log has fit, multipliers and the prices of bids; the value of any other candidate is computed from the campaigns and
event rates of now. Letters: K candidates that the catalogue has, in the order of their source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.serve.bidding.context import Candidates
from leadre.serve.bidding.ranked_candidates import PacedBids, Ranking, most_nanos, ties
from leadre.serve.bidding.value import NO_LOG_P, AdPrices, BidRate, Values, bid_rate, values
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import RequestRecord
from leadre.serve.rankers.rates import Rates
from leadre.types import Bid, Request


class LoggedPrice(NamedTuple):
    """Worth of a candidate, the price that ranked it, and the highest price of one with a goal; None if unknown."""

    worth_nanos: int | None = None
    nanos: int | None = None
    most_nanos: int | None = None


class LoggedRanking:
    """A ranking. ``order``: positions of the candidates in the record by descending value; ads that the catalogue lacks
    are last, those with a bid before the others. ``k_of``: position in the record -> in the ranking.
    """

    def __init__(
        self,
        record: RequestRecord,
        catalogue: CatalogueSnapshot,
        ranking: Ranking,
        values_now: Values,
        position_K: Sequence[int],
    ) -> None:
        self._columns = catalogue.columns
        self._ranking = ranking
        self._values_now = values_now
        self._bids = {
            position: bid
            for position, candidate in enumerate(record.candidates)
            for bid in record.bids
            if bid.ad_id == candidate.ad_id
        }
        self.k_of = {position: k for k, position in enumerate(position_K)}
        unknown = [position for position in range(len(record.candidates)) if position not in self.k_of]
        unknown.sort(key=lambda position: position not in self._bids)
        self.order = [*(position_K[k] for k in ranking.order_K.tolist()), *unknown]

    def price(self, position: int) -> LoggedPrice:
        """The price of a candidate."""
        k = self.k_of.get(position)
        if k is not None:
            most_K = self._ranking.most_K
            return LoggedPrice(
                int(self._ranking.worth_K[k]), self._ranking.prices[k], None if most_K is None else int(most_K[k])
            )
        bid = self._bids.get(position)
        if bid is None:
            return LoggedPrice()
        return LoggedPrice(bid.worth_nanos or bid.price_nanos, bid.ranked_nanos or bid.price_nanos)

    def counted_rate(self, k: int) -> BidRate | None:
        """The rate of the event that a candidate is valued by, from the counts of now; None for impressions."""
        return bid_rate(self._columns, self._ranking.campaign_rows[k], k, self._values_now, None)


def logged_ranking(
    record: RequestRecord, request: Request | None, catalogue: CatalogueSnapshot, prices: AdPrices
) -> LoggedRanking:
    """The ranking of the candidates of a record that the catalogue has.

    ``request``: None for a record of an older release that lacks it. An older record without the ranked price of a bid
    has its value.
    """
    rows = [catalogue.row_of_ad.get(candidate.ad_id) for candidate in record.candidates]
    position_K = [position for position, row in enumerate(rows) if row is not None]
    rows_K = np.array([row for row in rows if row is not None], np.int64)
    logged_K = [record.candidates[position] for position in position_K]
    log_p_K = np.array([candidate.log_p for candidate in logged_K], np.float64)
    candidates = Candidates(
        source=logged_K[0].source if logged_K else "contextual",
        ad_ids=[candidate.ad_id for candidate in logged_K],
        rows_K=rows_K,
        log_p_K=log_p_K,
        api_ads=int((log_p_K <= NO_LOG_P).sum()),
    )
    rates = _rates(record, position_K)
    values_now = values(catalogue, rows_K, log_p_K, prices.expected_nanos_A[rows_K], rates)
    bids = {k: bid for bid in record.bids for k, ad_id in enumerate(candidates.ad_ids) if ad_id == bid.ad_id}
    ranking = Ranking(
        catalogue,
        candidates,
        _logged_values(record, position_K, log_p_K, values_now, bids),
        _paced(record, catalogue, most_nanos(catalogue, prices.most_nanos_A, rows_K), rows_K),
        rates,
        currencies=request.currencies if request else (),
        ties=ties(record.request_id, candidates.ad_ids),
        squashing=record.squashing,
        logged_nanos={k: bid.ranked_nanos for k, bid in bids.items() if bid.ranked_nanos},
    )
    return LoggedRanking(record, catalogue, ranking, values_now, position_K)


def _rates(record: RequestRecord, position_K: list[int]) -> Rates | None:
    """The ranker's rates; None if it had none."""
    if record.ranked is None or not record.scores:
        return None

    def numbers(logged: tuple[float | None, ...]) -> NDArray[np.float64]:
        return np.array([math.nan if (x := logged[position]) is None else x for position in position_K], np.float64)

    return Rates(
        version=record.versions.get("ranker", ""),
        event=record.ranked.event,
        is_price=record.ranked.is_price,
        p_K=numbers(record.scores),
        log_odds_K=numbers(record.ranked.log_odds),
        is_new_K=np.array([record.ranked.is_new[position] for position in position_K], np.bool_),
    )


def _logged_values(
    record: RequestRecord,
    position_K: list[int],
    log_p_K: NDArray[np.float64],
    values_now: Values,
    bids: dict[int, Bid],
) -> Values:
    """The values, with the fit of the log, which compared all candidates of the request, and the worth of bids."""
    price_nanos_K = values_now.price_nanos_K.copy()
    for k, bid in bids.items():
        price_nanos_K[k] = bid.worth_nanos or bid.price_nanos
    log_fit_K = log_p_K
    if record.ranked is not None:
        log_fit_K = np.array([record.ranked.log_fit[position] for position in position_K], np.float64)
    return Values(price_nanos_K, log_fit_K, values_now.is_ranked_K)


def _paced(
    record: RequestRecord, catalogue: CatalogueSnapshot, most_K: NDArray[np.int64] | None, rows_K: NDArray[np.int64]
) -> PacedBids:
    """The multipliers of the log; 1 for a campaign that it does not name, as it passed the filter of no imp."""
    if not record.paced:
        return PacedBids()
    multiplier_C = np.ones(len(catalogue.campaigns))
    for paced in record.paced:
        row = catalogue.row_of_campaign.get(paced.campaign_id)
        if row is not None:
            is_absent = paced.is_absent or not paced.participate
            multiplier_C[row] = 0.0 if is_absent else paced.multiplier
    return PacedBids(multiplier_C[catalogue.campaign_A[rows_K]], most_K)
