"""Limits of accounts: at the door, and in force for what exists."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.errors import ConflictError, InputError
from leadre.serve.catalogue import eligibility, limits
from leadre.serve.catalogue.audit import Author
from leadre.serve.catalogue.limits import Limits

from ..conftest import make_ad, make_campaign
from .test_eligibility import BANNER, NOON_US, REQUEST

EVERY_LIMIT = {
    "cpm_bid_nanos": 1_999_999,
    "total_nanos": 10,
    "daily_nanos": 10,
    "campaigns": 1,
    "ads": 1,
}


@pytest.fixture
def limit(manage_database):
    """Sets the limits of acme."""
    return lambda **values: limits.put(manage_database, "acme", Limits(**values), Author())


def refused(store, campaign):
    with pytest.raises(ConflictError) as error:
        store.put_campaign(campaign)
    return str(error.value)


def test_campaign_above_a_limit_is_refused_with_value_and_limit(campaign_store, campaign, limit):
    limit(cpm_bid_nanos=5, cpc_bid_nanos=50, total_nanos=1_000)
    ok = campaign(bid_nanos=5, total_nanos=1_000)
    campaign_store.put_campaign(ok)
    assert "bid_nanos = 6 is above the account's 5 for cpm" in refused(campaign_store, campaign(bid_nanos=6))
    dear_click = dataclasses.replace(ok, bid_type="cpc", bid_nanos=51)
    assert "51 is above the account's 50 for cpc" in refused(campaign_store, dear_click)
    assert "total_nanos = 1001 is above" in refused(campaign_store, dataclasses.replace(ok, total_nanos=1_001))
    assert "0 (no cap) is above" in refused(campaign_store, dataclasses.replace(ok, total_nanos=0))
    assert campaign_store.campaign("c1") == ok
    other = campaign("b1", advertiser_id="bolt", bid_nanos=10**9)
    assert campaign_store.put_campaign(other), "another account has no limits"


def test_daily_budgets_of_active_campaigns_in_a_currency_share_the_limit(campaign_store, campaign, limit):
    limit(daily_nanos=100)
    campaign_store.put_campaign(campaign("c1", daily_nanos=60))
    assert "41 with 60 of other active campaigns in USD" in refused(campaign_store, campaign("c2", daily_nanos=41))
    campaign_store.put_campaign(campaign("c2", daily_nanos=40))
    campaign_store.put_campaign(campaign("c3", daily_nanos=100, currency="EUR"))
    campaign_store.put_campaign(campaign("c4", daily_nanos=9, status="paused"))
    with pytest.raises(ConflictError, match="9 with 100"):
        campaign_store.set_campaign_status("c4", "active")
    campaign_store.set_campaign_status("c1", "paused")
    campaign_store.set_campaign_status("c4", "active")


def test_number_of_campaigns_and_ads_that_have_not_ended(campaign_store, campaign, ad, limit):
    limit(campaigns=2, ads=1)
    campaign_store.put_campaign(campaign("c1"))
    campaign_store.put_campaign(campaign("c2", status="paused"))
    assert "2 campaigns that have not ended" in refused(campaign_store, campaign("c3"))
    campaign_store.put_ad(ad("a1"))
    with pytest.raises(ConflictError, match="1 ads that have not ended"):
        campaign_store.put_ad(ad("a2"))
    campaign_store.set_campaign_status("c2", "ended")
    campaign_store.set_ad_status("a1", "ended")
    campaign_store.put_campaign(campaign("c3"))
    campaign_store.put_ad(ad("a2"))


@pytest.mark.parametrize("name", EVERY_LIMIT)
def test_lowered_limit_stops_what_exceeds_it_at_once(campaign_store, campaign, ad, limit, reader, name):
    """Of two of each the older still bids, where it keeps the limit itself."""
    for number, budget in ((1, 10), (2, 11)):
        campaign_store.put_campaign(
            campaign(f"c{number}", bid_nanos=1_999_998 + number, total_nanos=budget, daily_nanos=budget)
        )
        campaign_store.put_ad(ad(f"a{number}", campaign_id=f"c{number}"))
    before = eligibility.load(reader)
    assert before.live_A.all()
    limit(**{name: EVERY_LIMIT[name]})
    after = eligibility.refresh(before, reader)
    assert after.live_A.tolist() == [True, False]
    (why,) = after.why_not(REQUEST, BANNER, "a2", NOON_US)
    assert why.split(":")[0] == ("ad_limit" if name == "ads" else "account_limit")
    assert after.eligible(REQUEST, BANNER, NOON_US)[0].tolist() == [True, False]
    campaigns, ads = limits.stopped_of(reader, "acme")
    assert [*campaigns, *ads] == (["a2"] if name == "ads" else ["c2"])
    assert after.columns is before.columns, "no column is computed again"
    campaign_store.set_campaign_status("c2", "paused")  # what is stopped can be paused and ended
    campaign_store.set_campaign_status("c2", "ended")
    limit()
    assert eligibility.refresh(after, reader).live_A.tolist() == [True, False] and limits.stopped_of(
        reader, "acme"
    ) == ({}, {})


def test_campaign_that_exceeds_a_lowered_limit_may_spend_less(campaign_store, campaign, limit, reader):
    for number in (1, 2):
        campaign_store.put_campaign(campaign(f"c{number}", daily_nanos=60))
    limit(daily_nanos=100)
    campaign_store.put_campaign(campaign("c1", daily_nanos=50))
    refused(campaign_store, campaign("c1", daily_nanos=51))
    campaign_store.put_campaign(campaign("c2", daily_nanos=50))
    assert limits.stopped_of(reader, "acme") == ({}, {})


def test_limits_are_audited_and_an_invalid_account_is_refused(manage_database, limit):
    limit(ads=3)
    limit(ads=3)
    rows = manage_database.connection.execute("SELECT kind, advertiser_id FROM audit").fetchall()
    assert rows == [("limits", "acme")]
    with pytest.raises(InputError, match="advertiser_id"):
        limits.put(manage_database, "a/b", Limits(), Author())


@given(
    own=st.builds(Limits, daily_nanos=st.integers(0, 30), total_nanos=st.integers(0, 30), campaigns=st.integers(0, 4)),
    drawn=st.lists(
        st.tuples(
            st.integers(0, 20),
            st.integers(0, 20),
            st.sampled_from(["active", "paused", "ended"]),
            st.sampled_from("UE"),
        ),
        max_size=7,
    ),
)
def test_campaigns_that_go_on_keep_every_limit(own, drawn):
    campaigns = [
        make_campaign(f"c{number}", daily_nanos=daily, total_nanos=total, status=status, currency=f"{currency}SD")
        for number, (daily, total, status, currency) in enumerate(drawn)
    ]
    stopped, _ = limits.stopped({"acme": own}, campaigns, [make_ad()])
    running = [
        campaign for campaign in campaigns if campaign.status == "active" and campaign.campaign_id not in stopped
    ]
    for currency in ("USD", "ESD"):
        daily = [campaign.daily_nanos for campaign in running if campaign.currency == currency]
        assert not own.daily_nanos or (sum(daily) <= own.daily_nanos and all(daily))
    assert not own.total_nanos or all(0 < campaign.total_nanos <= own.total_nanos for campaign in running)
    assert not own.campaigns or len(running) <= own.campaigns
