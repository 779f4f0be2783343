"""The campaign store: campaigns and ads in ``manage.db``, written by the management process.

Every stored item has passed `checked_campaign` or `checked_ad`. Bid workers read it as a
`leadre.serve.catalogue.eligibility.CatalogueSnapshot`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from leadre.errors import InputError, MissingError
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
    """Reads and writes campaigns and ads. Thread-safe; each call is one transaction."""

    def __init__(self, database: ManageDatabase) -> None:
        self._database = database

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
        self, *, advertiser_id: str = "", campaign_id: str = "", status: str = "", after: str = "", limit: int = 100
    ) -> list[Ad]:
        """Ads by ID, those behind the ID ``after``; "" filters nothing."""
        filters = {"advertiser_id": advertiser_id, "campaign_id": campaign_id, "status": status}
        return [_decode_ad(body) for (body,) in self._page("ads", "ad_id", filters, after, limit)]

    def put_campaign(self, campaign: Campaign) -> bool:
        """Store a campaign, new or changed; whether it is new. An equal campaign changes nothing.

        InputError names the field. ConflictError if the account or the currency would change, or after its end.
        """
        with self._database.lock:
            before = self.campaign(campaign.campaign_id)
            is_old = before is not None and dataclasses.replace(campaign, status=before.status) == before
            if not (is_old and campaign.status in STATUSES):  # a limit of a later release must not prevent a pause
                campaign = checked_campaign(campaign)
            if before is not None and before != campaign:
                where = f"campaign {campaign.campaign_id!r}"
                check_unchanged(where, "advertiser_id", before.advertiser_id, campaign.advertiser_id)
                check_unchanged(where, "currency", before.currency, campaign.currency)
                check_not_ended(where, before.status, campaign.status)
            if before != campaign:
                with self._database.writing() as version:
                    self._write("campaigns", "campaign_id", [(campaign.campaign_id, campaign)], version)
        return before is None

    def put_ad(self, ad: Ad) -> bool:
        """`put_campaign` for an ad. InputError also if the account has no campaign of that ID."""
        ad = checked_ad(ad)
        with self._database.lock:
            before = self.ad(ad.ad_id)
            _check_campaign_of(ad, self.campaign(ad.campaign_id))
            if before is not None and before != ad:
                check_unchanged(f"ad {ad.ad_id!r}", "advertiser_id", before.advertiser_id, ad.advertiser_id)
                check_not_ended(f"ad {ad.ad_id!r}", before.status, ad.status)
            if before != ad:
                with self._database.writing() as version:
                    self._write("ads", "ad_id", [(ad.ad_id, ad)], version)
        return before is None

    def set_campaign_status(self, campaign_id: str, status: Status) -> Campaign:
        """Pause, resume or end a campaign. MissingError for an unknown ID, ConflictError after the end."""
        return self._set_status(campaign_id, status, self.campaign, self.put_campaign)

    def set_ad_status(self, ad_id: str, status: Status) -> Ad:
        """`set_campaign_status` for an ad."""
        return self._set_status(ad_id, status, self.ad, self.put_ad)

    def add(self, campaigns: Sequence[Campaign], ads: Iterable[Ad]) -> ImportResult:
        """Import new campaigns and ads in one transaction. Known ones are not changed, as users may have edited them.

        A bad ad is refused, and so are all ads of a bad campaign; the others are stored.
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
            self._write("campaigns", "campaign_id", new, version)
            good, known_ads, refused = self._checked_ads(ads, checked | stored, faults)
            self._write("ads", "ad_id", list(good.items()), version)
        return ImportResult(campaigns=len(new), ads=len(good), known_ads=known_ads, refused=tuple(refused))

    def _checked_ads(
        self, ads: Iterable[Ad], campaigns: Mapping[str, Campaign], faults: Mapping[str, str]
    ) -> tuple[dict[str, Ad], int, list[tuple[str, str]]]:
        """(new ads by ID, number of known ads, (ad_id, error) of refused ads)."""
        stored = {ad_id for (ad_id,) in self._rows("SELECT ad_id FROM ads", [])}
        good: dict[str, Ad] = {}
        refused = []
        known_ads = 0
        for ad in ads:
            if ad.ad_id in stored or ad.ad_id in good:
                known_ads += 1
                continue
            try:
                if ad.campaign_id in faults:
                    raise InputError(faults[ad.campaign_id])
                checked = checked_ad(ad)
                _check_campaign_of(checked, campaigns.get(ad.campaign_id) or self.campaign(ad.campaign_id))
                good[ad.ad_id] = checked
            except InputError as error:
                refused.append((ad.ad_id, str(error)))
        return good, known_ads, refused

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

    def _write(self, table: str, key: str, items: Iterable[tuple[str, Ad | Campaign]], version: int) -> None:
        self._database.connection.executemany(
            f"INSERT INTO {table} ({key}, body, version) VALUES (?, ?, ?)"
            f" ON CONFLICT ({key}) DO UPDATE SET body = excluded.body, version = excluded.version",
            ((name, _encode(item).decode(), version) for name, item in items),
        )


def _check_campaign_of(ad: Ad, campaign: Campaign | None) -> None:
    """InputError, with the same text for an unknown campaign and for one of another account."""
    if campaign is None or campaign.advertiser_id != ad.advertiser_id:
        raise fault(f"ad {ad.ad_id!r}", "campaign_id", ad.campaign_id, "the ID of a campaign of this account")
