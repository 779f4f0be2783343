"""Ranking in a bid decision: rates price ads and order them, for all imps at once; without rates counts do."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from leadre import telemetry
from leadre.data import bids
from leadre.serve.bidding.account_explanation import of_account
from leadre.serve.bidding.api_ads import LOWEST_LOG_P
from leadre.serve.bidding.explanation import explain
from leadre.serve.bidding.ranking import FORGET
from leadre.serve.bidding.select import log_values, rank
from leadre.serve.bidding.value import bid_rate, values
from leadre.serve.events.records import AssumedRate
from leadre.serve.rankers.rates import Rates
from leadre.types import Verdict

from ..alone import IMP, Alone, banner_request, chosen, urls_of
from ..conftest import make_ad, make_campaign

BID_TYPES = {"show": "cpm", "click": "cpc", "sale": "cpa"}
ANOTHER = {"id": "2", "banner": {"w": 300, "h": 250}}


def rates_of(p_K, *, event="click", is_price=True):
    p_K = np.array(p_K, np.float64)
    return Rates(
        version="v1",
        event=event,
        is_price=is_price,
        p_K=p_K,
        log_odds_K=p_K - 1.0,
        is_new_K=np.zeros(len(p_K), np.bool_),
        history=(0, 0),
    )


class Planted:
    """A ranker with given rates by ad; it notes its calls."""

    def __init__(self, alone, p_of, *, fails=False, takes_s=0.0, **kind):
        self.alone = alone
        self.p_of = p_of
        self.kind = kind
        self.fails = fails
        self.takes_s = takes_s
        self.profiles = []
        self.open = []

    def rates(self, profile, rows_K, is_open_K, *, placement, now_us, now_s):
        self.profiles.append(profile)
        self.open.append(is_open_K.tolist())
        self.alone.clock.elapsed_s += self.takes_s
        if self.fails:
            raise ValueError("a planted failure")
        ads = self.alone.bidder.market.catalogue.ads
        rates = [self.p_of.get(ads[row].ad_id, math.nan) for row in rows_K]
        return rates_of(np.where(is_open_K, rates, math.nan), **self.kind)


@pytest.fixture
def alone(tmp_path):
    """Ads `show`, `click` and `sale` of equal value by their counts, and a list of them."""
    with Alone(tmp_path / "state") as alone:
        for name, bid_type in BID_TYPES.items():
            bid_nanos = round(2_000_000 / bids.PRIOR_RATES[bid_type])
            alone.campaign_store.put_campaign(make_campaign(f"c-{name}", bid_type=bid_type, bid_nanos=bid_nanos))
            alone.campaign_store.put_ad(make_ad(name, campaign_id=f"c-{name}", object_id=name))
        alone.put_list("known", *BID_TYPES, log_p=[-1.0, -1.1, -1.2])
        alone.put_list("*", *BID_TYPES)
        alone.put_profile("known", "show")
        alone.renew()
        yield alone


def ranked(alone, p_of, **kind):
    planted = Planted(alone, p_of, **kind)
    alone.bidder.market = dataclasses.replace(alone.bidder.market, ranker=planted)
    return planted


def prices(decision):
    return {rendered.bid.ad_id: rendered.bid.price_nanos for rendered in decision.rendered}


def count(outcome):
    return telemetry.RANKINGS.labels(outcome)._value.get()


def test_a_rate_prices_the_bids_that_pay_for_its_event(alone):
    ranked(alone, {"show": 0.5, "click": 0.02, "sale": 0.9})
    decision = alone.bid(user={"id": "known"})
    assert prices(decision) == {"click": 8_000_000}  # 400,000,000 x .02; the others by counts and fit
    assert decision.versions["ranker"] == "v1" and decision.versions["events"] == "0"


def test_a_rate_of_live_ads_orders_them_and_prices_none(alone):
    ranked(alone, {"show": 0.1, "click": 0.02, "sale": 0.9}, is_price=False)
    assert prices(alone.bid(user={"id": "known"})) == {"sale": 2_000_000}


def test_value_is_on_one_scale_for_all_kinds_of_bids(alone):
    catalogue = alone.bidder.market.catalogue
    rows = np.array([catalogue.row_of_ad[name] for name in BID_TYPES])
    counted = alone.bidder.market.expected_nanos_A[rows]
    log_p = np.log([0.5, 0.3, 0.2])
    result = values(catalogue, rows, log_p, counted, rates_of([0.02, 0.01, math.nan]))
    assert result.price_nanos_K.tolist() == [2_000_000, 4_000_000, 2_000_000]
    assert np.exp(result.log_fit_K) == pytest.approx([0.02 / 0.015, 1.0, 0.2 / (1 / 3)])
    assert result.is_ranked_K.tolist() == [False, True, False]
    assert rank(log_values(result.log_fit_K, result.price_nanos_K)).tolist() == [1, 0, 2]
    plain = values(catalogue, rows, log_p, counted, None)
    assert plain.log_fit_K is log_p and plain.price_nanos_K is counted
    unknown = values(catalogue, rows, log_p, counted, rates_of([math.nan] * 3))
    assert unknown.log_fit_K is log_p and not unknown.is_ranked_K.any()
    api_ads_alone = values(catalogue, rows, np.full(3, LOWEST_LOG_P), counted, rates_of([0.02, math.nan, math.nan]))
    assert np.isfinite(api_ads_alone.log_fit_K).all()


def test_a_rate_of_zero_is_bid_last_and_one_of_one_at_most_the_bid(alone):
    catalogue = alone.bidder.market.catalogue
    rows = np.array([catalogue.row_of_ad[name] for name in BID_TYPES])
    counted = alone.bidder.market.expected_nanos_A[rows]
    result = values(catalogue, rows, np.zeros(3), counted, rates_of([0.0, 1.0, 0.5]))
    assert result.price_nanos_K[1] == catalogue.columns.bid_nanos_C[1]
    assert np.isfinite(result.log_fit_K).all() and rank(log_values(result.log_fit_K, result.price_nanos_K))[-1] == 0


def test_candidates_are_scored_once_for_all_imps(alone):
    planted = ranked(alone, {"show": 0.1, "click": 0.02})
    alone.campaign_store.set_ad_status("sale", "paused")
    alone.renew()
    alone.bidder.market = dataclasses.replace(alone.bidder.market, ranker=planted)
    assert len(alone.bid(user={"id": "known"}, imp=[IMP, ANOTHER]).rendered) == 2
    assert planted.open == [[True, True, False]]


def test_a_request_without_consent_to_personalise_is_ranked_without_a_profile(alone):
    planted = ranked(alone, {"show": 0.1})
    alone.store.calls.clear()
    alone.bid(user={"id": "known"}, device={"lmt": 1})
    assert planted.profiles == [None] and ("read_profile", "known") not in alone.store.calls
    alone.bid(user={"id": "known"})
    assert planted.profiles[1].user_id == "known"


def test_a_failing_ranker_stops_no_bid(alone):
    before = count("failed")
    ranked(alone, {}, fails=True)
    for _ in range(3):
        decision = alone.bid(user={"id": "known"})
        assert chosen(decision) == ["show"] and "ranker" not in decision.versions
    assert count("failed") == before + 3 and alone.bidder.ranking.is_failing
    ranked(alone, {"sale": 0.5})
    assert alone.bid(user={"id": "known"}).rates is not None and not alone.bidder.ranking.is_failing


def test_a_slow_ranker_is_left_out_of_requests_with_less_time(alone):
    before = count("late")
    planted = ranked(alone, {"click": 0.02}, takes_s=0.05)
    assert chosen(alone.bid(user={"id": "known"}, tmax_s=1.0)) == ["click"]
    assert chosen(alone.bid(user={"id": "known"}, tmax_s=0.04)) == ["show"]
    assert (len(planted.profiles), count("late")) == (1, before + 1)
    assert alone.bidder.ranking.cost_s == pytest.approx(0.05 * FORGET)
    for _ in range(60):  # the slow one is forgotten, though no request has ranked since
        alone.bid(user={"id": "known"}, tmax_s=0.04)
    assert len(planted.profiles) > 1


def test_ads_made_at_the_api_are_explored_and_not_ranked(alone):
    alone.campaign_store.put_campaign(make_campaign("c-own"))
    alone.campaign_store.put_ad(make_ad("own", campaign_id="c-own", object_id="own", created_at_us=1))
    alone.renew()
    planted = ranked(alone, {"own": 0.9, "show": 0.1})
    decision = alone.bid(user={"id": "known"})
    assert chosen(decision) == ["show"] and planted.open == [[True, True, True, False]]
    assert decision.imps[0].verdict_K[-1] != Verdict.BID.code


def explained(alone, decision):
    market = alone.bidder.market
    record = alone.record(banner_request(user={"id": "known"}), decision)
    return explain(record, market.catalogue, market.expected_nanos_A, market.log_position)


def test_explanation_has_rates_before_and_after_calibration_with_their_source(alone):
    ranked(alone, {"show": 0.5, "click": 0.02})
    rows = {candidate.ad_id: candidate for candidate in explained(alone, alone.bid(user={"id": "known"})).candidates}
    click, show, sale = (rows[name] for name in ("click", "show", "sale"))
    assert (click.rate, click.rate_event, click.rate_source, click.slice) == (0.02, "click", "ranker", "seen")
    assert click.rate_uncalibrated == pytest.approx(1 / (1 + math.exp(0.98)))
    assert (click.price_nanos, click.fit, click.value_nanos) == (8_000_000, 1.0, 8_000_000.0)
    assert (show.rate_source, show.price_nanos) == ("ranker", 2_000_000)
    assert show.fit == pytest.approx(0.5 / 0.26) and show.value_nanos == pytest.approx(show.fit * 2_000_000)
    assert (sale.rate_event, sale.rate_source, sale.rate_uncalibrated) == ("conversion", "counts", None)
    assert sale.rate == pytest.approx(bids.PRIOR_RATES["cpa"])
    assert list(rows) == ["click", "show", "sale"], "by descending value"


def test_an_account_sees_no_probability_of_a_known_user_and_no_price_that_has_one(alone):
    ranked(alone, {"show": 0.5, "click": 0.02, "sale": 0.1})
    explanation = explained(alone, alone.bid(user={"id": "known"}))
    shown = of_account(explanation, "acme")
    for candidate in shown.candidates:
        numbers = (candidate.p, candidate.fit, candidate.rate, candidate.rate_uncalibrated, candidate.price_nanos)
        assert numbers == (None,) * 5 and candidate.slice == "" and candidate.value_nanos is candidate.price_cpm is None
    assert [(bid.price_nanos, bid.price_cpm) for bid in shown.bids] == [(None, None)]
    assert explanation.bids[0].price_nanos == 8_000_000
    shaded = [dataclasses.replace(bid, price_propensity=1e-7) for bid in explanation.bids]
    (bid,) = of_account(dataclasses.replace(explanation, bids=shaded), "acme").bids
    assert bid.price_propensity is None, "a density of prices is one over the price"


def test_the_token_of_a_bid_has_its_rate(alone):
    ranked(alone, {"show": 0.5, "click": 0.02})
    (rendered,) = alone.bid(user={"id": "known"}).rendered
    token = alone.writer.token_keys.check(urls_of(rendered)["imp"].split("t=")[1], "imp", alone.clock.wall_us)
    assert (token.rate, token.rate_slice) == (AssumedRate("click", 20_000_000), "seen")


@pytest.mark.parametrize(
    ("ad", "kind", "expected"),
    [
        ("click", {}, (0.02, "click", "seen")),
        ("show", {}, (0.5, "click", "seen")),
        ("sale", {}, (bids.PRIOR_RATES["cpa"], "conv", "counts")),
        ("click", {"is_price": False}, (bids.PRIOR_RATES["cpc"], "click", "counts")),
        ("show", {"is_price": False}, None),
        ("show", {"event": "view"}, None),
        ("sale", {"event": "conversion"}, (0.1, "conv", "seen")),
    ],
)
def test_rate_that_a_bid_assumes(alone, ad, kind, expected):
    catalogue = alone.bidder.market.catalogue
    rows = np.array([catalogue.row_of_ad[name] for name in BID_TYPES])
    p_K = [0.5, 0.02, 0.1]
    rates = rates_of(p_K, **kind)
    result = values(catalogue, rows, np.zeros(3), alone.bidder.market.expected_nanos_A[rows], rates)
    k = list(BID_TYPES).index(ad)
    rate = bid_rate(catalogue.columns, int(catalogue.campaign_A[rows[k]]), k, result, rates)
    if expected is None:
        assert rate is None
    else:
        assert (rate.event, rate.slice) == expected[1:] and rate.p == pytest.approx(expected[0], rel=1e-6)


def test_events_of_a_ranked_bid_are_summed_against_its_rate(alone):
    def sums(metric):
        return metric.labels("cpc", "seen")._value.get()

    before = sums(telemetry.EXPECTED_EVENTS), sums(telemetry.OBSERVED_EVENTS)
    ranked(alone, {"click": 0.02})
    for _ in range(3):
        (rendered,) = alone.bid(user={"id": "known"}).rendered
        urls = urls_of(rendered)
        assert alone.post_events(("imp", urls["imp"]), ("imp", urls["imp"])) == ["new", "known"]
    assert alone.post_events(("click", urls["click"])) == ["new"]
    assert sums(telemetry.EXPECTED_EVENTS) - before[0] == pytest.approx(0.06)
    assert sums(telemetry.OBSERVED_EVENTS) - before[1] == 1
