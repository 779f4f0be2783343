"""What an impression is worth: the bid times a rate that was observed, never what a generator thinks."""

from types import SimpleNamespace

import numpy as np

from leadre.serve.bidding.value import PRIOR_IMPRESSIONS, PRIOR_RATES, expected_nanos

from ..conftest import make_ad, make_campaign


def book(*terms):
    """One ad a campaign; terms are (bid_type, bid_nanos)."""
    campaigns = [make_campaign(f"c{n}", bid_type=kind, bid_nanos=bid) for n, (kind, bid) in enumerate(terms)]
    ads = [make_ad(f"a{n}", campaign_id=f"c{n}") for n in range(len(terms))]
    return SimpleNamespace(campaigns=campaigns, ads=ads, campaign_A=np.arange(len(terms)))


def test_an_impression_that_is_bid_for_costs_the_bid():
    assert expected_nanos(book(("cpm", 2_000_000)), {"a0": (1000, 900, 800)}).tolist() == [2_000_000]


def test_before_anything_is_observed_the_prior_rate_counts():
    found = expected_nanos(book(("cpc", 10**9), ("cpa", 10**9)), {})
    assert found.tolist() == [round(10**9 * PRIOR_RATES["cpc"]), round(10**9 * PRIOR_RATES["cpa"])]


def test_a_rate_is_drawn_towards_that_of_all_ads_that_pay_for_the_same():
    """1,000 impressions and 10 clicks, and an ad that was never shown; clicks on what pays for itself do not count."""
    counts = {"a0": (1000, 10, 0), "a2": (500, 500, 0)}
    clicked, unseen, _ = expected_nanos(book(("cpc", 10**9), ("cpc", 10**9), ("cpm", 1)), counts).tolist()
    overall = (10 + PRIOR_IMPRESSIONS * PRIOR_RATES["cpc"]) / (1000 + PRIOR_IMPRESSIONS)
    assert unseen == int(10**9 * overall)
    assert clicked == int(10**9 * (10 + PRIOR_IMPRESSIONS * overall) / (1000 + PRIOR_IMPRESSIONS))


def test_no_rate_is_above_one():
    assert expected_nanos(book(("cpc", 100)), {"a0": (0, 10_000, 0)}).tolist() == [100]
