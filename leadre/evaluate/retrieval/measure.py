"""Item-level retrieval metrics: the share of converted ads at the top of each method's list.

A list ranks all ads live in the request's inventory; no negatives are sampled. There are two views of the requests.
`all` counts every conversion. `new` counts first-ever conversions only, and its lists leave out ads whose object is
already in the user's history, as in prospecting.

Shapes: R requests of the log, V requests of a view, K list positions (best first, -1 = empty), A ads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import metrics
from leadre.data.histories import Logs, first_seen
from leadre.data.moment import of_requests
from leadre.data.prices import training_prices
from leadre.errors import ArtifactError
from leadre.generate.channels import repeats
from leadre.generate.channels.contract import Channel

Ads = NDArray[np.int32]
Ints = NDArray[np.int64]

VIEWS = ("all", "new")
LIST_LENGTH = 20
RECALL_AT = (5, 10, 20)
METRICS = ("ndcg@10", "gmv@10", "value@10", "coverage@10")


@dataclass(frozen=True, kw_only=True)
class View:
    """The requests of one view and, for each, the relevant ads and the value of their conversions."""

    name: str
    requests_V: Ints
    user_V: Ints  # 0..users-1, numbered among the users of this view
    users: int
    relevant: list[Ads]
    value_nanos: list[Ints]
    live_ads: Ads  # the ads live in at least one request of the view
    price_A: NDArray[np.float64]  # price of every ad in the log, see `prices.training_prices`


def metrics_of(length: int) -> tuple[str, ...]:
    """The metrics of lists of ``length`` places: longer lists than `LIST_LENGTH` have one recall more."""
    return *(f"recall@{k}" for k in _recall_at(length)), *METRICS


def _recall_at(length: int) -> tuple[int, ...]:
    return RECALL_AT if length <= LIST_LENGTH else (*RECALL_AT, length)


def build_view(logs: Logs, requests_R: Ints, name: str) -> View:
    """Return the view `name` of VIEWS: the requests among `requests_R` that have a relevant ad in it."""
    assert name in VIEWS, f"{name!r} is none of {VIEWS}"
    kept = []
    relevant = []
    values = []
    for r in requests_R.tolist():
        ads, value_nanos = logs.relevant(r)
        if name == "new":
            first = first_seen(logs, r)
            ads = ads[first]
            value_nanos = value_nanos[first]
        if len(ads):
            kept.append(r)
            relevant.append(ads)
            values.append(value_nanos)
    requests_V = np.array(kept, dtype=np.int64)
    users, user_V = np.unique(logs.request_user_R[requests_V], return_inverse=True)
    is_scored_R = np.zeros(len(logs.request_user_R), dtype=np.bool_)
    is_scored_R[requests_V] = True
    return View(
        name=name,
        requests_V=requests_V,
        user_V=user_V.astype(np.int64),
        users=len(users),
        relevant=relevant,
        value_nanos=values,
        live_ads=logs.inventories.ever_live(is_scored_R).astype(np.int32),
        price_A=training_prices(logs),
    )


def restrict(v: View, relevant_A: NDArray[np.bool_], name: str) -> View:
    """Return the view with relevance limited to the ads of `relevant_A`; drops requests without a relevant ad.

    The live ads stay the same.
    """
    masks = [relevant_A[ads] for ads in v.relevant]
    kept = np.array([bool(mask.any()) for mask in masks], dtype=np.bool_)
    rows = np.flatnonzero(kept).tolist()
    users, user_V = np.unique(v.user_V[kept], return_inverse=True)
    return replace(
        v,
        name=name,
        requests_V=v.requests_V[kept],
        user_V=user_V.astype(np.int64),
        users=len(users),
        relevant=[v.relevant[row][masks[row]] for row in rows],
        value_nanos=[v.value_nanos[row][masks[row]] for row in rows],
    )


def eligible(logs: Logs, r: int, name: str) -> NDArray[np.bool_]:
    """Mask over `logs.inventory(r)`: ads that a list of the view may contain (all, or objects new to the user)."""
    inventory = logs.inventory(r)
    if name == "all":
        return np.ones(len(inventory), dtype=np.bool_)
    seen_O = np.zeros(len(logs.objects), dtype=np.bool_)
    seen_O[logs.object_E[logs.history(r)]] = True
    return ~seen_O[logs.ad_object_A[inventory]]


def tie_key(logs: Logs, seed: int) -> Ints:
    """Return a random rank for each ad, [A]: it orders equal scores independently of ad IDs."""
    return np.random.default_rng(seed).permutation(len(logs.ads)).astype(np.int64)


def rank(
    logs: Logs, channel: Channel, views: Sequence[View], *, key_A: Ints, length: int = LIST_LENGTH
) -> Iterator[tuple[int, dict[str, Ads]]]:
    """Yield (request, {view: the channel's top ads, best first}) for each request of the first view.

    The first view must contain the requests of all others, so that each request is scored once.
    """
    requests_of = {v.name: set(v.requests_V.tolist()) for v in views}
    first = requests_of[views[0].name]
    assert all(requests <= first for requests in requests_of.values()), "the first view must hold every request"
    scored = views[0].requests_V.tolist()
    for r, scores in zip(scored, channel.score(of_requests(logs).at(scored)), strict=True):
        inventory = logs.inventory(r)
        lists = {}
        for name, requests in requests_of.items():
            if r in requests:
                mask = eligible(logs, r, name)
                ads = inventory[mask]
                lists[name] = ads[metrics.top_places(scores[mask], key_A[ads], length)]
        yield r, lists


def tabulate(
    ranked: Iterable[tuple[int, dict[str, Ads]]], views: Sequence[View], *, length: int = LIST_LENGTH
) -> dict[str, Ads]:
    """Return the lists of `rank` as one array [V, K] per view, padded with -1."""
    tables = {v.name: np.full((len(v.requests_V), length), -1, dtype=np.int32) for v in views}
    row_of = {v.name: {int(r): i for i, r in enumerate(v.requests_V)} for v in views}
    for r, lists in ranked:
        for name, ads in lists.items():
            tables[name][row_of[name][r], : len(ads)] = ads[:length]
    return tables


def checked_lists(frame: pl.DataFrame, logs: Logs, views: Sequence[View], *, source: str) -> dict[str, dict[int, Ads]]:
    """Return the lists of a lists artifact by view and request, after a check that they are comparable.

    ArtifactError for a request without a list, and for an ad that is listed twice, not live in the request's inventory
    or, in the view `new`, not new to the user.
    """
    lists: dict[str, dict[int, Ads]] = {}
    remedy = f"; {source} was not written for these requests and logs, generate it again"
    for v in views:
        rows = frame.filter(pl.col("view") == v.name)
        by_request = dict(zip(rows["request"].to_list(), rows["ads"].to_list(), strict=True))
        lists[v.name] = {}
        for r in v.requests_V.tolist():
            if r not in by_request:
                raise ArtifactError(f"request {r} has no list in view {v.name!r}" + remedy)
            ads = np.array(by_request[r], dtype=np.int32)
            if len(np.unique(ads)) < len(ads):
                raise ArtifactError(f"the list of request {r}, view {v.name!r}, holds an ad twice" + remedy)
            invalid = ads[~np.isin(ads, logs.inventory(r)[eligible(logs, r, v.name)])]
            if len(invalid):
                condition = "live" if v.name == "all" else "live and new to the user"
                raise ArtifactError(f"request {r}, view {v.name!r}: ad {invalid[0]} is not {condition}" + remedy)
            lists[v.name][r] = ads
    return lists


def iterate_lists(lists: Mapping[str, Mapping[int, Ads]]) -> Iterator[tuple[int, dict[str, Ads]]]:
    """Yield the lists of `checked_lists` in the form that `tabulate` takes."""
    for name, by_request in lists.items():
        for r, ads in by_request.items():
            yield r, {name: ads}


def fuse_with_counts(
    logs: Logs, lists: Mapping[str, Mapping[int, Ads]], views: Sequence[View], *, key_A: Ints
) -> Iterator[tuple[int, dict[str, Ads]]]:
    """Reciprocal-rank fusion of `lists` with the user's own decayed counts (ads without a count have no rank).

    The constant is the paper's and was fixed before any result was seen. In the view `new` no live ad has a count, so
    the fused list equals the list of `lists`.
    """
    counts = repeats.fit_decayed(logs, 0, 1)
    scored = views[0].requests_V.tolist()
    for r, scores in zip(scored, counts.score(of_requests(logs).at(scored)), strict=True):
        inventory = logs.inventory(r)
        fused = {}
        for v in views:
            if r not in lists[v.name]:
                continue
            mask = eligible(logs, r, v.name) & (scores > 0)
            own = inventory[mask][metrics.top_places(scores[mask], key_A[inventory[mask]], len(inventory))]
            ads, _ = metrics.reciprocal_rank_fusion([lists[v.name][r].astype(np.int64), own.astype(np.int64)])
            fused[v.name] = ads.astype(np.int32)
        yield r, fused


def measure(v: View, ads_VK: Ads) -> dict[str, metrics.Ratio]:
    """Return every metric that has an interval, of one method in one view, as sums over users."""
    hit_VK = np.zeros(ads_VK.shape, dtype=np.bool_)
    value_VK = np.zeros(ads_VK.shape, dtype=np.int64)
    for row, (relevant, value_nanos) in enumerate(zip(v.relevant, v.value_nanos, strict=True)):
        index = np.minimum(np.searchsorted(relevant, ads_VK[row]), len(relevant) - 1)
        hit_VK[row] = relevant[index] == ads_VK[row]
        value_VK[row] = np.where(hit_VK[row], value_nanos[index], 0)
    relevant_V = np.array([len(ads) for ads in v.relevant], dtype=np.int64)
    total_V = np.array([values.sum() for values in v.value_nanos], dtype=np.int64)
    ones_V = np.ones(len(relevant_V))
    # metric -> numerator and denominator of each request
    sums: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        f"recall@{k}": (metrics.recall_at(hit_VK, relevant_V, k), ones_V) for k in _recall_at(ads_VK.shape[1])
    }
    sums["ndcg@10"] = (metrics.ndcg_at(hit_VK, relevant_V, 10), ones_V)
    sums["gmv@10"] = (metrics.value_at(value_VK, 10), total_V)
    shown_VK = ads_VK[:, :10] >= 0
    price_V = np.where(shown_VK, v.price_A[ads_VK[:, :10]], 0.0).sum(axis=1)
    sums["value@10"] = (price_V / np.maximum(shown_VK.sum(axis=1), 1), ones_V)
    return {
        name: metrics.ratio(numerator_V, denominator_V, v.user_V, v.users)
        for name, (numerator_V, denominator_V) in sums.items()
    }


def compare(
    v: View,
    methods: Mapping[str, Ads],
    *,
    ours: str,
    resamples: int,
    seed: int,
    columns: Sequence[str] | None = None,
) -> dict[str, dict[str, dict[str, object]]]:
    """Return method -> metric -> mean, lo, hi and, except for `ours`, diff: the paired difference method - ours.

    ``columns``: the metrics, by default all of `metrics_of`.
    """
    names = list(methods)
    columns = columns or metrics_of(methods[ours].shape[1])
    measured = {name: measure(v, ads_VK) for name, ads_VK in methods.items()}
    table: dict[str, dict[str, dict[str, object]]] = {name: {} for name in names}
    for metric in columns:
        if metric == "coverage@10":  # a union over lists, not a mean over users: no interval
            for name in names:
                table[name][metric] = {"mean": metrics.coverage_at(methods[name], v.live_ads, 10)}
            continue
        ratios = [measured[name][metric] for name in names]
        values_BM = metrics.bootstrap(ratios, resamples=resamples, seed=seed)
        our_column = names.index(ours)
        for column, name in enumerate(names):
            cell: dict[str, object] = dict(metrics.interval(ratios[column].mean, values_BM[:, column]))
            if name != ours:
                gap = ratios[column].mean - ratios[our_column].mean
                cell["diff"] = metrics.interval(gap, values_BM[:, column] - values_BM[:, our_column])
            table[name][metric] = cell
    return table
