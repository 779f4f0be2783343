"""The pacing step of a bid decision: prices, verdicts, reservations, draws and the record."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from leadre.auction.pacing.contract import Rate
from leadre.serve.bidding.explanation import explain
from leadre.serve.bidding.pace import campaign_rates, paced_nanos
from leadre.serve.events.records import PacedCampaign
from leadre.serve.protocol.openrtb import NoBid
from leadre.types import Verdict

from ..alone import IMP, Alone, banner_request, chosen, verdicts
from .test_respond import offer

PLAN = {"daily_nanos": 10**12, "plan": "even"}


@pytest.fixture
def alone(tmp_path):
    with Alone(tmp_path / "state") as alone:
        yield alone


def pace(alone, **rates):
    """Let the campaigns of ads bid at (participate, multiplier), with leases."""
    rates = {f"c-{name}": Rate(*rate) for name, rate in rates.items()}
    for unpaced in (dict.fromkeys(rates, Rate()), rates):  # unpaced, the worker leases money for each
        market = alone.bidder.market
        alone.bidder.market = dataclasses.replace(market, pacing=campaign_rates(market.catalogue, unpaced))
        if unpaced is not rates:
            alone.bid()
            alone.renew()


RIVAL = {"advertiser_id": "rival"}


def lists(alone, *names, terms=None):
    for name in names:
        offer(alone, name, **(terms or {}).get(name, {}))
    alone.put_list("*", *names, log_p=[math.log(0.1)] * len(names))
    alone.renew()


def test_price_is_value_times_multiplier_in_whole_nanos():
    worth_K = np.array([2_000_001, 2**60 + 1, 3, 7])
    prices = paced_nanos(worth_K, np.array([0.5, 1.0, 0.1, 0.0]))
    assert prices.tolist() == [1_000_000, 2**60 + 1, 0, 0]


def test_changed_rates_are_those_of_a_new_reading_and_requests_keep_theirs(alone):
    lists(alone, "a", "b", "free", terms={"a": PLAN, "b": PLAN})
    catalogue = alone.bidder.market.catalogue
    before = campaign_rates(catalogue, {"c-a": Rate(0.5, 1.0), "c-b": Rate(1.0, 0.25)})
    kept = before.participate_C.tolist(), before.multiplier_C.tolist(), list(before.logged_C)
    after = before.changed(catalogue, {"c-b": Rate(1.0, 0.75), "c-free": Rate(0.1, 0.1), "c-unknown": Rate()})
    read = campaign_rates(catalogue, {"c-a": Rate(0.5, 1.0), "c-b": Rate(1.0, 0.75)})
    for rates, expected in (
        (after, (read.participate_C.tolist(), read.multiplier_C.tolist(), read.logged_C)),
        (before, kept),
    ):
        assert (rates.participate_C.tolist(), rates.multiplier_C.tolist(), rates.logged_C) == expected


def test_campaign_without_a_plan_has_no_rates(alone):
    lists(alone, "a", terms={"a": {"daily_nanos": 10**12}})
    assert alone.bidder.market.pacing is None
    decision = alone.bid()
    assert decision.paced == () and chosen(decision) == []  # no lease yet


def test_multiplier_lowers_the_bid_and_its_reservation(alone):
    lists(alone, "a", terms={"a": PLAN})
    pace(alone, a=(1.0, 0.4))
    decision = alone.bid()
    (bid,) = [rendered.bid for rendered in decision.rendered]
    assert (bid.price_nanos, bid.worth_nanos, bid.reserved_nanos) == (800_000, 2_000_000, 800_000)
    assert decision.paced == (PacedCampaign("c-a", 1.0, 0.4, 1),)


def test_bid_for_clicks_reserves_the_click_and_not_the_price(alone):
    """The caller's auction sets no price of a click: the advertiser owes its bid, however cheap the impression was."""
    lists(alone, "a", terms={"a": PLAN | {"bid_type": "cpc", "bid_nanos": 10**9}})
    pace(alone, a=(1.0, 0.5))
    (bid,) = [rendered.bid for rendered in alone.bid().rendered]
    worth = int(alone.bidder.market.expected_nanos_A[0])
    assert (bid.price_nanos, bid.reserved_nanos, bid.action_nanos) == (worth // 2, worth, 10**9)


def test_candidate_below_the_floor_by_pacing_alone_is_paced(alone):
    lists(alone, "a", "b", "c", terms={"a": PLAN, "b": PLAN | {"bid_nanos": 900_000}, "c": PLAN})
    pace(alone, a=(1.0, 0.4), b=(1.0, 0.4), c=(1.0, 1.0))
    decision = alone.bid(imp=[IMP | {"bidfloor": 1.0}])
    assert verdicts(alone, decision) == {"a": Verdict.PACED, "b": Verdict.BELOW_FLOOR, "c": Verdict.BID}
    counted = {paced.campaign_id: paced.eligible for paced in decision.paced}
    assert counted == {"c-a": 1, "c-c": 1}, "an auction whose floor is above the value is none of the campaign"


def test_candidate_that_would_win_without_pacing_is_paced(alone):
    lists(alone, "a", "b", "c", terms={"a": PLAN | {"bid_nanos": 3_000_000}, "c": {"bid_nanos": 1_000_000}})
    pace(alone, a=(1.0, 0.5))
    decision = alone.bid()
    assert verdicts(alone, decision) == {"a": Verdict.PACED, "b": Verdict.BID, "c": Verdict.OUTRANKED}


def test_request_in_which_pacing_drops_all_ads_names_the_reason(alone):
    lists(alone, "a", terms={"a": PLAN})
    pace(alone)
    assert alone.bid().reason is NoBid.PACED, "it waits until its rate is known"
    pace(alone, a=(0.0, 1.0))
    decision = alone.bid()
    assert decision.reason is NoBid.PACED and decision.paced == (PacedCampaign("c-a", 0.0, 1.0, 1, is_absent=True),)


def test_campaign_takes_part_with_its_probability_in_all_imps_or_none(alone):
    lists(alone, "a", "b", terms={"a": PLAN, "b": PLAN})
    pace(alone, a=(0.3, 1.0), b=(0.3, 1.0))
    imps = [IMP, IMP | {"id": "2"}]
    seen = Counter()
    for _ in range(400):
        decision = alone.bid(imp=imps)
        taken = [verdicts(alone, decision, imp) for imp in (0, 1)]
        for name in ("a", "b"):
            assert len({of_imp[name] is Verdict.PACED for of_imp in taken}) == 1
        seen[tuple(taken[0][name] is not Verdict.PACED for name in ("a", "b"))] += 1
    assert 0.2 < (seen[True, True] + seen[True, False]) / 400 < 0.4
    assert seen[True, True] < 80, "campaigns are drawn by themselves"


def test_own_auction_charges_the_paced_bid(alone):
    from leadre.serve.callers.party import RECOMMEND
    from leadre.serve.processes.recommend import RecommendRequest

    lists(alone, "a", terms={"a": PLAN | {"bid_type": "cpc", "bid_nanos": 10**9}})
    pace(alone, a=(1.0, 0.5))
    decision = alone.respond(RecommendRequest(count=1).bid_request("r"), party=RECOMMEND)
    (bid,) = [rendered.bid for rendered in decision.rendered]
    assert bid.action_nanos == 500_000_000
    assert bid.reserved_nanos == bid.price_nanos == int(alone.bidder.market.expected_nanos_A[0]) // 2


def test_mechanism_prices_the_paced_bid(tmp_path):
    """Two ads for clicks, alike but for the multiplier .8 of the first: it needs 1.25 times the second's bid to win."""
    from leadre.serve.callers.party import RECOMMEND
    from leadre.serve.processes.recommend import RecommendRequest

    with Alone(tmp_path / "state", mechanism="gsp") as alone:
        terms = {"bid_type": "cpc", "bid_nanos": 10**9}
        lists(alone, "a", "b", terms={"a": PLAN | terms, "b": PLAN | terms | RIVAL | {"bid_nanos": 5 * 10**8}})
        pace(alone, a=(1.0, 0.8), b=(1.0, 1.0))
        decision = alone.respond(RecommendRequest(count=1).bid_request("r"), party=RECOMMEND)
        assert chosen(decision) == ["a"]
        assert decision.imps[0].bid.action_nanos == pytest.approx(5 * 10**8, rel=1e-4)


def test_explanation_has_worth_multiplier_and_price(alone):
    lists(alone, "a", "b", terms={"a": PLAN, "b": PLAN | {"bid_nanos": 1_000_000}})
    pace(alone, a=(1.0, 0.8), b=(0.9, 0.5))
    request = banner_request()
    market = alone.bidder.market
    record = alone.record(request, alone.respond(request))
    explanation = explain(record, market.catalogue, market.expected_nanos_A, 0)
    rows = {
        candidate.ad_id: (candidate.worth_nanos, candidate.multiplier, candidate.participate, candidate.price_nanos)
        for candidate in explanation.candidates
    }
    assert rows == {"a": (2_000_000, 0.8, 1.0, 1_600_000), "b": (1_000_000, 0.5, 0.9, 500_000)}
