"""Checks of campaigns and ads before they are stored. Bid workers rely on them and check nothing themselves."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
import zoneinfo
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from leadre.config import nearest
from leadre.data import text
from leadre.errors import ConflictError, InputError
from leadre.store.contract import MAX_CAMPAIGN_BYTES
from leadre.types import Ad, BidType, Campaign, GoalKind, PacerName, PlanName, Status, Targeting

ENDED: Status = "ended"
STATUSES: tuple[Status, ...] = typing.get_args(Status)
BID_TYPES: tuple[BidType, ...] = typing.get_args(BidType)
PLANS: tuple[PlanName, ...] = typing.get_args(PlanName)
PACERS: tuple[PacerName, ...] = typing.get_args(PacerName)
GOALS: tuple[GoalKind, ...] = typing.get_args(GoalKind)
BID_TYPES_OF_GOALS: dict[GoalKind, tuple[BidType, ...]] = {  # a bid for the action itself is its cost already
    "bid": BID_TYPES,
    "cpc": ("cpm",),
    "cpa": ("cpm", "cpc"),
    "roas": ("cpm", "cpc"),
}
MIN_RETURN, MAX_RETURN = 0.01, 1_000.0
HOURS = 24
MAX_HOUR_SHARE = 1_000_000
MAX_NANOS = 10**18  # of a budget or a shown price: a billion of the currency
MAX_BID_NANOS = 10**16  # for one event: ten million of the currency, enough for the smallest unit of any currency
LATEST_US = 253_402_300_799_999_999  # the end of the year 9999
MAX_ID_CHARS, MAX_NAME_CHARS, MAX_TEXT_CHARS, MAX_URL_CHARS = 128, 200, 4096, 2048
MAX_VALUES = 1_000  # of one list: sites of a targeting, sizes of an ad
MAX_PIXELS = 10_000
MAX_CATTAX = 9_999  # AdCOM has the numbers below 500 and leaves those above to vendors
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,5}", re.ASCII)


def checked_campaign(campaign: Campaign) -> Campaign:
    """The campaign with a cleaned name and its sites in lower case. InputError names the field."""
    where = f"campaign {campaign.campaign_id!r}"
    check_id(where, "campaign_id", campaign.campaign_id)
    check_id(where, "advertiser_id", campaign.advertiser_id)
    _check_one_of(where, "bid_type", campaign.bid_type, BID_TYPES)
    _check_one_of(where, "status", campaign.status, STATUSES)
    _check_range(where, "bid_nanos", campaign.bid_nanos, 0, MAX_BID_NANOS)
    for field in ("total_nanos", "daily_nanos"):
        _check_range(where, field, getattr(campaign, field), 0, MAX_NANOS)
    _check_range(where, "cap_per_day", campaign.cap_per_day, 0, 1_000_000)
    _check_range(where, "max_value_nanos", campaign.max_value_nanos, 0, MAX_NANOS)
    if campaign.cap_per_day and len(campaign.campaign_id.encode()) > MAX_CAMPAIGN_BYTES:
        rule = f"at most {MAX_CAMPAIGN_BYTES} bytes of UTF-8 if cap_per_day is not 0: stores count caps by it"
        raise fault(where, "campaign_id", campaign.campaign_id, rule)
    _check_currency(where, "currency", campaign.currency)
    if campaign.zone not in _zones():
        hint = f"an IANA time zone; the nearest is {nearest(campaign.zone, _zones())!r}"
        raise fault(where, "zone", campaign.zone, hint)
    for field in ("starts_at_us", "ends_at_us"):
        _check_range(where, field, getattr(campaign, field), 0, LATEST_US)
    if 0 < campaign.ends_at_us <= campaign.starts_at_us:
        raise fault(where, "ends_at_us", campaign.ends_at_us, f"after starts_at_us = {campaign.starts_at_us}, or 0")
    name = _clean(where, "name", campaign.name, MAX_NAME_CHARS)
    campaign = dataclasses.replace(campaign, name=name, targeting=_checked_targeting(where, campaign.targeting))
    _check_plan(where, campaign)
    _check_goal(where, campaign)
    return campaign


def checked_ad(ad: Ad) -> Ad:
    """The ad with cleaned texts; an empty ``adomain`` is set to the landing page's host. InputError names the field."""
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
        raise fault(where, "sizes", ad.sizes, f"pairs of width and height from 1 to {MAX_PIXELS:,} pixels")
    if len(ad.attributes) > MAX_VALUES or any(not 0 < number < 1000 for number in ad.attributes):
        raise fault(where, "attributes", sorted(ad.attributes), "creative attributes of AdCOM, from 1 to 999")
    domain = (ad.adomain or host.removeprefix("www.")).lower()
    if not re.fullmatch(r"(?=.{1,253}$)[^\s/:@.]+(\.[^\s/:@.]+)*", domain):
        raise fault(where, "adomain", ad.adomain, "the advertiser's domain, such as 'example.com'")
    if ad.app_bundle:
        check_id(where, "app_bundle", ad.app_bundle)
    _check_range(where, "cattax", ad.cattax, 1, MAX_CATTAX)
    if ad.language and not _LANGUAGE.fullmatch(ad.language):
        raise fault(where, "language", ad.language, "a tag of BCP 47, such as 'en' or 'zh-Hant'")
    return dataclasses.replace(
        ad,
        title=_clean(where, "title", ad.title, text.MAX_CHARS),
        description=text.clean(ad.description, MAX_TEXT_CHARS),
        brand=text.clean(ad.brand, MAX_NAME_CHARS),
        adomain=domain,
        language=ad.language.lower(),
    )


