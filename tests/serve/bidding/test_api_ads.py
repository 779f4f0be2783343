"""An ad made at the management API is a candidate before any list or model knows it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from leadre.serve.bidding import api_ads

from ..alone import NOON_US, Alone, chosen
from ..conftest import make_ad, make_campaign

REQUESTS = 400


def offer(alone, account, *ads, **fields):
    """Store a campaign of an account and its ads; each shows an object of its own."""
    alone.campaign_store.put_campaign(make_campaign(f"c-{account}", advertiser_id=account, **fields))
    for name in ads:
        created = {} if name.startswith("old") else {"created_at_us": NOON_US}
        ad = make_ad(name, object_id=name, campaign_id=f"c-{account}", advertiser_id=account, **created)
        alone.campaign_store.put_ad(ad)


def bids_of(alone):
    """Ad -> number of bids among `REQUESTS` requests, and the propensities of each ad."""
    counts = Counter()
    propensities = {}
    for number in range(REQUESTS):
        decision = alone.bid(id=f"r{number}", user={"id": "known"})
        for rendered in decision.rendered:
            counts[rendered.bid.ad_id] += 1
            propensities.setdefault(rendered.bid.ad_id, set()).add(round(rendered.bid.propensity, 6))
    return counts, propensities


def test_made_ad_is_bid_where_no_other_candidate_is_left(tmp_path):
    with Alone(tmp_path / "state") as alone:
        offer(alone, "acme", "made")
        offer(alone, "bolt", "old")
        alone.renew()
        (rendered,) = alone.bid().rendered
        assert (rendered.bid.ad_id, rendered.bid.source, rendered.bid.propensity) == ("made", "contextual", 1.0)
        alone.put_list("*", "old")
        alone.renew()
        assert chosen(alone.bid()) == ["old"], "without exploration, lists come first"
        alone.campaign_store.set_ad_status("old", "paused")
        alone.renew()
        assert chosen(alone.bid()) == ["made"]
        consent = {"regs": {"gdpr": 1}}
        assert not alone.bid(**consent).rendered, "no ad without a permission"


def test_made_ad_is_not_bid_for_a_listed_ad_that_cannot_be_paid(tmp_path):
    """Its price is no measure of its fit; exploration draws it all the same, with the propensity of a draw."""
    for exploration, expected in ((0.0, {}), (0.5, {"made": {0.5}})):
        with Alone(tmp_path / str(exploration), exploration=exploration) as alone:
            offer(alone, "bolt", "old", total_nanos=1)
            offer(alone, "acme", "made", cap_per_day=REQUESTS)
            alone.put_list("known", "old")
            alone.renew()
            counts, propensities = bids_of(alone)
            assert propensities == expected
            assert counts["made"] == pytest.approx(REQUESTS * exploration, abs=40)


def test_exploration_draws_api_ads_with_their_propensity_at_any_bid(tmp_path):
    with Alone(tmp_path / "state", exploration=0.5) as alone:
        offer(alone, "bolt", "old-1", "old-2")
        offer(alone, "acme", "made", bid_nanos=10**16)
        alone.put_list("known", "old-1", "old-2")
        alone.renew()
        counts, propensities = bids_of(alone)
        assert propensities == {"old-1": {round(0.5 / 3 + 0.5, 6)}, "old-2": {0.166667}, "made": {0.166667}}
        assert counts["made"] == pytest.approx(REQUESTS / 6, abs=25)


def test_many_ads_of_one_account_take_no_share_of_another(tmp_path):
    with Alone(tmp_path / "state", exploration=0.9) as alone:
        offer(alone, "flood", *(f"flood-{number}" for number in range(60)))
        offer(alone, "honest", "honest")
        offer(alone, "bolt", *(f"old-{number}" for number in range(30)))
        alone.put_list("known", *(f"old-{number}" for number in range(30)))
        alone.renew()
        counts, propensities = bids_of(alone)
        flood = sum(count for name, count in counts.items() if name.startswith("flood"))
        assert propensities["honest"] == {round(0.9 / 22, 6)}, "20 of the list, and an ad of each account"
        assert counts["honest"] == pytest.approx(flood, abs=20)
        assert counts["honest"] > 0


def test_request_gets_one_ad_of_each_of_four_accounts(tmp_path):
    rows_M = np.arange(100, 110)
    account_M = np.array([0, 1, 1, 1, 2, 3, 3, 4, 5, 5])
    assert api_ads.select_rows(rows_M, account_M, 0.0, 0.99).tolist() == [100, 103, 104, 106]
    assert api_ads.select_rows(rows_M, account_M, 0.9, 0.0).tolist() == [108, 100, 101, 104]
    assert api_ads.select_rows(rows_M[:1], account_M[:1], 0.5, 0.5).tolist() == [100]
