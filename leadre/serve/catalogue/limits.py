"""Limits of accounts, set by operators: highest bids and budgets, spend of a day, numbers of campaigns and ads.

The management API refuses what would break a limit. Bid workers apply the same limits to what exists, so a lowered
limit stops campaigns and ads at once: of an account with too many the oldest go on, in the order of their creation.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from leadre.errors import ConflictError
from leadre.serve.catalogue import audit
from leadre.serve.catalogue.audit import Author, Change
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.validation import ENDED, check_id
from leadre.types import Ad, Campaign


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one account; 0 = none. Money is in billionths of the currency of each campaign."""

    cpm_bid_nanos: int = 0  # of one impression
    cpc_bid_nanos: int = 0  # of one click
    cpa_bid_nanos: int = 0  # of one conversion
    total_nanos: int = 0  # total budget of a campaign
    daily_nanos: int = (
        0  # daily budgets of all active campaigns of one currency together: what the account spends a day
    )
    campaigns: int = 0  # that have not ended
    ads: int = 0  # that have not ended


NO_LIMITS = Limits()
T = TypeVar("T", Ad, Campaign)


def stopped(
    limits: Mapping[str, Limits], campaigns: Iterable[Campaign], ads: Iterable[Ad]
) -> tuple[dict[str, str], dict[str, str]]:
    """(campaign ID -> the limit that it breaks, ad ID -> the same). All items, in the order of their creation."""
    if not limits:
        return {}, {}
    campaigns_of: dict[str, list[Campaign]] = defaultdict(list)
    ads_of: dict[str, list[Ad]] = defaultdict(list)
    for campaign in campaigns:
        if campaign.advertiser_id in limits and campaign.status != ENDED:
            campaigns_of[campaign.advertiser_id].append(campaign)
    for ad in ads:
        if ad.advertiser_id in limits and ad.status != ENDED:
            ads_of[ad.advertiser_id].append(ad)
    by_campaign: dict[str, str] = {}
    by_ad: dict[str, str] = {}
    for account, own in limits.items():
        by_campaign |= _stopped_campaigns(campaigns_of[account], own)
        if own.ads:
            by_ad |= dict.fromkeys((ad.ad_id for ad in ads_of[account][own.ads :]), _too_many("ads", own.ads))
    return by_campaign, by_ad


def _stopped_campaigns(campaigns: Sequence[Campaign], limits: Limits) -> dict[str, str]:
    """`stopped` for the campaigns of one account."""
    by_campaign = {}
    spent: dict[str, int] = defaultdict(int)  # currency -> daily budgets of the campaigns that go on
    for number, campaign in enumerate(campaigns, 1):
        faults = [*_own_faults(campaign, limits)]
        if 0 < limits.campaigns < number:
            faults.append(_too_many("campaigns", limits.campaigns))
        if not faults and campaign.status == "active":
            faults = [*_daily_fault(campaign, spent[campaign.currency], limits)]
            spent[campaign.currency] += 0 if faults else campaign.daily_nanos
        if faults:
            by_campaign[campaign.campaign_id] = faults[0]
    return by_campaign


def _own_faults(campaign: Campaign, limits: Limits) -> Iterator[str]:
    """The limits that a campaign breaks with any other campaigns beside it."""
    highest: int = getattr(limits, f"{campaign.bid_type}_bid_nanos")
    if 0 < highest < campaign.bid_nanos:
        yield f"bid_nanos = {campaign.bid_nanos} is above the account's {highest} for {campaign.bid_type}"
    for field in ("total_nanos", "daily_nanos"):
        budget: int = getattr(campaign, field)
        highest = getattr(limits, field)
        if highest and not 0 < budget <= highest:
            shown = str(budget) if budget else "0 (no cap)"
            yield f"{field} = {shown} is above the account's {highest}"


def _daily_fault(campaign: Campaign, spent_nanos: int, limits: Limits) -> Iterator[str]:
    """Whether the daily budgets of an account exceed its limit. ``spent_nanos``: those of the other campaigns."""
    if 0 < limits.daily_nanos < spent_nanos + campaign.daily_nanos:
        yield (
            f"daily_nanos = {campaign.daily_nanos} with {spent_nanos} of other active campaigns in {campaign.currency}"
            f" is above the account's {limits.daily_nanos}"
        )


