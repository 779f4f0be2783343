"""What a worker remembers of users, through a store that may be slow or gone.

A store that does not answer is left alone for a while, so that it costs one request its milliseconds and not all of
them. Until it is back everyone is a stranger, and the list for strangers is the last one seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from leadre.errors import StoreDown
from leadre.store.contract import EVERYBODY, Cap, Profile, Store, StoredList

T = TypeVar("T")
RETRY_S = 0.5
RENEWED_S = 5.0  # the list for everybody is read again


class UserStore:
    """A store as one worker sees it."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self._clock = store, clock
        self._not_before_s = self._renew_at_s = 0.0
        self._everybody: StoredList | None = None

    @property
    def is_down(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._not_before_s > 0

    def listed(self, user_id: str) -> StoredList | None:
        """The list made ahead of time for a user; "" is a stranger."""
        return self._ask(lambda: self.store.read_list(user_id), None) if user_id else None

    def profile(self, user_id: str) -> Profile | None:
        """What a user did lately; nothing of a stranger."""
        return self._ask(lambda: self.store.read_profile(user_id), None) if user_id else None

    def everybody(self) -> StoredList | None:
        """The list for whoever is not known, perhaps an old one."""
        if self._clock() >= self._renew_at_s:
            self._renew_at_s = self._clock() + RENEWED_S
            self._everybody = self._ask(lambda: self.store.read_list(EVERYBODY), None) or self._everybody
        return self._everybody

    def reserve(self, user_id: str, cap: Cap, *, now_us: int, until_us: int) -> str:
        """A reservation under a frequency cap; "" where it is reached, or nobody can tell."""
        nothing: dict[str, list[str]] = {}
        granted = self._ask(lambda: self.store.reserve(user_id, [cap], now_us=now_us, until_us=until_us), nothing)
        return next(iter(granted.get(cap.campaign_id, ())), "")

    def release(self, reservations: Sequence[str]) -> None:
        """Free places that were taken for nothing; those of a store that is down free themselves in time."""
        if reservations:
            self._ask(lambda: self.store.void(*reservations), None)

    def _ask(self, question: Callable[[], T], otherwise: T) -> T:
        if self._clock() < self._not_before_s:
            return otherwise
        try:
            answer = question()
        except StoreDown:
            self._not_before_s = self._clock() + RETRY_S
            return otherwise
        self._not_before_s = 0.0
        return answer
