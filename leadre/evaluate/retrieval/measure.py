"""Item-level retrieval: which of the ads that were acted on stand at the top of a method's list.

Every list is a ranking of all ads live in the request's inventory; nothing is sampled. Two views of the requests:
`all` counts every conversion; `new` counts first-ever ones alone, and lists leave out the ads whose object the user
has in the log before the request, as prospecting would.

Shapes: R requests of the log, V requests of a view, K list places (best first, -1 = empty), A ads.
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
from leadre.data.prices import training_prices
from leadre.errors import ArtifactError
from leadre.generate.channels import repeats
from leadre.generate.channels.contract import Channel

Ads = NDArray[np.int32]
Ints = NDArray[np.int64]

VIEWS = ("all", "new")
PLACES = 20
RECALL_AT = (5, 10, 20)
METRICS = (*(f"recall@{k}" for k in RECALL_AT), "ndcg@10", "gmv@10", "value@10", "coverage@10")


@dataclass(frozen=True, kw_only=True)
class View:
    """The requests of one view with what counts as relevant in them."""

    name: str
    requests_V: Ints
    user_V: Ints  # 0..users-1, only the users who have a request here
    users: int
    relevant: list[Ads]
    value_nanos: list[Ints]
    live_ads: Ads  # the ads live in at least one request of the view
    price_A: NDArray[np.float64]  # of every ad of the log, see `prices.training_prices`


def view(logs: Logs, requests_R: Ints, name: str) -> View:
    """Keep the requests that have a relevant ad in the view `name` of VIEWS."""
    assert name in VIEWS, f"{name!r} is none of {VIEWS}"
    kept, relevant, values = [], [], []
    for r in requests_R.tolist():
        ads, value_nanos = logs.relevant(r)
        if name == "new":
            first = first_seen(logs, r)
            ads, value_nanos = ads[first], value_nanos[first]
        if len(ads):
            kept.append(r)
            relevant.append(ads)
            values.append(value_nanos)
    requests_V = np.array(kept, dtype=np.int64)
    users, user_V = np.unique(logs.request_user_R[requests_V], return_inverse=True)
    inventories = np.unique(logs.request_inventory_R[requests_V])
    live = [logs.inventory_ads[logs.inventory_offsets[i] : logs.inventory_offsets[i + 1]] for i in inventories]
    live_ads = np.unique(np.concatenate(live)) if live else np.zeros(0, dtype=np.int32)
    return View(
        name=name,
        requests_V=requests_V,
        user_V=user_V.astype(np.int64),
        users=len(users),
        relevant=relevant,
        value_nanos=values,
        live_ads=live_ads,
        price_A=training_prices(logs),
    )


def restrict(v: View, wanted_A: NDArray[np.bool_], name: str) -> View:
    """The view with the ads of `wanted_A` alone as relevant, and the requests that have one; what is live stays."""
    masks = [wanted_A[ads] for ads in v.relevant]
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
    """Which ads of `logs.inventory(r)` a list of the view may hold: all, or those whose object is new to the user."""
    inventory = logs.inventory(r)
    if name == "all":
        return np.ones(len(inventory), dtype=np.bool_)
    seen_O = np.zeros(len(logs.objects), dtype=np.bool_)
    seen_O[logs.object_E[logs.history(r)]] = True
    return ~seen_O[logs.ad_object_A[inventory]]


def tie_key(logs: Logs, seed: int) -> Ints:
    """A random rank for each ad, [A]: equal scores stand in this order, whatever the ads' IDs."""
    return np.random.default_rng(seed).permutation(len(logs.ads)).astype(np.int64)


def rank(
    logs: Logs, channel: Channel, views: Sequence[View], *, key_A: Ints, places: int = PLACES
) -> Iterator[tuple[int, dict[str, Ads]]]:
    """The top ads of a channel for each request of the first view, by view name: (request, {view: ads best first}).

    The first view must hold the requests of all others: each request is scored once.
    """
    wanted = [(v.name, set(v.requests_V.tolist())) for v in views]
    assert all(requests <= wanted[0][1] for _, requests in wanted), "the first view must hold every request"
    for r, scores in channel.score(logs, views[0].requests_V):
        inventory = logs.inventory(r)
        lists = {}
        for name, requests in wanted:
            if r in requests:
                may = eligible(logs, r, name)
                ads = inventory[may]
                lists[name] = ads[metrics.top_places(scores[may], key_A[ads], places)]
        yield r, lists


def tabulate(
    ranked: Iterable[tuple[int, dict[str, Ads]]], views: Sequence[View], *, places: int = PLACES
) -> dict[str, Ads]:
    """The lists of `rank` as one array [V, K] for each view, -1 where a list is shorter."""
    tables = {v.name: np.full((len(v.requests_V), places), -1, dtype=np.int32) for v in views}
    row = {v.name: {int(r): i for i, r in enumerate(v.requests_V)} for v in views}
    for r, lists in ranked:
        for name, ads in lists.items():
            tables[name][row[name][r], : len(ads)] = ads[:places]
    return tables


