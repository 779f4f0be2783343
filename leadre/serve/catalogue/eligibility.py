"""Which ads may be shown in an impression: campaigns and ads as flat arrays, and the rules over all ads at once.

A bid worker holds a `CatalogueSnapshot` and asks for a `refresh` a few times a second. Budgets, caps, floors and
deals are
decided elsewhere.

Letters: A ads, C campaigns, N either. A row number of an ad or campaign never changes, as none is ever deleted.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from leadre.types import Ad, Campaign, Impression, Request
from leadre.units import US_PER_S

T = TypeVar("T", Ad, Campaign)
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ANY_HOUR = (1 << 24) - 1
SEAT = "leadre"  # the bidder's own name in `wseat`, `bseat` and `seatbid.seat`

# Rule -> what it asks for, as people read it. Campaigns come first, as they are few.
CAMPAIGN_RULES = {
    "campaign_status": "the campaign is active",
    "dates": "the campaign has begun and has not ended",
    "seat": "the request allows this bidder's seat",
    "currency": "the request takes bids in the campaign's currency",
    "country": "the campaign targets the country",
    "region": "the campaign targets the region",
    "device_type": "the campaign targets the type of device",
    "site": "the campaign targets the site or app",
    "category": "the campaign targets a category of the site",
    "segment": "the campaign targets a segment of the user",
    "hour": "the campaign targets the hour in its time zone",
}
AD_RULES = {
    "ad_status": "the ad is active",
    "blocked_category": "no category of the ad, nor the one above it, is in bcat",
    "blocked_domain": "neither the advertiser's domain nor one above it is in badv",
    "blocked_attribute": "no creative attribute of the ad is in battr",
    "size": "the ad has a size of the impression",
    "secure": "image and landing page are https, as the impression is",
}
RULES = CAMPAIGN_RULES | AD_RULES


class Carriers:
    """Which rows carry a value; built once, as rows where few do and as a mask where that is smaller."""

    def __init__(self, values_of_rows: Sequence[Collection[Hashable]]) -> None:
        rows: dict[Hashable, list[int]] = defaultdict(list)
        for row, values in enumerate(values_of_rows):
            for value in values:
                rows[value].append(row)
        self._rows: dict[Hashable, Ints] = {}
        self._masks: dict[Hashable, Bools] = {}
        for value, numbers in rows.items():
            row_numbers = np.array(numbers, np.int64)
            if row_numbers.nbytes < len(values_of_rows):
                self._rows[value] = row_numbers
            else:
                self._masks[value] = np.zeros(len(values_of_rows), np.bool_)
                self._masks[value][row_numbers] = True
        self.none_N: Bools = np.array([not values for values in values_of_rows], np.bool_)
        self.all_none = bool(self.none_N.all())

    def any_of(self, values: Iterable[Hashable]) -> Bools:
        """[N] whether a row carries one of the values."""
        found_N = np.zeros(len(self.none_N), np.bool_)
        for value in values:
            if (mask_N := self._masks.get(value)) is not None:
                found_N |= mask_N
            elif (rows := self._rows.get(value)) is not None:
                found_N[rows] = True
        return found_N


class Columns:
    """All that the rules read except statuses, so that a pause leaves it as it is."""

    def __init__(self, campaigns: Sequence[Campaign], ads: Sequence[Ad], row_of_campaign: Mapping[str, int]) -> None:
        self.campaign_A = np.array([row_of_campaign[ad.campaign_id] for ad in ads], np.int64)
        self.ads_C: Ints = np.bincount(self.campaign_A, minlength=len(campaigns)).astype(np.int64)
        self.starts_at_us_C = np.array([campaign.starts_at_us for campaign in campaigns], np.int64)
        ends = [campaign.ends_at_us or np.iinfo(np.int64).max for campaign in campaigns]
        self.ends_at_us_C = np.array(ends, np.int64)
        self.currencies = Carriers([(campaign.currency,) for campaign in campaigns])
        self.currency_codes = tuple({campaign.currency for campaign in campaigns})
        targeting = [campaign.targeting for campaign in campaigns]
        self.countries = Carriers([wanted.countries for wanted in targeting])
        self.regions = Carriers([wanted.regions for wanted in targeting])
        self.device_types = Carriers([wanted.device_types for wanted in targeting])
        self.sites = Carriers([wanted.sites for wanted in targeting])
        self.categories = Carriers([wanted.categories for wanted in targeting])
        self.segments = Carriers([wanted.segments for wanted in targeting])
        self.hours_C = np.array([sum(1 << hour for hour in wanted.hours) or ANY_HOUR for wanted in targeting], np.int64)
        zones = sorted({campaign.zone for campaign in campaigns})
        self.zones = tuple(ZoneInfo(zone) for zone in zones)
        self.zone_C = np.array([zones.index(campaign.zone) for campaign in campaigns], np.int64)
        self.ad_categories = Carriers([_with_parents(ad.iab_categories) for ad in ads])
        self.domains = Carriers([_domain_and_above(ad.adomain) for ad in ads])
        self.attributes = Carriers([ad.attributes for ad in ads])
        self.sizes = Carriers([ad.sizes for ad in ads])
        self.secure_A: Bools = np.array([_is_secure(ad) for ad in ads], np.bool_)


@dataclass(frozen=True, kw_only=True)
class CatalogueSnapshot:
    """The book at one version. Row numbers index ``ads`` and ``campaigns``; nothing of it ever changes."""

    version: int
    campaigns: tuple[Campaign, ...]
    ads: tuple[Ad, ...]
    row_of_campaign: Mapping[str, int]
    row_of_ad: Mapping[str, int]
    active_C: Bools
    active_A: Bools
    columns: Columns
    seat: str

    @property
    def campaign_A(self) -> Ints:
        """[A] the row of each ad's campaign."""
        return self.columns.campaign_A

    @property
    def currencies(self) -> Sequence[str]:
        """Those of the campaigns."""
        return self.columns.currency_codes

    @property
    def live_A(self) -> Bools:
        """[A] whether ad and campaign are active, whatever the request."""
        return self.active_A & self.active_C[self.campaign_A]

    def eligible(
        self, request: Request, imp: Impression, now_us: int, segments: Collection[str] = ()
    ) -> tuple[Bools, dict[str, int]]:
        """([A] whether an ad may be shown, rule -> how many ads it took of those that earlier rules had left).

        ``segments`` are those of the user that may be used; the request's own are not read, as consent may forbid it.
        """
        lost: dict[str, int] = {}
        ok_C: Bools = np.ones(len(self.campaigns), np.bool_)
        for rule, passes_C in self._campaign_rules(request, now_us, segments):
            lost[rule] = int(self.columns.ads_C[ok_C & ~passes_C].sum())
            ok_C &= passes_C
        ok_A = ok_C[self.campaign_A]
        for rule, passes_A in (*self._ad_rules(request), *self._place_rules(imp)):
            left = np.count_nonzero(ok_A)
            ok_A &= passes_A
            lost[rule] = int(left - np.count_nonzero(ok_A))
        return ok_A, {rule: count for rule, count in lost.items() if count}

    def masks(self, request: Request, now_us: int, segments: Collection[str] = ()) -> list[Bools]:
        """What `eligible` says of each impression of the request; alike ones share an array."""
        ok_C: Bools = np.ones(len(self.campaigns), np.bool_)
        for _, passes_C in self._campaign_rules(request, now_us, segments):
            ok_C &= passes_C
        ok_A: Bools = ok_C[self.campaign_A]
        for _, passes_A in self._ad_rules(request):
            ok_A &= passes_A
        masks: dict[Hashable, Bools] = {}
        alike = [(imp.sizes, imp.is_secure, imp.blocked_attributes) for imp in request.imps]
        for imp, kind in zip(request.imps, alike, strict=True):
            if kind not in masks:
                masks[kind] = ok_A.copy()
                for _, passes_A in self._place_rules(imp):
                    masks[kind] &= passes_A
        return [masks[kind] for kind in alike]

    def why_not(
        self, request: Request, imp: Impression, ad_id: str, now_us: int, segments: Collection[str] = ()
    ) -> list[str]:
        """Every rule of `eligible` that the ad fails, as "rule: what it asks for"; empty where it may be shown."""
        row = self.row_of_ad.get(ad_id)
        if row is None:
            return [f"unknown: no ad has the ID {ad_id!r}"]
        campaign = self.campaign_A[row]
        failed = [rule for rule, ok_C in self._campaign_rules(request, now_us, segments) if not ok_C[campaign]]
        rules = (*self._ad_rules(request), *self._place_rules(imp))
        failed += [rule for rule, ok_A in rules if not ok_A[row]]
        return [f"{rule}: {RULES[rule]}" for rule in failed]

    def _campaign_rules(self, request: Request, now_us: int, segments: Collection[str]) -> Iterator[tuple[str, Bools]]:
        """(rule, [C] whether a campaign passes); rules that all pass may be left out."""
        columns = self.columns
        yield "campaign_status", self.active_C
        yield "dates", (columns.starts_at_us_C <= now_us) & (now_us < columns.ends_at_us_C)
        is_asked = not request.allowed_seats or self.seat in request.allowed_seats
        yield "seat", np.full(len(self.campaigns), is_asked and self.seat not in request.blocked_seats)
        yield "currency", columns.currencies.any_of(request.currencies)
        for rule, targeted, values in (
            ("country", columns.countries, (request.country,)),
            ("region", columns.regions, (request.region,)),
            ("device_type", columns.device_types, (request.device_type,)),
            ("site", columns.sites, (request.site.lower(),)),
            ("category", columns.categories, _with_parents(request.categories)),
            ("segment", columns.segments, segments),
        ):
            if not targeted.all_none:
                yield rule, targeted.none_N | targeted.any_of(values)
        now = datetime.fromtimestamp(now_us // US_PER_S, UTC)
        hour_Z = np.array([now.astimezone(zone).hour for zone in columns.zones], np.int64)
        yield "hour", (columns.hours_C >> hour_Z[columns.zone_C]) & 1 == 1

    def _ad_rules(self, request: Request) -> Iterator[tuple[str, Bools]]:
        """(rule, [A] whether an ad passes in any place); rules that all pass may be left out.

        Categories are compared as they are written, whatever taxonomy ``cattax`` names: an ad carries its codes of each
        taxonomy in which it wants to be judged, and one without a code passes. The codes of IAB's first taxonomy
        ("IAB7-39") say what is above them ("IAB7").
        """
        columns = self.columns
        yield "ad_status", self.active_A
        if request.blocked_categories and not columns.ad_categories.all_none:
            yield "blocked_category", ~columns.ad_categories.any_of(request.blocked_categories)
        if request.blocked_domains:
            yield "blocked_domain", ~columns.domains.any_of(domain.lower() for domain in request.blocked_domains)

    def _place_rules(self, imp: Impression) -> Iterator[tuple[str, Bools]]:
        """As `_ad_rules`, of one place."""
        columns = self.columns
        if imp.blocked_attributes and not columns.attributes.all_none:
            yield "blocked_attribute", ~columns.attributes.any_of(imp.blocked_attributes)
        if imp.sizes and not columns.sizes.all_none:  # a side without sizes takes any
            yield "size", columns.sizes.none_N | columns.sizes.any_of(imp.sizes)
        if imp.is_secure:
            yield "secure", columns.secure_A


def load(connection: sqlite3.Connection, seat: str = SEAT) -> CatalogueSnapshot:
    """The book as of its last commit; ``connection`` is one to ``manage.db``, read-only will do."""
    return refresh(_snapshot(0, (), (), seat), connection)


def refresh(snapshot: CatalogueSnapshot, connection: sqlite3.Connection) -> CatalogueSnapshot:
    """The snapshot itself while nothing was written (one row is read), else a new one.

    Only rows that were written since are read. Where no more than statuses changed, the columns are shared.
    """
    (version,) = connection.execute("SELECT number FROM version").fetchone()
    if version == snapshot.version:
        return snapshot
    connection.execute("BEGIN")  # the three reads see one commit
    try:
        (version,) = connection.execute("SELECT number FROM version").fetchone()
        changes = [
            connection.execute(
                f"SELECT body FROM {table} WHERE version > ? ORDER BY place", [snapshot.version]
            ).fetchall()
            for table in ("campaigns", "ads")
        ]
    finally:
        connection.execute("COMMIT")
    new_campaigns = [msgspec.json.decode(body, type=Campaign) for (body,) in changes[0]]
    new_ads = [msgspec.json.decode(body, type=Ad) for (body,) in changes[1]]
    campaigns, only_status_of_campaigns = _merged(snapshot.campaigns, snapshot.row_of_campaign, new_campaigns)
    ads, only_status_of_ads = _merged(snapshot.ads, snapshot.row_of_ad, new_ads)
    if not (only_status_of_campaigns and only_status_of_ads):
        return _snapshot(version, campaigns, ads, snapshot.seat)
    active_C, active_A = _active(campaigns), _active(ads)
    return dataclasses.replace(
        snapshot, version=version, campaigns=campaigns, ads=ads, active_C=active_C, active_A=active_A
    )


def _merged(old: tuple[T, ...], row_of: Mapping[str, int], changed: Sequence[T]) -> tuple[tuple[T, ...], bool]:
    """(old with the changed ones in place and the new ones behind, whether at most statuses differ)."""
    items, only_status = list(old), True
    for item in changed:
        row = row_of.get(item.ad_id if isinstance(item, Ad) else item.campaign_id)
        if row is None:
            items.append(item)
            only_status = False
        else:
            only_status = only_status and dataclasses.replace(old[row], status=item.status) == item
            items[row] = item
    return tuple(items), only_status


def _snapshot(version: int, campaigns: tuple[Campaign, ...], ads: tuple[Ad, ...], seat: str) -> CatalogueSnapshot:
    row_of_campaign = {campaign.campaign_id: row for row, campaign in enumerate(campaigns)}
    return CatalogueSnapshot(
        version=version,
        campaigns=campaigns,
        ads=ads,
        row_of_campaign=row_of_campaign,
        row_of_ad={ad.ad_id: row for row, ad in enumerate(ads)},
        active_C=_active(campaigns),
        active_A=_active(ads),
        columns=Columns(campaigns, ads, row_of_campaign),
        seat=seat,
    )


def _active(items: Sequence[Ad] | Sequence[Campaign]) -> Bools:
    return np.array([item.status == "active" for item in items], np.bool_)


def _with_parents(categories: Iterable[str]) -> set[str]:
    """IAB's first taxonomy writes a category within another as "IAB7-39"; other taxonomies have plain numbers."""
    categories = set(categories)
    return categories | {code.split("-")[0] for code in categories if code.startswith("IAB")}


def _domain_and_above(domain: str) -> set[str]:
    labels = domain.split(".") if domain else []
    return {".".join(labels[start:]) for start in range(len(labels))}


def _is_secure(ad: Ad) -> bool:
    urls = [url for url in (ad.landing_url, ad.image_url) if url]
    return all(url.lower().startswith("https:") for url in urls)
