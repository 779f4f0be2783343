"""Features of (user, live object) pairs: counts of the user's history, popularity, collaborative scores and prices.

Training and serving call the same `features`: it reads a Moment, that is events strictly before the request, and
`CountTables`, that is facts about objects from events strictly before a cutoff. Tables of the end of training are
*frozen* counts; tables of the last whole week before the request are *fresh* ones. A model of these features is
fitted forward in time: the tables of its training rows end before the first row.

Letters: O objects, I live objects of one Moment, E events of its history, N of them on live objects, G groupings,
P popularity columns, D factors, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from leadre.data.collaborative import Collaborative, CollaborativeUser, Spread, standardised
from leadre.data.histories import AD, I32, Logs
from leadre.data.moment import History, Moment
from leadre.data.prices import object_prices, own_log_prices
from leadre.data.user_counts import event_users
from leadre.units import US_PER_DAY

Floats = NDArray[np.float32]

FILE = "counts.safetensors"
SLOW, FAST = 0.985, 0.90  # what a later visit leaves of a count; the half-lives are 46 and 7 visits
RECENT_DAYS = 28
PSEUDO_ACTIONS = 2.0  # actions at the mean rate, added to the count of every object

GROUPINGS = ("category", "parent", "advertiser", "brand")
OWN = ("own", "own_slow", "own_fast", "own_recent", "own_ads", "visits_since", "days_since", "due")
GROUPED = tuple(f"{name}_{rate}" for name in GROUPINGS for rate in ("slow", "fast"))
BREADTH = ("category_objects", "category_days_since")
POPULARITY = ("rate", "rate_recent", "rate_first", "buyers", "events_recent")
COLLABORATIVE = ("als", "item_knn")
PRICE = ("price", "price_over_usual", "own_price_over_price")
CONTEXT = ("visits", "visit_size", "live", "days_since_visit")
NAMES = (*OWN, *GROUPED, *BREADTH, *POPULARITY, *COLLABORATIVE, *PRICE, *CONTEXT)
OF_OBJECT = (*POPULARITY, "price")  # of the object and the tables alone: the same for all users


@dataclass(frozen=True, kw_only=True)
class CountTables:
    """Facts about objects from events strictly before ``before_us``.

    ``group_GO``: group of each object in each of `GROUPINGS`, 0 = none. ``popularity_OP``: logarithms; columns
    `POPULARITY`. ``log_price_O``: of `object_prices`, less its median; all zero without prices.
    """

    before_us: int
    group_GO: I32
    popularity_OP: Floats
    log_price_O: NDArray[np.float64]
    typical_log_price: float
    collaborative: Collaborative

    def save(self, folder: Path) -> None:
        """Write the arrays."""
        cf = self.collaborative
        parts = {
            "group_GO": self.group_GO,
            "popularity_OP": self.popularity_OP,
            "log_price_O": self.log_price_O,
            "factors_OD": cf.factors_OD,
            "similarity": cf.similarity_OO.data,
            "indices": cf.similarity_OO.indices,
            "indptr": cf.similarity_OO.indptr,
            "before_us": np.array([self.before_us]),
            "scalars": np.array([self.typical_log_price, cf.regularisation, cf.alpha]),
        }
        save_file(parts, folder / FILE)


def load(folder: Path) -> CountTables:
    """The tables that `CountTables.save` wrote."""
    parts = load_file(folder / FILE)
    objects = len(parts["factors_OD"])
    csr = parts["similarity"], parts["indices"], parts["indptr"]
    typical, regularisation, alpha = parts["scalars"].tolist()
    return CountTables(
        before_us=int(parts["before_us"][0]),
        group_GO=parts["group_GO"],
        popularity_OP=parts["popularity_OP"],
        log_price_O=parts["log_price_O"],
        typical_log_price=typical,
        collaborative=Collaborative(
            factors_OD=parts["factors_OD"],
            regularisation=regularisation,
            alpha=alpha,
            similarity_OO=sparse.csr_matrix(csr, shape=(objects, objects)),
        ),
    )


def fit(logs: Logs, before_us: int, collaborative: Collaborative) -> CountTables:
    """Tables from the events strictly before ``before_us``; ``collaborative`` must be fitted on these events too."""
    log_price_O = np.log(object_prices(logs, before_us))
    typical = float(np.median(log_price_O)) if len(log_price_O) else 0.0
    return CountTables(
        before_us=before_us,
        group_GO=groups(logs),
        popularity_OP=popularity(logs, before_us),
        log_price_O=log_price_O - typical,
        typical_log_price=typical,
        collaborative=collaborative,
    )


def groups(logs: Logs) -> I32:
    """The group of each object by category path, path without its last level, advertiser and brand: int32 [G, O]."""
    ids = logs.objects["object_id"]
    ads = logs.ads if {"object_id", "advertiser_id"} <= set(logs.ads.columns) else pl.DataFrame()
    advertiser_of = dict(zip(ads["object_id"], ads["advertiser_id"], strict=True)) if ads.width else {}
    empty = [None] * len(ids)
    paths = logs.objects["category_path"].to_list() if "category_path" in logs.objects.columns else empty
    columns = (
        [tuple(path) if path else None for path in paths],
        [tuple(path[:-1]) or None if path else None for path in paths],
        [advertiser_of.get(name) for name in ids],
        logs.objects["brand"].to_list() if "brand" in logs.objects.columns else empty,
    )
    rows = []
    for column in columns:
        number: dict[object, int] = {None: 0}
        rows.append([number.setdefault(value, len(number)) for value in column])
    return np.array(rows, np.int32).reshape(len(columns), len(ids))


def popularity(logs: Logs, before_us: int) -> Floats:
    """Logarithms [O, P] of counts before a time.

    ``rate``: requests acted on per request with the object live, smoothed; ``rate_recent``: in the last `RECENT_DAYS`
    alone; ``rate_first``: only users' first actions on the object; ``buyers``: distinct users; ``events_recent``.
    """
    count = len(logs.objects)
    recent_us = before_us - RECENT_DAYS * US_PER_DAY
    user_E = event_users(logs)
    rows = np.flatnonzero(logs.at_us_E < before_us)
    object_N = logs.object_E[rows].astype(np.int64)
    _, first = np.unique(user_E[rows] * count + object_N, return_index=True)  # events of a user ascend by time
    is_first_E = np.zeros(len(user_E), np.bool_)
    is_first_E[rows[first]] = True
    live_O = exposures(logs, 0, before_us)
    rates = [
        smoothed(actions(logs, 0, before_us), live_O),
        smoothed(actions(logs, recent_us, before_us), exposures(logs, recent_us, before_us)),
        smoothed(actions(logs, 0, before_us, is_first_E), live_O),
    ]
    events_recent_O = np.bincount(object_N[logs.at_us_E[rows] >= recent_us], minlength=count)
    counts = [np.bincount(object_N[first], minlength=count), events_recent_O]
    return np.stack([*map(np.log, rates), *map(np.log1p, counts)], axis=1).astype(np.float32)


def exposures(logs: Logs, from_us: int, before_us: int) -> NDArray[np.int64]:
    """Requests of a period, from its begin to before its end, in which each object was live: int64 [O]."""
    in_time_R = (logs.request_at_us_R >= from_us) & (logs.request_at_us_R < before_us)
    return logs.inventories.exposures(in_time_R, logs.ad_object_A, len(logs.objects))


def actions(logs: Logs, from_us: int, before_us: int, counted_E: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Requests of a period with an action on each object before its end, int64 [O]; ``counted_E`` limits the events."""
    in_time_R = (logs.request_at_us_R >= from_us) & (logs.request_at_us_R < before_us)
    is_action_E = (logs.domain_E == AD) & (logs.request_E >= 0) & (logs.at_us_E < before_us)
    rows = np.flatnonzero(is_action_E if counted_E is None else is_action_E & counted_E)
    rows = rows[in_time_R[logs.request_E[rows]]]
    count = len(logs.objects)
    acted = np.unique(logs.request_E[rows].astype(np.int64) * count + logs.object_E[rows])
    return np.bincount(acted % count, minlength=count).astype(np.int64)


