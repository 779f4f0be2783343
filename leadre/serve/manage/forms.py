"""JSON of the management API: request forms and responses. Times are ISO 8601, money is whole nanos, sets are lists.

A form checks the type and the range of each field; the campaign store checks its meaning (a zone that exists, dates in
order).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictInt,
    WithJsonSchema,
)

from leadre.serve.catalogue.reviews import content_hash
from leadre.serve.catalogue.validation import (
    MAX_BID_NANOS,
    MAX_CATTAX,
    MAX_ID_CHARS,
    MAX_NAME_CHARS,
    MAX_NANOS,
    MAX_PIXELS,
    MAX_URL_CHARS,
    MAX_VALUES,
)
from leadre.serve.ipc.messages import ClockReply
from leadre.serve.manage.auth import ACCOUNT_SCOPES, SCOPES, ApiKey, Scope
from leadre.types import (
    Ad,
    BidType,
    Review,
    Status,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros_of(at: datetime) -> int:
    """Microseconds since 1970."""
    return (at - EPOCH) // timedelta(microseconds=1)


def time_of(at_us: int) -> str:
    """ISO 8601 with Z."""
    return (EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")


def _read_time(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError("expects text such as '2026-03-01T08:30:00Z'")
    return datetime.fromisoformat(value.upper())


def _with_offset(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("expects an offset from UTC, such as 'Z' or '+01:00'")
    return at


When = Annotated[
    datetime,
    BeforeValidator(_read_time),
    AfterValidator(_with_offset),
    PlainSerializer(lambda at: time_of(micros_of(at)), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-03-01T08:30:00Z"]}),
]
Nanos = Annotated[StrictInt, Field(ge=0, le=MAX_NANOS, description="billionths of the currency", examples=[2_000_000])]
BidNanos = Annotated[
    StrictInt, Field(ge=0, le=MAX_BID_NANOS, description="billionths of the currency", examples=[2_000_000])
]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Url = Annotated[str, Field(max_length=MAX_URL_CHARS)]
Names = Annotated[list[Name], Field(max_length=MAX_VALUES)]
Pixels = Annotated[StrictInt, Field(ge=1, le=MAX_PIXELS)]


class Form(BaseModel):
    """Base of request bodies. An unknown field is an error: a misspelt cap would silently be no cap."""

    model_config = ConfigDict(extra="forbid")


class AdForm(Form):
    """An ad of a campaign; it belongs to the campaign's account."""

    campaign_id: Id = Field(examples=["c1"])
    object_id: Id | None = Field(
        default=None, description="the marketing object, new or of this account; default: the ad itself"
    )
    title: str = Field(min_length=1, max_length=512, examples=["Trail running shoes"])
    description: str = Field(default="", max_length=4096)
    brand: str = Field(default="", max_length=MAX_NAME_CHARS)
    landing_url: Url = Field(description="http(s); the target of a click", examples=["https://shop.example/shoes"])
    image_url: Url = Field(default="", description="http(s), or empty", examples=["https://cdn.example/shoes.png"])
    price_nanos: Nanos = Field(default=0, description="price in the banner; 0 = no price")
    price_currency: str = Field(default="USD", pattern="^[A-Z]{3}$", description="ISO 4217")
    adomain: str = Field(default="", max_length=253, description="default: the host of the landing page")
    app_bundle: str = Field(default="", max_length=MAX_ID_CHARS, description="the app that the ad promotes, for `bapp`")
    iab_categories: Names = Field(default_factory=list, examples=[["IAB18-3"]])
    cattax: Annotated[StrictInt, Field(ge=1, le=MAX_CATTAX)] = Field(
        1, description="AdCOM number of the taxonomy of the categories other than IAB1 to IAB26; 1 = unknown"
    )
    language: str = Field(default="", max_length=50, description="BCP 47; empty = unknown", examples=["en"])
    sizes: Annotated[list[tuple[Pixels, Pixels]], Field(max_length=MAX_VALUES)] = Field(
        default_factory=list, description="width and height in pixels; empty = any", examples=[[[300, 250]]]
    )
    attributes: list[Annotated[StrictInt, Field(ge=1, le=999)]] = Field(
        default_factory=list, description="AdCOM creative attributes"
    )
    status: Status = "active"

    def ad(self, ad_id: str, advertiser_id: str, created_at_us: int) -> Ad:
        return Ad(
            ad_id=ad_id,
            created_at_us=created_at_us,
            advertiser_id=advertiser_id,
            object_id=self.object_id or ad_id,
            iab_categories=tuple(self.iab_categories),
            sizes=tuple(self.sizes),
            attributes=frozenset(self.attributes),
            **self.model_dump(exclude={"object_id", "iab_categories", "sizes", "attributes"}),
        )


