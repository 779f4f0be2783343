"""What the status page shows, as plain values for its templates: figures and words, no HTML.

Shares and rates of a time are between two notes of `MetricHistory`; money and events are those of ledger, log and
book. What
asks the store or the writer says so where they are away, and leaves the rest as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadre import telemetry
from leadre.auction.budget.sums import SpendToday
from leadre.errors import PeerError, StoreDown
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.manage.access import Backend, Spend
from leadre.serve.manage.history import EVERY_S, GENERATIONS, OUTCOMES, REASONS, SOURCES, MetricHistory, quantile
from leadre.types import Ad, Campaign
from leadre.units import NANOS_PER_UNIT, S_PER_DAY, S_PER_HOUR, S_PER_MINUTE, US_PER_S

SHOWN = 10  # rows of a table
MINUTE_S = 60.0
NOTHING = "\N{EN DASH}"
View = dict[str, Any]


def now(outside: Backend) -> View:
    """Traffic, latency, fill, sources, reasons, freshness: the last minute in figures, the last hour beside them."""
    history, now_us = outside.history(), outside.clock.now_us()
    minute = history.since(MINUTE_S)
    outcomes = dict(zip(OUTCOMES, minute.grown("answers_total").tolist(), strict=True))
    requests, seconds = sum(outcomes.values()), max(minute.seconds, 1e-3)
    latency_ms = [1000 * quantile(telemetry.LATENCY_S, minute.grown("answer_seconds_bucket"), q) for q in (0.5, 0.99)]
    away = [part for part, is_away in zip(telemetry.PARTS, history.of("degraded")[-1], strict=True) if is_away]
    return {
        "at": _time(now_us),
        "away": away,
        "requests_a_s": _figure(requests / seconds),
        "bids_a_s": _figure(outcomes["bid"] / seconds),
        "fill": _percent(outcomes["bid"], requests - outcomes["bad"]),
        "shed": _percent(outcomes["shed"], requests),
        "p50_ms": _figure(latency_ms[0]),
        "p99_ms": _figure(latency_ms[1]),
        "span": _duration(history.seconds),
        "outcomes": _shares(OUTCOMES, history.grown("answers_total")),
        "sources": _shares(SOURCES, history.grown("bids_total")),
        "reasons": _shares(REASONS, history.grown("no_bids_total"), leave_out_none=True),
        "generations": _shares(GENERATIONS, history.grown("generations_total"), leave_out_none=True),
        "lists": _lists(outside, history, now_us),
        "series": series(history),
    }


def series(history: MetricHistory) -> dict[str, list[list[float | None]]]:
    """Chart -> seconds since 1970, then its lines; None where there was nothing to measure."""
    if len(history.at_s_T) > 2 and history.at_s_T[-1] - history.at_s_T[-2] < EVERY_S / 2:
        history = MetricHistory(history.at_s_T[:-1], history.counts_TC[:-1])  # so short a time says little
    at_s = history.at_s_T[1:]
    answers = history.rates("answers_total")
    bids, requests = answers[:, OUTCOMES.index("bid")], answers.sum(axis=1)
    asked = requests - answers[:, OUTCOMES.index("bad")]
    fill = np.divide(100 * bids, asked, out=np.full_like(bids, np.nan), where=asked > 0)
    grown_TB = np.diff(history.of("answer_seconds_bucket"), axis=0)
    p50, p99 = (np.array([1000 * quantile(telemetry.LATENCY_S, row, q) for row in grown_TB]) for q in (0.5, 0.99))
    lines = {
        "traffic": (requests, bids),
        "fill": (fill,),
        "latency": (p50, p99),
        "sources": tuple(history.rates("bids_total").T),
    }
    return {chart: [_numbers(values) for values in (at_s, *found)] for chart, found in lines.items()}


def campaigns(book: CampaignStore, outside: Backend, wanted: str) -> View:
    """Today's spend of the campaigns that spent the most, then others; ``wanted`` alone, where there is one."""
    today = {each.campaign_id: each for each in outside.charged_today()}
    charged: dict[str, int] = {}
    for name, each in today.items():
        campaign = book.campaign(name)
        if campaign is not None:
            charged[campaign.currency] = charged.get(campaign.currency, 0) + each.charged_nanos
    if wanted:
        found = [book.campaign(wanted)]
    else:
        found = [book.campaign(name) for name in list(today)[:SHOWN]]
        others = [other for other in book.campaigns(limit=2 * SHOWN) if other.campaign_id not in today]
        found += others[: SHOWN - len(found)]
    shown = [campaign for campaign in found if campaign is not None]
    days, problem = _days(outside, shown)
    return {
        "wanted": wanted,
        "charged": [_money(nanos, currency) for currency, nanos in sorted(charged.items())],
        "problem": problem,
        "rows": [_campaign(each, today.get(each.campaign_id), days.get(each.campaign_id)) for each in shown],
    }


def ads(book: CampaignStore, outside: Backend, wanted: str) -> View:
    """The ads that were shown most often since the log begins; ``wanted`` alone, where there is one."""
    counts: Mapping[str, tuple[int, int, int]] = {}
    problem = ""
    try:
        counts = outside.counts()
    except PeerError as error:
        problem = str(error)
    most = sorted(counts, key=lambda ad_id: (*(-count for count in counts[ad_id]), ad_id))
    found = [book.ad(ad_id) for ad_id in ([wanted] if wanted else most[:SHOWN])]
    rows = [_ad(book, ad, counts.get(ad.ad_id, (0, 0, 0))) for ad in found if ad is not None]
    return {"wanted": wanted, "problem": problem, "rows": rows}


