"""A user at a moment: the one input of prompts, retrieval channels, the prior and a ranker, online and offline alike.

A `Moment` comes from one of three sources: a request of a log (`of_requests`), every user of a log at one time
(`as_of`), or a stored profile (the model server, with `history_of`). A history holds only events strictly before the
moment, so no model that takes a Moment sees the future. Count features of (user, object) pairs and ranker inputs are
functions of Moments too, so training and serving compute them alike.

Letters: U users, E events, V visits, M moments, I live ads, O objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.data.histories import I8, I32, I64, TRAIN, Logs, Mask, history_begins
from leadre.units import US_PER_DAY

CACHED_ADS = 1_000_000  # live ads of the cached inventories of a log; with their tries about 64 MB


@dataclass(frozen=True)
class VisitIndex:
    """Events grouped by user and time: a visit is all events of a user at one instant (a basket, a page view).

    ``event_offsets`` [V + 1] into events, ``user_offsets`` [U + 1] into visits.
    """

    at_us_V: I64
    event_offsets: I64
    user_offsets: I64

    def __len__(self) -> int:
        return len(self.at_us_V)

    def of_user(self, user: int) -> range:
        """Indices of the user's visits, oldest first."""
        return range(int(self.user_offsets[user]), int(self.user_offsets[user + 1]))

    def events(self, visit: int) -> slice:
        """The events of a visit."""
        return slice(int(self.event_offsets[visit]), int(self.event_offsets[visit + 1]))

    def before(self, user: int, at_us: int) -> int:
        """Index of the user's first visit at or after ``at_us``."""
        start = int(self.user_offsets[user])
        end = int(self.user_offsets[user + 1])
        return start + int(np.searchsorted(self.at_us_V[start:end], at_us, side="left"))


def group_visits(at_us_E: I64, event_offsets: I64) -> VisitIndex:
    """Group events, sorted by user and time, into visits; user u has the events ``event_offsets[u : u + 2]``."""
    user_E = np.repeat(np.arange(len(event_offsets) - 1), np.diff(event_offsets))
    starts_visit_E = np.ones(len(at_us_E), np.bool_)
    starts_visit_E[1:] = (np.diff(user_E) != 0) | (np.diff(at_us_E) != 0)
    starts = np.flatnonzero(starts_visit_E)
    user_offsets = np.searchsorted(user_E[starts], np.arange(len(event_offsets)))
    return VisitIndex(at_us_E[starts], np.append(starts, len(at_us_E)), user_offsets)


@dataclass(frozen=True, eq=False, kw_only=True)
class History:
    """The events of one user strictly before a time, oldest first; each array has one row per event.

    ``placement_E``: placement of the user's request at the instant of the event, as an index into the log's placements;
    -1 if unknown, as in a stored profile.
    """

    at_us_E: I64
    object_E: I32
    domain_E: I8  # CONTENT or AD
    value_nanos_E: I64
    placement_E: I32

    def __len__(self) -> int:
        return len(self.at_us_E)

    @cached_property
    def visits(self) -> VisitIndex:
        """The events grouped by time; this user is user 0."""
        events = len(self)
        starts = np.flatnonzero(self.at_us_E[1:] != self.at_us_E[:-1]) + 1  # `group_visits` for one user, quicker
        offsets = np.concatenate([np.zeros(min(events, 1), np.int64), starts, [events]])
        return VisitIndex(self.at_us_E[offsets[:-1]], offsets, np.array([0, len(offsets) - 1]))


