"""The catalogue as columns: arrays over all ads or campaigns, so that an eligibility rule is one array operation.

Letters: A ads, C campaigns, N rows of either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Set
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from leadre.serve.catalogue import categories
from leadre.serve.protocol.hosts import host_of, registrable, with_parents
from leadre.types import Ad, BidType, Campaign

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PAYS_FOR: Mapping[BidType, str] = {"cpm": "impression", "cpc": "click", "cpa": "conversion"}
VALUED_AT: Mapping[str, BidType] = {"cpc": "cpc", "cpa": "cpa", "roas": "cpa"}  # by the kind of a goal
ANY_HOUR = (1 << 24) - 1  # a bit for each hour of the day


class ValueIndex:
    """Value -> its rows. A value is stored as row numbers or as a mask over all rows, whichever takes fewer bytes.

    ``none_N``: whether a row has no value. ``all_none``: no row has any.
    """

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

    def __contains__(self, value: Hashable) -> bool:
        """Whether a row has the value."""
        return value in self._rows or value in self._masks

    def among(self, values: Iterable[Hashable]) -> frozenset[Hashable]:
        """The values that a row has."""
        return frozenset(filter(self.__contains__, values))

    def values(self) -> list[Hashable]:
        """Each value that a row has, once."""
        return [*self._rows, *self._masks]

    def any_of(self, values: Iterable[Hashable]) -> Bools:
        """[N] whether a row has at least one of the values."""
        has_N = np.zeros(len(self.none_N), np.bool_)
        for value in values:
            if (mask_N := self._masks.get(value)) is not None:
                has_N |= mask_N
            elif (rows := self._rows.get(value)) is not None:
                has_N[rows] = True
        return has_N


class CategoryIndex:
    """The categories of ads, for lists of blocked and of allowed ones, which are of one taxonomy or several."""

    def __init__(self, codes_of_ads: Sequence[Collection[categories.Code]]) -> None:
        self._own = ValueIndex(codes_of_ads)
        self._taxonomies = ValueIndex([{taxonomy for taxonomy, _ in codes} for codes in codes_of_ads])
        # A code without its taxonomy, as a list of unknown taxonomy has it, is beside the one with it.
        self._blockable = ValueIndex(
            [
                {entry for code in codes for above in categories.with_parent(code) for entry in (above, above[1])}
                for codes in codes_of_ads
            ]
        )

    def among(self, texts: Iterable[str], cattax: int) -> frozenset[categories.Code]:
        """The codes of a list that an ad has, or an ad below them. ``cattax`` is that of the list."""
        return frozenset(categories.coded((text for text in texts if text in self._blockable), cattax))

    def blocked_by(self, listed: Iterable[categories.Code]) -> Bools:
        """[A] whether a category of the ad, or the one above it, is listed. An unknown taxonomy matches any."""
        entries: set[Hashable] = set()
        for taxonomy, code in listed:
            entries |= {code} if taxonomy == categories.UNKNOWN else {(taxonomy, code), (categories.UNKNOWN, code)}
        return self._blockable.any_of(entries)

    def allowed_by(self, listed: Set[categories.Code], taxonomies: Set[int]) -> Bools:
        """[A] whether the ad has a category in the taxonomies of the list, and each such category is allowed.

        A category is allowed if it or the one above it is listed. One of unknown taxonomy is not.
        """
        taxonomies = taxonomies - {categories.UNKNOWN}
        refused = [
            code
            for code in self._own.values()
            if code[0] in taxonomies and listed.isdisjoint(categories.with_parent(code))  # type: ignore[index,arg-type]
        ]
        return self._taxonomies.any_of(taxonomies) & ~self._own.any_of(refused)

    def is_known(self, taxonomies: Collection[int]) -> Bools:
        """[A] whether the ad has a category in one of the taxonomies."""
        return self._taxonomies.any_of(taxonomies)


class HostIndex:
    """The hosts of ads, from texts as people write them, for lists of blocked domains."""

    def __init__(self, texts_of_ads: Sequence[Collection[str]]) -> None:
        names = [[_names_of(text) for text in texts] for texts in texts_of_ads]
        self._hosts = ValueIndex([{domain for hosts, _ in of_ad for domain in hosts} for of_ad in names])
        self._registrable = ValueIndex([{domain for _, domain in of_ad if domain} for of_ad in names])

    def blocked_by(self, listed: Iterable[str]) -> Bools:
        """[A] whether a host of the ad is a listed one or lies below it, or both have one registrable domain."""
        hosts = {host for text in listed if (host := host_of(text))}
        shared = {
            domain
            for host in hosts
            for domain in with_parents(host)
            if domain in self._registrable and registrable(host) == domain
        }
        blocked_A = self._hosts.any_of(hosts)
        return blocked_A | self._registrable.any_of(shared) if shared else blocked_A


class CatalogueColumns:
    """All columns that the rules read, except statuses: a paused ad needs no new columns."""

    def __init__(self, campaigns: Sequence[Campaign], ads: Sequence[Ad], row_of_campaign: Mapping[str, int]) -> None:
        self.campaign_A = np.array([row_of_campaign[ad.campaign_id] for ad in ads], np.int64)
        self.ads_C: Ints = np.bincount(self.campaign_A, minlength=len(campaigns)).astype(np.int64)
        self.starts_at_us_C = np.array([campaign.starts_at_us for campaign in campaigns], np.int64)
        ends_at_us = [campaign.ends_at_us or np.iinfo(np.int64).max for campaign in campaigns]
        self.ends_at_us_C = np.array(ends_at_us, np.int64)
        dates = {*self.starts_at_us_C.tolist(), *ends_at_us}
        self.changes_us = sorted(dates)  # between two of them, the same campaigns have begun and not ended
        limited = [bool(campaign.total_nanos or campaign.daily_nanos or campaign.cap_per_day) for campaign in campaigns]
        self.limited_C: Bools = np.array(limited, np.bool_)  # whether it has a budget or a frequency cap
        self.has_goal_C: Bools = np.array([campaign.has_goal for campaign in campaigns], np.bool_)
        self.is_paced_C: Bools = self.has_goal_C | np.array([campaign.has_plan for campaign in campaigns], np.bool_)
        self.any_shading = any(campaign.shading for campaign in campaigns)
        self.pays_for_C = np.array([PAYS_FOR[campaign.bid_type] for campaign in campaigns], np.str_)  # action
        self.pays_for_impression_C: Bools = self.pays_for_C == "impression"
        self.bid_nanos_C = np.array([campaign.bid_nanos for campaign in campaigns], np.int64)
        self.valued_C = np.array([PAYS_FOR[valued_at(campaign)] for campaign in campaigns], np.str_)  # action
        self.worth_nanos_C = np.array([worth_nanos(campaign) for campaign in campaigns], np.int64)  # of one action
        self.currencies = ValueIndex([(campaign.currency,) for campaign in campaigns])
        self.currency_codes = tuple({campaign.currency for campaign in campaigns})
        self.currency_C = np.array([self.currency_codes.index(campaign.currency) for campaign in campaigns], np.int64)
        targetings = [campaign.targeting for campaign in campaigns]
        self.segments = ValueIndex([targeting.segments for targeting in targetings])
        by_rule = {
            "country": ValueIndex([targeting.countries for targeting in targetings]),
            "region": ValueIndex([targeting.regions for targeting in targetings]),
            "device_type": ValueIndex([targeting.device_types for targeting in targetings]),
            "site": ValueIndex([site_names(targeting.sites) for targeting in targetings]),
            "category": ValueIndex([targeting.categories for targeting in targetings]),
            "segment": self.segments,
        }
        self.targeting = tuple((rule, values) for rule, values in by_rule.items() if not values.all_none)
        hours = [sum(1 << hour for hour in targeting.hours) or ANY_HOUR for targeting in targetings]
        self.hours_C = np.array(hours, np.int64)
        self.has_hours = bool((self.hours_C != ANY_HOUR).any())
        zones = sorted({campaign.zone for campaign in campaigns})
        self.zones = tuple(ZoneInfo(zone) for zone in zones)
        self.zone_C = np.array([zones.index(campaign.zone) for campaign in campaigns], np.int64)
        self.ad_categories = CategoryIndex([categories.coded(ad.iab_categories, ad.cattax) for ad in ads])
        self.hosts = HostIndex([(ad.adomain, ad.landing_url) for ad in ads])
        self.apps = ValueIndex([(ad.app_bundle,) if ad.app_bundle else () for ad in ads])
        self.languages = ValueIndex([_with_wider_tags(ad.language) for ad in ads])
        self.attributes = ValueIndex([ad.attributes for ad in ads])
        self.sizes = ValueIndex([ad.sizes for ad in ads])
        self.secure_A: Bools = np.array([_is_secure(ad) for ad in ads], np.bool_)
        api_ads = [(ad.advertiser_id, row) for row, ad in enumerate(ads) if ad.created_at_us]
        accounts = {account: number for number, account in enumerate(sorted({account for account, _ in api_ads}))}
        self.api_rows: Ints = np.array([row for _, row in sorted(api_ads)], np.int64)  # made at the API, by account
        self.api_accounts: Ints = np.array([accounts[account] for account, _ in sorted(api_ads)], np.int64)


def valued_at(campaign: Campaign) -> BidType:
    """The bid type whose event the value of an impression is computed from: that of the goal, else of the bid."""
    return VALUED_AT.get(campaign.goal.kind, campaign.bid_type)


def worth_nanos(campaign: Campaign) -> int:
    """Value of one event of `valued_at`."""
    return campaign.goal.worth_nanos if campaign.has_goal else campaign.bid_nanos


def with_parent_codes(codes: Iterable[str]) -> set[str]:
    """The categories of a page and their parents: "IAB7" for "IAB7-39". Codes of other taxonomies have no parents."""
    return {text for code in categories.coded(codes, categories.FIRST) for _, text in categories.with_parent(code)}


def site_names(sites: Iterable[str]) -> set[str]:
    """The sites in lower case, as an app's bundle is no host, and their hosts."""
    return {name for site in sites for name in (site.strip().lower(), host_of(site)) if name}


@lru_cache(maxsize=1 << 16)  # the ads of an advertiser share their hosts
def _names_of(text: str) -> tuple[tuple[str, ...], str]:
    """(the host of a text and the domains above it, its registrable domain)."""
    host = host_of(text)
    return tuple(with_parents(host)), registrable(host)


def _with_wider_tags(language: str) -> list[str]:
    """The tag and those that it is a case of: "zh-hant-tw", "zh-hant", "zh"."""
    parts = language.split("-") if language else []
    return ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _is_secure(ad: Ad) -> bool:
    urls = [url for url in (ad.landing_url, ad.image_url) if url]
    return all(url.lower().startswith("https:") for url in urls)
