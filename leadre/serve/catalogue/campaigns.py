"""Campaigns and their ads: what may be stored, and the book that stores it.

What the book holds has passed `checked_campaign` or `checked_ad`, so that bid workers need no checks. The readers' side
is `leadre.serve.catalogue.eligibility.Snapshot`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
import zoneinfo
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from leadre.config import nearest
from leadre.data import text
from leadre.errors import ConflictError, InputError, MissingError
from leadre.serve.catalogue.database import ManageDatabase
from leadre.store.contract import MAX_CAMPAIGN_BYTES
from leadre.types import Ad, BidType, Campaign, Status, Targeting

T = TypeVar("T", Ad, Campaign)

ENDED: Status = "ended"
STATUSES: tuple[Status, ...] = typing.get_args(Status)
BID_TYPES: tuple[BidType, ...] = typing.get_args(BidType)
MAX_NANOS = 10**18  # a billion of the currency: nine of them still add up in an int64
LATEST_US = 253_402_300_799_999_999  # the end of the year 9999
MAX_ID_CHARS, MAX_NAME_CHARS, MAX_TEXT_CHARS, MAX_URL_CHARS = 128, 200, 4096, 2048
MAX_VALUES = 1_000  # of one list: sites of a targeting, sizes of an ad
MAX_PIXELS = 10_000

_encode = msgspec.json.Encoder(order="deterministic").encode
_campaign_from = msgspec.json.Decoder(Campaign).decode
_ad_from = msgspec.json.Decoder(Ad).decode


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What a bulk addition did: counts, and of each ad that was refused why."""

    campaigns: int
    ads: int
    known_ads: int
    refused: tuple[tuple[str, str], ...]  # ad_id, why


class CampaignStore:
    """Campaigns and ads as the management process writes them. Any thread may call; each call is one transaction."""

    def __init__(self, records: ManageDatabase) -> None:
        self._records = records

    def campaign(self, campaign_id: str) -> Campaign | None:
        rows = self._rows("SELECT body FROM campaigns WHERE campaign_id = ?", [campaign_id])
        return _campaign_from(rows[0][0]) if rows else None

    def ad(self, ad_id: str) -> Ad | None:
        rows = self._rows("SELECT body FROM ads WHERE ad_id = ?", [ad_id])
        return _ad_from(rows[0][0]) if rows else None

    def campaigns(
        self, *, advertiser_id: str = "", status: str = "", after: str = "", limit: int = 100
    ) -> list[Campaign]:
        """In the order of their IDs, those after ``after``; "" asks for nothing."""
        wanted = {"advertiser_id": advertiser_id, "status": status}
        return [_campaign_from(body) for (body,) in self._page("campaigns", "campaign_id", wanted, after, limit)]

    def ads(
        self, *, advertiser_id: str = "", campaign_id: str = "", status: str = "", after: str = "", limit: int = 100
    ) -> list[Ad]:
        """In the order of their IDs, those after ``after``; "" asks for nothing."""
        wanted = {"advertiser_id": advertiser_id, "campaign_id": campaign_id, "status": status}
        return [_ad_from(body) for (body,) in self._page("ads", "ad_id", wanted, after, limit)]

    def put_campaign(self, campaign: Campaign) -> bool:
        """Store it, new or in place of its former self; returns whether it is new. The same again changes nothing.

        InputError names the field. ConflictError where account or currency would change, or an end be undone.
        """
        campaign = checked_campaign(campaign)
        with self._records.lock:
            before = self.campaign(campaign.campaign_id)
            if before is not None and before != campaign:
                where = f"campaign {campaign.campaign_id!r}"
                _check_same(where, "advertiser_id", before.advertiser_id, campaign.advertiser_id)
                _check_same(where, "currency", before.currency, campaign.currency)
                _check_not_ended(where, before.status, campaign.status)
            if before != campaign:
                with self._records.writing() as version:
                    self._write("campaigns", "campaign_id", [(campaign.campaign_id, campaign)], version)
        return before is None

    def put_ad(self, ad: Ad) -> bool:
        """As `put_campaign`. InputError also where the account has no such campaign."""
        ad = checked_ad(ad)
        with self._records.lock:
            before = self.ad(ad.ad_id)
            self._check_campaign_of(ad, self.campaign(ad.campaign_id))
            if before is not None and before != ad:
                _check_same(f"ad {ad.ad_id!r}", "advertiser_id", before.advertiser_id, ad.advertiser_id)
                _check_not_ended(f"ad {ad.ad_id!r}", before.status, ad.status)
            if before != ad:
                with self._records.writing() as version:
                    self._write("ads", "ad_id", [(ad.ad_id, ad)], version)
        return before is None

    def set_campaign_status(self, campaign_id: str, status: Status) -> Campaign:
        """Pause, resume or end. MissingError for an unknown one, ConflictError where it has ended."""
        return self._set_status(campaign_id, status, self.campaign, self.put_campaign)

    def set_ad_status(self, ad_id: str, status: Status) -> Ad:
        """As `set_campaign_status`."""
        return self._set_status(ad_id, status, self.ad, self.put_ad)

    def add(self, campaigns: Sequence[Campaign], ads: Iterable[Ad]) -> ImportResult:
        """Store what is new, in one transaction. What is there already stays as it is: people have worked on it.

        A bad campaign is an InputError and nothing is stored; a bad ad is refused and the others are stored.
        """
        checked = {campaign.campaign_id: checked_campaign(campaign) for campaign in campaigns}
        with self._records.writing() as version:
            known = {campaign_id: self.campaign(campaign_id) for campaign_id in checked}
            new = [(name, campaign) for name, campaign in checked.items() if known[name] is None]
            self._write("campaigns", "campaign_id", new, version)
            there = {ad_id for (ad_id,) in self._rows("SELECT ad_id FROM ads", [])}
            accounts = {**checked, **{name: found for name, found in known.items() if found is not None}}
            known_ads, good, refused = 0, {}, []
            for ad in ads:
                if ad.ad_id in there or ad.ad_id in good:
                    known_ads += 1
                    continue
                try:
                    good[ad.ad_id] = checked_ad(ad)
                    self._check_campaign_of(ad, accounts.get(ad.campaign_id) or self.campaign(ad.campaign_id))
                except InputError as error:
                    good.pop(ad.ad_id, None)
                    refused.append((ad.ad_id, str(error)))
            self._write("ads", "ad_id", list(good.items()), version)
        return ImportResult(campaigns=len(new), ads=len(good), known_ads=known_ads, refused=tuple(refused))

    def _set_status(self, name: str, status: Status, find: Callable[[str], T | None], put: Callable[[T], bool]) -> T:
        with self._records.lock:
            found = find(name)
            if found is None:
                raise MissingError(f"nothing has the ID {name!r}")
            changed = dataclasses.replace(found, status=status)
            put(changed)
        return changed

    @staticmethod
    def _check_campaign_of(ad: Ad, campaign: Campaign | None) -> None:
        """The same message for a campaign that is not there and for one of another account."""
        if campaign is None or campaign.advertiser_id != ad.advertiser_id:
            raise _fault(f"ad {ad.ad_id!r}", "campaign_id", ad.campaign_id, "the ID of a campaign of this account")

    def _rows(self, query: str, values: Sequence[object]) -> list[tuple[str]]:
        with self._records.lock:
            return self._records.connection.execute(query, values).fetchall()

    def _page(self, table: str, key: str, wanted: dict[str, str], after: str, limit: int) -> list[tuple[str]]:
        wanted = {column: value for column, value in wanted.items() if value}
        where = " AND ".join([f"{key} > ?", *(f"{column} = ?" for column in wanted)])
        query = f"SELECT body FROM {table} WHERE {where} ORDER BY {key} LIMIT ?"
        return self._rows(query, [after, *wanted.values(), limit])

    def _write(self, table: str, key: str, items: Iterable[tuple[str, Ad | Campaign]], version: int) -> None:
        self._records.connection.executemany(
            f"INSERT INTO {table} ({key}, body, version) VALUES (?, ?, ?)"
            f" ON CONFLICT ({key}) DO UPDATE SET body = excluded.body, version = excluded.version",
            ((name, _encode(item).decode(), version) for name, item in items),
        )