def _check_plan(where: str, campaign: Campaign) -> None:
    """InputError unless the plan has money to spend by it, and hours in which the campaign bids."""
    _check_one_of(where, "plan", campaign.plan, PLANS)
    _check_one_of(where, "pacer", campaign.pacer, PACERS)
    has_day = campaign.daily_nanos or (campaign.total_nanos and campaign.ends_at_us)
    if campaign.has_plan and not has_day:
        rule = "'asap' for a campaign with neither daily_nanos, nor total_nanos with an end: no money belongs to a day"
        raise fault(where, "plan", campaign.plan, rule)
    shares = campaign.hour_shares
    if campaign.plan != "hours":
        if shares:
            raise fault(
                where, "hour_shares", shares, f"empty for the plan {campaign.plan!r}; the plan 'hours' has them"
            )
        return
    if len(shares) != HOURS or any(not 0 <= share <= MAX_HOUR_SHARE for share in shares):
        rule = f"{HOURS} whole numbers from 0 to {MAX_HOUR_SHARE:,}, of the hours 0 to {HOURS - 1}"
        raise fault(where, "hour_shares", shares, rule)
    if not any(shares[hour] for hour in campaign.targeting.hours or range(HOURS)):
        raise fault(where, "hour_shares", shares, "above 0 in an hour that targeting.hours allows")


def _check_goal(where: str, campaign: Campaign) -> None:
    """InputError unless the goal has its target alone, and an action that the bid does not price already."""
    goal = campaign.goal
    _check_one_of(where, "goal.kind", goal.kind, GOALS)
    bid_types = BID_TYPES_OF_GOALS[goal.kind]
    if campaign.bid_type not in bid_types:
        rule = f"{' or '.join(bid_types)} for a goal of kind {goal.kind!r}: a bid of type {campaign.bid_type!r}"
        raise fault(
            where, "bid_type", campaign.bid_type, f"{rule} is a fixed price; set bid_nanos to the target instead"
        )
    if campaign.has_goal and not campaign.bid_nanos:
        raise fault(where, "bid_nanos", 0, "above 0: with a goal it is the highest price of a bid")
    is_roas = goal.kind == "roas"
    if is_roas:
        if not (math.isfinite(goal.target_return) and MIN_RETURN <= goal.target_return <= MAX_RETURN):
            rule = f"from {MIN_RETURN} to {MAX_RETURN:,.0f}: value of conversions for each unit of money"
            raise fault(where, "goal.target_return", goal.target_return, rule)
        most_nanos = min(MAX_BID_NANOS, campaign.max_value_nanos)
        if not 0 < goal.conversion_nanos <= most_nanos:
            rule = f"from 1 to {most_nanos:,}: the expected value of a conversion, at most max_value_nanos"
            raise fault(where, "goal.conversion_nanos", goal.conversion_nanos, rule)
        if not 1 <= goal.worth_nanos <= MAX_BID_NANOS:
            rule = f"such that conversion_nanos / target_return is from 1 to {MAX_BID_NANOS:,}"
            raise fault(where, "goal.target_return", goal.target_return, rule)
    elif campaign.has_goal:
        _check_range(where, "goal.target_nanos", goal.target_nanos, 1, MAX_BID_NANOS)
    for field, is_used in (
        ("target_nanos", goal.kind in ("cpc", "cpa")),
        ("target_return", is_roas),
        ("conversion_nanos", is_roas),
    ):
        if not is_used and getattr(goal, field):
            raise fault(where, f"goal.{field}", getattr(goal, field), f"0 for a goal of kind {goal.kind!r}")