def smoothed(acted_O: NDArray[np.number[Any]], live_O: NDArray[np.number[Any]]) -> NDArray[np.float64]:
    """Actions per exposure, with `PSEUDO_ACTIONS` at the mean rate: float64 [O], all > 0."""
    mean = max(acted_O.sum(), 1) / max(live_O.sum(), 1)
    return np.asarray((acted_O + PSEUDO_ACTIONS) / (live_O + PSEUDO_ACTIONS / mean), np.float64)


def features(
    moment: Moment,
    tables: CountTables,
    objects: NDArray[np.int64] | None = None,
    *,
    user: CollaborativeUser | None = None,
    spread: Spread | None = None,
) -> Floats:
    """Features [I, F] of live ``objects``, ascending, default all, for the user; columns `NAMES`.

    Finite for any history. ``user`` and ``spread`` are parts that several calls share: those of the history and of the
    live objects. Without ``spread`` all live objects are scored.
    """
    history = moment.history
    live = moment.inventory.objects
    if objects is None:
        objects = live
    visits = history.visits
    age_E = len(visits) - 1 - np.repeat(np.arange(len(visits)), np.diff(visits.event_offsets))
    fits = tables.collaborative
    user = user or fits.user(history)
    if spread is None:
        scores = standardised(fits.scores(user, live))[np.searchsorted(live, objects)]
    else:
        scores = fits.relative(user, objects, live, spread)
    columns = [
        *_own(history, age_E, objects, moment.at_us),
        *_grouped(history, age_E, objects, moment.at_us, tables.group_GO),
        *tables.popularity_OP[objects].T,
        *scores.T,
        *_prices(history, objects, tables),
        *_context(history, len(objects), len(live), moment.at_us),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _own(
    history: History, age_E: NDArray[np.int64], objects: NDArray[np.int64], at_us: int
) -> list[NDArray[np.float64]]:
    """The columns `OWN`: the user's own events on each object."""
    size = len(objects)
    slot_E = np.searchsorted(objects, history.object_E).clip(max=max(size - 1, 0))
    on_live = np.flatnonzero(objects[slot_E] == history.object_E) if size else np.zeros(0, np.int64)
    slot = slot_E[on_live]
    age = age_E[on_live]
    at = history.at_us_E[on_live]
    recent = at >= at_us - RECENT_DAYS * US_PER_DAY

    def counts(weights: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.log1p(np.bincount(slot, weights=weights, minlength=size)), np.float64)

    first_us, last_us = np.full((2, size), at_us, np.int64)
    visits_since = np.full(size, len(history.visits))
    first_us[slot[::-1]] = at[::-1]  # of repeated places the last assignment stays: the oldest event
    last_us[slot] = at
    visits_since[slot] = age
    repeats = np.bincount(slot, minlength=size) - 1
    days_since = np.where(repeats >= 0, (at_us - last_us) / US_PER_DAY, _days(history, at_us))
    gap = (last_us - first_us) / US_PER_DAY / np.maximum(repeats, 1)
    due = np.where(repeats > 0, np.log1p(days_since) - np.log1p(gap), 0.0)
    return [
        counts(np.ones(len(slot))),
        counts(SLOW**age),
        counts(FAST**age),
        counts(recent),
        counts(history.domain_E[on_live] == AD),
        np.log1p(visits_since),
        np.log1p(days_since),
        due,
    ]


def _grouped(
    history: History, age_E: NDArray[np.int64], objects: NDArray[np.int64], at_us: int, group_GO: I32
) -> list[NDArray[np.float64]]:
    """The columns `GROUPED` and `BREADTH`: the user's events on objects of the same group; none for group 0."""
    columns = []
    for group_O in group_GO:
        group_E = group_O[history.object_E]
        group = group_O[objects]
        size = 1 + max(int(group_E.max(initial=0)), int(group.max(initial=0)))
        for rate in (SLOW, FAST):
            count = np.bincount(group_E, weights=rate**age_E, minlength=size)
            count[0] = 0.0
            columns.append(np.log1p(count[group]))
    category_E = group_GO[0][history.object_E]
    category = group_GO[0][objects]
    size = 1 + max(int(category_E.max(initial=0)), int(category.max(initial=0)))
    distinct = np.bincount(group_GO[0][np.unique(history.object_E)], minlength=size)
    distinct[0] = 0
    days = np.full(size, _days(history, at_us))
    days[category_E] = (at_us - history.at_us_E) / US_PER_DAY
    days[0] = _days(history, at_us)
    return [*columns, np.log1p(distinct[category]), np.log1p(days[category])]


def _days(history: History, at_us: int) -> float:
    """Days from the first event of a history; 0 without one."""
    return (at_us - int(history.at_us_E[0])) / US_PER_DAY if len(history) else 0.0


def _prices(history: History, objects: NDArray[np.int64], tables: CountTables) -> list[NDArray[np.float64]]:
    """The columns `PRICE`: log-price, the same less the user's mean, and the user's own price less the object's."""
    log_price = tables.log_price_O[objects]
    paid, own_log_price = own_log_prices(history, tables.log_price_O + tables.typical_log_price)
    if not len(paid):
        return [log_price, np.zeros(len(objects)), np.zeros(len(objects))]
    own_log_price = own_log_price - tables.typical_log_price
    row = np.searchsorted(paid, objects).clip(max=len(paid) - 1)
    own = np.where(paid[row] == objects, own_log_price[row] - log_price, 0.0)
    return [log_price, log_price - own_log_price.mean(), own]


def _context(history: History, rows: int, live: int, at_us: int) -> list[NDArray[np.float64]]:
    """The columns `CONTEXT`, the same for all objects of a Moment: they let a network weigh the others."""
    visits = len(history.visits)
    idle = (at_us - int(history.at_us_E[-1])) / US_PER_DAY if len(history) else 0.0
    values = [visits, len(history) / max(visits, 1), live, idle]
    return [np.full(rows, np.log1p(value)) for value in values]