def checked_campaign(campaign: Campaign) -> Campaign:
    """The campaign with a clean name, its sites in lower case. InputError names the field."""
    where = f"campaign {campaign.campaign_id!r}"
    check_id(where, "campaign_id", campaign.campaign_id)
    check_id(where, "advertiser_id", campaign.advertiser_id)
    _check_one_of(where, "bid_type", campaign.bid_type, BID_TYPES)
    _check_one_of(where, "status", campaign.status, STATUSES)
    for field in ("bid_nanos", "total_nanos", "daily_nanos"):
        _check_range(where, field, getattr(campaign, field), 0, MAX_NANOS)
    _check_range(where, "cap_per_day", campaign.cap_per_day, 0, 1_000_000)
    if campaign.cap_per_day and len(campaign.campaign_id.encode()) > MAX_CAMPAIGN_BYTES:
        wanted = f"at most {MAX_CAMPAIGN_BYTES} bytes of UTF-8 where cap_per_day is not 0: stores keep caps by it"
        raise _fault(where, "campaign_id", campaign.campaign_id, wanted)
    _check_currency(where, "currency", campaign.currency)
    if campaign.zone not in _zones():
        hint = f"an IANA time zone; the nearest is {nearest(campaign.zone, _zones())!r}"
        raise _fault(where, "zone", campaign.zone, hint)
    for field in ("starts_at_us", "ends_at_us"):
        _check_range(where, field, getattr(campaign, field), 0, LATEST_US)
    if 0 < campaign.ends_at_us <= campaign.starts_at_us:
        raise _fault(where, "ends_at_us", campaign.ends_at_us, f"after starts_at_us = {campaign.starts_at_us}, or 0")
    name = _clean(where, "name", campaign.name, MAX_NAME_CHARS)
    return dataclasses.replace(campaign, name=name, targeting=_checked_targeting(where, campaign.targeting))


