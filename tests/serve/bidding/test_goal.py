"""Goals of campaigns in a bid decision: worth, price, its bounds, charge of the paid event, record, replay."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from leadre.auction.pacing.contract import GoalFactors, Rate
from leadre.data.bids import PRIOR_RATES
from leadre.serve.bidding.explanation import explain
from leadre.serve.bidding.pace import campaign_rates
from leadre.serve.callers.party import RECOMMEND, Party
from leadre.serve.events.records import PacedCampaign
from leadre.serve.processes.recommend import RecommendRequest
from leadre.serve.protocol.openrtb import NoBid
from leadre.types import Goal

from ...evaluate.replay.test_answer import replayed
from ..alone import Alone, banner_request, chosen
from .test_respond import offer

CLICK = 10**9  # a target cost of 1.00 a click
CTR = PRIOR_RATES["cpc"]
CONVERSIONS = PRIOR_RATES["cpa"]
WORTH = round(CLICK * CTR)
FACTORS = GoalFactors(0.8, 2.0, 0.0)
CPC = {"bid_nanos": 20_000_000, "goal": Goal(kind="cpc", target_nanos=CLICK)}
CPA = {"bid_type": "cpc", "bid_nanos": CLICK, "goal": Goal(kind="cpa", target_nanos=5 * CLICK)}


@pytest.fixture
def alone(tmp_path):
    with Alone(tmp_path / "state") as alone:
        yield alone


def put(alone, **terms):
    """Ads of one campaign each, with leases; ``terms``: of the campaign of each ad."""
    for name, fields in terms.items():
        offer(alone, name, **fields)
    alone.put_list("*", *terms, log_p=[-1.0] * len(terms))
    alone.renew()
    alone.bid()  # requests leases
    alone.renew()


def aim(alone, **multipliers):
    """Let the campaigns of ads bid with a multiplier."""
    market = alone.bidder.market
    goals = {campaign.campaign_id: campaign.goal.kind != "bid" for campaign in market.catalogue.campaigns}
    rates = {
        f"c-{name}": Rate(1.0, multiplier, FACTORS if goals[f"c-{name}"] else None)
        for name, multiplier in multipliers.items()
    }
    alone.bidder.market = dataclasses.replace(market, pacing=campaign_rates(market.catalogue, rates))


def bid_of(decision):
    (rendered,) = decision.rendered
    return rendered.bid


def test_campaigns_without_a_goal_bid_as_before(alone):
    """Prices of the release before goals, beside campaigns that have one."""
    paced = {"daily_nanos": 10**12, "plan": "even"}
    put(
        alone,
        cpm={},
        cpc={"bid_type": "cpc", "bid_nanos": CLICK},
        cpa={"bid_type": "cpa", "bid_nanos": 10 * CLICK},
        paced=paced,
        goal=CPA,
    )
    aim(alone, goal=30.0, paced=0.4)
    request = banner_request()
    record = alone.record(request, alone.respond(request))
    market = alone.bidder.market
    rows = explain(record, market.catalogue, market.expected_nanos_A, 0, market.most_nanos_A).candidates
    prices = {row.ad_id: (row.worth_nanos, row.price_nanos, row.goal) for row in rows if row.ad_id != "goal"}
    assert prices == {
        "cpm": (2_000_000, 2_000_000, None),
        "cpc": (5_000_000, 5_000_000, None),
        "cpa": (5_000_000, 5_000_000, None),
        "paced": (2_000_000, 800_000, None),
    }


def test_record_without_goals_has_no_part_of_one(alone):
    put(alone, a={"daily_nanos": 10**12, "plan": "even"})
    decision = alone.bid()
    assert alone.bidder.market.most_nanos_A is None
    assert [paced.goal for paced in decision.paced] == [None]


@pytest.mark.parametrize(("multiplier", "price"), [(1.0, WORTH), (2.0, 2 * WORTH), (50.0, 20_000_000)])
def test_bid_for_impressions_is_target_times_rate_times_multiplier_up_to_the_bid(alone, multiplier, price):
    put(alone, a=CPC | {"daily_nanos": 10**12})
    aim(alone, a=multiplier)
    decision = alone.bid()
    bid = bid_of(decision)
    assert (bid.worth_nanos, bid.price_nanos, bid.reserved_nanos) == (WORTH, price, price)
    assert decision.paced == (PacedCampaign("c-a", 1.0, multiplier, 1, FACTORS),)


def test_price_of_a_click_follows_the_conversions_that_are_expected_of_it(alone):
    """A tenth of the clicks converts, at 5.00 a conversion: a click is worth .50, and 1.00 at most."""
    put(alone, a=CPA | {"daily_nanos": 10**12})
    for multiplier, click_nanos in ((1.0, CLICK // 2), (1.5, 3 * CLICK // 4), (9.0, CLICK)):
        aim(alone, a=multiplier)
        alone.bid()  # requests a lease of the price
        alone.renew()
        aim(alone, a=multiplier)
        decision = alone.bid()
        bid = bid_of(decision)
        assert bid.price_nanos == pytest.approx(click_nanos * CTR, rel=1e-6) and bid.reserved_nanos == bid.price_nanos
        assert bid.action_nanos == pytest.approx(click_nanos, rel=1e-6)


def test_target_return_is_worth_the_expected_value_over_it(alone):
    goal = Goal(kind="roas", target_return=4.0, conversion_nanos=40 * CLICK)
    put(alone, a={"bid_nanos": 10**9, "goal": goal})
    aim(alone, a=1.0)
    assert bid_of(alone.bid()).price_nanos == 10 * CLICK * CONVERSIONS


def test_campaign_waits_until_its_multiplier_is_known(alone):
    put(alone, a=CPC | {"pacer": "off"})
    aim(alone)
    assert alone.bid().reason is NoBid.PACED


def test_multiplier_of_a_goal_that_has_ended_is_not_used(alone):
    """A worker may read the campaign before the writer does: twenty times the bid would be bid for a second."""
    put(alone, a={"daily_nanos": 10**12, "plan": "even"}, b=CPC)
    market = alone.bidder.market
    rates = {"c-a": Rate(1.0, 20.0, FACTORS), "c-b": Rate(1.0, 0.4)}
    pacing = campaign_rates(market.catalogue, rates)
    assert pacing.participate_C.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("mechanism", ["first_price", "gsp"])
@pytest.mark.parametrize("terms", [CPC, CPA])
def test_own_auction_charges_the_paid_event_by_the_goal(tmp_path, mechanism, terms):
    with Alone(tmp_path / "state", mechanism=mechanism) as alone:
        put(alone, a=terms, b={"bid_nanos": 2_000_000, "advertiser_id": "rival"})
        aim(alone, a=1.5)
        decision = alone.respond(RecommendRequest(count=1).bid_request("r"), party=RECOMMEND)
        assert chosen(decision) == ["a"]
        bid = bid_of(decision)
        click_nanos = 0 if terms is CPC else bid.price_nanos / CTR  # the one pays for impressions, the other for clicks
        assert bid.action_nanos == pytest.approx(click_nanos, rel=1e-4)
        worth = 1.5 * (WORTH if terms is CPC else 5 * CLICK * CONVERSIONS)
        assert bid.price_nanos == pytest.approx(worth if mechanism == "first_price" else 2_000_000, rel=1e-4)


def test_shaded_bid_is_at_most_the_bid(alone):
    put(alone, a=CPC | {"shading": True})
    aim(alone, a=50.0)
    exchange = Party(name="exchange", share="exchange")
    for _ in range(20):
        bid = bid_of(alone.bid(party=exchange, at=1))
        assert bid.ranked_nanos == 20_000_000 >= bid.price_nanos


def test_explanation_has_goal_and_reasons(alone):
    put(alone, a=CPC, b=CPA)
    aim(alone, a=50.0, b=1.0)
    request = banner_request()
    market = alone.bidder.market
    record = alone.record(request, alone.respond(request))
    rows = explain(record, market.catalogue, market.expected_nanos_A, 0, market.most_nanos_A).candidates
    goals = {row.ad_id: (row.goal.kind, row.goal.target_nanos, row.goal.most_nanos) for row in rows}
    assert goals == {"a": ("cpc", CLICK, 20_000_000), "b": ("cpa", 5 * CLICK, round(CLICK * CTR))}
    assert {row.ad_id: (row.rate_event, row.price_nanos) for row in rows} == {
        "a": ("click", 20_000_000),
        "b": ("conversion", 2_500_000),
    }
    assert {row.goal.correction for row in rows} == {0.8}


def test_goal_replays_alike(alone):
    put(alone, a=CPC, b=CPA | {"shading": True})
    records = []
    for multiplier in (0.7, 1.9, 60.0):
        aim(alone, a=multiplier, b=2 * multiplier)
        for fields in ({}, {"at": 1}):
            request = banner_request(**fields)
            records.append(alone.record(request, alone.respond(request)))
    report = replayed(alone, *records)
    assert (report.compared, report.differences) == (6, [])


def test_replay_reads_the_multiplier_from_the_log(alone):
    put(alone, a=CPC)
    aim(alone, a=0.7)
    request = banner_request()
    record = alone.record(request, alone.respond(request))
    dearer = tuple(msgspec.structs.replace(paced, multiplier=0.9) for paced in record.paced)
    report = replayed(alone, msgspec.structs.replace(record, paced=dearer))
    assert [difference.what for difference in report.differences] == ["price", "ranked price"]