def given(frame: pl.DataFrame, logs: Logs, views: Sequence[View], *, source: str) -> dict[str, dict[int, Ads]]:
    """The lists of a lists artifact by view and request, checked.

    Raises ArtifactError for a request without a list, and for an ad that is listed twice, not live in the request's
    inventory or, in the view `new`, not new: such a list would be compared on terms of its own.
    """
    found: dict[str, dict[int, Ads]] = {}
    again = f"; {source} was not written for these requests and logs, generate it again"
    for v in views:
        rows = frame.filter(pl.col("view") == v.name)
        by_request = dict(zip(rows["request"].to_list(), rows["ads"].to_list(), strict=True))
        found[v.name] = {}
        for r in v.requests_V.tolist():
            if r not in by_request:
                raise ArtifactError(f"request {r} has no list in view {v.name!r}" + again)
            ads = np.array(by_request[r], dtype=np.int32)
            if len(np.unique(ads)) < len(ads):
                raise ArtifactError(f"the list of request {r}, view {v.name!r}, holds an ad twice" + again)
            strangers = ads[~np.isin(ads, logs.inventory(r)[eligible(logs, r, v.name)])]
            if len(strangers):
                what = "live" if v.name == "all" else "live and new to the user"
                raise ArtifactError(f"request {r}, view {v.name!r}: ad {strangers[0]} is not {what}" + again)
            found[v.name][r] = ads
    return found


def as_ranked(lists: Mapping[str, Mapping[int, Ads]]) -> Iterator[tuple[int, dict[str, Ads]]]:
    """`given` lists in the form that `tabulate` reads."""
    for name, by_request in lists.items():
        for r, ads in by_request.items():
            yield r, {name: ads}


def fuse_with_counts(
    logs: Logs, lists: Mapping[str, Mapping[int, Ads]], views: Sequence[View], *, key_A: Ints
) -> Iterator[tuple[int, dict[str, Ads]]]:
    """Reciprocal-rank fusion of given lists with the user's own decayed counts (ads never acted on have no rank).

    Chosen before any result was seen, with the constant of the paper and nothing tuned. In the view `new` no live ad
    has a count, so the fusion is the given list.
    """
    counts = repeats.fit_decayed(logs, 0, 1)
    for r, scores in counts.score(logs, views[0].requests_V):
        inventory = logs.inventory(r)
        fused = {}
        for v in views:
            if r not in lists[v.name]:
                continue
            may = eligible(logs, r, v.name) & (scores > 0)
            own = inventory[may][metrics.top_places(scores[may], key_A[inventory[may]], len(inventory))]
            ads, _ = metrics.reciprocal_rank_fusion([lists[v.name][r].astype(np.int64), own.astype(np.int64)])
            fused[v.name] = ads.astype(np.int32)
        yield r, fused


def measure(v: View, ads_VK: Ads) -> dict[str, metrics.Ratio]:
    """Every interval-bearing metric of one method in one view, as sums over users."""
    hit_VK = np.zeros(ads_VK.shape, dtype=np.bool_)
    value_VK = np.zeros(ads_VK.shape, dtype=np.int64)
    for row, (relevant, value_nanos) in enumerate(zip(v.relevant, v.value_nanos, strict=True)):
        place = np.minimum(np.searchsorted(relevant, ads_VK[row]), len(relevant) - 1)
        hit_VK[row] = relevant[place] == ads_VK[row]
        value_VK[row] = np.where(hit_VK[row], value_nanos[place], 0)
    relevant_V = np.array([len(ads) for ads in v.relevant], dtype=np.int64)
    total_V = np.array([values.sum() for values in v.value_nanos], dtype=np.int64)
    ones_V = np.ones(len(relevant_V))
    tops: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        f"recall@{k}": (metrics.recall_at(hit_VK, relevant_V, k), ones_V) for k in RECALL_AT
    }
    tops["ndcg@10"] = (metrics.ndcg_at(hit_VK, relevant_V, 10), ones_V)
    tops["gmv@10"] = (metrics.value_at(value_VK, 10), total_V)
    shown_VK = ads_VK[:, :10] >= 0
    worth_V = np.where(shown_VK, v.price_A[ads_VK[:, :10]], 0.0).sum(axis=1)
    tops["value@10"] = (worth_V / np.maximum(shown_VK.sum(axis=1), 1), ones_V)
    return {name: metrics.ratio(top_V, base_V, v.user_V, v.users) for name, (top_V, base_V) in tops.items()}


def compare(
    v: View, methods: Mapping[str, Ads], *, ours: str, resamples: int, seed: int, columns: Sequence[str] = METRICS
) -> dict[str, dict[str, dict[str, object]]]:
    """method -> metric -> mean, lo, hi and, for all but `ours`, diff: the paired difference method - ours."""
    names = list(methods)
    measured = {name: measure(v, ads_VK) for name, ads_VK in methods.items()}
    table: dict[str, dict[str, dict[str, object]]] = {name: {} for name in names}
    for metric in columns:
        if metric == "coverage@10":  # a union of lists, not a mean over users: no interval
            for name in names:
                table[name][metric] = {"mean": metrics.coverage_at(methods[name], v.live_ads, 10)}
            continue
        ratios = [measured[name][metric] for name in names]
        values_BM = metrics.bootstrap(ratios, resamples=resamples, seed=seed)
        mine = names.index(ours)
        for column, name in enumerate(names):
            cell: dict[str, object] = dict(metrics.interval(ratios[column].mean, values_BM[:, column]))
            if name != ours:
                gap = ratios[column].mean - ratios[mine].mean
                cell["diff"] = metrics.interval(gap, values_BM[:, column] - values_BM[:, mine])
            table[name][metric] = cell
    return table