def history_of(events: Iterable[tuple[int, int, int, int, int]], before_us: int) -> History:
    """A history from rows (object, at_us, domain, value_nanos, placement); drops rows at or after ``before_us``.

    The rows may be in any order; events of one instant keep theirs.
    """
    rows = sorted((event for event in events if event[1] < before_us), key=lambda event: event[1])
    object_E, at_us_E, domain_E, value_nanos_E, placement_E = np.array(rows, np.int64).reshape(-1, 5).T
    return History(
        at_us_E=at_us_E,
        object_E=object_E.astype(np.int32),
        domain_E=domain_E.astype(np.int8),
        value_nanos_E=value_nanos_E,
        placement_E=placement_E.astype(np.int32),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveInventory:
    """The objects that may be recommended at a moment, and their live ads. Compared by identity, to be a cache key.

    ``ads`` is empty if the source has objects only, such as a request to the model server.
    """

    objects: NDArray[np.int64]  # distinct, ascending
    ads: I32  # [I], ascending
    ad_object: I32  # [I]: the object of each ad


def inventory_of(ads: I32, ad_object_A: I32) -> LiveInventory:
    """The inventory of live ``ads``, ascending; ``ad_object_A`` is the object of every ad of the log."""
    ad_object = ad_object_A[ads]
    return LiveInventory(objects=np.unique(ad_object).astype(np.int64), ads=ads, ad_object=ad_object)


@dataclass(frozen=True, eq=False, kw_only=True)
class Moment:
    """A user at a moment: profile, time, placement, history and live inventory.

    ``is_training``: the moment is a training request; the prior then uses an affinity fitted without this user.
    """

    user: int  # row of the users table; -1 = unknown
    profile: Mapping[str, Any]  # columns of the users table without the ID; empty if unknown
    at_us: int
    placement: int  # index into the log's placements; -1 = none
    history: History
    inventory: LiveInventory
    is_training: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Moments(Sequence[Moment]):
    """Users of a log at M moments. Indexing builds a Moment from views of the log's arrays, without copies.

    Moments of one user are adjacent and ascend by time. ``now_us`` is set if all have the same time.
    """

    logs: Logs
    visits: VisitIndex  # of all users
    placement_E: I32  # `History.placement_E` of all events of the log
    profiles: Sequence[Mapping[str, Any]]  # by user
    inventories: Callable[[int], LiveInventory]
    user_M: I32
    at_us_M: I64
    placement_M: I32
    inventory_M: I32  # argument of ``inventories``
    begin_M: I64  # begin of the history: index of the user's first event, or a later one (`history_begins`, `cut`)
    end_M: I64  # end of the history: index of the user's first event at or after the moment
    is_training_M: Mask
    now_us: int | None = None

    def __len__(self) -> int:
        return len(self.user_M)

    @overload
    def __getitem__(self, index: int) -> Moment: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Moment]: ...

    def __getitem__(self, index: int | slice) -> Moment | Sequence[Moment]:
        if isinstance(index, slice):
            return [self[m] for m in range(*index.indices(len(self)))]
        user = int(self.user_M[index])
        return Moment(
            user=user,
            profile=self.profiles[user],
            at_us=int(self.at_us_M[index]),
            placement=int(self.placement_M[index]),
            history=self._history(slice(int(self.begin_M[index]), int(self.end_M[index]))),
            inventory=self.inventories(int(self.inventory_M[index])),
            is_training=bool(self.is_training_M[index]),
        )

    def at(self, rows: Iterable[int], first_visit: int | None = None) -> Iterator[Moment]:
        """The Moments at these indices, in the order given; their histories begin at ``first_visit`` if it is given."""
        if first_visit is None:
            return (self[int(row)] for row in rows)
        begin_M = np.broadcast_to(self.visits.event_offsets[first_visit], len(self))
        return dataclasses.replace(self, begin_M=begin_M).at(rows)

    def timeline(self, user: int) -> History:
        """All events of a user."""
        return self._history(slice(int(self.logs.event_offsets[user]), int(self.logs.event_offsets[user + 1])))

    def first_visits(self) -> NDArray[np.int64]:
        """Begin of each history in ``visits``, int64 [M]: index of its first visit."""
        return np.searchsorted(self.visits.event_offsets[:-1], self.begin_M, side="left")

    def visits_before(self) -> NDArray[np.int64]:
        """End of each history in ``visits``, int64 [M]: index of the first visit at or after the moment."""
        return np.searchsorted(self.visits.event_offsets[:-1], self.end_M, side="left")

    def last_visits(self, count_M: NDArray[np.int64] | int) -> Moments:
        """The same moments with at most the last ``count_M`` visits of each history."""
        first_M = np.maximum(self.visits_before() - count_M, self.first_visits())
        return dataclasses.replace(self, begin_M=self.visits.event_offsets[first_M])

    def _history(self, rows: slice) -> History:
        logs = self.logs
        return History(
            at_us_E=logs.at_us_E[rows],
            object_E=logs.object_E[rows],
            domain_E=logs.domain_E[rows],
            value_nanos_E=logs.value_nanos_E[rows],
            placement_E=self.placement_E[rows],
        )


