"""Explanation of a request for people: its log record with the names, prices and values of the candidates.

Names come from the current catalogue, so the log need not hold them. The log holds the prices of bids alone; the price
of any other candidate is computed again, from the current campaigns and event rates (``prices_as_of``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from leadre.errors import InputError
from leadre.serve.bidding.record import request_of
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import RequestRecord
from leadre.types import Bid, Candidate, Request, Verdict
from leadre.units import NANOS_PER_CPM, US_PER_S

UNITS = {
    "p": "probability of the ad by its source",
    "price_nanos": "price of one impression, in billionths of the currency: the expected value to the advertiser",
    "price_cpm": "the same price for 1,000 impressions, in the currency, as in a bid",
    "value_nanos": "p x price_nanos, by which candidates are ranked",
    "undecided_rules": "rules that the ad passes only because it has no category or language that could be compared",
    "failed_rules": "rules that an ineligible ad fails by campaigns and ads of now, at the time of the request",
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
    undecided_rules: list[str]  # rules that the ad passed as its category or language is unknown
    failed_rules: list[str]  # of an ineligible candidate: rules that it fails in the catalogue of now


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
    request = _request(record)
    for position, candidate in enumerate(record.candidates):
        row = catalogue.row_of_ad.get(candidate.ad_id)
        price_nanos = None if row is None else int(expected_nanos_A[row])
        verdicts = {imp_id: row_K[position] for imp_id, row_K in record.verdicts.items()}
        passed = [] if request is None else catalogue.undecided_rules(request, candidate.ad_id)
        failed = [] if request is None else _failed_rules(request, candidate.ad_id, verdicts, catalogue, record.at_us)
        price = paid.get(candidate.ad_id, price_nanos)
        candidates.append(_candidate(candidate, catalogue, price, verdicts, passed, failed))
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


def of_account(explanation: Explanation, advertiser_id: str) -> Explanation | None:
    """The part of an explanation that an account may see: its own candidates and bids, and nothing of user and request.

    None if no candidate is the account's: to it the request is unknown.
    """
    candidates = [candidate for candidate in explanation.candidates if candidate.advertiser_id == advertiser_id]
    if not candidates:
        return None
    return replace(
        explanation,
        user_id="",
        candidates=candidates,
        bids=[bid for bid in explanation.bids if bid.advertiser_id == advertiser_id],
        request={},
    )


def _request(record: RequestRecord) -> Request | None:
    """The request of a record; None for a record of an older release that lacks it."""
    try:
        return request_of(record)
    except (InputError, msgspec.ValidationError):
        return None


def _failed_rules(
    request: Request, ad_id: str, verdicts: Mapping[str, Verdict], catalogue: CatalogueSnapshot, at_us: int
) -> list[str]:
    """The rules that an ad fails in the imps for which it was ineligible, each once.

    The log lacks the segments of profiles, so the rule on segments is left out.
    """
    imps = [imp for imp in request.imps if verdicts.get(imp.imp_id) is Verdict.INELIGIBLE]
    rules = [rule for imp in imps for rule in catalogue.why_not(request, imp, ad_id, at_us, request.segments)]
    return [rule for rule in dict.fromkeys(rules) if not rule.startswith("segment:")]


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
    candidate: Candidate,
    catalogue: CatalogueSnapshot,
    price_nanos: int | None,
    verdicts: dict[str, Verdict],
    undecided_rules: list[str],
    failed_rules: list[str],
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
        undecided_rules=undecided_rules,
        failed_rules=failed_rules,
    )
