"""Options of the simulated market. `leadre evaluate simulate --help` reads them without the packages of serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leadre.config import option


@dataclass(frozen=True, kw_only=True)
class MarketOptions:
    """Options of the simulated market."""

    campaigns: int = option(200, "campaigns, which share the ads of the run", at_least=1, at_most=10_000)
    requests: int = option(100_000, "bid requests of a day", at_least=1, at_most=10_000_000)
    users: int = option(2_000, "users, each with a list of ads", at_least=1, at_most=1_000_000)
    list_ads: int = option(40, "ads of a user's list", at_least=1, at_most=1_000)
    cpc_share: float = option(0.15, "share of campaigns that pay for clicks", at_least=0, at_most=1)
    cpa_share: float = option(0.05, "share of campaigns that pay for conversions", at_least=0, at_most=1)
    click_rate: float = option(0.02, "mean probability that an impression is clicked", above=0, at_most=0.2)
    conversion_rate: float = option(0.1, "mean probability that a click converts", above=0, at_most=0.3)
    budget_low: float = option(0.005, "lowest daily budget, as a share of what the campaign alone would spend", above=0)
    budget_high: float = option(0.05, "highest daily budget, as such a share; budgets are log-uniform", above=0)
    plan: Literal["asap", "even", "traffic", "front_loaded"] = option(
        "traffic", "plan of all campaigns; even on the first day, whose traffic is not known"
    )
    pacer: Literal["mirror", "throttle", "off"] = option("mirror", "pacer of all campaigns")
    shading: bool = option(False, "bid below the value in first-price auctions")
    burst: float = option(10.0, "traffic from 14:00 to 14:30, as a multiple of the usual one", at_least=1, at_most=100)
    history: int = option(
        500, "impressions of each ad before the first day, from which the bidder knows rates", at_least=0, at_most=10**6
    )
    first_price: float = option(0.0, "share of requests whose auction charges the bid", at_least=0, at_most=1)
