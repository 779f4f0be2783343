"""The rules of eligibility: each is one array operation over all campaigns or all ads of a catalogue.

Beside the rules of one kind is their key: everything that they read besides the catalogue. Requests of one key pass the
same rules, so that their mask can be shared.

Letters: A ads, C campaigns.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from leadre.serve.catalogue import categories
from leadre.serve.catalogue.columns import Bools, CatalogueColumns, ValueIndex, site_names, with_parent_codes
from leadre.types import Impression, Request
from leadre.units import US_PER_S

Rules = Iterator[tuple[str, Bools]]  # (rule, whether a campaign or an ad passes); one that all pass may be missing

MAX_LISTED = 1000  # blocked domains of a request that has a key; a longer list would make a large one

# Rule -> its condition, for people. Campaign rules run first, as campaigns are few.
CAMPAIGN_RULES = {
    "campaign_status": "the campaign is active",
    "account_limit": "the campaign is within the limits of its account",
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
    "ad_limit": "the account has no more ads than its limit",
    "review": "an operator has approved the ad and its landing page",
    "blocked_category": "no category of the ad, nor the one above it, is in bcat",
    "unknown_category": "the ad has a category of the taxonomy of bcat",
    "allowed_category": "the ad has categories of the taxonomy of acat, and each, or the one above it, is in acat",
    "blocked_domain": "no host of the ad (domain or landing page) is, lies below or belongs to a domain of badv",
    "blocked_app": "the app that the ad promotes is not in bapp",
    "allowed_language": "the language of the ad is in wlang or wlangb",
    "unknown_language": "the language of the ad is known, as the request has wlang or wlangb",
    "blocked_attribute": "no creative attribute of the ad is in battr",
    "size": "the ad has a size of the impression",
    "secure": "image and landing page are https, as the impression is",
}
RULES = CAMPAIGN_RULES | AD_RULES
UNKNOWN_RULES = frozenset({"unknown_category", "unknown_language"})  # settings turn them on
HOUR_PART_US = 15 * 60 * US_PER_S  # the hour of every zone changes at a multiple of it

# Rule -> the values of a request that a campaign's targeting is compared with; segments are in no field of it.
_TARGETING: Mapping[str, Callable[[Request], Collection[Hashable]]] = {
    "country": lambda request: (request.country,),
    "region": lambda request: (request.region,),
    "device_type": lambda request: (request.device_type,),
    "site": lambda request: site_names((request.site, *request.other_site_names)),
    "category": lambda request: with_parent_codes(request.categories),
}


@dataclass(frozen=True, kw_only=True)
class States:
    """Masks by statuses, reviews and limits; `CatalogueColumns` has all else."""

    active_C: Bools
    active_A: Bools
    within_C: Bools  # the limits of its account
    within_A: Bools
    approved_A: Bools


def campaign_rules(
    columns: CatalogueColumns,
    states: States,
    is_seat_allowed: bool,
    request: Request,
    now_us: int,
    segments: Collection[str],
) -> Rules:
    """Rules over campaigns [C]. ``is_seat_allowed``: whether the request takes bids of this bidder's seat."""
    yield "campaign_status", states.active_C
    if not states.within_C.all():
        yield "account_limit", states.within_C
    yield "dates", (columns.starts_at_us_C <= now_us) & (now_us < columns.ends_at_us_C)
    yield "seat", np.full(len(states.active_C), is_seat_allowed)
    yield "currency", columns.currencies.any_of(request.currencies)
    for rule, targeted, values in _targeting(columns, request, segments):
        yield rule, targeted.none_N | targeted.any_of(values)
    if columns.has_hours:
        now = datetime.fromtimestamp(now_us // US_PER_S, UTC)
        hour_Z = np.array([now.astimezone(zone).hour for zone in columns.zones], np.int64)
        yield "hour", (columns.hours_C >> hour_Z[columns.zone_C]) & 1 == 1


def campaign_key(
    columns: CatalogueColumns, is_seat_allowed: bool, request: Request, now_us: int, segments: Collection[str]
) -> Hashable:
    """The key of `campaign_rules`. It has none of the values that no campaign targets."""
    return (
        bisect(columns.changes_us, now_us),
        now_us // HOUR_PART_US if columns.has_hours else 0,
        is_seat_allowed,
        columns.currencies.among(request.currencies),
        *(targeted.among(values) for _, targeted, values in _targeting(columns, request, segments)),
    )


def ad_rules(columns: CatalogueColumns, states: States, ignored_rules: Collection[str], request: Request) -> Rules:
    """Rules over ads [A] that are the same for each imp of the request."""
    yield "ad_status", states.active_A
    if not states.within_A.all():
        yield "ad_limit", states.within_A
    if not states.approved_A.all():
        yield "review", states.approved_A
    if request.blocked_categories:
        listed, taxonomies = _listed(columns, request.blocked_categories, request.cattax)
        yield "blocked_category", ~columns.ad_categories.blocked_by(listed)
        known = taxonomies - {categories.UNKNOWN}
        if known and "unknown_category" not in ignored_rules:
            yield "unknown_category", columns.ad_categories.is_known(known)
    if request.allowed_categories:
        listed, taxonomies = _listed(columns, request.allowed_categories, request.cattax)
        yield "allowed_category", columns.ad_categories.allowed_by(listed, taxonomies)
    if request.blocked_domains:
        yield "blocked_domain", ~columns.hosts.blocked_by(request.blocked_domains)
    if request.blocked_apps and not columns.apps.all_none:
        yield "blocked_app", ~columns.apps.any_of(request.blocked_apps)
    if request.allowed_languages:
        languages = columns.languages
        yield "allowed_language", languages.none_N | languages.any_of(request.allowed_languages)
        if "unknown_language" not in ignored_rules:
            yield "unknown_language", ~languages.none_N


def ad_key(columns: CatalogueColumns, request: Request) -> Hashable:
    """The key of `ad_rules`; None if the list of blocked domains is long. It has no code, app or tag that no ad has."""
    if len(request.blocked_domains) > MAX_LISTED:
        return None
    return (
        _listed(columns, request.blocked_categories, request.cattax),
        _listed(columns, request.allowed_categories, request.cattax),
        request.blocked_domains,
        columns.apps.among(request.blocked_apps),
        columns.languages.among(request.allowed_languages),
        bool(request.allowed_languages),
    )


def imp_rules(columns: CatalogueColumns, imp: Impression) -> Rules:
    """Rules over ads [A] for one imp."""
    if imp.blocked_attributes and not columns.attributes.all_none:
        yield "blocked_attribute", ~columns.attributes.any_of(imp.blocked_attributes)
    if imp.sizes and not columns.sizes.all_none:  # an ad or imp without sizes fits any
        yield "size", columns.sizes.none_N | columns.sizes.any_of(imp.sizes)
    if imp.is_secure:
        yield "secure", columns.secure_A


def imp_key(columns: CatalogueColumns, imp: Impression) -> Hashable:
    """The key of `imp_rules`."""
    attributes = columns.attributes.among(imp.blocked_attributes)
    return bool(imp.sizes), columns.sizes.among(imp.sizes), attributes, imp.is_secure


def _listed(
    columns: CatalogueColumns, codes: frozenset[str], cattax: int
) -> tuple[frozenset[categories.Code], frozenset[int]]:
    """(the codes of a list that matter to an ad, the taxonomies of all its codes)."""
    return columns.ad_categories.among(codes, cattax), categories.taxonomies(codes, cattax)


def _targeting(
    columns: CatalogueColumns, request: Request, segments: Collection[str]
) -> Iterator[tuple[str, ValueIndex, Collection[Hashable]]]:
    """(rule, values that campaigns target, values of the request) for each rule that a campaign uses."""
    for rule, targeted in columns.targeting:
        yield rule, targeted, segments if rule == "segment" else _TARGETING[rule](request)
