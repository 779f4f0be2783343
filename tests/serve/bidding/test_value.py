"""Expected value of an impression: the bid times the observed, smoothed rate."""

from types import SimpleNamespace

import numpy as np

from leadre.data.bids import PRIOR_IMPRESSIONS, PRIOR_RATES
from leadre.serve.bidding.value import ad_prices

from ..conftest import make_ad, make_campaign


def catalogue(*terms):
    """One ad a campaign; terms are (bid_type, bid_nanos)."""
    campaigns = [make_campaign(f"c{n}", bid_type=kind, bid_nanos=bid) for n, (kind, bid) in enumerate(terms)]
    ads = [make_ad(f"a{n}", campaign_id=f"c{n}") for n in range(len(terms))]
    rows = {ad.ad_id: row for row, ad in enumerate(ads)}
    return SimpleNamespace(campaigns=campaigns, ads=ads, campaign_A=np.arange(len(terms)), row_of_ad=rows)


def test_value_of_a_cpm_ad_is_its_bid():
    assert ad_prices(catalogue(("cpm", 2_000_000)), {"a0": (1000, 900, 800)}).expected_nanos_A.tolist() == [2_000_000]


def test_prior_rate_counts_before_any_observation():
    value_A = ad_prices(catalogue(("cpc", 10**9), ("cpa", 10**9)), {}).expected_nanos_A
    assert value_A.tolist() == [round(10**9 * PRIOR_RATES["cpc"]), round(10**9 * PRIOR_RATES["cpa"])]


def test_rate_is_smoothed_towards_that_of_ads_of_the_same_bid_type():
    """1,000 impressions and 10 clicks, and an ad that was never shown; clicks on CPM ads do not count."""
    counts = {"a0": (1000, 10, 0), "a2": (500, 500, 0), "unknown": (9, 9, 9)}
    shown = catalogue(("cpc", 10**9), ("cpc", 10**9), ("cpm", 1))
    clicked, unseen, _ = ad_prices(shown, counts).expected_nanos_A.tolist()
    overall = (10 + PRIOR_IMPRESSIONS * PRIOR_RATES["cpc"]) / (1000 + PRIOR_IMPRESSIONS)
    assert unseen == int(10**9 * overall)
    assert clicked == int(10**9 * (10 + PRIOR_IMPRESSIONS * overall) / (1000 + PRIOR_IMPRESSIONS))


def test_rate_is_at_most_one():
    assert ad_prices(catalogue(("cpc", 100)), {"a0": (0, 10_000, 0)}).expected_nanos_A.tolist() == [100]
