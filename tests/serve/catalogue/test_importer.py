from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from leadre.data import tables
from leadre.serve.catalogue import eligibility, importer
from leadre.serve.catalogue.importer import ImportDefaults


def table(*rows):
    kinds = tables.SCHEMAS["ads"].columns
    frame = pl.DataFrame(list(rows), schema_overrides={column: kinds[column] for column in kinds if column in rows[0]})
    return tables.complete("ads", frame)


def test_empty_cells_get_the_defaults(campaign_store):
    frame = table(
        {"ad_id": "a 1", "title": "Tea", "advertiser_id": "leaf", "brand": "x", "price_nanos": 5, "currency": "EUR"},
        {"ad_id": "a2", "title": "Rum", "advertiser_id": None, "brand": "A/B", "price_nanos": 5, "currency": "EUR"},
        {"ad_id": "a3", "title": "Gin", "advertiser_id": "leaf", "brand": None, "price_nanos": 5, "currency": "euro"},
        {"ad_id": "a4", "title": "Ice", "advertiser_id": None, "brand": None, "price_nanos": 5, "currency": "EUR"},
    )
    campaigns, ads = importer.read(frame, ImportDefaults(bid_nanos=7, zone="Europe/Berlin"))
    added = campaign_store.add(campaigns, ads)
    assert (added.campaigns, added.ads, added.refused) == (3, 4, ())
    assert [campaign.campaign_id for campaign in campaigns] == ["leaf", "A-B", "unknown"]
    leaf = campaign_store.campaign("leaf")
    assert (leaf.bid_type, leaf.bid_nanos, leaf.currency, leaf.zone) == ("cpm", 7, "USD", "Europe/Berlin")
    tea = campaign_store.ad("a 1")
    assert (tea.object_id, tea.campaign_id, tea.sizes, tea.status) == ("a 1", "leaf", (), "active")
    assert (tea.price_nanos, tea.price_currency) == (5, "EUR")
    assert campaign_store.ad("a3").price_nanos == 0, "an invalid price is dropped and the ad is kept"
    assert (tea.landing_url, tea.adomain) == ("https://example.com/ads/a%201", "example.com")
    assert campaign_store.add(*importer.read(frame, ImportDefaults())).known_ads == 4


def test_ads_with_equal_terms_share_a_campaign(campaign_store, reader):
    day = datetime(2026, 3, 1, tzinfo=UTC)
    usual = {"advertiser_id": "leaf", "currency": "EUR", "bid_type": "cpc", "creative_sizes": ["300x250", "728 X 90"]}
    frame = table(
        {"ad_id": "a1", "title": "Tea", "bid_nanos": 5, "daily_budget_nanos": 9, "starts_at": day, **usual},
        {"ad_id": "a2", "title": "Rum", "bid_nanos": 5, "daily_budget_nanos": 9, "starts_at": day, **usual},
        {"ad_id": "a3", "title": "Gin", "bid_nanos": 6, "daily_budget_nanos": 0, "starts_at": None, **usual},
        {"ad_id": "a4", "title": "Ice", "bid_nanos": 6, "daily_budget_nanos": 0, "starts_at": None, **usual}
        | {"creative_sizes": ["wide"]},
    )
    campaigns, ads = importer.read(frame, ImportDefaults())
    assert campaigns == importer.read(frame, ImportDefaults())[0]
    added = campaign_store.add(campaigns, ads)
    assert (added.campaigns, added.ads, [ad_id for ad_id, _ in added.refused]) == (2, 3, ["a4"])
    first = campaign_store.campaign(campaign_store.ad("a1").campaign_id)
    assert first.campaign_id == campaign_store.ad("a2").campaign_id != campaign_store.ad("a3").campaign_id
    assert (first.bid_type, first.bid_nanos, first.currency, first.daily_nanos) == ("cpc", 5, "EUR", 9)
    assert first.starts_at_us == 1_772_323_200_000_000
    assert campaign_store.ad("a1").sizes == ((300, 250), (728, 90))
    assert campaign_store.ad("a3").status == "paused"  # its budget is 0
    assert len(eligibility.load(reader).ads) == 3
