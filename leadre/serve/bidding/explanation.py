"""Explanation of a request for people: its log record with the names, prices and values of the candidates.

Names come from the current catalogue, so the log need not hold them. The log holds the prices of bids alone; the price
of any other candidate is computed again, from the current campaigns and event rates (``prices_as_of``), and all are
ranked by the class that ranked them for the bid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from leadre.errors import InputError
from leadre.serve.bidding.logged_ranking import LoggedRanking, logged_ranking
from leadre.serve.bidding.record import request_of
from leadre.serve.bidding.value import AdPrices
from leadre.serve.catalogue.columns import PAYS_FOR, valued_at
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import PacedCampaign, RequestRecord
from leadre.types import Bid, Campaign, Request, Verdict
from leadre.units import NANOS_PER_CPM, US_PER_S

MAX_EXPONENT = 700.0  # a float holds its exponential
RANKER, COUNTS = "ranker", "counts"  # sources of rates
UNITS = {
    "p": "probability of the ad by its source",
    "worth_nanos": "expected value of one impression to the advertiser, in billionths of the currency",
    "multiplier": "of pacing and goal: worth x multiplier is the bid; 1 without a plan or goal",
    "goal": "the multiplier is correction x (1 + return_dual) / (budget_dual + return_dual). correction: actions of"
    " impressions shown over predicted ones; return_dual falls while the campaign pays less for actions than its"
    " target; budget_dual is 0 while no budget binds. The bid is at most most_nanos",
    "participate": "of pacing: probability with which the campaign took part in the request; 1 without a plan",
    "price_nanos": "price of one impression, in billionths of the currency. Of a candidate: worth x multiplier, at most"
    " goal.most_nanos; 0 if the campaign took no part. Of a bid: the offer, by shading or the bidder's mechanism lower",
    "ranked_nanos": "the price of a bid's candidate, which ranked it; null in logs up to November 2026",
    "action_nanos": "charge of the click or conversion that the campaign pays for; null if it pays for impressions",
    "price_propensity": "of a shaded price: its probability, or the density of a price that exploration drew",
    "price_cpm": "the same price for 1,000 impressions, in the currency, as in a bid",
    "fit": "how well the ad fits the user: p, or with a ranker its rate over the mean rate of the candidates;"
    " 1 where the price contains the rate",
    "value_nanos": "fit x price_nanos, by which candidates are ranked (with --squashing, by fit x bid of the event x"
    " rate to its power); the request draws the order of equal ones",
    "rate": "probability of rate_event: that of the ranker for the user, calibrated, or the observed one of the ad",
    "rate_uncalibrated": "the ranker's probability before its calibration",
    "rate_source": "`ranker`, or `counts`: the ad has no rate of the ranker",
    "slice": "`seen` or `new`: whether the object was in the user's history, as the calibration distinguishes",
    "undecided_rules": "rules that the ad passes only because it has no category or language that could be compared",
    "failed_rules": "rules that an ineligible ad fails by campaigns and ads of now, at the time of the request",
    "verdicts": "imp -> `bid`, or the reason against a bid",
    "propensity": "probability with which this ad was selected",
    "prices_as_of": "`bid`: all prices are those of the request; `now`: campaigns or event rates have changed since",
}


@dataclass(frozen=True, kw_only=True)
class ExplainedGoal:
    """The goal of a candidate's campaign, and the parts of its multiplier. ``target_nanos``: worth of one action."""

    kind: str
    target_nanos: int
    correction: float
    return_dual: float
    budget_dual: float
    most_nanos: int | None


