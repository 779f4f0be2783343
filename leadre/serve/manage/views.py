"""Views of the status page: plain values for its templates, figures and words without HTML.

Rates and shares come from two samples of `MetricHistory`; money and events come from ledger, log and campaign store. If
the store or the writer is away, the view has a notice in its place, and the rest is complete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadre import telemetry
from leadre.auction.budget.sums import SpendToday
from leadre.errors import InputError, PeerError, StoreDown
from leadre.serve.bidding.explanation import ExplainedCandidate
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.reviews import content_hash
from leadre.serve.events.calibration import SLICES
from leadre.serve.ipc.messages import CampaignPacing
from leadre.serve.manage.access import Backend, Spend
from leadre.serve.manage.delivery import goal_text, plan_view
from leadre.serve.manage.figures import NO_VALUE, amount, duration, figure, moment, money, percent, time_range
from leadre.serve.manage.history import (
    GENERATIONS,
    INVALID,
    OUTCOMES,
    RANKINGS,
    REASONS,
    SAMPLE_S,
    SOURCES,
    MetricHistory,
    bucket,
    quantile,
)
from leadre.types import Ad, Campaign
from leadre.units import NANOS_PER_UNIT, S_PER_MINUTE, US_PER_S

MAX_ROWS = 10
LABELS = {"foreign": "unregistered origin", "bad": "malformed"}  # of outcomes
MIN_RATE_S = 1.0  # a rate of a shorter time is noise
View = dict[str, Any]


def now(backend: Backend) -> View:
    """Traffic, latency, fill, sources, reasons and freshness: figures of the last minute, shares of the last hour."""
    history = backend.history()
    now_us = backend.clock.now_us()
    charts = series(history)
    minute = history.since(S_PER_MINUTE)
    outcomes = dict(zip(OUTCOMES, minute.increase("answers_total").tolist(), strict=True))
    requests = sum(outcomes.values())
    seconds = minute.seconds if minute.seconds >= MIN_RATE_S else math.nan
    buckets_B = minute.increase("answer_seconds_bucket")
    away = [part for part, is_away in zip(telemetry.PARTS, history.totals("degraded")[-1], strict=True) if is_away]
    return {
        "at": moment(now_us),
        "clock": backend.time_state().why,
        "away": away,
        "were_away": [f"{part} {duration(away_s)}" for part, away_s in history.seconds_away().items() if away_s],
        "failures": f"{history.failures:,}" if history.failures else "",
        "failure": history.failure,
        "requests_a_s": figure(requests / seconds),
        "bids_a_s": figure(outcomes["bid"] / seconds),
        "fill": percent(outcomes["bid"], requests - sum(outcomes[name] for name in INVALID)),
        "shed": percent(outcomes["shed"], requests),
        "p50_ms": _latency_ms(buckets_B, 0.5),
        "p99_ms": _latency_ms(buckets_B, 0.99),
        "recent": duration(minute.seconds),
        "span": duration(history.seconds),
        "outcomes": _shares(OUTCOMES, history.increase("answers_total")),
        "sources": _shares(SOURCES, history.increase("bids_total")),
        "reasons": _shares(REASONS, history.increase("no_bids_total"), skip_zero=True),
        "generations": _shares(GENERATIONS, history.increase("generations_total"), skip_zero=True),
        "lists": _lists(backend, history, now_us),
        "ranker": _ranker(backend, history, now_us),
        "series": charts,
        "empty": [chart for chart, (_, *lines) in charts.items() if not any(value for line in lines for value in line)],
    }


def series(history: MetricHistory) -> dict[str, list[list[float | None]]]:
    """Chart -> [seconds since 1970, *lines]; None in a gap and if there was nothing to measure.

    A value belongs to the time from the sample before it to its own, so the first sample has none.
    """
    if len(history.at_s_T) > 2 and history.at_s_T[-1] - history.at_s_T[-2] < SAMPLE_S / 2:
        history = replace(history, at_s_T=history.at_s_T[:-1], totals_TC=history.totals_TC[:-1])  # noise
    answers = history.rates("answers_total")
    bids = answers[:, OUTCOMES.index("bid")]
    requests = answers.sum(axis=1)
    valid = requests - answers[:, [OUTCOMES.index(name) for name in INVALID]].sum(axis=1)
    fill = np.divide(100 * bids, valid, out=np.full_like(bids, np.nan), where=valid > 0)
    buckets_TB = history.increases("answer_seconds_bucket")
    p50, p99 = (np.array([1000 * quantile(telemetry.LATENCY_S, row, q) for row in buckets_TB]) for q in (0.5, 0.99))
    charts = {
        "traffic": (requests, bids),
        "fill": (fill,),
        "latency": (p50, p99),
        "sources": tuple(history.rates("bids_total").T),
    }
    at_s = _numbers(history.at_s_T)
    return {chart: [at_s, *([None, *_numbers(values)] for values in lines)] for chart, lines in charts.items()}


def campaigns(store: CampaignStore, backend: Backend, campaign_id: str) -> View:
    """Today's spend of the campaigns with the highest spend, then of others; ``campaign_id`` selects one."""
    today = {spend.campaign_id: spend for spend in backend.charged_today()}
    charged: dict[str, int] = {}
    for name, spend in today.items():
        campaign = store.campaign(name)
        if campaign is not None:
            charged[campaign.currency] = charged.get(campaign.currency, 0) + spend.charged_nanos
    if campaign_id:
        selected = [store.campaign(campaign_id)]
    else:
        selected = [store.campaign(name) for name in list(today)[:MAX_ROWS]]
        others = [other for other in store.campaigns(limit=2 * MAX_ROWS) if other.campaign_id not in today]
        selected += others[: MAX_ROWS - len(selected)]
    shown = [campaign for campaign in selected if campaign is not None]
    days, problem = _days(backend, shown)
    pacing: Mapping[str, CampaignPacing] = {}
    if not problem and any(campaign.has_plan or campaign.has_goal for campaign in shown):
        try:
            pacing = backend.pacing()
        except PeerError as error:
            problem = _writer_away(error)
    return {
        "query": campaign_id,
        "charged": [money(nanos, currency) for currency, nanos in sorted(charged.items())],
        "problem": problem,
        "others": f"{max(0, len(today) - MAX_ROWS):,}" if not campaign_id and len(today) > MAX_ROWS else "",
        "rows": [
            _campaign(campaign, today.get(campaign.campaign_id), days.get(campaign.campaign_id))
            | plan_view(campaign, pacing.get(campaign.campaign_id))
            | {"goal": goal_text(campaign, pacing.get(campaign.campaign_id))}
            for campaign in shown
        ],
    }


