"""Users as plain data, and Moments made of them: the IDs of a run's tables are resolved here and nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from leadre import config
from leadre.clock import EPOCH, time_us
from leadre.data import moment
from leadre.data.histories import AD, CONTENT, I32, Logs
from leadre.data.moment import LiveInventory, Moment, Moments
from leadre.errors import InputError
from leadre.generate.lists.run import Config as ListsConfig

Time: TypeAlias = datetime | str | int
"""A datetime, an ISO text, or whole microseconds since 1970; UTC unless it has an offset."""
NO_PLACEMENT = -1
MAX_NANOS = np.iinfo(np.int64).max
LIVE_DAYS = ListsConfig.live_days  # as for the lists that serving reads


@dataclass(frozen=True)
class Event:
    """A success: a click, view or conversion of a content, or on an ad the action that counts as success.

    The fields have the names of the columns of the events table. ``item_id`` is an ``ad_id`` in the domain "ad", a
    ``content_id`` or an ``object_id`` in the domain "content". ``value_nanos`` is money in billionths of the currency.
    ``placement_id`` is the placement of the page view or visit, if it had one.
    """

    item_id: str
    at: Time
    domain: Literal["content", "ad"] = "content"
    value_nanos: int = 0
    placement_id: str | None = None

    def __repr__(self) -> str:
        at = self.at.isoformat() if isinstance(self.at, datetime) else self.at
        place = "" if self.placement_id is None else f", placement_id={self.placement_id!r}"
        return f"Event({self.item_id!r}, {at!r}, {self.domain!r}, {self.value_nanos}{place})"


@dataclass(frozen=True)
class User:
    """A user described by events, in any order, and by a profile.

    ``profile``: values of columns of the users table; a missing column is unknown.
    """

    events: Sequence[Event] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        facts = [f"{name}={value!r}" for name, value in self.profile.items()]
        return f"User({', '.join([f'{len(self.events):,} events', *facts])})"


@dataclass(frozen=True, eq=False)
class Market:
    """Users, ads and placements of a run's tables, by their IDs."""

    logs: Logs

    @cached_property
    def moments(self) -> Moments:
        """One Moment for each request of the log."""
        return moment.of_requests(self.logs)

    @cached_property
    def last_us(self) -> int:
        """Time of the log's last event; -1 without events."""
        return int(self.logs.at_us_E.max(initial=-1))

    def user(self, user_id: str) -> User:
        """All events and the profile of a user of the log. Raises InputError for an unknown ID."""
        row = self._users.get(user_id)
        if row is None:
            raise InputError(
                f"user {user_id!r} is not in the tables; describe the user by events: leadre.User([leadre.Event(...)])"
            )
        profile = {name: value for name, value in self.moments.profiles[row].items() if value is not None}
        return User(tuple(self._events(row)), profile)

    def moment(
        self, user: str | User, *, at: Time | None, live: Iterable[str] | None, placement_id: str | None
    ) -> Moment:
        """A user of the log, or a described one, at a time. Raises InputError for unknown IDs.

        Without ``at`` the time is just after the last event of the log and of the user.
        """
        described = self.user(user) if isinstance(user, str) else user
        if not isinstance(described, User):
            raise InputError(f"user {user!r}: must be the ID of a user, as text, or leadre.User([leadre.Event(...)])")
        rows = [self._row(number, event) for number, event in enumerate(described.events)]
        last_us = max([self.last_us, *(row[1] for row in rows)])
        at_us = last_us + 1 if at is None else time_us(at, "at")
        return Moment(
            user=self._users[user] if isinstance(user, str) else -1,
            profile=self._profile(described.profile),
            at_us=at_us,
            placement=self._placement(placement_id, "placement_id"),
            history=moment.history_of(rows, at_us),
            inventory=self._recently_live(at_us) if live is None else self._inventory(live),
        )

    def _events(self, row: int) -> Iterator[Event]:
        logs = self.logs
        history = self.moments.timeline(row)
        first = int(logs.event_offsets[row])
        columns = (history.at_us_E, history.object_E, history.domain_E, history.value_nanos_E, history.placement_E)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for n, (at_us, o, domain, value_nanos, placement) in enumerate(rows, start=first):
            is_ad = domain == AD
            yield Event(
                item_id=self._ad_ids[int(logs.ad_E[n])] if is_ad else self._object_ids[o],
                at=EPOCH + timedelta(microseconds=at_us),
                domain="ad" if is_ad else "content",
                value_nanos=value_nanos,
                placement_id=None if placement == NO_PLACEMENT else logs.placements[placement],
            )

    def _row(self, number: int, event: Event) -> tuple[int, int, int, int, int]:
        """(object, at_us, domain, value_nanos, placement) of an event."""
        place = f"events[{number}]"
        if not isinstance(event, Event):
            raise InputError(f"{place} is {event!r}; write leadre.Event(item_id, at, domain)")
        if event.domain not in ("content", "ad"):
            raise InputError(f"{place}: domain {event.domain!r}; must be 'content' or 'ad'")
        is_ad = event.domain == "ad"
        row = (self._ads if is_ad else self._objects).get(event.item_id)
        if row is None:
            is_other = event.item_id in (self._objects if is_ad else self._ads)
            other = "content" if is_ad else "ad"
            remedy = f"it is of the domain {other!r}" if is_other else f"leave it out, or {ADD_TO_TABLES}"
            raise InputError(f"{place}: the tables have no {event.domain} {event.item_id!r}; {remedy}")
        at_us = time_us(event.at, f"{place}: at")
        placement = self._placement(event.placement_id, f"{place}: placement_id")
        value_nanos = _whole_nanos(event.value_nanos, place)
        if is_ad:
            return int(self.logs.ad_object_A[row]), at_us, AD, value_nanos, placement
        return row, at_us, CONTENT, value_nanos, placement

    def _profile(self, profile: Mapping[str, Any]) -> Mapping[str, Any]:
        """The profile in the order of the table's columns, which is that of the prompt."""
        columns = [column for column in self.logs.users.columns if column != "user_id"]
        for name in profile:
            if name not in columns:
                raise InputError(f"profile: {_unknown('column', name, columns)}")
        return {column: profile[column] for column in columns if column in profile}

    def _placement(self, placement_id: str | None, name: str) -> int:
        if placement_id is None:
            return NO_PLACEMENT
        if placement_id not in self._placements:
            raise InputError(f"{name}: {_unknown('placement', placement_id, self._placements)}")
        return self._placements[placement_id]

    def _inventory(self, live: Iterable[str]) -> LiveInventory:
        if isinstance(live, str):
            raise InputError(f"live {live!r}: must be a list of ad IDs, such as [{live!r}]")
        ad_ids = list(live)
        unknown = [ad_id for ad_id in ad_ids if ad_id not in self._ads]
        if unknown:
            raise InputError(
                f"live: {len(unknown)} of {len(ad_ids)} ads are not in the tables, {unknown[0]!r} among them; "
                f"leave them out, or {ADD_TO_TABLES}"
            )
        return self._inventory_of(np.array([self._ads[ad_id] for ad_id in ad_ids], np.int32))

    def _recently_live(self, at_us: int) -> LiveInventory:
        ads = moment.recently_live(self.logs, at_us, LIVE_DAYS)
        if not len(ads):
            raise InputError(
                f"the tables show no live ad in the {LIVE_DAYS} days before {EPOCH + timedelta(microseconds=at_us)}; "
                f"give live, the IDs of the ads that may be shown, or another at"
            )
        return self._inventory_of(ads)

    def _inventory_of(self, ads: I32) -> LiveInventory:
        return moment.inventory_of(np.unique(ads), self.logs.ad_object_A)

    @cached_property
    def _ad_ids(self) -> list[str]:
        return self.logs.ads["ad_id"].to_list()

    @cached_property
    def _object_ids(self) -> list[str]:
        return self.logs.objects["object_id"].to_list()

    @cached_property
    def _ads(self) -> Mapping[str, int]:
        return _rows_of(self._ad_ids)

    @cached_property
    def _objects(self) -> Mapping[str, int]:
        return _rows_of(self._object_ids)

    @cached_property
    def _users(self) -> Mapping[str, int]:
        return _rows_of(self.logs.users["user_id"].to_list())

    @cached_property
    def _placements(self) -> Mapping[str, int]:
        return _rows_of(self.logs.placements)


ADD_TO_TABLES = "add them to the tables, run `leadre data` and `leadre semid --extend`, and load the run again"


def _whole_nanos(value_nanos: int, place: str) -> int:
    if isinstance(value_nanos, int | np.integer) and 0 <= value_nanos <= MAX_NANOS:
        return int(value_nanos)
    raise InputError(
        f"{place}: value_nanos {value_nanos!r}: must be a whole number of billionths of the currency, "
        f"not below zero: 2.50 is 2500000000"
    )


def _rows_of(ids: Sequence[str]) -> dict[str, int]:
    return {identifier: row for row, identifier in enumerate(ids)}


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    """A part of a message; it names the most similar of the known names."""
    if not known:
        return f"unknown {kind} {name!r}; the tables have none"
    return f"unknown {kind} {name!r}; the nearest is {config.nearest(name, known)!r}"
