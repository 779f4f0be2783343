"""Which ads may be shown in an impression: an immutable snapshot of the catalogue, to which the rules are applied.

A bid worker holds a `CatalogueSnapshot` and calls `refresh` a few times a second. Budgets, frequency caps, floors and
deals are no part of eligibility.

Letters: A ads, C campaigns. The row number of an ad or campaign never changes, as none is ever deleted.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import numpy as np

from leadre.serve.catalogue import limits
from leadre.serve.catalogue.ad_rows import AdRows
from leadre.serve.catalogue.columns import Bools, CatalogueColumns, Ints
from leadre.serve.catalogue.limits import Limits
from leadre.serve.catalogue.rules import (
    RULES,
    UNKNOWN_RULES,
    Rules,
    States,
    ad_key,
    ad_rules,
    campaign_key,
    campaign_rules,
    imp_key,
    imp_rules,
)
from leadre.serve.catalogue.shared_masks import Eligibility, SharedMasks
from leadre.types import Ad, Campaign, Impression, Request

T = TypeVar("T", Ad, Campaign)

SEAT = "leadre"  # the bidder's own name in `wseat`, `bseat` and `seatbid.seat`


@dataclass(frozen=True, kw_only=True)
class CatalogueSnapshot:
    """The catalogue at one version, immutable. Row numbers index ``ads`` and ``campaigns``."""

    version: int
    campaigns: tuple[Campaign, ...]
    ads: tuple[Ad, ...]
    row_of_campaign: Mapping[str, int]
    row_of_ad: AdRows
    states: States
    columns: CatalogueColumns
    seat: str
    ignored_rules: frozenset[str] = UNKNOWN_RULES
    limits: Mapping[str, Limits] = field(default_factory=dict)  # by account
    _campaign_masks: SharedMasks = field(default_factory=SharedMasks, init=False, repr=False, compare=False)
    _ad_masks: SharedMasks = field(default_factory=SharedMasks, init=False, repr=False, compare=False)
    _imp_masks: SharedMasks = field(default_factory=SharedMasks, init=False, repr=False, compare=False)

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
        """[A] whether ad and campaign are active, within the limits of their account, and the ad is approved."""
        states = self.states
        return (
            states.active_A & states.within_A & states.approved_A & (states.active_C & states.within_C)[self.campaign_A]
        )

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
        for rule, passes_A in (*self._ad_rules(request), *imp_rules(self.columns, imp)):
            before = np.count_nonzero(ok_A)
            ok_A &= passes_A
            excluded[rule] = int(before - np.count_nonzero(ok_A))
        return ok_A, {rule: count for rule, count in excluded.items() if count}

    def eligibility(self, request: Request, now_us: int, segments: Collection[str] = ()) -> Eligibility:
        """The result of `eligible` for each impression of the request."""
        ok_C = self._campaign_masks.get(
            campaign_key(self.columns, self._is_seat_allowed(request), request, now_us, segments),
            lambda: self._campaign_rules(request, now_us, segments),
            len(self.campaigns),
        )
        ok_A = self._ad_masks.get(ad_key(self.columns, request), lambda: self._ad_rules(request), len(self.ads))
        return Eligibility(self.campaign_A, ok_C, ok_A, [self._imp_mask(imp) for imp in request.imps])

    def _imp_mask(self, imp: Impression) -> Bools:
        return self._imp_masks.get(imp_key(self.columns, imp), lambda: imp_rules(self.columns, imp), len(self.ads))

    def why_not(
        self, request: Request, imp: Impression, ad_id: str, now_us: int, segments: Collection[str] = ()
    ) -> list[str]:
        """Every rule of `eligible` that the ad fails, as "rule: condition"; empty if it may be shown."""
        row = self.row_of_ad.get(ad_id)
        if row is None:
            return [f"unknown: no ad has the ID {ad_id!r}"]
        campaign = self.campaign_A[row]
        failed = [rule for rule, ok_C in self._campaign_rules(request, now_us, segments) if not ok_C[campaign]]
        rules = (*self._ad_rules(request), *imp_rules(self.columns, imp))
        failed += [rule for rule, ok_A in rules if not ok_A[row]]
        return [f"{rule}: {RULES[rule]}" for rule in failed]

    def _campaign_rules(self, request: Request, now_us: int, segments: Collection[str]) -> Rules:
        return campaign_rules(self.columns, self.states, self._is_seat_allowed(request), request, now_us, segments)

    def _ad_rules(self, request: Request) -> Rules:
        return ad_rules(self.columns, self.states, self.ignored_rules, request)

    def _is_seat_allowed(self, request: Request) -> bool:
        is_allowed = not request.allowed_seats or self.seat in request.allowed_seats
        return is_allowed and self.seat not in request.blocked_seats

    def undecided_rules(self, request: Request, ad_id: str) -> list[str]:
        """The rules of `UNKNOWN_RULES` that the ad fails, and that the settings ignore, as in `why_not`."""
        row = self.row_of_ad.get(ad_id)
        if row is None:
            return []
        strict = dataclasses.replace(self, ignored_rules=frozenset())
        rules = [rule for rule, passes_A in strict._ad_rules(request) if not passes_A[row]]
        return [f"{rule}: {RULES[rule]}" for rule in rules if rule in self.ignored_rules]


def load(
    connection: sqlite3.Connection, seat: str = SEAT, ignored_rules: frozenset[str] = UNKNOWN_RULES
) -> CatalogueSnapshot:
    """The catalogue of the last commit. ``connection``: to ``manage.db``, read-only is enough.

    ``ignored_rules``: those of `UNKNOWN_RULES` that do not apply.
    """
    return refresh(_snapshot(0, (), (), seat, ignored_rules), connection)


def refresh(snapshot: CatalogueSnapshot, connection: sqlite3.Connection) -> CatalogueSnapshot:
    """The same snapshot if nothing was written since (one row is read), else a new one.

    Reads only the rows written since. If only statuses and reviews changed, both snapshots share their columns.
    """
    (version,) = connection.execute("SELECT number FROM version").fetchone()
    if version == snapshot.version:
        return snapshot
    connection.execute("BEGIN")  # so that all reads see the same commit
    try:
        (version,) = connection.execute("SELECT number FROM version").fetchone()
        changes = [
            connection.execute(
                f"SELECT body FROM {table} WHERE version > ? ORDER BY place", [snapshot.version]
            ).fetchall()
            for table in ("campaigns", "ads")
        ]
        limits_of = limits.read(connection)
    finally:
        connection.execute("COMMIT")
    new_campaigns = [msgspec.json.decode(body, type=Campaign) for (body,) in changes[0]]
    new_ads = [msgspec.json.decode(body, type=Ad) for (body,) in changes[1]]
    campaigns, only_status_of_campaigns = _merged(snapshot.campaigns, snapshot.row_of_campaign, new_campaigns)
    ads, only_status_of_ads = _merged(snapshot.ads, snapshot.row_of_ad, new_ads)
    if not (only_status_of_campaigns and only_status_of_ads):
        return _snapshot(version, campaigns, ads, snapshot.seat, snapshot.ignored_rules, limits_of)
    return dataclasses.replace(
        snapshot,
        version=version,
        campaigns=campaigns,
        ads=ads,
        limits=limits_of,
        states=_states(campaigns, ads, limits_of),
    )


def _merged(old: tuple[T, ...], row_of: Mapping[str, int], changed: Sequence[T]) -> tuple[tuple[T, ...], bool]:
    """(old items with changes in place and new items appended, whether only statuses and reviews differ)."""
    items = list(old)
    only_status = True
    for item in changed:
        row = row_of.get(item.ad_id if isinstance(item, Ad) else item.campaign_id)
        if row is None:
            items.append(item)
            only_status = False
        else:
            only_status = only_status and _with_status_of(item, old[row]) == item
            items[row] = item
    return tuple(items), only_status


def _with_status_of(changed: T, old: T) -> T:
    """The old item with status and review of the changed one."""
    if isinstance(changed, Ad):
        return dataclasses.replace(
            old,
            status=changed.status,
            review=changed.review,
            review_reason=changed.review_reason,
            approved_url=changed.approved_url,
        )
    return dataclasses.replace(old, status=changed.status)


def _snapshot(
    version: int,
    campaigns: tuple[Campaign, ...],
    ads: tuple[Ad, ...],
    seat: str,
    ignored_rules: frozenset[str] = UNKNOWN_RULES,
    limits_of: Mapping[str, Limits] | None = None,
) -> CatalogueSnapshot:
    row_of_campaign = {campaign.campaign_id: row for row, campaign in enumerate(campaigns)}
    return CatalogueSnapshot(
        version=version,
        campaigns=campaigns,
        ads=ads,
        row_of_campaign=row_of_campaign,
        row_of_ad=AdRows(ads),
        columns=CatalogueColumns(campaigns, ads, row_of_campaign),
        seat=seat,
        ignored_rules=ignored_rules,
        limits=limits_of or {},
        states=_states(campaigns, ads, limits_of or {}),
    )


def _states(campaigns: Sequence[Campaign], ads: Sequence[Ad], limits_of: Mapping[str, Limits]) -> States:
    stopped_campaigns, stopped_ads = limits.stopped(limits_of, campaigns, ads)
    return States(
        active_C=_active(campaigns),
        active_A=_active(ads),
        within_C=np.array([campaign.campaign_id not in stopped_campaigns for campaign in campaigns], np.bool_),
        within_A=np.array([ad.ad_id not in stopped_ads for ad in ads], np.bool_),
        approved_A=np.array([ad.review == "approved" for ad in ads], np.bool_),
    )


def _active(items: Sequence[Ad] | Sequence[Campaign]) -> Bools:
    return np.array([item.status == "active" for item in items], np.bool_)
