"""Charges of recommended ads: the mechanism's price from the ads ranked below, booked when the event comes."""

from __future__ import annotations

import re
from collections import Counter
from math import log

import numpy as np
import pytest

from leadre.data.bids import PRIOR_RATES
from leadre.errors import InputError
from leadre.serve.bidding.charge import charge
from leadre.serve.bidding.record import request_of
from leadre.serve.callers.party import RECOMMEND
from leadre.serve.processes import event_reading
from leadre.serve.processes.recommend import RecommendRequest
from leadre.serve.run import Config, settings_of

from ..alone import Alone, chosen, urls_of
from ..conftest import make_ad
from .test_respond import offer


def charged(mechanism, *, effects=(1.0, 1.0), floor=1, bids=(9_000, 6_000, 2_000), fits=(0.5, 0.25, 0.5), rate=1.0):
    bid_K = np.array(bids)
    value_K = np.floor(bid_K * rate).astype(np.int64)
    return charge(mechanism, effects, bid_K, value_K, np.log(fits), floor)


def test_price_holds_the_rank_against_fit_times_value():
    # Scores 4,500, 1,500 and 1,000. The first keeps its rank with 1,500 / .5, and the second slot with 1,000 / .5.
    assert charged("gsp").action_nanos == 3_000
    assert charged("gsp", rate=0.1).action_nanos == 3_000
    assert charged("gsp", rate=0.1).impression_nanos == 300
    assert charged("vcg", effects=(1.0, 0.4)).action_nanos == pytest.approx(0.6 * 3_000 + 0.4 * 2_000, abs=1)
    assert charged("vcg", effects=(1.0,)).action_nanos == 3_000


def test_squashed_price_holds_the_rank_by_the_same_power():
    """Bids of 10,000 and 25,000 at rates of .25 and .04: scores 5,000 and 5,000 with a power of .5."""
    bids = np.array([10_000, 25_000, 4_000])
    values = np.array([2_500, 1_000, 360])
    assert charge("gsp", (1.0,), bids, values, np.zeros(3), 1, 0.5) == (10_000, 2_500)
    assert charge("gsp", (1.0,), bids[1:], values[1:], np.zeros(2), 1, 0.5) == (6_000, 240)


def test_ad_that_outranks_none_pays_the_floor_and_no_ad_more_than_its_bid():
    assert charged("gsp", bids=(9_000,), fits=(0.5,), floor=700).action_nanos == 700
    assert charged("vcg", bids=(9_000,), fits=(0.5,)).action_nanos == 1
    equal = charged("gsp", bids=(9_000, 9_000), fits=(0.3, 0.3))
    assert equal.action_nanos == 9_000
    assert charged("gsp", bids=(5, 5_000), fits=(0.5, 0.5)).action_nanos == 5  # an order by rounding alone


@pytest.mark.parametrize("mechanism", ["gsp", "vcg"])
def test_winner_whose_value_is_the_floor_pays_its_bid(mechanism):
    # In floating point, 49 x (1 / 49) is below 1: a reserve of 1 would drop the winner.
    bids = np.array([49, 500])
    values = np.array([1, 1])
    assert charge(mechanism, (1.0,), bids[:1], values[:1], np.zeros(1), 1) == (49, 1)
    assert charge(mechanism, (1.0,), bids, values, np.zeros(2), 1) == (49, 1)


def test_api_ads_without_a_probability_set_no_price():
    bids = np.array([9_000, 9_000])
    assert charge("gsp", (1.0,), bids, bids, np.array([log(0.5), -1e6]), 1).action_nanos == 1


def rival(alone, name, **terms):
    """Add an advertiser with one campaign and one ad, all of one name."""
    offer(alone, name, advertiser_id=name, **terms)


@pytest.fixture
def site(tmp_path):
    """A bidder with three ads of equal fit, which bid a CPM of 9, 6 and 2."""

    def make(mechanism, **settings):
        alone = Alone(tmp_path / mechanism, mechanism=mechanism, **settings)
        for name, cpm in (("high", 9), ("middle", 6), ("low", 2)):
            rival(alone, name, bid_nanos=cpm * 1_000_000, total_nanos=10**12)
        alone.put_list("*", "high", "middle", "low", log_p=[-1.0, -1.0, -1.0])
        recommended(alone, 3)  # requests leases
        alone.renew()
        return alone

    return make


def recommended(alone, count):
    alone.renew()
    return alone.respond(RecommendRequest(count=count).bid_request("r"), party=RECOMMEND)


def test_first_price_charges_the_bids(site):
    with site("first_price") as alone:
        decision = recommended(alone, 2)
        assert chosen(decision) == ["high", "middle"]
        assert [rendered.bid.price_nanos for rendered in decision.rendered] == [9_000_000, 6_000_000]


