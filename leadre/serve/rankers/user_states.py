"""Cache of users' histories in the form that a ranker reads, bounded in bytes and time.

A request reads its user's profile in any case; the cache saves the conversion while the profile stays the same. It
holds only users whose consent let their profile be read, and is emptied when a user is erased.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from leadre.data.collaborative import CollaborativeUser
from leadre.data.moment import History
from leadre.store.contract import Profile

MAX_BYTES = 32 << 20
UNUSED_S = 600.0  # after which a state is dropped


@dataclass(frozen=True, eq=False, kw_only=True)
class UserState:
    """A user's known events, and the user in the fits of collaborative filtering. ``last_us``: of the last event."""

    history: History
    fits: CollaborativeUser
    last_us: int

    @property
    def nbytes(self) -> int:
        """Size of the arrays."""
        history = self.history
        arrays = (history.at_us_E, history.object_E, history.domain_E, history.value_nanos_E, history.placement_E)
        fits = (self.fits.factors_D, self.fits.near_N, self.fits.weight_N)
        return sum(array.nbytes for array in (*arrays, *fits))


class UserStates:
    """States by user, the least recently used one first. Beyond `MAX_BYTES` the first ones are dropped."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, tuple[object, UserState, float]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, profile: Profile, now_s: float) -> UserState | None:
        """The state of exactly this profile."""
        entry = self._entries.get(profile.user_id)
        if entry is None or entry[0] != _mark(profile):
            return None
        self._entries[profile.user_id] = (entry[0], entry[1], now_s)
        self._entries.move_to_end(profile.user_id)
        return entry[1]

    def put(self, profile: Profile, state: UserState, now_s: float) -> None:
        """Keep a state in place of the user's last one."""
        self._drop(profile.user_id)
        self._entries[profile.user_id] = (_mark(profile), state, now_s)
        self.nbytes += state.nbytes
        while self.nbytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def drop_unused(self, now_s: float) -> None:
        """Drop the states that no request has used for `UNUSED_S`."""
        while self._entries and next(iter(self._entries.values()))[2] < now_s - UNUSED_S:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Drop all."""
        self._entries.clear()
        self.nbytes = 0

    def _drop(self, user_id: str) -> None:
        entry = self._entries.pop(user_id, None)
        if entry is not None:
            self.nbytes -= entry[1].nbytes


def _mark(profile: Profile) -> object:
    """A value that differs after each change of a profile: by an event, an import or the removal of old events."""
    recent = profile.recent
    return len(recent), recent[-1:], profile.updated_at_us, profile.log_read_at_us
