"""The ads table of a data artifact as campaigns and ads for `CampaignStore.add`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from leadre.serve.catalogue.validation import MAX_NANOS
from leadre.types import Ad, BidType, Campaign, Size, Status

if TYPE_CHECKING:
    import polars as pl

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class ImportDefaults:
    """Values for empty cells of the table. A bid of 0.002 of the currency for an impression is a CPM of 2."""

    bid_type: BidType = "cpm"
    bid_nanos: int = 2_000_000
    daily_nanos: int = 0  # 0 = no cap
    currency: str = "USD"
    zone: str = "UTC"
    landing_url: str = "https://example.com/ads/{ad_id}"


def read(ads: pl.DataFrame, defaults: ImportDefaults) -> tuple[list[Campaign], list[Ad]]:
    """Campaigns and ads, not yet validated, of a table with the columns of ``data.tables.SCHEMAS["ads"]``.

    Ads of one advertiser with equal terms (bid, budget, dates) share a campaign. Its ID is the advertiser's ID for the
    default terms, otherwise the ID and a hash of the terms, so that a table always yields the same campaigns. The brand
    replaces a missing advertiser. A daily budget of zero pauses the ad, as zero in a campaign means no cap.
    """
    campaigns: dict[str, Campaign] = {}
    imported = []
    for row in ads.iter_rows(named=True):
        campaign = _campaign(row, defaults)
        campaigns.setdefault(campaign.campaign_id, campaign)
        price_nanos, price_currency = _price(row, defaults)
        url = row["landing_url"] or defaults.landing_url.replace("{ad_id}", quote(row["ad_id"], safe=""))
        imported.append(
            Ad(
                ad_id=row["ad_id"],
                object_id=row["object_id"] or row["ad_id"],
                campaign_id=campaign.campaign_id,
                advertiser_id=campaign.advertiser_id,
                title=row["title"],
                description=row["description"] or "",
                brand=row["brand"] or "",
                landing_url=url,
                price_nanos=price_nanos,
                price_currency=price_currency,
                adomain=row["adomain"] or "",
                iab_categories=(row["iab_category"],) if row["iab_category"] else (),
                sizes=tuple(_size(text) for text in row["creative_sizes"] or ()),
                status=_status(row),
            )
        )
    return list(campaigns.values()), imported


def object_ids(tables: Path) -> list[str]:
    """The IDs of all objects of a run, those of its ads and its contents."""
    import polars as pl

    ads = pl.scan_parquet(tables / "ads.parquet").select(pl.coalesce("object_id", "ad_id").alias("object_id"))
    contents = pl.scan_parquet(tables / "contents.parquet").select(pl.col("content_id").alias("object_id"))
    ids: list[str] = pl.concat([ads, contents]).unique().collect()["object_id"].to_list()
    return ids


def _campaign(row: Mapping[str, Any], defaults: ImportDefaults) -> Campaign:
    advertiser_id = row["advertiser_id"] or (row["brand"] or "unknown").replace("/", "-")
    has_bid = row["bid_nanos"] is not None
    terms = (
        row["bid_type"] or defaults.bid_type,
        row["bid_nanos"] if has_bid else defaults.bid_nanos,
        (row["currency"] if has_bid else None) or defaults.currency,  # without a bid the column is the price's currency
        row["daily_budget_nanos"] or defaults.daily_nanos,
        _micros(row["starts_at"]),
        _micros(row["ends_at"]),
    )
    usual = (defaults.bid_type, defaults.bid_nanos, defaults.currency, defaults.daily_nanos, 0, 0)
    suffix = "" if terms == usual else ":" + hashlib.sha256(repr(terms).encode()).hexdigest()[:8]
    bid_type, bid_nanos, currency, daily_nanos, starts_at_us, ends_at_us = terms
    return Campaign(
        campaign_id=advertiser_id + suffix,
        advertiser_id=advertiser_id,
        name=advertiser_id,
        bid_type=bid_type,
        bid_nanos=bid_nanos,
        currency=currency,
        zone=defaults.zone,
        daily_nanos=daily_nanos,
        starts_at_us=starts_at_us,
        ends_at_us=ends_at_us,
    )


def _price(row: Mapping[str, Any], defaults: ImportDefaults) -> tuple[int, str]:
    """The price that a banner shows, or 0 if the table has no valid price: an ad needs none."""
    nanos = row["price_nanos"] or 0
    currency = row["currency"] or defaults.currency
    is_price = 0 < nanos <= MAX_NANOS and re.fullmatch(r"[A-Z]{3}", currency)
    return (nanos, currency) if is_price else (0, defaults.currency)


def _status(row: Mapping[str, Any]) -> Status:
    status: Status = row["status"] or "active"
    return "paused" if status == "active" and row["daily_budget_nanos"] == 0 else status


def _micros(at: datetime | None) -> int:
    return 0 if at is None else (at - EPOCH) // timedelta(microseconds=1)


def _size(text: str) -> Size:
    """The size of "300x250". Any other text yields (0, 0), which validation refuses with the ad's ID."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX]\s*(\d{1,5})\s*", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
