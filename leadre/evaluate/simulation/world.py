"""The simulated market: campaigns over a catalogue, users with lists, known rates, and the auctions of each day.

Every user has a taste, one of `TASTES` groups of ads, whose ads they click more often. A list has the log-probabilities
of its ads under the user's taste, as a retriever that knows it would give them. All is a function of the seed.

Letters: A ads, C campaigns, U users, N auctions in the order of their time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.evaluate.simulation.options import MarketOptions
from leadre.evaluate.simulation.prices import Prices
from leadre.store.contract import StoredList
from leadre.types import Ad, BidType, Campaign
from leadre.units import US_PER_DAY

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MINUTES = 1_440
TASTES = 8
LIKED, OTHER = 2.4, 0.8  # factors of the rates of a user: of the own taste, of the others; about 1 on average
ADS_OF_A_CAMPAIGN = 5
VALUE_OF_PRICE = 1.5  # median value of an impression to a campaign, over the mean price
MIN_EVENTS = 10  # clicks or conversions that a daily budget pays at least
VALUE_SIGMA, RATE_SIGMA = 0.4, 0.3  # of logarithms, between campaigns and between ads
START_US = 20_515 * US_PER_DAY  # a Tuesday, 2026-03-03T00:00:00Z
VERSION = "simulation"


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """Campaigns, ads and users with all that the simulation knows of them and the bidder does not.

    ``rate_A`` is the mean click rate of an ad, ``conversion_A`` its conversions per click; ``taste_A`` and ``taste_U``
    are groups. ``counts_A3``: impressions, clicks and conversions before the first day. ``demand_nanos_C``: money that
    a campaign would spend in a day without budget and rivals of its own.
    """

    campaigns: Sequence[Campaign]
    ads: Sequence[Ad]
    lists: Sequence[StoredList]
    campaign_A: Ints
    rate_A: Floats
    conversion_A: Floats
    taste_A: Ints
    taste_U: Ints
    counts_A3: Ints
    demand_nanos_C: Floats

    def click_rate(self, user: int, ad: int) -> float:
        """The probability that a user clicks an ad that is shown to them."""
        factor = LIKED if self.taste_A[ad] == self.taste_U[user] else OTHER
        return min(float(self.rate_A[ad]) * factor, 1.0)

    def value_nanos(self, user: int, ad: int) -> float:
        """Nanos that an impression is worth to the campaign: its bid x the true rate of the event that it pays for."""
        campaign = self.campaigns[int(self.campaign_A[ad])]
        if campaign.bid_type == "cpm":
            return campaign.bid_nanos
        rate = self.click_rate(user, ad)
        return campaign.bid_nanos * rate * (float(self.conversion_A[ad]) if campaign.bid_type == "cpa" else 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Auctions:
    """The bid requests of a day. ``price_nanos_N``: the lowest bid that wins. ``is_first_price_N``: winners pay the
    bid, else this price."""

    at_us_N: Ints
    user_N: Ints
    site_N: Ints
    price_nanos_N: Ints
    is_first_price_N: Bools

    def part(self, start: int, end: int, slower: float = 1.0) -> Auctions:
        """The requests from ``start`` to ``end``, as if the first came when the days begin, and ``slower``."""
        columns = {name: column[start:end] for name, column in vars(self).items()}
        at_us_N = columns["at_us_N"] - columns["at_us_N"][0]
        return Auctions(**columns | {"at_us_N": START_US + (at_us_N * slower).astype(np.int64)})


def draw(options: MarketOptions, object_ids: Sequence[str], titles: Sequence[str], prices: Prices, seed: int) -> World:
    """The market over a catalogue of objects, which may be fewer than its ads: several ads then show one object."""
    generator = np.random.default_rng([seed, 0])
    campaigns = options.campaigns
    ads = campaigns * ADS_OF_A_CAMPAIGN
    campaign_A = np.repeat(np.arange(campaigns), ADS_OF_A_CAMPAIGN)
    object_A = np.resize(generator.permutation(len(object_ids)), ads)
    taste_A = generator.integers(0, TASTES, ads)
    taste_U = generator.integers(0, TASTES, options.users)
    rate_A = options.click_rate * _factors(RATE_SIGMA, ads, generator)
    conversion_A = np.minimum(options.conversion_rate * _factors(RATE_SIGMA, ads, generator), 1.0)
    clicks_A = generator.binomial(options.history, rate_A)
    sales_A = generator.binomial(clicks_A, conversion_A)
    value_C = VALUE_OF_PRICE * prices.mean_nanos() * generator.lognormal(0.0, VALUE_SIGMA, campaigns)
    types = _bid_types(options, generator)
    lists, seen_C = _lists(options, taste_U, taste_A, campaign_A, generator)
    share_C = np.exp(generator.uniform(np.log(options.budget_low), np.log(options.budget_high), campaigns))
    demand_C = np.array(
        [
            options.requests * seen * _spend(bid_type, value, prices)
            for seen, bid_type, value in zip(seen_C, types, value_C, strict=True)
        ]
    )
    drawn_C = [
        _campaign(options, number, bid_type, value / _rate(bid_type, options), share * demand)
        for number, (bid_type, value, share, demand) in enumerate(zip(types, value_C, share_C, demand_C, strict=True))
    ]
    return World(
        campaigns=drawn_C,
        ads=[_ad(row, int(campaign_A[row]), object_ids[o], titles[o]) for row, o in enumerate(object_A.tolist())],
        lists=lists,
        campaign_A=campaign_A,
        rate_A=rate_A,
        conversion_A=conversion_A,
        taste_A=taste_A,
        taste_U=taste_U,
        counts_A3=np.stack([np.full(ads, options.history), clicks_A, sales_A], axis=1),
        demand_nanos_C=demand_C,
    )


def auctions(options: MarketOptions, prices: Prices, day: int, seed: int) -> Auctions:
    """The bid requests of a day: a diurnal curve with noise from minute to minute, and a burst."""
    generator = np.random.default_rng([seed, 1, day])
    minute = np.arange(MINUTES)
    weight = (1 + 0.8 * np.sin(2 * np.pi * (minute / MINUTES - 0.4))) * generator.gamma(20, 1 / 20, MINUTES)
    weight[14 * 60 : 14 * 60 + 30] *= options.burst
    minute_N = np.sort(generator.choice(MINUTES, options.requests, p=weight / weight.sum()))
    at_us_N = ((minute_N + generator.random(options.requests)) * (US_PER_DAY // MINUTES)).astype(np.int64)
    site_N = generator.integers(0, len(prices.sites), options.requests)
    return Auctions(
        at_us_N=START_US + day * US_PER_DAY + np.sort(at_us_N),
        user_N=generator.integers(0, options.users, options.requests),
        site_N=site_N,
        price_nanos_N=prices.draw(site_N, generator),
        is_first_price_N=generator.random(options.requests) < options.first_price,
    )


def user_id(user: int) -> str:
    """The ID of a user, by number."""
    return f"user-{user:06d}"


def _factors(sigma: float, size: int, generator: np.random.Generator) -> Floats:
    """[size] log-normal factors of mean 1."""
    return generator.lognormal(-(sigma**2) / 2, sigma, size)


def _bid_types(options: MarketOptions, generator: np.random.Generator) -> list[BidType]:
    clicks = round(options.cpc_share * options.campaigns)
    sales = min(round(options.cpa_share * options.campaigns), options.campaigns - clicks)
    types: list[BidType] = ["cpm"] * options.campaigns
    types[:clicks] = ["cpc"] * clicks
    types[clicks : clicks + sales] = ["cpa"] * sales
    return [types[number] for number in generator.permutation(options.campaigns)]


def _rate(bid_type: BidType, options: MarketOptions) -> float:
    """The mean rate of the event that a campaign pays for."""
    if bid_type == "cpm":
        return 1.0
    return options.click_rate * (options.conversion_rate if bid_type == "cpa" else 1.0)


def _spend(bid_type: BidType, value_nanos: float, prices: Prices) -> float:
    """Expected nanos that a bid of the value is charged in an auction; a click or conversion owes its whole price."""
    wins, second_nanos = prices.expected(value_nanos)
    return second_nanos if bid_type == "cpm" else wins * value_nanos


def _lists(
    options: MarketOptions, taste_U: Ints, taste_A: Ints, campaign_A: Ints, generator: np.random.Generator
) -> tuple[list[StoredList], Floats]:
    """(the list of each user, [C] the share of users whose list has an ad of the campaign)."""
    length = min(options.list_ads, len(taste_A))
    lists = []
    seen_C = np.zeros(options.campaigns)
    for taste in taste_U.tolist():
        liked_A = np.where(taste_A == taste, LIKED, OTHER)
        log_p_A = np.log(liked_A / liked_A.sum())
        noisy_A = log_p_A + generator.gumbel(size=len(log_p_A))  # the largest are a sample in proportion to the rates
        chosen_K = np.argpartition(-noisy_A, length - 1)[:length]
        ranked_K = chosen_K[np.argsort(-log_p_A[chosen_K], kind="stable")]
        ad_ids = tuple(map(_ad_id, ranked_K.tolist()))
        lists.append(StoredList(VERSION, START_US, ad_ids, tuple(log_p_A[ranked_K].tolist())))
        seen_C[np.unique(campaign_A[ranked_K])] += 1
    return lists, seen_C / options.users


def _campaign(
    options: MarketOptions, number: int, bid_type: BidType, bid_nanos: float, budget_nanos: float
) -> Campaign:
    bid_nanos = max(bid_nanos, 1.0)
    if bid_type != "cpm":
        budget_nanos = max(budget_nanos, MIN_EVENTS * bid_nanos)
    return Campaign(
        campaign_id=f"campaign-{number:04d}",
        advertiser_id=f"advertiser-{number:04d}",
        name=f"Campaign {number}",
        bid_type=bid_type,
        bid_nanos=round(bid_nanos),
        daily_nanos=max(round(budget_nanos), 1),
        plan=options.plan,
        pacer=options.pacer,
        shading=options.shading,
    )


def _ad(row: int, campaign: int, object_id: str, title: str) -> Ad:
    return Ad(
        ad_id=_ad_id(row),
        object_id=object_id,
        campaign_id=f"campaign-{campaign:04d}",
        advertiser_id=f"advertiser-{campaign:04d}",
        title=title or object_id,
        landing_url=f"https://advertiser-{campaign:04d}.example/{row}",
    )


def _ad_id(row: int) -> str:
    return f"ad-{row:06d}"
