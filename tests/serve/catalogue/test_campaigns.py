from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from leadre.errors import ConflictError, InputError, MissingError
from leadre.serve.catalogue import validation
from leadre.serve.catalogue.campaigns import CampaignStore, ImportResult
from leadre.serve.catalogue.database import ManageDatabase
from leadre.types import Goal, Targeting


def version(manage_database):
    return manage_database.connection.execute("SELECT number FROM version").fetchone()[0]


def test_stored_items_are_read_back(campaign_store, campaign, ad):
    stored = campaign(
        targeting=Targeting(countries=frozenset({"DEU", "FRA"}), hours=frozenset({8, 9})), zone="Asia/Tokyo"
    )
    assert campaign_store.put_campaign(stored)
    assert campaign_store.put_ad(ad(sizes=((300, 250), (728, 90)), attributes=frozenset({1, 6})))
    assert campaign_store.campaign("c1") == stored
    assert campaign_store.ad("a1") == ad(
        sizes=((300, 250), (728, 90)), attributes=frozenset({1, 6}), adomain="acme.test"
    )
    assert campaign_store.campaign("c2") is None and campaign_store.ad("a2") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"plan": "traffic", "daily_nanos": 5, "pacer": "throttle", "shading": True},
        {"plan": "even", "total_nanos": 5, "ends_at_us": 9},
        {"plan": "hours", "daily_nanos": 5, "hour_shares": (0,) * 23 + (7,), "pacer": "off"},
        {"goal": Goal(kind="roas", target_return=2.5, conversion_nanos=7)},
    ],
)
def test_pacing_of_a_campaign_is_read_back(campaign_store, campaign, fields):
    campaign_store.put_campaign(campaign(**fields))
    assert campaign_store.campaign("c1") == campaign(**fields)


def test_campaign_stored_before_pacing_is_neither_paced_nor_shaded(campaign_store, manage_database, campaign):
    campaign_store.put_campaign(campaign(daily_nanos=5))
    rows = manage_database.connection.execute(
        "UPDATE campaigns SET body = json_remove(body, '$.plan', '$.pacer', '$.hour_shares', '$.shading', '$.goal')"
        " RETURNING body"
    ).fetchall()
    assert "plan" not in rows[0][0]
    read = campaign_store.campaign("c1")
    assert (read.plan, read.shading, read.goal) == ("asap", False, Goal()) and read == campaign(daily_nanos=5)


def test_equal_item_is_not_written_again(campaign_store, manage_database, campaign, ad):
    for put, item in ((campaign_store.put_campaign, campaign()), (campaign_store.put_ad, ad())):
        assert put(item)
        before = version(manage_database)
        assert not put(item)
        assert version(manage_database) == before


def test_each_change_increments_the_version(campaign_store, manage_database, campaign):
    campaign_store.put_campaign(campaign())
    before = version(manage_database)
    assert not campaign_store.put_campaign(campaign(bid_nanos=5))
    assert version(manage_database) == before + 1


