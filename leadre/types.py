"""The nouns of serving, exchanged between its parts: plain frozen dataclasses without behaviour.

Money is int64 billionths of the currency (``_nanos``) for one impression: a CPM of 1.234567 is 1,234,567. Times are
UTC, microseconds since 1970 (``_us``), unless the name has another unit. Protocol: OpenRTB 2.6 and AdCOM's lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

from leadre.units import NANOS_PER_UNIT

DEFAULT_MAX_VALUE_NANOS = 10_000 * NANOS_PER_UNIT  # of a conversion

Size = tuple[int, int]  # width, height in pixels
BidType = Literal["cpm", "cpc", "cpa"]
Status = Literal["active", "paused", "ended"]
Review = Literal["pending", "approved", "rejected"]
PlanName = Literal["asap", "even", "traffic", "front_loaded", "hours"]
PacerName = Literal["mirror", "throttle", "off"]
GoalKind = Literal["bid", "cpc", "cpa", "roas"]
Source = Literal["stored", "generated", "contextual"]
EventKind = Literal["win", "bill", "loss", "imp", "view", "click", "conv"]


class Verdict(StrEnum):
    """The result of a candidate for one imp: a bid, or why not. Logs of older releases are read (`_missing_`)."""

    BID = "bid"
    NOT_SELECTED = "not selected"  # exploration drew another; in old logs also one that the winner outranks
    OUTRANKED = "outranked"  # it passed every filter, and the winner has a higher score x value
    INELIGIBLE = "ineligible"  # targeting, blocks or formats, see `rules.RULES`
    DUPLICATE = "duplicate in the request"  # another imp of the request has the ad
    RESPONSE_CURRENCY = "not the response currency"  # a response has one currency for all its bids
    FLOOR_CURRENCY = "floor currency cannot be converted"
    BELOW_FLOOR = "below floor"
    PACED = "paced"  # without pacing it would be above the floor, or outrank the winner
    UNKNOWN_USER_CAP = "frequency cap of an unknown user"  # impressions of an unknown user cannot be counted
    FREQUENCY_CAP = "frequency cap"  # no room, or not known: the store is down, or many caps of the user are full
    NO_BUDGET = "no budget"  # used up, or the worker has no lease yet
    OPEN_BIDS = "open bids of the caller"  # as many as it may have, or its share of the budget
    NOT_EVALUATED = "not evaluated"  # the deadline was over before the imp; in old logs also one that was not ranked

    def __init__(self, _: str) -> None:
        self.code = len(type(self).__members__)
        """The number of the verdict in arrays (uint8); never stored."""

    @classmethod
    def _missing_(cls, value: object) -> Verdict | None:
        return OLD_VERDICTS.get(value)


# The words of logs up to November 2026.
OLD_VERDICTS: dict[object, Verdict] = {
    "not drawn": Verdict.NOT_SELECTED,
    "shown in another place": Verdict.DUPLICATE,
    "currency of the answer": Verdict.RESPONSE_CURRENCY,
    "floor in another currency": Verdict.FLOOR_CURRENCY,
    "cap cannot be counted": Verdict.UNKNOWN_USER_CAP,
    "cap": Verdict.FREQUENCY_CAP,
    "budget": Verdict.NO_BUDGET,
    "": Verdict.NOT_EVALUATED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ad:
    """An ad that can be shown. ``object_id`` is its marketing object, to which the semantic ID belongs."""

    ad_id: str
    object_id: str
    campaign_id: str
    advertiser_id: str
    title: str
    description: str = ""
    brand: str = ""
    landing_url: str = ""
    image_url: str = ""
    price_nanos: int = 0  # price of the product, for the banner; 0 = not shown
    price_currency: str = "USD"
    adomain: str = ""
    app_bundle: str = ""  # the app that the ad promotes, for `bapp`
    iab_categories: tuple[str, ...] = ()
    cattax: int = 1  # AdCOM number of the taxonomy of the categories that are not of the first, "IAB..."
    language: str = ""  # of its texts, a tag of BCP 47 in lower case; "" = unknown
    sizes: tuple[Size, ...] = ()
    attributes: frozenset[int] = frozenset()  # AdCOM creative attributes, for `battr`
    status: Status = "active"
    created_at_us: int = 0  # of an ad made at the management API; 0 for an imported one, which the run knows
    review: Review = "approved"  # by an operator; only an approved ad is shown
    review_reason: str = ""  # of a rejection
    approved_url: str = ""  # the last approved landing page of an ad that is not approved, for clicks on earlier bids


@dataclass(frozen=True, kw_only=True, slots=True)
class Targeting:
    """Conditions of a campaign; an empty set is no condition. Hours are in the account's time zone, 0 to 23."""

    countries: frozenset[str] = frozenset()  # ISO 3166-1 alpha-3, as OpenRTB has them
    regions: frozenset[str] = frozenset()
    device_types: frozenset[int] = frozenset()
    sites: frozenset[str] = frozenset()  # hosts of pages, domains, or bundles of apps
    categories: frozenset[str] = frozenset()  # of the site's content
    segments: frozenset[str] = frozenset()
    hours: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """The aim of a campaign's bids. "bid": an event is worth ``bid_nanos`` of the campaign.

    The others win the most actions, while money charged is at most the target: ``target_nanos`` a click ("cpc") or a
    conversion ("cpa"), or ``target_return`` of conversion value for each unit of money ("roas"). ``conversion_nanos``:
    expected value of a conversion, of "roas"; later, reported values correct it. ``since_us``: when a stored campaign
    got this goal, set by the store; 0 for one that had it from the beginning. Events of earlier bids are not of it.
    """

    kind: GoalKind = "bid"
    target_nanos: int = 0
    target_return: float = 0.0
    conversion_nanos: int = 0
    since_us: int = 0

    @property
    def worth_nanos(self) -> int:
        """Money that one action may cost on average, before anything is learned; 0 for "bid"."""
        return round(self.conversion_nanos / self.target_return) if self.kind == "roas" else self.target_nanos


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """A campaign: bid, budgets, dates and targeting.

    ``bid_nanos`` is for one impression (cpm), one click (cpc) or one conversion (cpa): with a goal other than "bid",
    the most that the campaign pays for one.
    ``total_nanos`` and ``daily_nanos`` cap what is charged, ``cap_per_day`` the impressions of one user; 0 = no cap.
    ``zone`` is the account's IANA time zone: its days are the budget's.

    ``plan``: when the budget of a day is to be spent; "asap" is no plan, "hours" spends in proportion to
    ``hour_shares`` of the hours 0 to 23. ``pacer``: the rule of `leadre.auction.pacing` that follows the plan; with
    "off" the plan is shown and does not change bids. ``shading``: whether bids of first-price auctions are below the
    value. The defaults are those of campaigns stored before the fields: their bids do not change.
    """

    campaign_id: str
    advertiser_id: str
    name: str
    bid_type: BidType
    bid_nanos: int
    currency: str = "USD"
    zone: str = "UTC"
    total_nanos: int = 0
    daily_nanos: int = 0
    cap_per_day: int = 0
    max_value_nanos: int = DEFAULT_MAX_VALUE_NANOS  # of one conversion; more counts as this
    starts_at_us: int = 0
    ends_at_us: int = 0  # 0 = open end
    status: Status = "active"
    targeting: Targeting = field(default_factory=Targeting)
    plan: PlanName = "asap"
    pacer: PacerName = "mirror"
    hour_shares: tuple[int, ...] = ()
    shading: bool = False
    goal: Goal = field(default_factory=Goal)

    @property
    def has_plan(self) -> bool:
        """Whether the money of a day has a plan."""
        return self.plan != "asap"

    @property
    def has_goal(self) -> bool:
        """Whether bids aim at a target, and not at the worth that the bid states."""
        return self.goal.kind != "bid"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """Privacy signals of a request; of a signal in two places, the stricter value. None: absent.

    ``in_gdpr_country``: device or user are in a country whose law is the GDPR or equals it.
    """

    gdpr: bool | None = None
    consent: str = ""  # the TC string
    us_privacy: str = ""
    gpp: str = ""
    gpp_sid: tuple[int, ...] = ()
    gpc: bool = False
    coppa: bool = False
    lmt: bool = False
    dnt: bool = False
    dsa_required: int = 0
    in_gdpr_country: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Permissions:
    """Permissions for one request (TCF purposes in brackets). All off: no bid."""

    store_id: bool = False  # read or write an identifier (1)
    contextual: bool = False  # show an ad chosen by context (2)
    add_to_profile: bool = False  # (3)
    personalise: bool = False  # use history, profile, personal lists (4)
    measure: bool = False  # (7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Impression:
    """One imp of a request. ``placement_id`` is the publisher's name for it, the floor is in ``floor_currency``.

    ``sizes`` is empty if the publisher names none.
    """

    imp_id: str
    sizes: tuple[Size, ...]
    placement_id: str = ""
    floor_nanos: int = 0
    floor_currency: str = "USD"
    is_secure: bool = False
    blocked_attributes: frozenset[int] = frozenset()
    exp_s: int = 0  # seconds from the auction to the impression, at most; 0 = the caller names none


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A validated bid request. ``user_id`` is "" for an unknown user; IP addresses are truncated.

    ``other_user_ids``: further IDs of the user, for the case that the bidder does not know the first.
    """

    request_id: str
    imps: tuple[Impression, ...]
    user_id: str = ""
    other_user_ids: tuple[str, ...] = ()
    signals: Signals = field(default_factory=Signals)
    tmax_ms: int = 0  # 0 = the bidder's own default
    currencies: tuple[str, ...] = ("USD",)
    site: str = ""  # domain, else bundle of an app, else host of the page
    other_site_names: tuple[str, ...] = ()  # that targeting may name too, of host of the page, domain and bundle
    page: str = ""
    publisher_id: str = ""
    categories: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    country: str = ""
    region: str = ""
    language: str = ""
    device_type: int = 0
    ip: str = ""  # an IPv4 address without its last 8 bits, an IPv6 address without its last 80
    cattax: int = 1  # AdCOM number of the taxonomy of blocked and allowed categories
    allowed_categories: frozenset[str] = frozenset()  # empty: all
    blocked_categories: frozenset[str] = frozenset()
    blocked_domains: frozenset[str] = frozenset()
    blocked_apps: frozenset[str] = frozenset()
    allowed_languages: frozenset[str] = frozenset()  # tags of BCP 47 in lower case; empty: all
    allowed_seats: frozenset[str] = frozenset()
    blocked_seats: frozenset[str] = frozenset()
    has_deals_only: bool = False  # a private auction: deals are not supported
    is_test: bool = False
    is_first_price: bool = False  # of an exchange that charges the bid
    is_own_auction: bool = False  # the bidder is the seller: its mechanism sets the price
    bills_signed_price: bool = False  # a first-price auction, or a caller that fills in no clearing price
    left_out: tuple[str, ...] = ()  # fields of which values of a wrong type were read as absent


class Candidate(msgspec.Struct, frozen=True):
    """A candidate ad, its source, and its log-probability under the generator (no price).

    A struct, as a bid request logs dozens: it is made in an eighth of the time of a frozen dataclass.
    """

    ad_id: str
    source: Source
    log_p: float


class Bid(msgspec.Struct, frozen=True, kw_only=True):
    """An offer for one impression. ``propensity`` is the probability with which the policy chose this ad.

    ``worth_nanos``: expected value of the impression to the advertiser, before pacing. ``ranked_nanos``: the price that
    ranked the ad, before shading and before the bidder's own mechanism. ``action_nanos``: the charge of the click or
    conversion that the campaign pays for; 0 if it pays for impressions. ``reserved_nanos``: of the budget, for what the
    bid may be charged. All four are 0 in logs up to November 2026. ``price_propensity``: of a shaded price, its
    probability, or the density of one that exploration drew (``explores_price``); 0 if the price is not shaded.
    """

    bid_id: str
    imp_id: str
    ad_id: str
    campaign_id: str
    advertiser_id: str
    price_nanos: int
    currency: str
    size: Size
    source: Source
    propensity: float
    worth_nanos: int = 0
    reserved_nanos: int = 0
    ranked_nanos: int = msgspec.field(default=0, name="unshaded_nanos")
    action_nanos: int = 0
    price_propensity: float = 0.0
    explores_price: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """An event received for a bid. ``charge_nanos`` is the charge to the advertiser."""

    kind: EventKind
    at_us: int
    bid_id: str
    request_id: str
    ad_id: str
    campaign_id: str
    user_id: str = ""
    price_nanos: int = 0
    charge_nanos: int = 0
    value_nanos: int = 0