def request(book: CampaignStore, outside: Backend, wanted: str) -> View:
    """One of the last requests, the newest by default: every candidate, its source, and what became of it."""
    try:
        record = outside.explain(wanted)
    except PeerError as error:
        return {"wanted": wanted, "problem": str(error), "record": None}
    if record is None:
        return {"wanted": wanted, "problem": "", "record": None}
    titles = {each.ad_id: ad.title for each in record.candidates if (ad := book.ad(each.ad_id)) is not None}
    places = list(record.verdicts)
    candidates = [
        {
            "ad_id": each.ad_id,
            "title": titles.get(each.ad_id, ""),
            "source": each.source,
            "log_p": f"{each.log_p:.2f}",
            "verdicts": [record.verdicts[place][row] or "not looked at" for place in places],
        }
        for row, each in enumerate(record.candidates)
    ]
    bids = [
        {
            "imp_id": bid.imp_id,
            "ad_id": bid.ad_id,
            "size": "{} x {}".format(*bid.size),
            "cpm": _money(1000 * bid.price_nanos, bid.currency),
            "propensity": f"{bid.propensity:.3f}",
        }
        for bid in record.bids
    ]
    return {
        "wanted": wanted,
        "problem": "",
        "record": record,
        "at": _time(record.at_us),
        "reason": _words(record.reason),
        "places": [{"imp_id": place, "tag": record.placements.get(place, "")} for place in places],
        "candidates": candidates,
        "bids": bids,
    }


def _lists(outside: Backend, history: MetricHistory, now_us: int) -> View:
    """Age of the current lists, and of those that answered in the hour."""
    grown = history.grown("list_age_seconds_bucket")
    ages = [_duration(quantile(tuple(map(float, telemetry.AGE_S)), grown, q)) for q in (0.5, 0.9)]
    view: View = {"version": "", "age": NOTHING, "p50": ages[0], "p90": ages[1], "problem": ""}
    try:
        lists = outside.lists()
    except StoreDown as error:
        return view | {"problem": str(error)}
    age = _duration((now_us - lists.made_at_us) / US_PER_S) if lists.made_at_us else NOTHING
    return view | {"version": lists.version, "age": age}


def _days(outside: Backend, shown: Sequence[Campaign]) -> tuple[dict[str, Spend], str]:
    """(campaign -> its day, why there is none)."""
    now_us = outside.clock.now_us()
    try:
        found = outside.spend([campaign.campaign_id for campaign in shown], now_us, now_us + 1) if shown else []
    except PeerError as error:
        return {}, str(error)
    return {day.campaign_id: day for day in found}, ""


def _campaign(campaign: Campaign, today: SpendToday | None, day: Spend | None) -> View:
    charged, total = (today.charged_nanos, today.total_charged_nanos) if today else (0, 0)
    budgets = [(charged, campaign.daily_nanos, "a day"), (total, campaign.total_nanos, "in all")]
    capped = [(so_far / cap, cap, of) for so_far, cap, of in budgets if cap]
    share, cap, of = max(capped, default=(0.0, 0, ""))  # the budget that ends first
    per = 1000 if campaign.bid_type == "cpm" else 1
    return {
        "id": campaign.campaign_id,
        "name": campaign.name,
        "advertiser_id": campaign.advertiser_id,
        "status": campaign.status,
        "bid": f"{_amount(per * campaign.bid_nanos)} {campaign.bid_type.upper()}",
        "charged": _money(charged, campaign.currency),
        "budget": f"{_amount(cap)} {of}" if cap else "no cap",
        "share": f"{min(1.0, share):.4f}" if cap else "",
        "percent": _percent(share, 1.0),
        "impressions": f"{day.impressions:,}" if day else NOTHING,
        "clicks": f"{day.clicks:,}" if day else NOTHING,
        "conversions": f"{day.conversions:,}" if day else NOTHING,
    }


def _ad(book: CampaignStore, ad: Ad, counts: tuple[int, int, int]) -> View:
    campaign = book.campaign(ad.campaign_id)
    return {
        "id": ad.ad_id,
        "title": ad.title,
        "brand": ad.brand,
        "campaign": campaign.name if campaign else ad.campaign_id,
        "campaign_status": campaign.status if campaign else "",
        "status": ad.status,
        "impressions": f"{counts[0]:,}",
        "clicks": f"{counts[1]:,}",
        "ctr": _percent(counts[1], counts[0]),
        "conversions": f"{counts[2]:,}",
    }


def _shares(names: Sequence[str], counts: NDArray[np.float64], leave_out_none: bool = False) -> list[View]:
    """What each makes of the whole, the most first."""
    whole = float(counts.sum())
    rows = sorted(zip(names, counts.tolist(), strict=True), key=lambda row: -row[1])
    return [
        {
            "name": _words(name),
            "count": f"{count:,.0f}",
            "percent": _percent(count, whole),
            "share": f"{count / whole if whole else 0:.4f}",
        }
        for name, count in rows
        if count or not leave_out_none
    ]


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [round(value, 3) if math.isfinite(value) else None for value in values.tolist()]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: float) -> str:
    """Three digits or so."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value else "0"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def _amount(nanos: int) -> str:
    value = nanos / NANOS_PER_UNIT
    return "< 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def _money(nanos: int, currency: str) -> str:
    return f"{_amount(nanos)} {currency}"


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / US_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(seconds: float) -> str:
    """In its two largest units."""
    if not math.isfinite(seconds):
        return NOTHING
    whole = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", S_PER_DAY), ("h", S_PER_HOUR), ("min", S_PER_MINUTE), ("s", 1)):
        if whole >= size or (unit == "s" and not parts):
            parts.append(f"{whole // size} {unit}")
            whole %= size
    return " ".join(parts[:2])
