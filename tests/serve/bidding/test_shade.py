"""Shading of first-price bids: bounds, exploration, what is logged, and who is shaded."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.bidding.explanation import explain
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.shade import COLD_EXPLORATION, EXPLORATION, Shading
from leadre.serve.callers.party import ANYBODY, Party
from leadre.serve.ipc.messages import MarketShading

from ..alone import IMP, Alone, banner_request
from .test_respond import offer

EXCHANGE = Party(name="exchange", share="exchange")
# Values up to 1,000,000 win at no lower price; above it 400,000 is best, from 1,900,000 on 700,000.
MARKET = MarketShading(
    caller="exchange", currency="USD", edges=[], breaks=[[1_000_000.0, 1_900_000.0]], bids=[[0.0, 400_000.0, 700_000.0]]
)
USUAL = (0.99, 0.5)


def price(paced_nanos=2_000_000, *, market=MARKET, floor_nanos=1, draws=USUAL):
    shading = Shading.of([market] if market else [])
    return shading.price(
        "exchange", "USD", worth_nanos=2_000_000, paced_nanos=paced_nanos, floor_nanos=floor_nanos, draws=draws
    )


def test_paced_value_is_shaded_by_the_law_of_the_market():
    assert price() == (700_000, 1 - EXPLORATION, False)
    assert price(1_500_000).nanos == 400_000, "shading of the paced value is no factor"
    assert price(900_000).nanos == 900_000, "no lower bid was seen to win"


def test_group_of_a_market_is_that_of_the_value_before_pacing():
    market = MarketShading(
        caller="exchange",
        currency="USD",
        edges=[1_000_000.0],
        breaks=[[1.0], [1.0]],
        bids=[[0.0, 5.0], [0.0, 300_000.0]],
    )
    assert price(400_000, market=market).nanos == 300_000


def test_price_is_never_below_the_floor_nor_above_the_paced_value():
    assert price(floor_nanos=1_200_000).nanos == 1_200_000
    for place in (0.0, 0.3, 0.999):
        drawn = price(draws=(EXPLORATION / 2, place))
        assert drawn.is_drawn and 1_000_000 <= drawn.nanos <= 2_000_000
        assert drawn.propensity == pytest.approx(EXPLORATION / (drawn.nanos * math.log(2)), rel=1e-5)


@given(
    curve=st.lists(st.tuples(st.floats(1, 1e15), st.floats(0, 1e15)), max_size=6),
    paced=st.integers(1, 10**15),
    floor=st.integers(0, 10**15),
    draws=st.tuples(*2 * [st.floats(0, 1, exclude_max=True)]),
)
def test_price_of_any_law_is_between_floor_and_paced_value(curve, paced, floor, draws):
    """A law is what a caller reports: no price of it is above the paced value, which the worker holds a lease for."""
    breaks = [value for value, _ in sorted(curve)]
    market = msgspec.structs.replace(MARKET, breaks=[breaks], bids=[[0.0, *(bid for _, bid in curve)]])
    shaded = price(paced, market=market, floor_nanos=min(floor, paced), draws=draws)
    assert max(min(floor, paced), 1) <= shaded.nanos <= paced
    assert shaded.propensity > 0


def test_unknown_market_bids_the_value_and_explores_more():
    assert price(market=None) == (2_000_000, 1 - COLD_EXPLORATION, False)
    assert price(market=None, draws=(EXPLORATION * 2, 0.0)).nanos == 1_000_000


def test_draws_of_the_price_are_not_those_of_the_ad():
    """Else each drawn price would be one of a drawn ad."""
    draws = ExplorationDraws(bytes(32))
    assert draws.price("r", "1") != draws.pair("r", "1")


@pytest.fixture
def alone(tmp_path):
    """Ads of a campaign that shades and of one that does not, with leases and the law of the exchange."""
    with Alone(tmp_path / "state") as alone:
        offer(alone, "shaded", shading=True, total_nanos=10**12)
        offer(alone, "plain", bid_nanos=1_900_000)
        alone.put_list("*", "shaded", "plain", log_p=[math.log(0.1)] * 2)
        alone.renew()
        alone.bid()
        alone.renew()
        alone.bidder.market = dataclasses.replace(alone.bidder.market, shading=Shading.of([MARKET]))
        yield alone


def bids(alone, party=EXCHANGE, **fields):
    return [rendered.bid for rendered in alone.bid(party=party, **fields).rendered]


def usual(alone, **fields):
    """A bid that exploration has not drawn."""
    return next(bid for _ in range(99) for bid in bids(alone, **fields) if not bid.explores_price)


def test_first_price_of_an_exchange_is_shaded_and_reserves_no_more(alone):
    bid = usual(alone, at=1)
    assert (bid.ad_id, bid.price_nanos, bid.ranked_nanos, bid.reserved_nanos) == (
        "shaded",
        700_000,
        2_000_000,
        700_000,
    )
    assert bid.price_propensity == 1 - EXPLORATION


def test_caller_cannot_turn_shading_off(alone):
    assert usual(alone, at=1, ext={"prebid": {"channel": {"name": "pbjs"}}}).price_nanos == 700_000


@pytest.mark.parametrize("fields", [{"at": 2}, {}])
def test_other_auctions_are_not_shaded(alone, fields):
    (bid,) = bids(alone, **fields)
    assert (bid.price_nanos, bid.ranked_nanos, bid.price_propensity) == (2_000_000, 2_000_000, 0.0)


def test_bid_to_a_sender_without_a_name_is_the_value(alone):
    """Even by a law under no name, and without exploration: reports move none of these bids."""
    shading = Shading.of([MARKET, msgspec.structs.replace(MARKET, caller="")])
    for _ in range(40):
        alone.renew()
        alone.bidder.market = dataclasses.replace(alone.bidder.market, shading=shading)
        (bid,) = bids(alone, party=ANYBODY, at=1)
        assert (bid.price_nanos, bid.ranked_nanos, bid.price_propensity) == (2_000_000, 2_000_000, 0.0)


def test_campaign_that_does_not_shade_bids_its_value(alone):
    alone.campaign_store.set_campaign_status("c-shaded", "paused")
    alone.renew()
    (bid,) = bids(alone, at=1)
    assert (bid.ad_id, bid.price_nanos, bid.ranked_nanos) == ("plain", 1_900_000, 1_900_000)


def test_shaded_bid_meets_the_floor(alone):
    assert usual(alone, at=1, imp=[IMP | {"bidfloor": 0.9}]).price_nanos == 900_000


def test_explanation_has_the_price_before_shading(alone):
    request = banner_request(at=1)
    market = alone.bidder.market
    decision = alone.respond(request, party=EXCHANGE)
    (bid,) = explain(alone.record(request, decision), market.catalogue, market.expected_nanos_A, 0).bids
    assert bid.ranked_nanos == 2_000_000 and bid.price_nanos < 2_000_000 and bid.price_propensity