def _too_many(items: str, limit: int) -> str:
    return f"the account may have {limit:,} {items} that have not ended"


def check_campaign(connection: sqlite3.Connection, campaign: Campaign, before: Campaign | None) -> None:
    """ConflictError if a new or changed campaign breaks a limit. One that is not active may, as it spends nothing.

    ``before``: None for a new one.
    """
    limits = of_account(connection, campaign.advertiser_id)
    if limits == NO_LIMITS:
        return
    campaigns = _rows(connection, "campaigns", campaign.advertiser_id, Campaign)
    live = [other for other in campaigns if other.status != ENDED and other.campaign_id != campaign.campaign_id]
    faults = [_too_many("campaigns", limits.campaigns)] if before is None and 0 < limits.campaigns <= len(live) else []
    if campaign.status == "active":
        faults += _own_faults(campaign, limits)
        is_raised = before is None or before.status != "active" or campaign.daily_nanos > before.daily_nanos
        active = [other for other in live if other.status == "active" and other.currency == campaign.currency]
        if is_raised:
            faults += _daily_fault(campaign, sum(other.daily_nanos for other in active), limits)
    if faults:
        raise ConflictError(f"campaign {campaign.campaign_id!r}: {faults[0]}; an operator can raise the limit")


def check_new_ad(connection: sqlite3.Connection, advertiser_id: str) -> None:
    """ConflictError if an account has as many ads as it may have."""
    highest = of_account(connection, advertiser_id).ads
    query = "SELECT count(*) FROM ads WHERE advertiser_id = ? AND status != 'ended'"
    if highest and connection.execute(query, [advertiser_id]).fetchone()[0] >= highest:
        raise ConflictError(f"ad: {_too_many('ads', highest)}; end one, or let an operator raise the limit")


def stopped_of(connection: sqlite3.Connection, advertiser_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """`stopped` for one account."""
    limits = {advertiser_id: of_account(connection, advertiser_id)}
    if limits[advertiser_id] == NO_LIMITS:
        return {}, {}
    campaigns = _rows(connection, "campaigns", advertiser_id, Campaign)
    return stopped(limits, campaigns, _rows(connection, "ads", advertiser_id, Ad))


def of_account(connection: sqlite3.Connection, advertiser_id: str) -> Limits:
    """The limits of one account."""
    row = connection.execute("SELECT limits FROM accounts WHERE advertiser_id = ?", [advertiser_id]).fetchone()
    return msgspec.json.decode(row[0], type=Limits) if row else NO_LIMITS


def _rows(connection: sqlite3.Connection, table: str, advertiser_id: str, kind: type[T]) -> list[T]:
    """Campaigns or ads of an account, in the order of their creation."""
    rows = connection.execute(f"SELECT body FROM {table} WHERE advertiser_id = ? ORDER BY place", [advertiser_id])
    return [msgspec.json.decode(body, type=kind) for (body,) in rows]


def read(connection: sqlite3.Connection) -> dict[str, Limits]:
    """The limits of each account that has any."""
    rows = connection.execute("SELECT advertiser_id, limits FROM accounts")
    return {account: msgspec.json.decode(body, type=Limits) for account, body in rows}


def put(database: ManageDatabase, advertiser_id: str, limits: Limits, author: Author) -> None:
    """Replace the limits of an account. Idempotent. InputError for an ID that no account can have."""
    check_id("account", "advertiser_id", advertiser_id)
    with database.lock:
        before = of_account(database.connection, advertiser_id)
        if before == limits:
            return
        old, new = (msgspec.json.encode(value).decode() for value in (before, limits))
        with database.writing():
            database.connection.execute(
                "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (advertiser_id) DO UPDATE SET limits = excluded.limits",
                [advertiser_id, new],
            )
            change = Change(kind="limits", item_id="", advertiser_id=advertiser_id, before=old, after=new)
            audit.append(database.connection, author, [change])