class AdResponse(BaseModel):
    """An ad as it is stored."""

    ad_id: str
    advertiser_id: str
    campaign_id: str
    object_id: str
    title: str
    description: str
    brand: str
    landing_url: str
    image_url: str
    price_nanos: int
    price_currency: str
    adomain: str
    app_bundle: str
    iab_categories: list[str]
    cattax: int
    language: str
    sizes: list[tuple[int, int]]
    attributes: list[int]
    status: Status
    review: Review
    review_reason: str
    content_hash: str = Field(description="of what a review covers")

    @classmethod
    def of(cls, ad: Ad) -> AdResponse:
        plain = {name: getattr(ad, name) for name in cls.model_fields if hasattr(ad, name)}
        lists = {
            "content_hash": content_hash(ad),
            "iab_categories": list(ad.iab_categories),
            "sizes": list(ad.sizes),
            "attributes": sorted(ad.attributes),
        }
        return cls(**plain | lists)


class KeyForm(Form):
    """A key to create. Without an account it is an operator's key."""

    name: Name = Field(description="the holder", examples=["Ann"])
    advertiser_id: Id | None = Field(
        default=None, description="the only account that it opens; default: all", examples=["acme"]
    )
    scopes: Annotated[list[Annotated[str, Field(max_length=20)]], Field(max_length=20)] = Field(
        default_factory=list,
        description=f"of {', '.join(SCOPES)}; an account's key of {', '.join(ACCOUNT_SCOPES)}."
        " Default: all, or `campaigns` for an account",
        examples=[["campaigns"]],
    )


class KeyResponse(BaseModel):
    """A key without its secret."""

    key_id: str
    name: str
    scope: Literal["operator", "advertiser"]
    scopes: list[Scope]
    advertiser_id: str | None
    created_at: str
    revoked_at: str | None

    @classmethod
    def of(cls, key: ApiKey) -> KeyResponse:
        return cls(
            key_id=key.key_id,
            name=key.name,
            scope="operator" if key.is_operator else "advertiser",
            scopes=list(key.scopes),
            advertiser_id=key.advertiser_id or None,
            created_at=time_of(key.created_at_us),
            revoked_at=time_of(key.revoked_at_us) if key.revoked_at_us else None,
        )


class CreatedKeyResponse(BaseModel):
    """A new key. No other response contains its secret."""

    key: str = Field(description="send it as `Authorization: Bearer KEY`")
    about: KeyResponse


class OriginsForm(Form):
    """All web origins whose pages may request bids."""

    origins: Annotated[list[Annotated[str, Field(max_length=300)]], Field(max_length=1000)] = Field(
        examples=[["https://news.example"]]
    )


class ImportForm(Form):
    """Defaults for columns that the table of ads lacks."""

    bid_type: BidType = "cpm"
    bid_nanos: BidNanos = 2_000_000
    daily_nanos: Nanos = Field(default=0, description="0 = no cap")
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    zone: str = Field(default="UTC", max_length=64)
    landing_url: Url = Field(default="https://example.com/ads/{ad_id}", description="with the ad's ID for `{ad_id}`")


class RefusedAd(BaseModel):
    """An ad that the import refused, with the reason."""

    ad_id: str
    why: str


class ImportResponse(BaseModel):
    """Result of an import. Campaigns and ads that existed before are unchanged."""

    campaigns: int = Field(description="created")
    ads: int = Field(description="created")
    known_ads: int = Field(description="existed before")
    refused_ads: int
    refused: list[RefusedAd] = Field(description="the first hundred")


class EraseResponse(BaseModel):
    """The user's records removed, by store."""

    user_id: str
    removed: dict[str, int]


class ClockResponse(BaseModel):
    """The bidder's time. While the machine's is in doubt, data is forgotten only as far as `certain_until`."""

    doubt: Literal["", "jump", "gap"] = Field(
        description="`jump`: the machine's clock was set while the bidder ran; `gap`: the bidder was off for long"
    )
    why: str
    now: str
    machine: str = Field(description="wall time of the machine")
    certain_until: str

    @classmethod
    def of(cls, reply: ClockReply) -> ClockResponse:
        return cls(
            doubt=reply.doubt,
            why=reply.why,
            now=time_of(reply.now_us),
            machine=time_of(reply.machine_us),
            certain_until=time_of(reply.certain_us),
        )


class Problem(BaseModel):
    """An error: the field, the fault, and the next step."""

    detail: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of error responses."""
    texts = {
        400: "The body cannot be read.",
        401: "No key, or none in force.",
        403: "Not with this key.",
        404: "Nothing has this ID, or it belongs to another account.",
        409: "Contradicts the stored state.",
        422: "A field is invalid; `detail` names it.",
        429: "Too many requests of this address without a key in force.",
        503: "Writer, store or database is away; send the request again.",
    }
    return {status: {"model": Problem, "description": texts[status]} for status in statuses}
