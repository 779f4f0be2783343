"""Reviews of ads and landing pages: the rules by which a new or changed ad gets its state.

An ad is shown once it is approved. A setting sends new ads of accounts to review, and changed ones back; ads of
operators and of imports are approved. An operator may reject a landing page as well: then every ad on it is rejected.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from leadre.serve.catalogue.audit import Author
from leadre.types import Ad, Review

# A reader sees these fields or is led to them, or blocks compare them: a change of one wants another review.
REVIEWED = (
    *("title", "description", "brand", "landing_url", "image_url", "price_nanos", "price_currency", "adomain"),
    *("app_bundle", "iab_categories", "cattax", "language", "sizes", "attributes"),
)
REJECTED_PAGE = "the landing page is rejected: "


def with_review(ad: Ad, before: Ad | None, author: Author, rejected: Mapping[str, str]) -> Ad:
    """A new or changed ad with its state of review. ``rejected``: page -> why it is."""
    is_changed = before is None or any(getattr(ad, field) != getattr(before, field) for field in REVIEWED)
    if before is not None:
        same = {field: getattr(before, field) for field in ("review", "review_reason", "approved_url")}
        ad = dataclasses.replace(ad, **same)
    if is_changed and rejected and (why := rejected.get(page_of(ad.landing_url))) is not None:
        return with_state(ad, before, "rejected", f"{REJECTED_PAGE}{why}")
    if is_changed and author.is_reviewed:
        return with_state(ad, before, "pending")
    return ad


def with_state(ad: Ad, before: Ad | None, review: Review, reason: str = "") -> Ad:
    """The ad in a state of review. Clicks on its earlier bids lead to the landing page that was approved last.

    ``before``: the ad before the change or the decision.
    """
    approved_url = "" if before is None else clicked_url(before)
    return dataclasses.replace(
        ad, review=review, review_reason=reason, approved_url="" if review == "approved" else approved_url
    )


def clicked_url(ad: Ad) -> str:
    """The landing page of a click on the ad: the one that was approved last; "" if that is no longer."""
    return ad.landing_url if ad.review == "approved" else ad.approved_url


def content_hash(ad: Ad) -> str:
    """A short hash of what a review covers: a decision on other content than was read is refused."""
    content = {field: getattr(ad, field) for field in REVIEWED}
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]


def page_of(url: str) -> str:
    """The page of a URL for a review: host and path, as scheme, query and fragment do not make another page."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    return f"{(parts.hostname or '').lower()}{parts.path or '/'}"


def rejected_pages(connection: sqlite3.Connection) -> dict[str, str]:
    """Page -> why it is rejected."""
    return dict(connection.execute("SELECT page, reason FROM pages ORDER BY page"))
