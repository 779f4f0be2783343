"""JSON of accounts in the management API: limits, reviews, audit trail."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, Field, StrictInt

from leadre.serve.catalogue.audit import Entry, Kind
from leadre.serve.catalogue.limits import Limits
from leadre.serve.catalogue.review_store import MAX_REASON_CHARS
from leadre.serve.manage.auth import ApiKey
from leadre.serve.manage.forms import BidNanos, Form, Nanos, Url, time_of
from leadre.types import Review

Count = Annotated[StrictInt, Field(ge=0, le=10**9)]


class LimitsForm(Form):
    """Limits of an account; 0 = none. Money is in billionths of the currency of each campaign."""

    cpm_bid_nanos: BidNanos = Field(default=0, description="highest bid for an impression")
    cpc_bid_nanos: BidNanos = Field(default=0, description="highest bid for a click")
    cpa_bid_nanos: BidNanos = Field(default=0, description="highest bid for a conversion")
    total_nanos: Nanos = Field(default=0, description="highest total budget of a campaign; then no campaign is without")
    daily_nanos: Nanos = Field(
        default=0, description="highest sum of the daily budgets of active campaigns in one currency"
    )
    campaigns: Count = Field(default=0, description="number of campaigns that have not ended")
    ads: Count = Field(default=0, description="number of ads that have not ended")

    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class AccountResponse(BaseModel):
    """Limits of an account, and what they stop."""

    advertiser_id: str
    limits: LimitsForm
    stopped_campaigns: dict[str, str] = Field(description="campaign -> the limit that it breaks")
    stopped_ads: dict[str, str] = Field(description="ad -> the limit that it breaks; the first hundred")


class ReviewForm(Form):
    """A decision on an ad."""

    review: Review = Field(examples=["approved"])
    reason: str = Field(default="", max_length=MAX_REASON_CHARS, description="of a rejection, for the account")
    content_hash: str = Field(
        default="", max_length=64, description="that of the ad as it was read: other content gets 409; empty = any"
    )


class PageForm(Form):
    """A decision on a landing page. Scheme, query and fragment do not make another page."""

    landing_url: Url = Field(description="URL, or host and path", examples=["https://shop.example/shoes"])
    reason: str = Field(default="", max_length=MAX_REASON_CHARS, description="of the rejection; empty: permitted again")


class PagesResponse(BaseModel):
    """The rejected landing pages."""

    rejected: dict[str, str] = Field(description="page -> reason")


class AuditResponse(BaseModel):
    """A change, its author and time."""

    number: int = Field(description="rises in the order of the changes")
    at: str
    by: Literal["operator", "account", "command"] = Field(description="`command`: on the bidder's machine")
    key_id: str | None = Field(
        description="the author's key; null for a command, and for operators in an account's eyes"
    )
    kind: Kind
    item_id: str
    advertiser_id: str | None = Field(description="the account of the item; null: of no account")
    before: Any = Field(description="the item before the change; null if it is new")
    after: Any

    @classmethod
    def of(cls, entry: Entry, reader: ApiKey) -> AuditResponse:
        """The entry as the holder of a key sees it. An account does not see the keys of others."""
        is_visible = reader.is_operator or entry.by_account == reader.advertiser_id
        return cls(
            number=entry.number,
            at=time_of(entry.at_us),
            by="command" if not entry.key_id else "account" if entry.by_account else "operator",
            key_id=entry.key_id if entry.key_id and is_visible else None,
            kind=entry.kind,
            item_id=entry.item_id,
            advertiser_id=entry.advertiser_id or None,
            before=msgspec.json.decode(entry.before) if entry.before else None,
            after=msgspec.json.decode(entry.after),
        )