def ads(store: CampaignStore, backend: Backend, ad_id: str) -> View:
    """The ads with the most impressions since the log began; ``ad_id`` selects one."""
    counts: Mapping[str, tuple[int, int, int]] = {}
    problem = ""
    try:
        counts = backend.counts()
    except PeerError as error:
        problem = _writer_away(error)
    ranked = sorted(counts, key=lambda name: (*(-count for count in counts[name]), name))
    selected = [store.ad(name) for name in ([ad_id] if ad_id else ranked[:MAX_ROWS])]
    rows = [_ad(store, ad, counts.get(ad.ad_id, (0, 0, 0))) for ad in selected if ad is not None]
    return {"query": ad_id, "problem": problem, "rows": rows}


def reviews(store: CampaignStore) -> View:
    """The first ads that wait for a review, with what a reader would see."""
    waiting = store.ads(review="pending", limit=MAX_ROWS + 1)
    return {
        "problem": "",
        "has_more": len(waiting) > MAX_ROWS,
        "rows": [
            {
                "id": ad.ad_id,
                "advertiser_id": ad.advertiser_id,
                "title": ad.title,
                "description": ad.description,
                "brand": ad.brand,
                "price": money(ad.price_nanos, ad.price_currency) if ad.price_nanos else "",
                "landing_url": ad.landing_url,
                "image_url": ad.image_url,
                "content_hash": content_hash(ad),
            }
            for ad in waiting[:MAX_ROWS]
        ],
    }