@dataclass(frozen=True, kw_only=True)
class ExplainedCandidate:
    """A candidate. Names are "" and prices None for an ad that the catalogue lacks.

    An account gets None for all that depends on a known user (`leadre.serve.bidding.account_explanation`).
    """

    ad_id: str
    title: str
    campaign_id: str
    campaign: str
    advertiser_id: str
    source: str
    p: float | None
    fit: float | None
    rate: float | None
    rate_uncalibrated: float | None
    rate_event: str
    rate_source: str
    slice: str
    worth_nanos: int | None
    multiplier: float
    participate: float
    goal: ExplainedGoal | None
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
    price_nanos: int | None
    price_cpm: float | None
    currency: str
    ranked_nanos: int | None
    action_nanos: int | None
    price_propensity: float | None
    size: tuple[int, int]
    source: str
    propensity: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A request, its bids or the reason for none, and its logged candidates in the order of their rank.

    ``request_id`` is the bidder's own, ``caller_request_id`` the caller's. ``user_id`` is "" if it is unknown, may not
    be stored, or was erased; ``has_user``: a list or profile of the user was looked up. ``placements``: imp -> the
    publisher's name for it. ``request``: the fields that decided.
    """

    request_id: str
    caller_request_id: str
    at_us: int
    at: str  # the same, ISO 8601
    user_id: str
    has_user: bool
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
    record: RequestRecord,
    catalogue: CatalogueSnapshot,
    expected_nanos_A: NDArray[np.int64],
    log_position: int,
    most_nanos_A: NDArray[np.int64] | None = None,
) -> Explanation:
    """Explain a record. ``expected_nanos_A`` and ``most_nanos_A``: as in `Market`, from the event counts up to
    ``log_position``.
    """
    then = (record.versions.get("book"), record.versions.get("counts"))
    request = _request(record)
    logged = logged_ranking(record, request, catalogue, AdPrices(expected_nanos_A, most_nanos_A))
    return Explanation(
        request_id=record.request_id,
        caller_request_id=record.caller_request_id,
        at_us=record.at_us,
        at=datetime.fromtimestamp(record.at_us / US_PER_S, UTC).isoformat(timespec="milliseconds"),
        user_id=record.user_id,
        has_user=record.is_known,
        is_test=record.is_test,
        no_bid_reason=record.reason,
        bids=[_bid(bid, catalogue) for bid in record.bids],
        candidates=[_candidate(record, request, catalogue, logged, position) for position in logged.order],
        placements=record.placements,
        prices_as_of="bid" if then == (str(catalogue.version), str(log_position)) else "now",
        is_degraded=record.is_degraded,
        is_cut=record.is_cut,
        versions=record.versions,
        request=record.request,
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
        ranked_nanos=bid.ranked_nanos or None,
        action_nanos=bid.action_nanos or None,
        price_propensity=bid.price_propensity or None,
        size=bid.size,
        source=bid.source,
        propensity=bid.propensity,
    )


@dataclass(frozen=True, kw_only=True)
class _Rate:
    """The rate of a candidate, and how well it fits the user."""

    fit: float
    rate: float | None = None
    uncalibrated: float | None = None
    event: str = ""
    source: str = ""
    slice: str = ""


def _rate(record: RequestRecord, logged: LoggedRanking, position: int, campaign: Campaign | None) -> _Rate:
    """The rate of a candidate: that of the ranker if it has scored the ad, else that of its counts now."""
    ranked = record.ranked
    fit = math.exp(record.candidates[position].log_p if ranked is None else ranked.log_fit[position])
    p = record.scores[position] if record.scores else None
    if ranked is not None and p is not None:
        log_odds = ranked.log_odds[position]
        return _Rate(
            fit=fit,
            rate=p,
            uncalibrated=None if log_odds is None else 1 / (1 + math.exp(min(-log_odds, MAX_EXPONENT))),
            event=ranked.event,
            source=RANKER,
            slice="new" if ranked.is_new[position] else "seen",
        )
    k = logged.k_of.get(position)
    counted = None if k is None else logged.counted_rate(k)
    if campaign is None or counted is None:
        return _Rate(fit=fit)
    return _Rate(fit=fit, rate=counted.p, event=PAYS_FOR[valued_at(campaign)], source=COUNTS)


def _goal(campaign: Campaign, paced: PacedCampaign | None, most_nanos: int | None) -> ExplainedGoal | None:
    if paced is None or paced.goal is None:
        return None
    return ExplainedGoal(
        kind=campaign.goal.kind,
        target_nanos=campaign.goal.worth_nanos,
        most_nanos=most_nanos,
        **paced.goal._asdict(),
    )


def _candidate(
    record: RequestRecord,
    request: Request | None,
    catalogue: CatalogueSnapshot,
    logged: LoggedRanking,
    position: int,
) -> ExplainedCandidate:
    candidate = record.candidates[position]
    row = catalogue.row_of_ad.get(candidate.ad_id)
    ad = None if row is None else catalogue.ads[row]
    campaign = None if row is None else catalogue.campaigns[catalogue.campaign_A[row]]
    paced = next((paced for paced in record.paced if campaign and paced.campaign_id == campaign.campaign_id), None)
    verdicts = {imp_id: row_K[position] for imp_id, row_K in record.verdicts.items()}
    rate = _rate(record, logged, position, campaign)
    price = logged.price(position)
    return ExplainedCandidate(
        ad_id=candidate.ad_id,
        title=ad.title if ad else "",
        campaign_id=ad.campaign_id if ad else "",
        campaign=campaign.name if campaign else "",
        advertiser_id=ad.advertiser_id if ad else "",
        source=candidate.source,
        p=math.exp(candidate.log_p),
        fit=rate.fit,
        rate=rate.rate,
        rate_uncalibrated=rate.uncalibrated,
        rate_event=rate.event,
        rate_source=rate.source,
        slice=rate.slice,
        worth_nanos=price.worth_nanos,
        multiplier=paced.multiplier if paced else 1.0,
        participate=paced.participate if paced else 1.0,
        goal=_goal(campaign, paced, price.most_nanos) if campaign else None,
        price_nanos=price.nanos,
        price_cpm=None if price.nanos is None else price.nanos / NANOS_PER_CPM,
        currency=campaign.currency if campaign else "",
        value_nanos=None if price.nanos is None else rate.fit * price.nanos,
        verdicts=verdicts,
        undecided_rules=[] if request is None else catalogue.undecided_rules(request, candidate.ad_id),
        failed_rules=[]
        if request is None
        else _failed_rules(request, candidate.ad_id, verdicts, catalogue, record.at_us),
    )