def test_texts_are_cleaned_and_domains_derived(campaign_store, campaign, ad):
    campaign_store.put_campaign(campaign(name="Au\u202etumn ", targeting=Targeting(sites=frozenset({"News.Example"}))))
    assert campaign_store.campaign("c1").name == "Autumn"
    assert campaign_store.campaign("c1").targeting.sites == {"news.example"}
    campaign_store.put_ad(ad(title="Red\n shoes\u200b", adomain="ACME.test"))
    assert (campaign_store.ad("a1").title, campaign_store.ad("a1").adomain) == ("Red shoes", "acme.test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"campaign_id": "a/b"}, "campaign_id"),
        ({"campaign_id": ".."}, "campaign_id"),
        ({"advertiser_id": ""}, "advertiser_id"),
        ({"name": "\u200b"}, "name"),
        ({"bid_nanos": -1}, "bid_nanos = -1; it must be a whole number from 0"),
        ({"bid_nanos": 1 << 63}, "bid_nanos"),
        ({"bid_nanos": validation.MAX_BID_NANOS + 1}, "from 0 to 10,000,000,000,000,000"),
        ({"bid_type": "cpx"}, "one of cpm, cpc, cpa"),
        ({"status": "gone"}, "one of active, paused, ended"),
        ({"daily_nanos": -1}, "daily_nanos"),
        ({"total_nanos": -1}, "total_nanos"),
        ({"cap_per_day": -1}, "cap_per_day"),
        ({"currency": "usd"}, "ISO 4217"),
        ({"zone": "Europe/Berln"}, "the nearest is 'Europe/Berlin'"),
        ({"zone": "Europe"}, "zone"),
        ({"starts_at_us": -1}, "starts_at_us"),
        ({"starts_at_us": 5, "ends_at_us": 5}, "after starts_at_us = 5"),
        ({"ends_at_us": validation.LATEST_US + 1}, "ends_at_us"),
        ({"targeting": Targeting(countries=frozenset({"DE"}))}, "targeting.countries"),
        ({"targeting": Targeting(hours=frozenset({24}))}, "targeting.hours"),
        ({"targeting": Targeting(device_types=frozenset({9}))}, "targeting.device_types"),
        ({"targeting": Targeting(segments=frozenset({""}))}, "targeting.segments"),
        ({"plan": "soon"}, "plan = 'soon'; it must be one of asap, even, traffic, front_loaded, hours"),
        ({"pacer": "pid"}, "one of mirror, throttle, off"),
        ({"plan": "even"}, "plan = 'even'; it must be 'asap' for a campaign with neither daily_nanos"),
        ({"plan": "even", "total_nanos": 5}, "plan"),
        ({"plan": "even", "daily_nanos": 5, "hour_shares": (1,) * 24}, "hour_shares = .* the plan 'hours' has them"),
        ({"plan": "hours", "daily_nanos": 5}, "hour_shares = .*24 whole numbers"),
        ({"plan": "hours", "daily_nanos": 5, "hour_shares": (1,) * 23}, "hour_shares"),
        ({"plan": "hours", "daily_nanos": 5, "hour_shares": (-1, *(1,) * 23)}, "hour_shares"),
        ({"plan": "hours", "daily_nanos": 5, "hour_shares": (0,) * 24}, "above 0 in an hour"),
        (
            {
                "plan": "hours",
                "daily_nanos": 5,
                "hour_shares": (1, *(0,) * 23),
                "targeting": Targeting(hours=frozenset({8})),
            },
            "above 0 in an hour that targeting.hours allows",
        ),
    ],
)
def test_bad_campaign_is_refused_with_the_field(campaign_store, manage_database, campaign, fields, message):
    before = version(manage_database)
    with pytest.raises(InputError, match=message):
        campaign_store.put_campaign(campaign(**fields))
    assert version(manage_database) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ad_id": " a"}, "ad_id"),
        ({"ad_id": "a" * 129}, "ad_id"),
        ({"object_id": "a\nb"}, "object_id"),
        ({"title": "  "}, "title"),
        ({"landing_url": ""}, "landing_url"),
        ({"landing_url": "javascript:alert(1)"}, "landing_url"),
        ({"landing_url": "//acme.test"}, "landing_url"),
        ({"landing_url": "https://"}, "landing_url"),
        ({"landing_url": "https://good.test@evil.test/"}, "landing_url"),
        ({"landing_url": "https://acme.test/\r\nSet-Cookie: a"}, "landing_url"),
        ({"landing_url": "https://acme.test:99999/"}, "landing_url"),
        ({"landing_url": "https://[acme.test/"}, "landing_url"),
        ({"landing_url": 'https://acme.test/"onload="'}, "landing_url"),
        ({"landing_url": "https://acme.test/" + "a" * 2048}, "landing_url"),
        ({"image_url": "data:image/png;base64,AA"}, "image_url"),
        ({"price_nanos": -1}, "price_nanos"),
        ({"price_currency": "euro"}, "price_currency"),
        ({"adomain": "https://acme.test"}, "adomain"),
        ({"sizes": ((0, 250),)}, "sizes"),
        ({"sizes": ((300, 10_001),)}, "sizes"),
        ({"attributes": frozenset({0})}, "attributes"),
        ({"iab_categories": ("",)}, "iab_categories"),
        ({"status": "live"}, "status"),
        ({"campaign_id": "c9"}, "a campaign of this account"),
        ({"campaign_id": "theirs"}, "a campaign of this account"),
    ],
)
def test_bad_ad_is_refused_with_the_field(campaign_store, campaign, ad, fields, message):
    campaign_store.put_campaign(campaign())
    campaign_store.put_campaign(campaign("theirs", advertiser_id="bolt"))
    with pytest.raises(InputError, match=message):
        campaign_store.put_ad(ad(**fields))
    assert campaign_store.ads() == []


def test_status_changes_until_ended(campaign_store, campaign, ad):
    campaign_store.put_campaign(campaign())
    campaign_store.put_ad(ad())
    for set_status, find in (
        (campaign_store.set_campaign_status, lambda: campaign_store.campaign("c1")),
        (campaign_store.set_ad_status, lambda: campaign_store.ad("a1")),
    ):
        name = "c1" if set_status == campaign_store.set_campaign_status else "a1"
        for status in ("paused", "paused", "active", "ended", "ended"):
            assert set_status(name, status).status == status
            assert find().status == status
        for status in ("active", "paused"):
            with pytest.raises(ConflictError, match="final"):
                set_status(name, status)
        with pytest.raises(MissingError, match="'unknown'"):
            set_status("unknown", "paused")