def _checked_targeting(where: str, targeting: Targeting) -> Targeting:
    for field in ("countries", "regions", "sites", "categories", "segments"):
        _check_values(where, f"targeting.{field}", getattr(targeting, field))
    for country in targeting.countries:
        if not re.fullmatch(r"[A-Z]{3}", country):
            raise fault(where, "targeting.countries", country, "three letters of ISO 3166-1, such as 'DEU'")
    for hour in targeting.hours:
        _check_range(where, "targeting.hours", hour, 0, 23)
    for kind in targeting.device_types:
        _check_range(where, "targeting.device_types", kind, 1, 8)
    return dataclasses.replace(targeting, sites=frozenset(site.lower() for site in targeting.sites))


def fault(where: str, field: str, got: object, rule: str) -> InputError:
    """The InputError for a field: the item, the value got (at most 100 characters) and the rule it breaks."""
    shown = repr(got)
    return InputError(f"{where}: {field} = {shown if len(shown) <= 100 else shown[:97] + '...'}; it must be {rule}")


def check_id(where: str, field: str, value: str) -> None:
    """InputError unless the value can be an ID. IDs are parts of URL paths, so '/', '.' and '..' are excluded."""
    is_plain = value.isprintable() and value == value.strip() and "/" not in value and value not in (".", "..")
    if not (is_plain and 0 < len(value) <= MAX_ID_CHARS):
        raise fault(where, field, value, f"1 to {MAX_ID_CHARS} printable characters, no '/', no blank at an end")


def _check_one_of(where: str, field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise fault(where, field, value, f"one of {', '.join(allowed)}")


def _check_range(where: str, field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise fault(where, field, value, f"a whole number from {low:,} to {high:,}")


def _check_currency(where: str, field: str, value: str) -> None:
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise fault(where, field, value, "a code of ISO 4217, such as 'USD'")


def _check_values(where: str, field: str, values: Iterable[str]) -> None:
    values = tuple(values)
    if len(values) > MAX_VALUES:
        raise fault(where, field, len(values), f"at most {MAX_VALUES:,} values")
    for value in values:
        if not (value.isprintable() and value == value.strip() and 0 < len(value) <= MAX_NAME_CHARS):
            raise fault(where, field, value, f"1 to {MAX_NAME_CHARS} printable characters, no blank at an end")


def _check_url(where: str, field: str, url: str) -> str:
    """The host of a URL. Browsers are sent to it, so InputError for anything but a plain web address."""
    rule = f"an http(s) URL with a host, at most {MAX_URL_CHARS:,} printable characters without blanks"
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises ValueError for a bad port
    except ValueError as error:
        raise fault(where, field, url, rule) from error
    is_plain = len(url) <= MAX_URL_CHARS and url.isprintable() and not re.search(r"[\s\\<>\"]", url)
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or not is_plain:
        raise fault(where, field, url, rule)
    return host


def check_unchanged(where: str, field: str, before: str, after: str) -> None:
    """ConflictError if a field differs that may not change."""
    if before != after:
        raise ConflictError(f"{where}: {field} is {before!r} and cannot become {after!r}; make a new one instead")


def check_not_ended(where: str, before: Status, after: Status) -> None:
    """ConflictError if the status would change from "ended", which is final."""
    if before == ENDED != after:
        raise ConflictError(f"{where}: has ended, which is final; make a new one instead")


def _clean(where: str, field: str, value: str, max_chars: int) -> str:
    cleaned = text.clean(value, max_chars)
    if not cleaned:
        raise fault(where, field, value, "text with at least one visible character")
    return cleaned


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())
