"""The JSON of the management API: what is sent and shown. Times are ISO 8601, money is whole nanos, sets are lists.

Forms say what a field looks like; what it may mean (a zone that exists, dates in order) is checked by the book.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

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

from leadre.serve.catalogue.validation import (
    MAX_ID_CHARS,
    MAX_NAME_CHARS,
    MAX_NANOS,
    MAX_PIXELS,
    MAX_URL_CHARS,
    MAX_VALUES,
)
from leadre.serve.manage.auth import ApiKey
from leadre.types import Ad, BidType, Campaign, Status, Targeting

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros_of(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def time_of(at_us: int) -> str:
    """ISO 8601 with Z."""
    return (EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")


def _read_time(value: object) -> object:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError("wants text such as '2026-03-01T08:30:00Z'")
    return datetime.fromisoformat(value.upper())


def _with_offset(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("wants an offset from UTC, such as 'Z' or '+01:00'")
    return at


When = Annotated[
    datetime,
    BeforeValidator(_read_time),
    AfterValidator(_with_offset),
    PlainSerializer(lambda at: time_of(micros_of(at)), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-03-01T08:30:00Z"]}),
]
Nanos = Annotated[StrictInt, Field(ge=0, le=MAX_NANOS, description="billionths of the currency", examples=[2_000_000])]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Url = Annotated[str, Field(max_length=MAX_URL_CHARS)]
Names = Annotated[list[Name], Field(max_length=MAX_VALUES)]
Pixels = Annotated[StrictInt, Field(ge=1, le=MAX_PIXELS)]


class Form(BaseModel):
    """A field that is not known is an error, as a misspelt cap would be no cap."""

    model_config = ConfigDict(extra="forbid")


class TargetingForm(Form):
    """Who may see a campaign. An empty list asks for nothing."""

    countries: Names = Field(default_factory=list, description="ISO 3166-1 alpha-3", examples=[["DEU", "FRA"]])
    regions: Names = Field(default_factory=list, description="as in OpenRTB's geo.region")
    device_types: list[Annotated[StrictInt, Field(ge=1, le=8)]] = Field(
        default_factory=list, description="AdCOM device types"
    )
    sites: Names = Field(default_factory=list, description="domains, or bundles of apps", examples=[["news.example"]])
    categories: Names = Field(default_factory=list, description="categories of the site's content", examples=[["IAB1"]])
    segments: Names = Field(default_factory=list, description="segments of users")
    hours: list[Annotated[StrictInt, Field(ge=0, le=23)]] = Field(
        default_factory=list, description="hours in the account's time zone"
    )

    def targeting(self) -> Targeting:
        return Targeting(**{name: frozenset(values) for name, values in self})


class CampaignForm(Form):
    """What an advertiser pays for."""

    advertiser_id: Id | None = Field(
        default=None, description="the account; left out, that of the key", examples=["acme"]
    )
    name: Name = Field(examples=["Autumn shoes"])
    bid_type: BidType = Field(description="what is paid for: 1 impression, 1 click or 1 conversion")
    bid_nanos: Nanos = Field(description="for one impression, click or conversion; 2000000 in cpm is a CPM of 2.00")
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$", description="ISO 4217; cannot change later")
    zone: str = Field(default="UTC", max_length=64, description="IANA time zone, whose days are the budget's")
    total_nanos: Nanos = Field(default=0, description="most that is ever charged; 0 = no cap")
    daily_nanos: Nanos = Field(default=0, description="most that is charged in a day; 0 = no cap")
    cap_per_day: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = Field(
        0, description="impressions of one user; 0 = no cap"
    )
    starts_at: When | None = Field(default=None, description="none = at once")
    ends_at: When | None = Field(default=None, description="none = open end")
    status: Status = "active"
    targeting: TargetingForm = TargetingForm()

    def campaign(self, campaign_id: str, advertiser_id: str) -> Campaign:
        return Campaign(
            campaign_id=campaign_id,
            advertiser_id=advertiser_id,
            starts_at_us=micros_of(self.starts_at) if self.starts_at else 0,
            ends_at_us=micros_of(self.ends_at) if self.ends_at else 0,
            targeting=self.targeting.targeting(),
            **self.model_dump(exclude={"advertiser_id", "starts_at", "ends_at", "targeting"}),
        )


class CampaignShown(BaseModel):
    """A campaign as it is stored."""

    campaign_id: str
    advertiser_id: str
    name: str
    bid_type: BidType
    bid_nanos: int
    currency: str
    zone: str
    total_nanos: int
    daily_nanos: int
    cap_per_day: int
    starts_at: str | None
    ends_at: str | None
    status: Status
    targeting: dict[str, list[str] | list[int]]

    @classmethod
    def of(cls, campaign: Campaign) -> CampaignShown:
        plain = {name: getattr(campaign, name) for name in cls.model_fields if hasattr(campaign, name)}
        wanted = campaign.targeting
        return cls(
            **plain
            | {
                "starts_at": time_of(campaign.starts_at_us) if campaign.starts_at_us else None,
                "ends_at": time_of(campaign.ends_at_us) if campaign.ends_at_us else None,
                "targeting": {name: sorted(getattr(wanted, name)) for name in TargetingForm.model_fields},
            }
        )


class AdForm(Form):
    """An ad of a campaign, whose account it belongs to."""

    campaign_id: Id = Field(examples=["c1"])
    object_id: Id | None = Field(default=None, description="the marketing object; left out, the ad itself")
    title: str = Field(min_length=1, max_length=512, examples=["Trail running shoes"])
    description: str = Field(default="", max_length=4096)
    brand: str = Field(default="", max_length=MAX_NAME_CHARS)
    landing_url: Url = Field(description="http(s), where a click leads", examples=["https://shop.example/shoes"])
    image_url: Url = Field(default="", description="http(s), or empty", examples=["https://cdn.example/shoes.png"])
    price_nanos: Nanos = Field(default=0, description="what the banner says that the thing costs; 0 = nothing")
    price_currency: str = Field(default="USD", pattern="^[A-Z]{3}$", description="ISO 4217")
    adomain: str = Field(default="", max_length=253, description="left out, the host of the landing page")
    iab_categories: Names = Field(default_factory=list, examples=[["IAB18-3"]])
    sizes: Annotated[list[tuple[Pixels, Pixels]], Field(max_length=MAX_VALUES)] = Field(
        default_factory=list, description="width and height in pixels; none = any", examples=[[[300, 250]]]
    )
    attributes: list[Annotated[StrictInt, Field(ge=1, le=999)]] = Field(
        default_factory=list, description="AdCOM creative attributes"
    )
    status: Status = "active"

    def ad(self, ad_id: str, advertiser_id: str) -> Ad:
        return Ad(
            ad_id=ad_id,
            advertiser_id=advertiser_id,
            object_id=self.object_id or ad_id,
            iab_categories=tuple(self.iab_categories),
            sizes=tuple(self.sizes),
            attributes=frozenset(self.attributes),
            **self.model_dump(exclude={"object_id", "iab_categories", "sizes", "attributes"}),
        )


class AdShown(BaseModel):
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
    iab_categories: list[str]
    sizes: list[tuple[int, int]]
    attributes: list[int]
    status: Status

    @classmethod
    def of(cls, ad: Ad) -> AdShown:
        plain = {name: getattr(ad, name) for name in cls.model_fields}
        lists = {
            "iab_categories": list(ad.iab_categories),
            "sizes": list(ad.sizes),
            "attributes": sorted(ad.attributes),
        }
        return cls(**plain | lists)


class KeyForm(Form):
    """Whose key to make. Without an account it is an operator's."""

    name: Name = Field(description="who holds it", examples=["Ann"])
    advertiser_id: Id | None = Field(
        default=None, description="the only account that it sees; none = all", examples=["acme"]
    )