def test_each_slot_is_charged_by_the_ads_below_it_and_booked_so(site):
    with site("gsp") as alone:
        decision = recommended(alone, 3)
        assert chosen(decision) == ["high", "middle", "low"]
        prices = [rendered.bid.price_nanos for rendered in decision.rendered]
        assert prices == [pytest.approx(6_000_000, abs=1), pytest.approx(2_000_000, abs=1), 1]
        for rendered in decision.rendered:
            query = {"t": re.search(r"[?&]t=([^&]+)", rendered.burl)[1]}  # without a price, as billing_url is
            catalogue = alone.bidder.market.catalogue
            _, event = event_reading.read("bill", query, alone.writer.token_keys, catalogue, alone.clock.wall_us)
            alone.writer.handle([event], alone.clock.wall_us)
        assert [alone.writer.ledger.spent(f"c-{name}") for name in ("high", "middle", "low")] == prices


def test_record_names_the_seller_for_a_replay(site):
    with site("gsp") as alone:
        request = RecommendRequest(count=1).bid_request("r")
        decision = alone.respond(request, party=RECOMMEND)
        assert request_of(alone.record(request, decision)).is_own_auction


def test_vcg_with_equal_slots_charges_the_best_ad_that_is_left_out(site):
    with site("vcg") as alone:
        prices = [rendered.bid.price_nanos for rendered in recommended(alone, 2).rendered]
        assert prices == pytest.approx([2_000_000, 2_000_000], abs=1)


def test_slot_effects_discount_the_lower_slots(site):
    with site("vcg", slot_effects=(1.0, 0.5)) as alone:
        prices = [rendered.bid.price_nanos for rendered in recommended(alone, 2).rendered]
        assert prices == pytest.approx([0.5 * 6_000_000 + 0.5 * 2_000_000, 2_000_000], abs=1)


def test_click_costs_the_price_of_the_mechanism(tmp_path):
    with Alone(tmp_path / "state", mechanism="gsp") as alone:
        rival(alone, "click", bid_type="cpc", bid_nanos=10**9, total_nanos=10**12)
        rival(alone, "view", bid_nanos=2_000_000, total_nanos=10**12)
        alone.put_list("*", "click", "view", log_p=[-1.0, -1.0])
        recommended(alone, 1)
        decision = recommended(alone, 1)
        (rendered,) = decision.rendered
        assert rendered.bid.ad_id == "click"
        action_nanos = rendered.bid.action_nanos
        assert action_nanos == pytest.approx(2_000_000 / PRIOR_RATES["cpc"], rel=1e-6)
        assert rendered.bid.price_nanos == pytest.approx(2_000_000, abs=1)
        urls = urls_of(rendered)
        assert alone.post_events(("imp", urls["imp"]), ("click", urls["click"])) == ["new", "new"]
        assert alone.writer.ledger.spent("c-click") == action_nanos


@pytest.mark.parametrize(("mechanism", "prices"), [("gsp", [1_000_000, 1_000_000]), ("vcg", [200_000, 1_000_000])])
def test_ads_of_one_advertiser_do_not_set_the_price_of_each_other(tmp_path, mechanism, prices):
    """Four ads of a campaign and one of another campaign of its advertiser are above the only rival.

    Two slots, .8 of them the second: by VCG both ads together pay .2 + .8 of the rival's bid, which they keep out.
    """
    with Alone(tmp_path / "state", mechanism=mechanism, slot_effects=(1.0, 0.8)) as alone:
        own = ["a0", "a1", "a2", "a3", "other"]
        for name in ("a0", "other"):
            offer(alone, name, advertiser_id="A", bid_nanos=4_000_000)
        for name in own[1:4]:
            alone.campaign_store.put_ad(make_ad(name, campaign_id="c-a0", advertiser_id="A", object_id=name))
        rival(alone, "rival", bid_nanos=1_000_000)
        alone.put_list("*", *own, "rival", log_p=[-1.0] * 6)
        (first, second) = recommended(alone, 2).rendered
        assert {first.bid.advertiser_id, second.bid.advertiser_id} == {"A"}
        assert [first.bid.price_nanos, second.bid.price_nanos] == pytest.approx(prices, abs=1)


@pytest.mark.parametrize("mechanism", ["first_price", "gsp"])
def test_equal_bids_share_the_requests(tmp_path, mechanism):
    with Alone(tmp_path / "state", mechanism=mechanism) as alone:
        for name in ("a", "b", "c"):
            rival(alone, name)
        alone.put_list("*", "a", "b", "c", log_p=[-1.0] * 3)
        alone.renew()
        request = RecommendRequest(count=1).bid_request("r")
        winners = Counter(chosen(alone.respond(request, party=RECOMMEND))[0] for _ in range(90))
        assert min(winners[name] for name in ("a", "b", "c")) >= 15, winners


def test_bid_of_an_exchange_is_its_price(site):
    with site("gsp") as alone:
        alone.renew()
        (rendered,) = alone.bid().rendered
        assert rendered.bid.price_nanos == 9_000_000


def test_slot_effects_that_rise_are_refused():
    with pytest.raises(InputError, match="slot-effects"):
        settings_of(Config(slot_effects=(0.5, 1.0)))