def test_account_and_currency_cannot_change(campaign_store, campaign, ad):
    campaign_store.put_campaign(campaign())
    for field, value in (("currency", "EUR"), ("advertiser_id", "bolt")):
        with pytest.raises(ConflictError, match=field):
            campaign_store.put_campaign(campaign(**{field: value}))
    campaign_store.put_ad(ad())
    campaign_store.put_campaign(campaign("c2", advertiser_id="bolt"))
    with pytest.raises(ConflictError, match="advertiser_id"):
        campaign_store.put_ad(ad(campaign_id="c2", advertiser_id="bolt"))


def test_pages_are_ordered_by_id_and_filtered(campaign_store, campaign, ad):
    for number in (3, 1, 2):
        campaign_store.put_campaign(campaign(f"c{number}", advertiser_id="acme" if number < 3 else "bolt"))
        campaign_store.put_ad(
            ad(f"a{number}", campaign_id=f"c{number}", advertiser_id="acme" if number < 3 else "bolt")
        )
    campaign_store.set_ad_status("a2", "paused")

    def ids(items):
        return [getattr(item, "ad_id", getattr(item, "campaign_id", "")) for item in items]

    assert ids(campaign_store.ads(limit=2)) == ["a1", "a2"]
    assert ids(campaign_store.ads(limit=2, after="a2")) == ["a3"]
    assert ids(campaign_store.ads(advertiser_id="acme")) == ["a1", "a2"]
    assert ids(campaign_store.ads(advertiser_id="acme", status="paused")) == ["a2"]
    assert ids(campaign_store.ads(campaign_id="c3")) == ["a3"]
    assert [campaign.campaign_id for campaign in campaign_store.campaigns(advertiser_id="bolt")] == ["c3"]


def test_import_keeps_stored_items_and_lists_refused_ads(campaign_store, manage_database, campaign, ad):
    campaign_store.put_campaign(campaign(bid_nanos=7))
    campaign_store.put_ad(ad(title="By hand"))
    before = version(manage_database)
    new = [ad(title="From the table"), ad("a2"), ad("a3", landing_url="ftp://x.test"), ad("a4", campaign_id="c9")]
    added = campaign_store.add([campaign(bid_nanos=9), campaign("c2")], [*new, ad("a2")])
    assert added == ImportResult(campaigns=1, ads=1, known_ads=2, refused=added.refused)
    assert [ad_id for ad_id, _ in added.refused] == ["a3", "a4"]
    assert "landing_url" in added.refused[0][1]
    assert (campaign_store.campaign("c1").bid_nanos, campaign_store.ad("a1").title) == (7, "By hand")
    assert [ad.ad_id for ad in campaign_store.ads()] == ["a1", "a2"]
    assert version(manage_database) == before + 1


def test_campaign_above_a_later_limit_can_be_paused(campaign_store, monkeypatch, campaign):
    campaign_store.put_campaign(campaign(bid_nanos=10**6))
    monkeypatch.setattr(validation, "MAX_BID_NANOS", 10**5)
    assert campaign_store.set_campaign_status("c1", "paused").status == "paused"
    assert campaign_store.campaign("c1").status == "paused"
    with pytest.raises(InputError, match="bid_nanos"):
        campaign_store.put_campaign(campaign(bid_nanos=10**6, name="Other"))


def test_import_refuses_a_bad_campaign_with_its_ads_alone(campaign_store, campaign, ad):
    campaigns = [campaign("c8"), campaign("c9", zone="Mars"), campaign("c10", bid_nanos=10**18)]
    added = campaign_store.add(campaigns, [ad("a8", campaign_id="c8"), ad("a9", campaign_id="c9")])
    assert (added.campaigns, added.ads) == (1, 1)
    assert [ad_id for ad_id, _ in added.refused] == ["a9"] and "zone = 'Mars'" in added.refused[0][1]
    assert campaign_store.campaign("c9") is None and campaign_store.campaign("c10") is None


def test_concurrent_writes_are_all_stored(campaign_store, manage_database, campaign):
    before = version(manage_database)
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda number: campaign_store.put_campaign(campaign(f"c{number}")), range(80)))
    finally:
        sys.setswitchinterval(usual_s)
    assert len(campaign_store.campaigns()) == 80
    assert version(manage_database) == before + 80


def test_stored_campaign_survives_reopening(campaign_store, manage_db, campaign):
    campaign_store.put_campaign(campaign())
    again = ManageDatabase(manage_db)
    assert CampaignStore(again).campaign("c1") == dataclasses.replace(campaign())
    again.close()
