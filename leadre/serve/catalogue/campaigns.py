"""The campaign store: campaigns and ads in ``manage.db``, written by the management process.

Every stored item has passed `checked_campaign` or `checked_ad`. Bid workers read it as a
`leadre.serve.catalogue.eligibility.CatalogueSnapshot`.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from leadre.errors import InputError, MissingError
from leadre.serve.catalogue import audit, limits, ownership, reviews
from leadre.serve.catalogue.audit import Author, Change
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.validation import (
    STATUSES,
    check_not_ended,
    check_unchanged,
    checked_ad,
    checked_campaign,
    fault,
)
from leadre.types import Ad, Campaign, Status

T = TypeVar("T", Ad, Campaign)

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode_campaign = msgspec.json.Decoder(Campaign).decode
_decode_ad = msgspec.json.Decoder(Ad).decode


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """The result of a bulk import: numbers of new campaigns and ads, of known ads, and each refused ad."""

    campaigns: int
    ads: int
    known_ads: int
    refused: tuple[tuple[str, str], ...]  # (ad_id, error)


class CampaignStore:
    """Reads and writes campaigns and ads. Thread-safe; each call is one transaction.

    ``author``: of the changes in the audit trail; None: a command on the bidder's machine.
    """

    def __init__(self, database: ManageDatabase, author: Author | None = None) -> None:
        self._database = database
        self._author = author or Author()

    def campaign(self, campaign_id: str) -> Campaign | None:
        rows = self._rows("SELECT body FROM campaigns WHERE campaign_id = ?", [campaign_id])
        return _decode_campaign(rows[0][0]) if rows else None

    def ad(self, ad_id: str) -> Ad | None:
        rows = self._rows("SELECT body FROM ads WHERE ad_id = ?", [ad_id])
        return _decode_ad(rows[0][0]) if rows else None

    def campaigns(
        self, *, advertiser_id: str = "", status: str = "", after: str = "", limit: int = 100
    ) -> list[Campaign]:
        """Campaigns by ID, those behind the ID ``after``; "" filters nothing."""
        filters = {"advertiser_id": advertiser_id, "status": status}
        return [_decode_campaign(body) for (body,) in self._page("campaigns", "campaign_id", filters, after, limit)]

    def ads(
        self,
        *,
        advertiser_id: str = "",
        campaign_id: str = "",
        status: str = "",
        review: str = "",
        after: str = "",
        limit: int = 100,
    ) -> list[Ad]:
        """Ads by ID, those behind the ID ``after``; "" filters nothing."""
        filters = {"advertiser_id": advertiser_id, "campaign_id": campaign_id, "status": status, "review": review}
        return [_decode_ad(body) for (body,) in self._page("ads", "ad_id", filters, after, limit)]

    def put_campaign(self, campaign: Campaign) -> bool:
        """Store a campaign, new or changed; whether it is new. An equal campaign changes nothing.

        InputError names the field. ConflictError if the account or the currency would change, or after its end.
        """
        with self._database.lock:
            before = self.campaign(campaign.campaign_id)
            campaign = _with_goal_time(campaign, before, self._author)
            is_old = before is not None and dataclasses.replace(campaign, status=before.status) == before
            if not (is_old and campaign.status in STATUSES):  # a limit of a later release must not prevent a pause
                campaign = checked_campaign(campaign)
            if before is not None and before != campaign:
                where = f"campaign {campaign.campaign_id!r}"
                check_unchanged(where, "advertiser_id", before.advertiser_id, campaign.advertiser_id)
                check_unchanged(where, "currency", before.currency, campaign.currency)
                check_not_ended(where, before.status, campaign.status)
            if before != campaign:
                limits.check_campaign(self._database.connection, campaign, before)
                with self._database.writing() as version:
                    stored = [(campaign.campaign_id, campaign)]
                    write(self._database.connection, "campaigns", "campaign_id", stored, version)
                    self._audit(change_of("campaign", campaign.campaign_id, before, campaign))
        return before is None

    def put_ad(self, ad: Ad) -> bool:
        """`put_campaign` for an ad. InputError also if the account has no campaign of that ID.

        ConflictError also for an object of another account.
        """
        ad = checked_ad(ad)
        with self._database.lock:
            before = self.ad(ad.ad_id)
            _check_campaign_of(ad, self.campaign(ad.campaign_id))
            if before is not None and before != ad:
                check_unchanged(f"ad {ad.ad_id!r}", "advertiser_id", before.advertiser_id, ad.advertiser_id)
                check_not_ended(f"ad {ad.ad_id!r}", before.status, ad.status)
            ad = reviews.with_review(ad, before, self._author, reviews.rejected_pages(self._database.connection))
            if before is None:
                limits.check_new_ad(self._database.connection, ad.advertiser_id)
            if before != ad:
                with self._database.writing() as version:
                    ownership.claim(
                        self._database.connection, ad.object_id, ad.advertiser_id, is_operator=not self._author.account
                    )
                    write(self._database.connection, "ads", "ad_id", [(ad.ad_id, ad)], version)
                    self._audit(change_of("ad", ad.ad_id, before, ad))
        return before is None

    def set_campaign_status(self, campaign_id: str, status: Status) -> Campaign:
        """Pause, resume or end a campaign. MissingError for an unknown ID, ConflictError after the end."""
        return self._set_status(campaign_id, status, self.campaign, self.put_campaign)

    def set_ad_status(self, ad_id: str, status: Status) -> Ad:
        """`set_campaign_status` for an ad."""
        return self._set_status(ad_id, status, self.ad, self.put_ad)

    def add(self, campaigns: Sequence[Campaign], ads: Iterable[Ad]) -> ImportResult:
        """Import new campaigns and ads in one transaction. Known ones are not changed, as users may have edited them.
        Accounts whose ads show one object share it.

        A bad ad is refused, and so are all ads of a bad campaign; the others are stored. The audit trail has one entry
        with their numbers for each account: the imported values are those before the first change of an item.
        """
        checked: dict[str, Campaign] = {}
        faults: dict[str, str] = {}
        for campaign in campaigns:
            try:
                checked[campaign.campaign_id] = checked_campaign(campaign)
            except InputError as error:
                faults[campaign.campaign_id] = str(error)
        with self._database.writing() as version:
            stored = {name: before for name in checked if (before := self.campaign(name)) is not None}
            new = [(name, item) for name, item in checked.items() if name not in stored]
            checked |= stored
            write(self._database.connection, "campaigns", "campaign_id", new, version)
            known = {ad_id for (ad_id,) in self._rows("SELECT ad_id FROM ads", [])}
            good, known_ads, refused = _checked_ads(
                ads, known, faults, lambda name: checked.get(name) or self.campaign(name)
            )
            ownership.grant(self._database.connection, ((ad.object_id, ad.advertiser_id) for ad in good.values()))
            pages = reviews.rejected_pages(self._database.connection)
            reviewed = [(name, reviews.with_review(ad, None, self._author, pages)) for name, ad in good.items()]
            write(self._database.connection, "ads", "ad_id", reviewed, version)
            self._audit(*_imports([item for _, item in new], good.values()))
        return ImportResult(campaigns=len(new), ads=len(good), known_ads=known_ads, refused=tuple(refused))

    def _set_status(self, name: str, status: Status, find: Callable[[str], T | None], put: Callable[[T], bool]) -> T:
        with self._database.lock:
            item = find(name)
            if item is None:
                raise MissingError(f"nothing has the ID {name!r}")
            changed = dataclasses.replace(item, status=status)
            put(changed)
        return changed

    def _rows(self, query: str, values: Sequence[object]) -> list[tuple[str]]:
        with self._database.lock:
            return self._database.connection.execute(query, values).fetchall()

    def _page(self, table: str, key: str, filters: dict[str, str], after: str, limit: int) -> list[tuple[str]]:
        filters = {column: value for column, value in filters.items() if value}
        where = " AND ".join([f"{key} > ?", *(f"{column} = ?" for column in filters)])
        query = f"SELECT body FROM {table} WHERE {where} ORDER BY {key} LIMIT ?"
        return self._rows(query, [after, *filters.values(), limit])

    def _audit(self, *changes: Change) -> None:
        audit.append(self._database.connection, self._author, changes)


def write(
    connection: sqlite3.Connection, table: str, key: str, items: Iterable[tuple[str, Ad | Campaign]], version: int
) -> None:
    """Store campaigns or ads inside a transaction that raised the version number."""
    connection.executemany(
        f"INSERT INTO {table} ({key}, body, version) VALUES (?, ?, ?)"
        f" ON CONFLICT ({key}) DO UPDATE SET body = excluded.body, version = excluded.version",
        ((name, _encode(item).decode(), version) for name, item in items),
    )


def _with_goal_time(campaign: Campaign, before: Campaign | None, author: Author) -> Campaign:
    """A campaign with the time of its goal: that of the stored one if it counts the same actions by the same value."""
    goal = campaign.goal
    since_us = 0
    if before is not None and campaign.has_goal:
        is_alike = (goal.kind, goal.conversion_nanos) == (before.goal.kind, before.goal.conversion_nanos)
        since_us = before.goal.since_us if is_alike else author.clock.now_us()
    return dataclasses.replace(campaign, goal=dataclasses.replace(goal, since_us=since_us))


def _checked_ads(
    ads: Iterable[Ad], known: Collection[str], faults: Mapping[str, str], campaign: Callable[[str], Campaign | None]
) -> tuple[dict[str, Ad], int, list[tuple[str, str]]]:
    """(new ads by ID, number of known ads, (ad_id, error) of refused ads) of an import.

    ``known``: IDs of stored ads; ``faults``: campaign -> why it is refused; ``campaign`` finds any other by its ID.
    """
    good: dict[str, Ad] = {}
    refused = []
    known_ads = 0
    for ad in ads:
        if ad.ad_id in known or ad.ad_id in good:
            known_ads += 1
            continue
        try:
            if ad.campaign_id in faults:
                raise InputError(faults[ad.campaign_id])
            checked = checked_ad(ad)
            _check_campaign_of(checked, campaign(ad.campaign_id))
            good[ad.ad_id] = checked
        except InputError as error:
            refused.append((ad.ad_id, str(error)))
    return good, known_ads, refused


def change_of(kind: Literal["campaign", "ad"], name: str, before: T | None, after: T) -> Change:
    """The change of one item for the audit trail."""
    old = "" if before is None else _encode(before).decode()
    new = _encode(after).decode()
    return Change(kind=kind, item_id=name, advertiser_id=after.advertiser_id, before=old, after=new)


def _imports(campaigns: Iterable[Campaign], ads: Iterable[Ad]) -> list[Change]:
    """One change for each account that gets campaigns or ads by an import."""
    campaigns_of = Counter(campaign.advertiser_id for campaign in campaigns)
    ads_of = Counter(ad.advertiser_id for ad in ads)
    return [
        Change(
            kind="import",
            item_id="",
            advertiser_id=account,
            before="",
            after=_encode({"campaigns": campaigns_of[account], "ads": ads_of[account]}).decode(),
        )
        for account in sorted({*campaigns_of, *ads_of})
    ]


def _check_campaign_of(ad: Ad, campaign: Campaign | None) -> None:
    """InputError, with the same text for an unknown campaign and for one of another account."""
    if campaign is None or campaign.advertiser_id != ad.advertiser_id:
        raise fault(f"ad {ad.ad_id!r}", "campaign_id", ad.campaign_id, "the ID of a campaign of this account")