class KeyShown(BaseModel):
    """What is known of a key; the key itself is shown once."""

    key_id: str
    name: str
    scope: Literal["operator", "advertiser"]
    advertiser_id: str | None
    created_at: str
    revoked_at: str | None

    @classmethod
    def of(cls, key: ApiKey) -> KeyShown:
        return cls(
            key_id=key.key_id,
            name=key.name,
            scope="operator" if key.is_operator else "advertiser",
            advertiser_id=key.advertiser_id or None,
            created_at=time_of(key.created_at_us),
            revoked_at=time_of(key.revoked_at_us) if key.revoked_at_us else None,
        )


class KeyMade(BaseModel):
    """The one time that a key is shown."""

    key: str = Field(description="goes into `Authorization: Bearer KEY`")
    about: KeyShown


class OriginsForm(Form):
    """The web origins whose pages may ask for bids, all of them."""

    origins: Annotated[list[Annotated[str, Field(max_length=300)]], Field(max_length=1000)] = Field(
        examples=[["https://news.example"]]
    )


class ImportForm(Form):
    """What stands in where the table of ads is silent."""

    bid_type: BidType = "cpm"
    bid_nanos: Nanos = 2_000_000
    daily_nanos: Nanos = Field(default=0, description="0 = no cap")
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    zone: str = Field(default="UTC", max_length=64)
    landing_url: Url = Field(default="https://example.com/ads/{ad_id}", description="`{ad_id}` becomes the ad's ID")


class Refused(BaseModel):
    """An ad that was not imported."""

    ad_id: str
    why: str


class Imported(BaseModel):
    """What an import did. What was there before is left as it was."""

    campaigns: int = Field(description="new ones")
    ads: int = Field(description="new ones")
    known_ads: int = Field(description="were there already")
    refused_ads: int
    refused: list[Refused] = Field(description="the first hundred")


class Erased(BaseModel):
    """Store -> how many records of the user it removed."""

    user_id: str
    removed: dict[str, int]


class Problem(BaseModel):
    """What is wrong, where, and what to do next."""

    detail: str
