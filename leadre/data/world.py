"""A small synthetic market with known probabilities, for tests and for experiments with a known right answer.

Each user prefers one category. A visit (a request) happens at one of three placements, where a random part of the ads
is live that week. The user converts one or two ads: with probability REPEAT a live ad that they converted before, else
with probability PREFERRED a live ad of their category, else any live ad. Before visits users view contents, of their
category with probability PREFERRED. Several ads may share an object, and some ads start late.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from leadre.data import requests, tables
from leadre.data.split import SplitTimes
from leadre.data.tables import Tables
from leadre.units import US_PER_DAY, US_PER_HOUR, US_PER_S

REPEAT, PREFERRED = 0.4, 0.8
WEEKS, VISITS, PLACEMENTS = 20, 20, 3
LIVE_SHARE = 0.4  # of the ads that have started, per placement and week
_WEEK_US = 7 * US_PER_DAY
_EPOCH_US = int(datetime(2025, 1, 6, tzinfo=UTC).timestamp()) * US_PER_S

CATEGORIES = {
    "Shoes": ("running shoes", "leather boots", "canvas sneakers", "hiking boots", "summer sandals"),
    "Coffee": ("espresso beans", "filter coffee", "coffee grinder", "moka pot", "cold brew"),
    "Garden": ("tomato seeds", "garden hose", "pruning shears", "potting soil", "bird feeder"),
    "Books": ("crime novel", "cook book", "travel guide", "poetry volume", "picture book"),
    "Music": ("acoustic guitar", "studio headphones", "drum sticks", "vinyl record", "piano stool"),
    "Bikes": ("city bike", "bike helmet", "cargo trailer", "chain oil", "puncture kit"),
}
_BRANDS = ("Alder", "Birch", "Cedar", "Dogwood")
_COLOURS = ("red", "blue", "green", "black", "white", "grey", "light", "classic")
_AGES = ("18-34", "35-54", "55+", "unknown")


@dataclass(frozen=True, kw_only=True)
class Market:
    """The drawn market: categories of users, ads and contents, prices, and the live ads by week and placement."""

    preference_U: npt.NDArray[np.int64]
    category_A: npt.NDArray[np.int64]
    category_C: npt.NDArray[np.int64]
    price_nanos_A: npt.NDArray[np.int64]
    first_week_A: npt.NDArray[np.int64]
    live_WPA: npt.NDArray[np.bool_]  # weeks, placements, ads


@dataclass
class _Log:
    """Rows of the events table in the order of their draws."""

    rows: list[tuple[str, int, str, str, str, int, str | None, str | None]] = field(default_factory=list)

    def frame(self) -> pl.DataFrame:
        names = ("user_id", "at", "domain", "item_id", "action", "value_nanos", "placement_id", "request_id")
        frame = pl.DataFrame(self.rows, schema=names, orient="row", infer_schema_length=None).sort(
            "at", maintain_order=True
        )
        at = pl.from_epoch("at", time_unit="us").dt.replace_time_zone("UTC")
        return tables.complete("events", frame.with_columns(at, pl.col("placement_id", "request_id").cast(pl.String)))


def draw(seed: int = 0, users: int = 200, ads: int = 120, contents: int = 30) -> Market:
    """A market of these sizes, a function of ``seed``."""
    rng = np.random.default_rng([seed, 1])
    first_week_A = np.where(rng.random(ads) < 0.8, 0, rng.integers(1, WEEKS, ads))
    weeks = np.arange(WEEKS)[:, None, None]
    live_WPA = (rng.random((WEEKS, PLACEMENTS, ads)) < LIVE_SHARE) & (first_week_A <= weeks)
    live_WPA[:, :, 0] |= ~live_WPA.any(axis=2)  # at least one ad is live at any time and placement
    first_week_A[0] = 0
    return Market(
        preference_U=rng.integers(0, len(CATEGORIES), users),
        category_A=np.arange(ads) % len(CATEGORIES),
        category_C=np.arange(contents) % len(CATEGORIES),
        price_nanos_A=np.round(np.exp(rng.normal(3.0, 0.8, ads)) * 100).astype(np.int64) * 10_000_000,
        first_week_A=first_week_A,
        live_WPA=live_WPA,
    )


def read(
    seed: int = 0,
    users: int = 200,
    ads: int = 120,
    contents: int = 30,
    cut: SplitTimes | None = None,
    positive: str = "conversion",
) -> Tables:
    """The market's tables, with about VISITS requests for each user. Sizes must be at least 1."""
    market = draw(seed, users, ads, contents)
    ads_frame = _ads(market)
    log = _Log()
    rng = np.random.default_rng([seed, 2])
    for user in range(users):
        _simulate_user(market, user, rng, log)
    events = log.frame().with_row_index(tables.ROW).with_columns(pl.lit("world").alias(tables.FILE))
    derived = requests.derive(
        ads=ads_frame,
        events=events,
        windows=_windows(market),
        listed=None,
        cut=cut or SplitTimes(),
        positive=positive,
        keep_empty=False,
    )
    ages = rng.integers(0, len(_AGES), users)
    profiles = pl.DataFrame({"user_id": [_user(u) for u in range(users)], "age": [_AGES[a] for a in ages]})
    return Tables(
        ads=ads_frame,
        contents=_contents(market),
        users=profiles,
        events=derived.events.select(list(tables.SCHEMAS["events"].columns)),
        requests=derived.requests,
        inventories=derived.inventories,
        empty_requests=derived.empty_requests,
        empty_inventories=derived.empty_inventories,
        bad_rows=derived.bad_rows,
    )