def _rate_note(candidate: ExplainedCandidate) -> str:
    """The event of a candidate's rate, its source, and the ranker's probability before its calibration."""
    if candidate.rate is None:
        return ""
    parts = [candidate.rate_event, candidate.rate_source, candidate.slice]
    if candidate.rate_uncalibrated is not None:
        parts.append(f"{figure(candidate.rate_uncalibrated)} uncalibrated")
    return " · ".join(part for part in parts if part)


def request(backend: Backend, request_id: str) -> View:
    """One recent request, the newest by default: each candidate, its source, value, and verdict for each imp."""
    try:
        explanation = backend.explain(request_id)
    except PeerError as error:
        return {"query": request_id, "problem": _writer_away(error), "record": None}
    if explanation is None:
        return {"query": request_id, "problem": "", "record": None}
    imp_ids = list(explanation.candidates[0].verdicts) if explanation.candidates else []
    candidates = [
        {
            "ad_id": candidate.ad_id,
            "title": candidate.title,
            "campaign": candidate.campaign,
            "source": candidate.source,
            "p": NO_VALUE if candidate.p is None else figure(candidate.p),
            "rate": NO_VALUE if candidate.rate is None else figure(candidate.rate),
            "rate_note": _rate_note(candidate),
            "fit": NO_VALUE if candidate.fit is None else figure(candidate.fit),
            "cpm": NO_VALUE
            if candidate.price_nanos is None
            else money(1000 * candidate.price_nanos, candidate.currency),
            "value": NO_VALUE
            if candidate.value_nanos is None
            else figure(1000 * candidate.value_nanos / NANOS_PER_UNIT),
            "verdicts": [candidate.verdicts[imp_id].value for imp_id in imp_ids],
        }
        for candidate in explanation.candidates
    ]
    bids = [
        {
            "imp_id": bid.imp_id,
            "ad_id": bid.ad_id,
            "size": "{} x {}".format(*bid.size),
            "cpm": NO_VALUE if bid.price_nanos is None else money(1000 * bid.price_nanos, bid.currency),
            "propensity": figure(bid.propensity),
        }
        for bid in explanation.bids
    ]
    return {
        "query": request_id,
        "problem": "",
        "record": explanation,
        "at": moment(explanation.at_us),
        "reason": _words(explanation.no_bid_reason),
        "imps": [{"imp_id": imp_id, "tag": explanation.placements.get(imp_id, "")} for imp_id in imp_ids],
        "candidates": candidates,
        "bids": bids,
    }


def _latency_ms(buckets_B: NDArray[np.float64], q: float) -> str:
    """A quantile of the latency in ms; of values beyond the last bucket only its edge is known."""
    value = figure(1000 * quantile(telemetry.LATENCY_S, buckets_B, q))
    return f"> {value}" if math.isinf(bucket(telemetry.LATENCY_S, buckets_B, q)[1]) else value


def _lists(backend: Backend, history: MetricHistory, now_us: int) -> View:
    """Age of the current lists, and of those that bids of the last hour came from: a bucket, as no more is known."""
    buckets_B = history.increase("list_age_seconds_bucket")
    p50, p90 = (time_range(*bucket(tuple(map(float, telemetry.AGE_S)), buckets_B, q)) for q in (0.5, 0.9))
    view: View = {"version": "", "age": "", "p50": p50, "p90": p90, "problem": ""}
    try:
        lists = backend.lists()
    except StoreDown as error:
        return view | {"problem": str(error)}
    age = duration((now_us - lists.made_at_us) / US_PER_S) if lists.made_at_us else ""
    return view | {"version": lists.version, "age": age}


