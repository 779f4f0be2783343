"""The part of an explanation that an account may see."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from leadre.serve.bidding.explanation import RANKER, ExplainedBid, ExplainedCandidate, Explanation


@dataclass(frozen=True, kw_only=True)
class AccountExplanation:
    """The fields of an `Explanation` that an account may see, with its own bids and candidates."""

    request_id: str
    caller_request_id: str
    at_us: int
    at: str
    is_test: bool
    no_bid_reason: str
    bids: list[ExplainedBid]
    candidates: list[ExplainedCandidate]
    prices_as_of: Literal["bid", "now"]
    is_degraded: bool
    units: dict[str, str]


def of_account(explanation: Explanation, advertiser_id: str) -> AccountExplanation | None:
    """The part of an explanation that an account may see: its own candidates and bids, and nothing of user and request.

    None if no candidate is the account's: to it the request is unknown. Probabilities of a known user are left out, and
    prices that contain one: an account that knows the caller's request would learn what the user has bought.
    Versions are left out, as they have the time and number of the user's events, and so are names of placements.
    """
    candidates = [candidate for candidate in explanation.candidates if candidate.advertiser_id == advertiser_id]
    if not candidates:
        return None
    bids = [bid for bid in explanation.bids if bid.advertiser_id == advertiser_id]
    if explanation.has_user:
        priced = {candidate.ad_id for candidate in candidates if candidate.rate_source == RANKER}
        candidates = [_impersonal(candidate) for candidate in candidates]
        bids = [_without_prices(bid) if bid.ad_id in priced or _has_fit(bid) else bid for bid in bids]
    shown = {field.name: getattr(explanation, field.name) for field in fields(AccountExplanation)}
    return AccountExplanation(**shown | {"bids": bids, "candidates": candidates})


def _has_fit(bid: ExplainedBid) -> bool:
    """Whether the price has the fits of ads in it: the bidder's mechanism sets it by them, and shading does not."""
    return bid.price_nanos != bid.ranked_nanos and bid.price_propensity is None


def _without_prices(bid: ExplainedBid) -> ExplainedBid:
    return replace(bid, price_nanos=None, price_cpm=None, ranked_nanos=None, action_nanos=None, price_propensity=None)


def _impersonal(candidate: ExplainedCandidate) -> ExplainedCandidate:
    """The candidate without probabilities of the user, and without a price that contains one."""
    is_priced = candidate.rate_source == RANKER
    return replace(
        candidate,
        p=None,
        fit=None,
        value_nanos=None,
        rate=None if is_priced else candidate.rate,
        rate_uncalibrated=None,
        slice="",
        worth_nanos=None if is_priced else candidate.worth_nanos,
        price_nanos=None if is_priced else candidate.price_nanos,
        price_cpm=None if is_priced else candidate.price_cpm,
    )
