"""Decisions of operators on ads and landing pages, in ``manage.db``."""

from __future__ import annotations

import dataclasses

import msgspec

from leadre.errors import ConflictError, InputError, MissingError
from leadre.serve.catalogue import audit, campaigns
from leadre.serve.catalogue.audit import Author, Change
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.reviews import REJECTED_PAGE, content_hash, page_of, rejected_pages, with_state
from leadre.types import Ad, Review

MAX_REASON_CHARS = 500


class ReviewStore:
    """Approves and rejects ads and landing pages. Thread-safe; each call is one transaction."""

    def __init__(self, database: ManageDatabase, author: Author) -> None:
        self._database = database
        self._author = author
        self._campaigns = CampaignStore(database, author)

    def review_ad(self, ad_id: str, review: Review, reason: str = "", seen_hash: str = "") -> Ad:
        """Approve or reject an ad, or send it back to review. Idempotent.

        ``reason``: of a rejection, for the account. ``seen_hash``: `content_hash` of the ad as the operator read it; ""
        for any content. MissingError for an unknown ID, InputError for a rejection without a reason, ConflictError for
        other content, and for an approval while the landing page is rejected.
        """
        if review == "rejected" and not reason.strip():
            raise InputError("reason: is empty; an account needs it to correct its ad")
        with self._database.lock:
            before = self._campaigns.ad(ad_id)
            if before is None:
                raise MissingError("nothing has this ID")
            if seen_hash not in ("", content_hash(before)):
                raise ConflictError(f"ad {ad_id!r}: its content has changed since it was read; read it again")
            if review == "approved" and page_of(before.landing_url) in rejected_pages(self._database.connection):
                raise ConflictError(f"ad {ad_id!r}: its landing page is rejected; permit the page first (PUT /pages)")
            after = with_state(before, before, review, reason.strip() if review == "rejected" else "")
            if review == "rejected" and before.review == "approved":
                after = dataclasses.replace(after, approved_url="")  # this very page is rejected
            self._write([(before, after)])
        return after

    def review_page(self, landing_url: str, reason: str) -> str:
        """Reject the page of a URL for a reason, or permit it again with ""; returns the page. Idempotent.

        A rejection rejects all ads on the page; after a permission these wait for a review. InputError for a text
        without a host.
        """
        fault = InputError(f"landing_url = {landing_url[:100]!r}; it must be a URL, or a host and a path")
        try:
            page = page_of(landing_url)
        except ValueError as error:  # of a bracket that is no address of IPv6
            raise fault from error
        if page.startswith("/"):
            raise fault
        with self._database.lock:
            before = rejected_pages(self._database.connection).get(page, "")
            if before == reason:
                return page
            old, new = (msgspec.json.encode({"rejected_for": text or None}).decode() for text in (before, reason))
            change = Change(kind="page", item_id=page, advertiser_id="", before=old, after=new)
            ads = [(ad, _with_page(ad, page, reason)) for ad in self._ads_on(page)]
            self._write(ads, change, page, reason)
        return page

    def _ads_on(self, page: str) -> list[Ad]:
        """All ads that lead or led to a page."""
        host = page.partition("/")[0]
        query = "SELECT body FROM ads WHERE instr(lower(body), ?)"
        bodies = self._database.connection.execute(query, [host])
        ads = [msgspec.json.decode(body, type=Ad) for (body,) in bodies]
        return [ad for ad in ads if page in (page_of(ad.landing_url), page_of(ad.approved_url))]

    def _write(
        self, changed: list[tuple[Ad, Ad]], page_change: Change | None = None, page: str = "", reason: str = ""
    ) -> None:
        """Store (before, after) of ads, and a decision on a page, in one transaction with their entries."""
        changed = [(before, after) for before, after in changed if before != after]
        if not changed and page_change is None:
            return
        changes = [campaigns.change_of("ad", after.ad_id, before, after) for before, after in changed]
        connection = self._database.connection
        with self._database.writing() as version:
            if page_change is not None:
                connection.execute("DELETE FROM pages WHERE page = ?", [page])
                if reason:
                    connection.execute("INSERT INTO pages VALUES (?, ?)", [page, reason])
                changes.insert(0, page_change)
            campaigns.write(connection, "ads", "ad_id", [(after.ad_id, after) for _, after in changed], version)
            audit.append(connection, self._author, changes)


def _with_page(ad: Ad, page: str, reason: str) -> Ad:
    """An ad after a decision on a page to which it leads or led. ``reason`` "": the page is permitted."""
    is_current = page_of(ad.landing_url) == page
    if reason:
        ad = with_state(ad, ad, "rejected", f"{REJECTED_PAGE}{reason}") if is_current else ad
        return dataclasses.replace(ad, approved_url="") if page_of(ad.approved_url) == page else ad
    if is_current and ad.review_reason.startswith(REJECTED_PAGE):
        return with_state(ad, ad, "pending")
    return ad
