"""Explanation of a request for people: its log record with the names, prices and values of the candidates.

Names come from the current catalogue, so the log need not hold them. The log holds the prices of bids alone; the price
of any other candidate is computed again, from the current campaigns and event rates (``prices_as_of``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import RequestRecord
from leadre.types import Bid, Candidate, Verdict
from leadre.units import NANOS_PER_CPM, US_PER_S

UNITS = {
    "p": "probability of the ad by its source",
    "price_nanos": "price of one impression, in billionths of the currency: the expected value to the advertiser",
    "price_cpm": "the same price for 1,000 impressions, in the currency, as in a bid",
    "value_nanos": "p x price_nanos, by which candidates are ranked",
    "verdicts": "imp -> `bid`, or the reason against a bid",
    "propensity": "probability with which this ad was selected",
    "prices_as_of": "`bid`: all prices are those of the request; `now`: campaigns or event rates have changed since",
}


@dataclass(frozen=True, kw_only=True)
class ExplainedCandidate:
    """A candidate. Names are "" and prices None for an ad that the catalogue lacks."""

    ad_id: str
    title: str
    campaign_id: str
    campaign: str
    advertiser_id: str
    source: str
    p: float
    price_nanos: int | None
    price_cpm: float | None
    currency: str
    value_nanos: float | None
    verdicts: dict[str, Verdict]  # imp -> verdict


@dataclass(frozen=True, kw_only=True)
class ExplainedBid:
    """A bid of the response."""

    imp_id: str
    bid_id: str
    ad_id: str
    title: str
    campaign_id: str
    advertiser_id: str
    price_nanos: int
    price_cpm: float
    currency: str
    size: tuple[int, int]
    source: str
    propensity: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A request, its bids or the reason for none, and its logged candidates by descending value.

    ``request_id`` is the bidder's own, ``caller_request_id`` the caller's. ``user_id`` is "" if it is unknown, may not
    be stored, or was erased. ``placements``: imp -> the publisher's name for it. ``request``: the fields that decided.
    """

    request_id: str
    caller_request_id: str
    at_us: int
    at: str  # the same, ISO 8601
    user_id: str
    is_test: bool
    no_bid_reason: str
    bids: list[ExplainedBid]
    candidates: list[ExplainedCandidate]
    placements: dict[str, str]
    prices_as_of: Literal["bid", "now"]
    is_degraded: bool
    is_cut: bool
    versions: dict[str, str]
    request: dict[str, Any]
    units: dict[str, str] = field(default_factory=lambda: UNITS)


def explain(
    record: RequestRecord, catalogue: CatalogueSnapshot, expected_nanos_A: NDArray[np.int64], log_position: int
) -> Explanation:
    """Explain a record. ``expected_nanos_A``: the price of each ad from the event counts up to ``log_position``."""
    then = (record.versions.get("book"), record.versions.get("counts"))
    bids = [_bid(bid, catalogue) for bid in record.bids]
    paid = {bid.ad_id: bid.price_nanos for bid in record.bids}
    candidates = []
    for position, candidate in enumerate(record.candidates):
        row = catalogue.row_of_ad.get(candidate.ad_id)
        price_nanos = None if row is None else int(expected_nanos_A[row])
        verdicts = {imp_id: row_K[position] for imp_id, row_K in record.verdicts.items()}
        candidates.append(_candidate(candidate, catalogue, paid.get(candidate.ad_id, price_nanos), verdicts))
    candidates.sort(key=lambda candidate: -(candidate.value_nanos or 0.0))  # stable: ties in the order of the source
    return Explanation(
        request_id=record.request_id,
        caller_request_id=record.caller_request_id,
        at_us=record.at_us,
        at=datetime.fromtimestamp(record.at_us / US_PER_S, UTC).isoformat(timespec="milliseconds"),
        user_id=record.user_id,
        is_test=record.is_test,
        no_bid_reason=record.reason,
        bids=bids,
        candidates=candidates,
        placements=record.placements,
        prices_as_of="bid" if then == (str(catalogue.version), str(log_position)) else "now",
        is_degraded=record.is_degraded,
        is_cut=record.is_cut,
        versions=record.versions,
        request=record.request,
    )


def _bid(bid: Bid, catalogue: CatalogueSnapshot) -> ExplainedBid:
    row = catalogue.row_of_ad.get(bid.ad_id)
    return ExplainedBid(
        imp_id=bid.imp_id,
        bid_id=bid.bid_id,
        ad_id=bid.ad_id,
        title="" if row is None else catalogue.ads[row].title,
        campaign_id=bid.campaign_id,
        advertiser_id=bid.advertiser_id,
        price_nanos=bid.price_nanos,
        price_cpm=bid.price_nanos / NANOS_PER_CPM,
        currency=bid.currency,
        size=bid.size,
        source=bid.source,
        propensity=bid.propensity,
    )


def _candidate(
    candidate: Candidate, catalogue: CatalogueSnapshot, price_nanos: int | None, verdicts: dict[str, Verdict]
) -> ExplainedCandidate:
    row = catalogue.row_of_ad.get(candidate.ad_id)
    ad = None if row is None else catalogue.ads[row]
    campaign = None if row is None else catalogue.campaigns[catalogue.campaign_A[row]]
    p = math.exp(candidate.log_p)
    return ExplainedCandidate(
        ad_id=candidate.ad_id,
        title=ad.title if ad else "",
        campaign_id=ad.campaign_id if ad else "",
        campaign=campaign.name if campaign else "",
        advertiser_id=ad.advertiser_id if ad else "",
        source=candidate.source,
        p=p,
        price_nanos=price_nanos,
        price_cpm=None if price_nanos is None else price_nanos / NANOS_PER_CPM,
        currency=campaign.currency if campaign else "",
        value_nanos=None if price_nanos is None else p * price_nanos,
        verdicts=verdicts,
    )