def checked_ad(ad: Ad) -> Ad:
    """The ad with clean text; an empty ``adomain`` becomes the landing page's host. InputError names the field."""
    where = f"ad {ad.ad_id!r}"
    for field in ("ad_id", "object_id", "campaign_id", "advertiser_id"):
        check_id(where, field, getattr(ad, field))
    _check_one_of(where, "status", ad.status, STATUSES)
    host = _check_url(where, "landing_url", ad.landing_url)
    if ad.image_url:
        _check_url(where, "image_url", ad.image_url)
    _check_range(where, "price_nanos", ad.price_nanos, 0, MAX_NANOS)
    _check_currency(where, "price_currency", ad.price_currency)
    _check_values(where, "iab_categories", ad.iab_categories)
    if len(ad.sizes) > MAX_VALUES or any(not 0 < side <= MAX_PIXELS for size in ad.sizes for side in size):
        raise _fault(where, "sizes", ad.sizes, f"pairs of width and height from 1 to {MAX_PIXELS:,} pixels")
    if len(ad.attributes) > MAX_VALUES or any(not 0 < number < 1000 for number in ad.attributes):
        raise _fault(where, "attributes", sorted(ad.attributes), "creative attributes of AdCOM, from 1 to 999")
    domain = (ad.adomain or host.removeprefix("www.")).lower()
    if not re.fullmatch(r"(?=.{1,253}$)[^\s/:@.]+(\.[^\s/:@.]+)*", domain):
        raise _fault(where, "adomain", ad.adomain, "the advertiser's domain, such as 'example.com'")
    return dataclasses.replace(
        ad,
        title=_clean(where, "title", ad.title, text.MAX_CHARS),
        description=text.clean(ad.description, MAX_TEXT_CHARS),
        brand=text.clean(ad.brand, MAX_NAME_CHARS),
        adomain=domain,
    )


def _checked_targeting(where: str, targeting: Targeting) -> Targeting:
    for field in ("countries", "regions", "sites", "categories", "segments"):
        _check_values(where, f"targeting.{field}", getattr(targeting, field))
    for country in targeting.countries:
        if not re.fullmatch(r"[A-Z]{3}", country):
            raise _fault(where, "targeting.countries", country, "three letters of ISO 3166-1, such as 'DEU'")
    for hour in targeting.hours:
        _check_range(where, "targeting.hours", hour, 0, 23)
    for kind in targeting.device_types:
        _check_range(where, "targeting.device_types", kind, 1, 8)
    return dataclasses.replace(targeting, sites=frozenset(site.lower() for site in targeting.sites))


def _fault(where: str, field: str, got: object, wanted: str) -> InputError:
    shown = repr(got)
    return InputError(f"{where}: {field} = {shown if len(shown) <= 100 else shown[:97] + '...'}; it must be {wanted}")


def check_id(where: str, field: str, value: str) -> None:
    """IDs stand in the paths of URLs, where '/', '.' and '..' mean something else."""
    is_plain = value.isprintable() and value == value.strip() and "/" not in value and value not in (".", "..")
    if not (is_plain and 0 < len(value) <= MAX_ID_CHARS):
        raise _fault(where, field, value, f"1 to {MAX_ID_CHARS} printable characters, no '/', no blank at an end")


def _check_one_of(where: str, field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise _fault(where, field, value, f"one of {', '.join(allowed)}")


def _check_range(where: str, field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _fault(where, field, value, f"a whole number from {least:,} to {most:,}")


def _check_currency(where: str, field: str, value: str) -> None:
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise _fault(where, field, value, "a code of ISO 4217, such as 'USD'")


def _check_values(where: str, field: str, values: Iterable[str]) -> None:
    values = tuple(values)
    if len(values) > MAX_VALUES:
        raise _fault(where, field, len(values), f"at most {MAX_VALUES:,} values")
    for value in values:
        if not (value.isprintable() and value == value.strip() and 0 < len(value) <= MAX_NAME_CHARS):
            raise _fault(where, field, value, f"1 to {MAX_NAME_CHARS} printable characters, no blank at an end")


def _check_url(where: str, field: str, url: str) -> str:
    """Its host. A URL is what a browser is sent to, so anything but a plain web address is refused."""
    wanted = f"an http(s) URL with a host, at most {MAX_URL_CHARS:,} printable characters without blanks"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # the port is checked when it is read
    except ValueError as error:
        raise _fault(where, field, url, wanted) from error
    is_plain = len(url) <= MAX_URL_CHARS and url.isprintable() and not re.search(r"[\s\\<>\"]", url)
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or not is_plain:
        raise _fault(where, field, url, wanted)
    return host


def _check_same(where: str, field: str, before: str, after: str) -> None:
    if before != after:
        raise ConflictError(f"{where}: {field} is {before!r} and cannot become {after!r}; make a new one instead")


def _check_not_ended(where: str, before: Status, after: Status) -> None:
    if before == ENDED != after:
        raise ConflictError(f"{where}: has ended, which is final; make a new one instead")


def _clean(where: str, field: str, value: str, most_chars: int) -> str:
    cleaned = text.clean(value, most_chars)
    if not cleaned:
        raise _fault(where, field, value, "text with at least one visible character")
    return cleaned


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())