def _ranker(backend: Backend, history: MetricHistory, now_us: int) -> View:
    """Version and age of the ranker, its outcomes, and expected over observed events by slice, of the last hour."""
    counts = [history.increase(f"{name}_events_total").tolist() for name in ("expected", "observed")]
    alarms = (history.totals("miscalibrated")[-1] > 0).tolist()
    view: View = {
        "version": "",
        "age": "",
        "problem": "",
        "rankings": _shares(RANKINGS, history.increase("rankings_total"), skip_zero=True),
        "slices": [
            {
                "name": name,
                "expected": figure(expected),
                "observed": f"{observed:,.0f}",
                "ratio": figure(expected / observed) if observed else NO_VALUE,
                "is_alarming": is_alarming,
            }
            for name, expected, observed, is_alarming in zip(SLICES, *counts, alarms, strict=True)
            if expected or observed or is_alarming
        ],
    }
    try:
        ranker = backend.ranker()
    except InputError as error:
        return view | {"problem": str(error)}
    age = duration((now_us - ranker.published_at_us) / US_PER_S) if ranker.version else ""
    return view | {"version": ranker.version, "age": age}


def _days(backend: Backend, shown: Sequence[Campaign]) -> tuple[dict[str, Spend], str]:
    """(campaign ID -> its totals of today, the reason if the writer does not reply)."""
    now_us = backend.clock.now_us()
    try:
        days = backend.spend([campaign.campaign_id for campaign in shown], now_us, now_us + 1) if shown else []
    except PeerError as error:
        return {}, _writer_away(error)
    return {day.campaign_id: day for day in days}, ""


def _campaign(campaign: Campaign, today: SpendToday | None, day: Spend | None) -> View:
    charged = today.charged_nanos if today else 0
    total = today.total_charged_nanos if today else 0
    budgets = [(charged, campaign.daily_nanos, "a day"), (total, campaign.total_nanos, "in total")]
    capped = [(nanos / cap, cap, span) for nanos, cap, span in budgets if cap]
    share, cap, span = max(capped, default=(0.0, 0, ""))  # the budget that is spent first
    per = 1000 if campaign.bid_type == "cpm" else 1
    return {
        "id": campaign.campaign_id,
        "name": campaign.name,
        "advertiser_id": campaign.advertiser_id,
        "status": campaign.status,
        "bid": f"{amount(per * campaign.bid_nanos)} {campaign.bid_type.upper()}",
        "charged": money(charged, campaign.currency),
        "budget": f"{amount(cap)} {span}" if cap else "no cap",
        "share": f"{min(1.0, share):.4f}" if cap else "",
        "percent": percent(share, 1.0),
        "impressions": f"{day.impressions:,}" if day else NO_VALUE,
        "clicks": f"{day.clicks:,}" if day else NO_VALUE,
        "conversions": f"{day.conversions:,}" if day else NO_VALUE,
    }


def _ad(store: CampaignStore, ad: Ad, counts: tuple[int, int, int]) -> View:
    campaign = store.campaign(ad.campaign_id)
    return {
        "id": ad.ad_id,
        "title": ad.title,
        "brand": ad.brand,
        "campaign": campaign.name if campaign else ad.campaign_id,
        "campaign_status": campaign.status if campaign else "",
        "status": ad.status,
        "impressions": f"{counts[0]:,}",
        "clicks": f"{counts[1]:,}",
        "ctr": percent(counts[1], counts[0]),
        "conversions": f"{counts[2]:,}",
    }


def _shares(names: Sequence[str], counts: NDArray[np.float64], skip_zero: bool = False) -> list[View]:
    """Rows of a table of shares, largest first."""
    total = float(counts.sum())
    rows = sorted(zip(names, counts.tolist(), strict=True), key=lambda row: -row[1])
    return [
        {
            "name": LABELS.get(name, _words(name)),
            "count": f"{count:,.0f}",
            "percent": percent(count, total),
            "share": f"{count / total if total else 0:.4f}",
        }
        for name, count in rows
        if count or not skip_zero
    ]


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Values for a chart; None for NaN and infinity."""
    return [round(value, 4) if math.isfinite(value) else None for value in values.tolist()]


def _writer_away(error: PeerError) -> str:
    return f"Figures of the writer are missing here; bids continue. {error}"


def _words(name: str) -> str:
    return name.replace("_", " ")
