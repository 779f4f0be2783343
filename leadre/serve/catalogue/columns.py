"""The catalogue as columns: arrays over all ads or campaigns, so that an eligibility rule is one array operation.

Letters: A ads, C campaigns, N rows of either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from leadre.types import Ad, Campaign

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

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

    def any_of(self, values: Iterable[Hashable]) -> Bools:
        """[N] whether a row has at least one of the values."""
        has_N = np.zeros(len(self.none_N), np.bool_)
        for value in values:
            if (mask_N := self._masks.get(value)) is not None:
                has_N |= mask_N
            elif (rows := self._rows.get(value)) is not None:
                has_N[rows] = True
        return has_N


class CatalogueColumns:
    """All columns that the rules read, except statuses: a paused ad needs no new columns."""

    def __init__(self, campaigns: Sequence[Campaign], ads: Sequence[Ad], row_of_campaign: Mapping[str, int]) -> None:
        self.campaign_A = np.array([row_of_campaign[ad.campaign_id] for ad in ads], np.int64)
        self.ads_C: Ints = np.bincount(self.campaign_A, minlength=len(campaigns)).astype(np.int64)
        self.starts_at_us_C = np.array([campaign.starts_at_us for campaign in campaigns], np.int64)
        ends_at_us = [campaign.ends_at_us or np.iinfo(np.int64).max for campaign in campaigns]
        self.ends_at_us_C = np.array(ends_at_us, np.int64)
        self.currencies = ValueIndex([(campaign.currency,) for campaign in campaigns])
        self.currency_codes = tuple({campaign.currency for campaign in campaigns})
        self.currency_C = np.array([self.currency_codes.index(campaign.currency) for campaign in campaigns], np.int64)
        targetings = [campaign.targeting for campaign in campaigns]
        self.countries = ValueIndex([targeting.countries for targeting in targetings])
        self.regions = ValueIndex([targeting.regions for targeting in targetings])
        self.device_types = ValueIndex([targeting.device_types for targeting in targetings])
        self.sites = ValueIndex([targeting.sites for targeting in targetings])
        self.categories = ValueIndex([targeting.categories for targeting in targetings])
        self.segments = ValueIndex([targeting.segments for targeting in targetings])
        hours = [sum(1 << hour for hour in targeting.hours) or ANY_HOUR for targeting in targetings]
        self.hours_C = np.array(hours, np.int64)
        zones = sorted({campaign.zone for campaign in campaigns})
        self.zones = tuple(ZoneInfo(zone) for zone in zones)
        self.zone_C = np.array([zones.index(campaign.zone) for campaign in campaigns], np.int64)
        self.ad_categories = ValueIndex([with_parents(ad.iab_categories) for ad in ads])
        self.domains = ValueIndex([_domain_and_parents(ad.adomain) for ad in ads])
        self.attributes = ValueIndex([ad.attributes for ad in ads])
        self.sizes = ValueIndex([ad.sizes for ad in ads])
        self.secure_A: Bools = np.array([_is_secure(ad) for ad in ads], np.bool_)


def with_parents(categories: Iterable[str]) -> set[str]:
    """The categories and their parents: "IAB7" for "IAB7-39". Codes of other taxonomies are numbers without parents."""
    categories = set(categories)
    return categories | {code.split("-")[0] for code in categories if code.startswith("IAB")}


def _domain_and_parents(domain: str) -> set[str]:
    labels = domain.split(".") if domain else []
    return {".".join(labels[start:]) for start in range(len(labels))}


def _is_secure(ad: Ad) -> bool:
    urls = [url for url in (ad.landing_url, ad.image_url) if url]
    return all(url.lower().startswith("https:") for url in urls)
