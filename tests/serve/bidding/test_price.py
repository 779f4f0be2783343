"""Prices of a bid: ranked, offered, of the event; in the log, in replays and in explanations, of older logs too."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from leadre.auction.mechanism import tie_keys
from leadre.auction.pacing.contract import Rate
from leadre.data.bids import PRIOR_RATES
from leadre.serve.bidding.account_explanation import of_account
from leadre.serve.bidding.explanation import explain
from leadre.serve.bidding.pace import campaign_rates
from leadre.serve.bidding.shade import Shading
from leadre.serve.callers.party import RECOMMEND
from leadre.serve.events import records
from leadre.serve.processes.recommend import RecommendRequest
from leadre.types import Bid, Verdict

from ...evaluate.replay.test_answer import replayed
from ..alone import Alone, banner_request, chosen, urls_of
from ..conftest import make_ad
from .test_respond import offer
from .test_shade import EXCHANGE, MARKET


@pytest.fixture
def alone(tmp_path):
    with Alone(tmp_path / "state", mechanism="gsp") as alone:
        yield alone


def put(alone, *names, log_p=None, user="*", **terms):
    for name in names:
        offer(alone, name, **({"advertiser_id": name} | terms))
    alone.put_list(user, *names, log_p=log_p or [-1.0] * len(names))
    alone.renew()


def recommended(alone, **fields):
    """The record of a request for one ad, and its decision."""
    request = RecommendRequest(count=1, **fields).bid_request("r")
    decision = alone.respond(request, party=RECOMMEND)
    return alone.record(request, decision), decision


def explained(alone, record):
    market = alone.bidder.market
    return explain(record, market.catalogue, market.expected_nanos_A, market.log_position, market.most_nanos_A)


def as_older(record):
    """The record as a release before the prices wrote it."""
    bids = tuple(msgspec.structs.replace(bid, ranked_nanos=0, action_nanos=0) for bid in record.bids)
    return msgspec.structs.replace(record, request_id=f"older {record.request_id}", bids=bids)


def one_advertiser(alone):
    """A campaign with ads that bid a CPM of 4, of which none prices another, and a rival with a CPM of 1."""
    offer(alone, "a0", advertiser_id="A", bid_nanos=4_000_000)
    for name in ("a1", "a2"):
        alone.campaign_store.put_ad(make_ad(name, campaign_id="c-a0", advertiser_id="A", object_id=name))
    offer(alone, "rival", advertiser_id="rival", bid_nanos=1_000_000)
    alone.put_list("*", "rival", "a0", "a1", "a2", log_p=[-1.0, -1.0, -1.1, -1.2])
    alone.renew()


def test_log_token_and_explanation_have_the_charge_of_a_click_that_the_mechanism_set(alone):
    put(alone, "click", bid_type="cpc", bid_nanos=10**9)
    put(alone, "rival", bid_nanos=2_000_000)
    alone.put_list("*", "click", "rival", log_p=[-1.0, -1.0])
    record, decision = recommended(alone)
    record = records.decode(records.encode(record))
    (bid,) = record.bids
    worth_nanos = int(alone.bidder.market.expected_nanos_A[0])
    assert (bid.ad_id, bid.ranked_nanos) == ("click", worth_nanos) and worth_nanos > bid.price_nanos
    assert 0 < bid.action_nanos < 10**9
    url = urls_of(decision.rendered[0])["click"]
    token = alone.writer.token_keys.check(url.split("t=")[1], "click", alone.clock.wall_us)
    assert token.charge_nanos == bid.action_nanos
    (row,) = explained(alone, record).bids
    assert (row.price_nanos, row.ranked_nanos, row.action_nanos) == (bid.price_nanos, worth_nanos, bid.action_nanos)
    report = replayed(alone, record)
    assert (report.compared, report.differences) == (1, [])
    changed = msgspec.structs.replace(bid, ranked_nanos=worth_nanos + 1, action_nanos=bid.action_nanos + 1)
    report = replayed(alone, msgspec.structs.replace(record, request_id="changed", bids=(changed,)))
    assert [difference.what for difference in report.differences] == ["ranked price", "charge of the event"]


def test_candidates_are_explained_in_the_order_of_the_prices_that_ranked_them(alone):
    one_advertiser(alone)
    record, decision = recommended(alone)
    (bid,) = record.bids
    assert (bid.ad_id, bid.price_nanos) == ("a0", 1_000_000), "less than the ads below it bid"
    for logged in (record, as_older(record)):
        rows = explained(alone, logged).candidates
        assert [row.ad_id for row in rows] == ["a0", "a1", "a2", "rival"]
        assert [row.price_nanos for row in rows] == [4_000_000] * 3 + [1_000_000]
        assert (rows[0].verdicts["1"], rows[1].verdicts["1"]) == (Verdict.BID, Verdict.OUTRANKED)
        report = replayed(alone, logged)
        assert (report.compared, report.differences) == (1, [])
    assert decision.imps[0].bid == bid


def test_shaded_bid_is_explained_at_the_price_that_ranked_it(alone):
    put(alone, "shaded", shading=True)
    put(alone, "plain", bid_nanos=1_900_000)
    alone.put_list("*", "plain", "shaded", log_p=[-1.0, -1.0])
    alone.bidder.market = dataclasses.replace(alone.bidder.market, shading=Shading.of([MARKET]))
    request = banner_request(at=1)
    record = alone.record(request, alone.respond(request, party=EXCHANGE))
    (bid,) = record.bids
    assert bid.ad_id == "shaded" and bid.price_nanos < 1_900_000
    rows = explained(alone, record).candidates
    assert [(row.ad_id, row.price_nanos) for row in rows] == [("shaded", 2_000_000), ("plain", 1_900_000)]
    report = replayed(alone, record)
    assert (report.compared, report.differences) == (1, [])


def test_log_of_a_release_with_the_price_before_shading_is_read():
    bid = Bid(
        **dict.fromkeys(("bid_id", "imp_id", "ad_id", "campaign_id", "advertiser_id", "currency"), "x"),
        price_nanos=7,
        size=(1, 1),
        source="stored",
        propensity=1.0,
    )
    older = msgspec.to_builtins(bid) | {"unshaded_nanos": 9}
    assert msgspec.convert(older, Bid, strict=False) == msgspec.structs.replace(bid, ranked_nanos=9)


def test_equal_candidates_are_explained_in_the_order_that_was_drawn(alone):
    names = [f"ad-{number}" for number in range(8)]
    put(alone, *names)
    orders = set()
    for _ in range(5):
        record, decision = recommended(alone)
        keys = dict(zip(names, tie_keys(record.request_id, names).tolist(), strict=True))
        order = [row.ad_id for row in explained(alone, record).candidates]
        assert order == sorted(names, key=keys.get) and order[:1] == chosen(decision)
        orders.add(tuple(order))
    assert len(orders) == 5


@pytest.mark.parametrize("mechanism", ["first_price", "gsp"])
def test_squashing_ranks_recommended_ads_and_prices_and_explains_them_alike(tmp_path, mechanism):
    """A click of 1.00 at a rate of .005 against an impression at a CPM of 6: 5 < 6, and 1 x .005 ^ .9 > .006."""
    for squashing, order in ((1.0, ["view", "click"]), (0.9, ["click", "view"])):
        with Alone(tmp_path / f"{squashing}", mechanism=mechanism, squashing=squashing) as alone:
            put(alone, "click", bid_type="cpc", bid_nanos=10**9)
            put(alone, "view", bid_nanos=6_000_000)
            alone.put_list("*", "view", "click", log_p=[-1.0, -1.0])
            record, _ = recommended(alone)
            record = records.decode(records.encode(record))
            (bid,) = record.bids
            assert bid.ad_id == order[0] and [row.ad_id for row in explained(alone, record).candidates] == order
            if (mechanism, squashing) == ("gsp", 0.9):
                assert bid.action_nanos * PRIOR_RATES["cpc"] ** 0.9 == pytest.approx(6_000_000, rel=1e-3)
            report = replayed(alone, record)
            assert (report.compared, report.differences) == (1, [])
            assert chosen(alone.bid()) == ["view"], "the auction of an exchange is by value"


def test_candidates_in_another_currency_are_explained_behind_those_of_the_first(alone):
    put(alone, "euro", bid_nanos=9_000_000, currency="EUR")
    put(alone, "dollar", bid_nanos=1_000_000)
    alone.put_list("*", "euro", "dollar", log_p=[-1.0, -1.0])
    request = banner_request(cur=["USD", "EUR"])
    record = alone.record(request, alone.respond(request))
    assert record.bids[0].ad_id == "dollar"
    assert [row.ad_id for row in explained(alone, record).candidates] == ["dollar", "euro"]


def test_campaign_that_took_no_part_is_explained_at_no_price(alone):
    put(alone, "absent", bid_nanos=9_000_000, daily_nanos=10**12, plan="even")
    put(alone, "other")
    alone.put_list("*", "absent", "other", log_p=[-1.0, -1.0])
    market = alone.bidder.market
    rates = campaign_rates(market.catalogue, {"c-absent": Rate(0.01, 0.9)})
    alone.bidder.market = dataclasses.replace(market, pacing=rates)
    request = banner_request()
    record = alone.record(request, alone.respond(request))
    assert [(paced.participate, paced.is_absent) for paced in record.paced] == [(0.01, True)]
    rows = explained(alone, record).candidates
    assert [(row.ad_id, row.price_nanos, row.multiplier) for row in rows] == [
        ("other", 2_000_000, 1.0),
        ("absent", 0, 0.9),
    ]
    report = replayed(alone, record)
    assert (report.compared, report.differences) == (1, [])


def test_account_sees_no_price_that_the_fits_of_a_known_user_set(alone):
    put(alone, "high", user="known", bid_nanos=9_000_000)
    put(alone, "low", bid_nanos=2_000_000)
    alone.put_list("known", "high", "low", log_p=[-1.0, -1.5])
    record, _ = recommended(alone, user_id="known")
    explanation = explained(alone, record)
    assert explanation.has_user and explanation.bids[0].price_nanos < 2_000_000, "2 x exp(-.5)"
    (bid,) = of_account(explanation, "high").bids
    assert bid.price_nanos is bid.price_cpm is bid.ranked_nanos is bid.action_nanos is None
    (bid,) = of_account(dataclasses.replace(explanation, has_user=False), "high").bids
    assert bid.price_nanos == explanation.bids[0].price_nanos
