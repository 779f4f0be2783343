"""Which ads may be shown in an impression: an immutable snapshot of the catalogue, and rules over all ads at once.

A bid worker holds a `CatalogueSnapshot` and calls `refresh` a few times a second. Budgets, frequency caps, floors and
deals are no part of eligibility.

Letters: A ads, C campaigns. The row number of an ad or campaign never changes, as none is ever deleted.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
import numpy as np

from leadre.serve.catalogue.columns import Bools, CatalogueColumns, Ints, with_parents
from leadre.types import Ad, Campaign, Impression, Request
from leadre.units import US_PER_S

T = TypeVar("T", Ad, Campaign)

SEAT = "leadre"  # the bidder's own name in `wseat`, `bseat` and `seatbid.seat`

# Rule -> its condition, for people. Campaign rules run first, as campaigns are few.
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


@dataclass(frozen=True, kw_only=True)
class CatalogueSnapshot:
    """The catalogue at one version, immutable. Row numbers index ``ads`` and ``campaigns``."""

    version: int
    campaigns: tuple[Campaign, ...]
    ads: tuple[Ad, ...]
    row_of_campaign: Mapping[str, int]
    row_of_ad: Mapping[str, int]
    active_C: Bools
    active_A: Bools
    columns: CatalogueColumns
    seat: str

    @property
    def campaign_A(self) -> Ints:
        """[A] the row of each ad's campaign."""
        return self.columns.campaign_A

    @property
    def currencies(self) -> Sequence[str]:
        """The currencies of the campaigns, each once."""
        return self.columns.currency_codes

    @property
    def live_A(self) -> Bools:
        """[A] whether ad and campaign are active."""
        return self.active_A & self.active_C[self.campaign_A]

    def eligible(
        self, request: Request, imp: Impression, now_us: int, segments: Collection[str] = ()
    ) -> tuple[Bools, dict[str, int]]:
        """([A] whether an ad may be shown, rule -> number of ads that this rule is the first to exclude).

        ``segments``: the user's segments that consent allows; those of the request are not read here.
        """
        excluded: dict[str, int] = {}
        ok_C: Bools = np.ones(len(self.campaigns), np.bool_)
        for rule, passes_C in self._campaign_rules(request, now_us, segments):
            excluded[rule] = int(self.columns.ads_C[ok_C & ~passes_C].sum())
            ok_C &= passes_C
        ok_A = ok_C[self.campaign_A]
        for rule, passes_A in (*self._ad_rules(request), *self._imp_rules(imp)):
            before = np.count_nonzero(ok_A)
            ok_A &= passes_A
            excluded[rule] = int(before - np.count_nonzero(ok_A))
        return ok_A, {rule: count for rule, count in excluded.items() if count}

    def masks(self, request: Request, now_us: int, segments: Collection[str] = ()) -> list[Bools]:
        """The mask of `eligible` for each impression of the request; impressions with equal rules share an array."""
        ok_C: Bools = np.ones(len(self.campaigns), np.bool_)
        for _, passes_C in self._campaign_rules(request, now_us, segments):
            ok_C &= passes_C
        ok_A: Bools = ok_C[self.campaign_A]
        for _, passes_A in self._ad_rules(request):
            ok_A &= passes_A
        masks: dict[Hashable, Bools] = {}
        kinds = [(imp.sizes, imp.is_secure, imp.blocked_attributes) for imp in request.imps]
        for imp, kind in zip(request.imps, kinds, strict=True):
            if kind not in masks:
                masks[kind] = ok_A.copy()
                for _, passes_A in self._imp_rules(imp):
                    masks[kind] &= passes_A
        return [masks[kind] for kind in kinds]

    def why_not(
        self, request: Request, imp: Impression, ad_id: str, now_us: int, segments: Collection[str] = ()
    ) -> list[str]:
        """Every rule of `eligible` that the ad fails, as "rule: condition"; empty if it may be shown."""
        row = self.row_of_ad.get(ad_id)
        if row is None:
            return [f"unknown: no ad has the ID {ad_id!r}"]
        campaign = self.campaign_A[row]
        failed = [rule for rule, ok_C in self._campaign_rules(request, now_us, segments) if not ok_C[campaign]]
        rules = (*self._ad_rules(request), *self._imp_rules(imp))
        failed += [rule for rule, ok_A in rules if not ok_A[row]]
        return [f"{rule}: {RULES[rule]}" for rule in failed]

    def _campaign_rules(self, request: Request, now_us: int, segments: Collection[str]) -> Iterator[tuple[str, Bools]]:
        """(rule, [C] whether a campaign passes); a rule that every campaign passes may be missing."""
        columns = self.columns
        yield "campaign_status", self.active_C
        yield "dates", (columns.starts_at_us_C <= now_us) & (now_us < columns.ends_at_us_C)
        is_allowed = not request.allowed_seats or self.seat in request.allowed_seats
        yield "seat", np.full(len(self.campaigns), is_allowed and self.seat not in request.blocked_seats)
        yield "currency", columns.currencies.any_of(request.currencies)
        for rule, targeted, values in (
            ("country", columns.countries, (request.country,)),
            ("region", columns.regions, (request.region,)),
            ("device_type", columns.device_types, (request.device_type,)),
            ("site", columns.sites, (request.site.lower(),)),
            ("category", columns.categories, with_parents(request.categories)),
            ("segment", columns.segments, segments),
        ):
            if not targeted.all_none:
                yield rule, targeted.none_N | targeted.any_of(values)
        now = datetime.fromtimestamp(now_us // US_PER_S, UTC)
        hour_Z = np.array([now.astimezone(zone).hour for zone in columns.zones], np.int64)
        yield "hour", (columns.hours_C >> hour_Z[columns.zone_C]) & 1 == 1

    def _ad_rules(self, request: Request) -> Iterator[tuple[str, Bools]]:
        """(rule, [A] whether an ad passes in every imp); a rule that every ad passes may be missing.

        Categories are compared as text in each taxonomy that ``cattax`` may name: an ad lists its codes of every
        taxonomy that should apply to it, and passes without a code. Codes of IAB's first taxonomy ("IAB7-39") contain
        their parent ("IAB7").
        """
        columns = self.columns
        yield "ad_status", self.active_A
        if request.blocked_categories and not columns.ad_categories.all_none:
            yield "blocked_category", ~columns.ad_categories.any_of(request.blocked_categories)
        if request.blocked_domains:
            yield "blocked_domain", ~columns.domains.any_of(domain.lower() for domain in request.blocked_domains)

    def _imp_rules(self, imp: Impression) -> Iterator[tuple[str, Bools]]:
        """`_ad_rules` of one imp."""
        columns = self.columns
        if imp.blocked_attributes and not columns.attributes.all_none:
            yield "blocked_attribute", ~columns.attributes.any_of(imp.blocked_attributes)
        if imp.sizes and not columns.sizes.all_none:  # an ad or imp without sizes fits any
            yield "size", columns.sizes.none_N | columns.sizes.any_of(imp.sizes)
        if imp.is_secure:
            yield "secure", columns.secure_A


def load(connection: sqlite3.Connection, seat: str = SEAT) -> CatalogueSnapshot:
    """The catalogue of the last commit. ``connection``: to ``manage.db``, read-only is enough."""
    return refresh(_snapshot(0, (), (), seat), connection)


def refresh(snapshot: CatalogueSnapshot, connection: sqlite3.Connection) -> CatalogueSnapshot:
    """The same snapshot if nothing was written since (one row is read), else a new one.

    Reads only the rows written since. If only statuses changed, both snapshots share their columns.
    """
    (version,) = connection.execute("SELECT number FROM version").fetchone()
    if version == snapshot.version:
        return snapshot
    connection.execute("BEGIN")  # so that all three reads see the same commit
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
    return dataclasses.replace(
        snapshot,
        version=version,
        campaigns=campaigns,
        ads=ads,
        active_C=_active(campaigns),
        active_A=_active(ads),
    )


def _merged(old: tuple[T, ...], row_of: Mapping[str, int], changed: Sequence[T]) -> tuple[tuple[T, ...], bool]:
    """(old items with changes in place and new items appended, whether only statuses differ)."""
    items = list(old)
    only_status = True
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
        columns=CatalogueColumns(campaigns, ads, row_of_campaign),
        seat=seat,
    )


def _active(items: Sequence[Ad] | Sequence[Campaign]) -> Bools:
    return np.array([item.status == "active" for item in items], np.bool_)