def of_requests(logs: Logs) -> Moments:
    """Every request of a log; Moment ``r`` is request ``r``."""
    visits = group_visits(logs.at_us_E, logs.event_offsets)
    ends_R = logs.history_ends()

    live = logs.inventories

    def inventory(live_set: int) -> LiveInventory:
        return inventory_of(live.ads(int(live.request_S[live_set])), logs.ad_object_A)

    ads_each = max(1, int(live.sizes_R.sum()) // max(1, len(live.sizes_R)))
    moments = Moments(
        logs=logs,
        visits=visits,
        placement_E=np.full(len(logs.at_us_E), -1, np.int32),
        profiles=logs.users.drop("user_id").to_dicts(),
        inventories=lru_cache(maxsize=max(1, CACHED_ADS // ads_each))(inventory),
        user_M=logs.request_user_R,
        at_us_M=logs.request_at_us_R,
        placement_M=logs.request_placement_R,
        inventory_M=live.set_R,
        begin_M=logs.event_offsets[logs.request_user_R] if logs.history_begin_R is None else logs.history_begin_R,
        end_M=ends_R,
        is_training_M=logs.request_split_R == TRAIN,
    )
    return dataclasses.replace(moments, placement_E=_placements(moments))


def cut(logs: Logs, visits: int) -> Logs:
    """Logs in which a request outside of training sees the last ``visits`` visits of its user's history alone; -1: all.

    Models are trained as before; nothing that answers a request of another split knows the earlier events.
    """
    if visits < 0:
        return logs
    moments = of_requests(logs)
    begin_R = moments.last_visits(visits).begin_M
    return dataclasses.replace(logs, history_begin_R=np.where(moments.is_training_M, moments.begin_M, begin_R))


def recently_live(logs: Logs, now_us: int, days: int) -> I32:
    """Ads that were live in a request of the last ``days`` before ``now_us``, neither paused nor ended; ascending."""
    is_recent_R = (logs.request_at_us_R >= now_us - days * US_PER_DAY) & (logs.request_at_us_R < now_us)
    ads = logs.inventories.ever_live(is_recent_R)
    is_active = pl.col("status").fill_null("active") == "active"
    is_running = (pl.col("ends_at").dt.epoch("us") > now_us).fill_null(True)
    is_shown_A = logs.ads.select(is_active & is_running).to_series().to_numpy()
    live: I32 = ads[is_shown_A[ads]].astype(np.int32)
    return live


def as_of(logs: Logs, now_us: int, users: NDArray[np.int64], ads: I32) -> Moments:
    """Moments of ``users`` (ascending) at time ``now_us``, without a placement, with ``ads`` live."""
    inventory = inventory_of(ads, logs.ad_object_A)
    count = len(users)
    at_us_M = np.full(count, now_us, np.int64)
    end_M = logs.ends_before(users.astype(np.int32), at_us_M)
    return dataclasses.replace(
        of_requests(logs),
        inventories=lambda _: inventory,
        user_M=users.astype(np.int32),
        at_us_M=at_us_M,
        placement_M=np.full(count, -1, np.int32),
        inventory_M=np.zeros(count, np.int32),
        begin_M=history_begins(logs.event_offsets[users], end_M),
        end_M=end_M,
        is_training_M=np.zeros(count, np.bool_),
        now_us=now_us,
    )


def _placements(requests: Moments) -> I32:
    """`History.placement_E` of all events of a log; if a user has several requests at one instant, the last one's."""
    visits = requests.visits
    visit_R = requests.visits_before()
    at_us_V = np.append(visits.at_us_V, -1)
    placement_V = np.full(len(visits), -1, np.int32)
    is_at_visit_R = (at_us_V[visit_R] == requests.at_us_M) & (visit_R < visits.user_offsets[requests.user_M + 1])
    placement_V[visit_R[is_at_visit_R]] = requests.placement_M[is_at_visit_R]
    return np.repeat(placement_V, np.diff(visits.event_offsets))
