"""JSON of campaigns in the management API: request form and response."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StrictFloat, StrictInt

from leadre.serve.catalogue.validation import HOURS, MAX_HOUR_SHARE, MAX_RETURN
from leadre.serve.manage.forms import BidNanos, Form, Id, Name, Names, Nanos, When, micros_of, time_of
from leadre.types import (
    DEFAULT_MAX_VALUE_NANOS,
    BidType,
    Campaign,
    Goal,
    GoalKind,
    PacerName,
    PlanName,
    Status,
    Targeting,
)


class TargetingForm(Form):
    """Targeting of a campaign. An empty list matches every request."""

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


class GoalForm(Form):
    """The aim of a campaign's bids: the most actions at the target. `bid` has no target."""

    kind: GoalKind = Field(
        default="bid",
        description="`bid`: an event is worth `bid_nanos`; `cpc`, `cpa`: a target cost of a click or conversion;"
        " `roas`: a target return, value of conversions over money",
    )
    target_nanos: BidNanos = Field(default=0, description="of `cpc` and `cpa`: cost of one action on average")
    target_return: Annotated[StrictFloat | StrictInt, Field(ge=0, le=MAX_RETURN)] = Field(
        default=0.0, description="of `roas`: value of conversions for each unit of money", examples=[4.0]
    )
    conversion_nanos: BidNanos = Field(
        default=0, description="of `roas`: expected value of a conversion; later, reported values correct it"
    )

    def goal(self) -> Goal:
        return Goal(**self.model_dump() | {"target_return": float(self.target_return)})


class CampaignForm(Form):
    """A campaign: the event that the advertiser pays for, bid, budgets, schedule and targeting."""

    advertiser_id: Id | None = Field(default=None, description="the account; default: the key's", examples=["acme"])
    name: Name = Field(examples=["Autumn shoes"])
    bid_type: BidType = Field(description="the paid event: an impression, a click or a conversion")
    bid_nanos: BidNanos = Field(
        description="for one impression, click or conversion; 2000000 in cpm is a CPM of 2.00. With a goal it is the"
        " highest price of one"
    )
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$", description="ISO 4217; cannot change later")
    zone: str = Field(default="UTC", max_length=64, description="IANA time zone, whose days limit the daily budget")
    total_nanos: Nanos = Field(default=0, description="limit of all charges; 0 = no cap")
    daily_nanos: Nanos = Field(default=0, description="limit of the charges of a day; 0 = no cap")
    cap_per_day: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = Field(
        0, description="impressions of one user in a day; 0 = no cap"
    )
    max_value_nanos: Nanos = Field(
        default=DEFAULT_MAX_VALUE_NANOS, description="highest value of one conversion; a higher one counts as this"
    )
    starts_at: When | None = Field(default=None, description="default: at once")
    ends_at: When | None = Field(default=None, description="default: no end")
    status: Status = "active"
    targeting: TargetingForm = TargetingForm()
    plan: PlanName = Field(
        default="asap",
        description="when the budget of a day is spent: as soon as possible, evenly by the clock, in proportion to"
        " traffic, most in the morning, or by `hour_shares`. All but `asap` need a daily budget, or a total and an end",
    )
    pacer: PacerName = Field(
        default="mirror",
        description="follows the plan: `mirror` lowers the bid, `throttle` skips auctions, `off` only shows the plan",
    )
    hour_shares: Annotated[list[Annotated[StrictInt, Field(ge=0, le=MAX_HOUR_SHARE)]], Field(max_length=HOURS)] = Field(
        default_factory=list, description=f"of the plan `hours`: {HOURS} shares of any sum, for the hours of the zone"
    )
    shading: bool = Field(default=False, description="bid below the value in first-price auctions of exchanges")
    goal: GoalForm = GoalForm()

    def campaign(self, campaign_id: str, advertiser_id: str) -> Campaign:
        return Campaign(
            campaign_id=campaign_id,
            advertiser_id=advertiser_id,
            starts_at_us=micros_of(self.starts_at) if self.starts_at else 0,
            ends_at_us=micros_of(self.ends_at) if self.ends_at else 0,
            targeting=self.targeting.targeting(),
            hour_shares=tuple(self.hour_shares),
            goal=self.goal.goal(),
            **self.model_dump(exclude={"advertiser_id", "starts_at", "ends_at", "targeting", "hour_shares", "goal"}),
        )


class CampaignResponse(BaseModel):
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
    max_value_nanos: int
    starts_at: str | None
    ends_at: str | None
    status: Status
    targeting: dict[str, list[str] | list[int]]
    plan: PlanName
    pacer: PacerName
    hour_shares: list[int]
    shading: bool
    goal: GoalForm

    @classmethod
    def of(cls, campaign: Campaign) -> CampaignResponse:
        plain = {name: getattr(campaign, name) for name in cls.model_fields if hasattr(campaign, name)}
        targeting = campaign.targeting
        return cls(
            **plain
            | {
                "starts_at": time_of(campaign.starts_at_us) if campaign.starts_at_us else None,
                "ends_at": time_of(campaign.ends_at_us) if campaign.ends_at_us else None,
                "targeting": {name: sorted(getattr(targeting, name)) for name in TargetingForm.model_fields},
                "hour_shares": list(campaign.hour_shares),
                "goal": GoalForm(**{name: getattr(campaign.goal, name) for name in GoalForm.model_fields}),
            }
        )
