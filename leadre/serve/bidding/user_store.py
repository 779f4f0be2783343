"""A worker's access to users: lists, profiles and frequency caps, from a store that may be slow or down.

After a failed call the worker leaves the store alone for `RETRY_S`, so that one request loses its milliseconds and not
all of them. Until the store is back every user is an unknown user, who gets the last popular list that was read. While
another process holds a lock of the store (it compacts a file), only frequency caps are unknown: campaigns without one
and all lists serve on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from leadre.clock import Clock
from leadre.errors import StoreBusy, StoreDown
from leadre.store.contract import EVERYBODY, Cap, Profile, Store, StoredList

T = TypeVar("T")
RETRY_S = 0.5
RETRY_LOCK_S = 0.05  # a lock is mostly held for less
POPULAR_LIST_S = 5.0  # the popular list is read again after so long


class UserStore:
    """A `Store` with a fallback for every call. ``is_erased``: whether a user must not be written any more."""

    def __init__(self, store: Store, clock: Clock, is_erased: Callable[[str], bool] = lambda user_id: False) -> None:
        self.store = store
        self._is_erased = is_erased
        self._clock = clock
        self._retry_at_s = 0.0
        self._retry_lock_at_s = 0.0
        self._read_popular_at_s = 0.0
        self._popular: StoredList | None = None

    @property
    def is_down(self) -> bool:
        """Whether the last call of the store failed, or a lock of it was held a moment ago."""
        return self._retry_at_s > 0 or self._clock.monotonic_s() < self._retry_lock_at_s

    def read_list(self, user_id: str) -> StoredList | None:
        """The user's list; None for an unknown user ("")."""
        return self._call(lambda: self.store.read_list(user_id), None) if user_id else None

    def read_profile(self, user_id: str) -> Profile | None:
        """The user's profile; None for an unknown user (""), and for one erased while the request waited."""
        if not user_id or self._is_erased(user_id):
            return None
        return self._call(lambda: self.store.read_profile(user_id), None)

    def find_user(self, user_ids: Sequence[str]) -> str:
        """The first of the IDs under which the store has a list or a profile; "" if there is none."""
        return self._call(lambda: self.store.find_user(*user_ids), "")

    def popular_list(self) -> StoredList | None:
        """The list for unknown users; an old one while the store is down."""
        if self._clock.monotonic_s() >= self._read_popular_at_s:
            self._read_popular_at_s = self._clock.monotonic_s() + POPULAR_LIST_S
            self._popular = self._call(lambda: self.store.read_list(EVERYBODY), None) or self._popular
        return self._popular

    def reserve(self, user_id: str, cap: Cap, *, now_us: int, until_us: int, holder: str = "") -> str:
        """ID of a reservation under a frequency cap; "" if the cap has no room, or the store is down or locked.

        Also "" for a user who was erased while the request waited for the language model.
        """
        if self._is_erased(user_id) or self._clock.monotonic_s() < self._retry_lock_at_s:
            return ""
        no_grants: dict[str, list[str]] = {}
        certain_us = min(now_us, self._clock.certain_us())
        grants = self._call(
            lambda: self.store.reserve(
                user_id, [cap], now_us=now_us, until_us=until_us, certain_us=certain_us, holder=holder
            ),
            no_grants,
        )
        return next(iter(grants.get(cap.campaign_id, ())), "")

    def void(self, reservation: str) -> None:
        """Void the reservation of a bid that is not made; a store that is down or locked lets it expire."""
        self._call(lambda: self.store.void(reservation), None)

    def _call(self, operation: Callable[[], T], fallback: T) -> T:
        if self._clock.monotonic_s() < self._retry_at_s:
            return fallback
        try:
            result = operation()
        except StoreBusy:
            self._retry_lock_at_s = self._clock.monotonic_s() + RETRY_LOCK_S
            return fallback
        except StoreDown:
            self._retry_at_s = self._clock.monotonic_s() + RETRY_S
            return fallback
        self._retry_at_s = 0.0
        return result