def _simulate_user(market: Market, user: int, rng: np.random.Generator, log: _Log) -> None:
    """All visits and views of one user, in time order."""
    preferred = market.preference_U[user]
    converted: list[int] = []
    visits_us = np.sort(rng.integers(0, WEEKS * _WEEK_US, VISITS))
    for visit, visit_us in enumerate(visits_us):
        week = int(visit_us // _WEEK_US)
        placement = int(rng.integers(PLACEMENTS))
        at_us = _EPOCH_US + int(visit_us)
        request_id = f"visit-{user:05d}-{visit:03d}"
        placement_id = f"placement-{placement}"
        for _ in range(int(rng.integers(0, 3))):
            content = _pick(np.arange(len(market.category_C)), market.category_C == preferred, rng)
            view_us = at_us - int(rng.integers(1, US_PER_HOUR))
            log.rows.append((_user(user), view_us, "content", f"content-{content:04d}", "view", 0, None, None))
        live = np.flatnonzero(market.live_WPA[week, placement])
        for ad in rng.choice(live, size=min(3, len(live)), replace=False):
            log.rows.append((_user(user), at_us, "ad", _ad(int(ad)), "impression", 0, placement_id, request_id))
        for _ in range(1 + int(rng.integers(0, 2))):
            repeats = [ad for ad in converted if market.live_WPA[week, placement, ad]]
            if repeats and rng.random() < REPEAT:
                ad = int(rng.choice(repeats))
            else:
                ad = _pick(live, market.category_A[live] == preferred, rng)
            converted.append(ad)
            value = int(market.price_nanos_A[ad])
            log.rows.append((_user(user), at_us, "ad", _ad(ad), "click", 0, placement_id, request_id))
            log.rows.append((_user(user), at_us, "ad", _ad(ad), "conversion", value, placement_id, request_id))


def _pick(choices: npt.NDArray[np.int64], is_preferred: npt.NDArray[np.bool_], rng: np.random.Generator) -> int:
    preferred = choices[is_preferred]
    return int(rng.choice(preferred if len(preferred) and rng.random() < PREFERRED else choices))


def _ads(market: Market) -> pl.DataFrame:
    count = len(market.category_A)
    started = [_EPOCH_US + int(week) * _WEEK_US for week in market.first_week_A]
    frame = pl.DataFrame(
        {
            "ad_id": [_ad(a) for a in range(count)],
            "object_id": [f"object-{_object(a):04d}" for a in range(count)],
            "advertiser_id": [f"advertiser-{_object(a) % len(_BRANDS)}" for a in range(count)],
            "title": [_title(_object(a)) for a in range(count)],
            "brand": [_BRANDS[_object(a) % len(_BRANDS)] for a in range(count)],
            "category_path": [[name, _noun(_object(a))] for a, name in enumerate(_category_names(market.category_A))],
            "price_nanos": market.price_nanos_A,
            "currency": ["EUR"] * count,
            "status": ["active"] * count,
            "starts_at": pl.from_epoch(pl.Series(started), time_unit="us").dt.replace_time_zone("UTC"),
        }
    )
    return tables.complete("ads", frame)


def _contents(market: Market) -> pl.DataFrame:
    count = len(market.category_C)
    frame = pl.DataFrame(
        {
            "content_id": [f"content-{c:04d}" for c in range(count)],
            "title": [f"Video {c + 1}: all about {_noun(c)}" for c in range(count)],
            "category_path": [[name] for name in _category_names(market.category_C)],
        },
        schema_overrides={"content_id": pl.String, "title": pl.String, "category_path": pl.List(pl.String)},
    )
    return tables.complete("contents", frame)


def _windows(market: Market) -> pl.DataFrame:
    week, placement, ad = np.nonzero(market.live_WPA)
    starts = pl.Series(_EPOCH_US + week * _WEEK_US)
    return pl.DataFrame(
        {
            "placement_id": [f"placement-{p}" for p in placement],
            "starts_at": pl.from_epoch(starts, time_unit="us").dt.replace_time_zone("UTC"),
            "ends_at": pl.from_epoch(starts + _WEEK_US, time_unit="us").dt.replace_time_zone("UTC"),
            "ad_id": [_ad(int(a)) for a in ad],
        }
    )


def _category_names(categories: npt.NDArray[np.int64]) -> list[str]:
    names = list(CATEGORIES)
    return [names[c] for c in categories]


def _object(ad: int) -> int:
    """Object number of an ad; every tenth ad shares the object of the ad one round of categories before it."""
    step = len(CATEGORIES)
    return ad - step if ad % 10 == 9 and ad >= step else ad


def _noun(number: int) -> str:
    nouns = list(CATEGORIES.values())[number % len(CATEGORIES)]
    return nouns[number // len(CATEGORIES) % len(nouns)]


def _title(number: int) -> str:
    colour = _COLOURS[number // 7 % len(_COLOURS)]
    return f"{_BRANDS[number % len(_BRANDS)]} {colour} {_noun(number)} no. {number}"


def _user(number: int) -> str:
    return f"user-{number:05d}"


def _ad(number: int) -> str:
    return f"ad-{number:04d}"
