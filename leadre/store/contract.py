"""What every store keeps and promises; tests/store/contract_store.py asks each of them.

Keys hold the plain user ID and nothing made from it, so that who is erased leaves no surrogate. A user ID has 1 to
400 bytes of UTF-8 and no NUL: others find nothing when read and are an InputError when written. Any thread and any
process may read and write; a store is opened in each process, never inherited by a fork. `StoreDown` can come from
every method; the next call tries anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol

import msgspec

from leadre.errors import InputError
from leadre.units import US_PER_DAY

EVERYBODY = "*"  # whose list is for whoever has none
MAX_RECENT, MAX_SEGMENTS = 1024, 256
MAX_USER_BYTES, MAX_CAMPAIGN_BYTES = 400, 96
MAX_SWITCHES = 16  # how far back `rollback` can go
DAYS_KEPT = 2  # caps of a day are forgotten so many days later, when it has ended in every time zone


class StoredList(msgspec.Struct, frozen=True, array_like=True):
    """Ads for one user, best first, and their log-probabilities within what was live. ``version`` made it."""

    version: str
    made_at_us: int
    ad_ids: tuple[str, ...]
    log_p: tuple[float, ...]


class ProfileEvent(msgspec.Struct, frozen=True, array_like=True):
    """One thing that a user acted on and what it was worth; ``domain`` as in the events table."""

    object_id: str
    at_us: int
    domain: str
    value_nanos: int = 0


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """What a user did lately, oldest first, and the segments they are in; `bounded` when written.

    ``log_until_us``, ``log_read_at_us``: what is older than the first came out of a log, which was read at the second.
    """

    user_id: str
    recent: tuple[ProfileEvent, ...] = ()
    segments: tuple[str, ...] = ()
    updated_at_us: int = 0
    log_until_us: int = 0
    log_read_at_us: int = 0

    def bounded(self) -> Profile:
        """Without all but the last `MAX_RECENT` things and the first `MAX_SEGMENTS` segments."""
        recent, segments = self.recent[-MAX_RECENT:], self.segments[:MAX_SEGMENTS]
        return msgspec.structs.replace(self, recent=recent, segments=segments)

    def retained(self, after_us: int) -> Profile | None:
        """Without what we have had since before a time; None where nothing newer is left.

        A log may have ended years ago: what came out of it is as old as its reading.
        """
        recent = tuple(
            seen
            for seen in self.recent
            if (self.log_read_at_us if seen.at_us < self.log_until_us else seen.at_us) >= after_us
        )
        if not recent and max(self.updated_at_us, self.log_read_at_us) < after_us:
            return None
        return msgspec.structs.replace(self, recent=recent)


class Cap(msgspec.Struct, frozen=True, array_like=True):
    """At most ``limit`` impressions of a campaign on a day: whole days since 1970 in the campaign's own time zone."""

    campaign_id: str
    day: int
    limit: int


class ListVersions(msgspec.Struct, frozen=True, array_like=True):
    """Which versions of lists there are, oldest first, and which were current, the present one last. Pure."""

    names: tuple[str, ...] = ()
    switched: tuple[str, ...] = ()

    @property
    def current(self) -> str | None:
        return self.switched[-1] if self.switched else None

    def with_name(self, name: str) -> ListVersions:
        """InputError for a name that is not 1 to 64 letters, digits, '.', '_' and '-'."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise InputError(f"version {name!r}: use up to 64 letters, digits, '.', '_' and '-'")
        return self if name in self.names else ListVersions((*self.names, name), self.switched)

    def switch(self, name: str) -> ListVersions:
        self.check(name)
        return self if name == self.current else ListVersions(self.names, (*self.switched, name)[-MAX_SWITCHES:])

    def rollback(self) -> ListVersions:
        if len(self.switched) < 2:
            raise InputError(f"no version was current before {self.current!r}; there is nothing to roll back to")
        return ListVersions(self.names, self.switched[:-1])

    def without(self, name: str) -> ListVersions:
        self.check(name)
        if name == self.current:
            raise InputError(f"version {name!r} is the current one; switch to another before you drop it")
        others = [other for other in self.switched if other != name]
        # of a, b, a without b one a is left
        return ListVersions(
            tuple(other for other in self.names if other != name), tuple(one for one, _ in groupby(others))
        )

    def check(self, name: str) -> None:
        """InputError where there is no such version."""
        if name not in self.names:
            raise InputError(f"there are no lists of version {name!r}, only {', '.join(self.names) or 'none at all'}")


class Store(Protocol):
    """Lists, profiles and caps of users."""

    def put_lists(self, version: str, lists: Mapping[str, StoredList]) -> None:
        """Write lists of users into a version, which need not exist; thousands a call. Writing again changes nothing.

        Nobody reads a version before `switch`, so it may lie there half written.
        """
        ...

    def read_list(self, user: str) -> StoredList | None:
        """The user's list in the current version."""
        ...

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        """All users with a list in a version, in the order of their bytes; in pages, so it may see later writes.

        InputError where there is no such version.
        """
        ...

    def versions(self) -> ListVersions:
        """Which versions there are, and which is current."""
        ...

    def switch(self, version: str) -> None:
        """Make a version current, for every reader at once. InputError where there is no such version."""
        ...

    def rollback(self) -> str:
        """Make current again what was current before; returns its name. InputError where nothing was."""
        ...

    def drop(self, version: str) -> None:
        """Forget a version. InputError for the current one."""
        ...

    def read_profile(self, user: str) -> Profile | None: ...

    def write_profiles(self, *profiles: Profile) -> None:
        """Replace the profiles of these users: whoever writes last has the say."""
        ...

    def reserve(
        self, user: str, caps: Sequence[Cap], *, now_us: int, until_us: int, count: int = 1
    ) -> dict[str, list[str]]:
        """Campaign -> IDs of granted reservations, up to ``count`` each (as many as a request has places). Atomic.

        Kept impressions and reservations that are neither released nor past their ``until_us`` never exceed a cap's
        limit, whatever other processes do. A cap of 0 grants nothing: do not ask for campaigns without a cap.
        """
        ...

    def keep(self, reservation: str) -> bool:
        """An impression was counted: hold its place for the day. False where the place is gone. Idempotent."""
        ...

    def release(self, *reservations: str) -> None:
        """A bid was lost or never made: free its place, unless it was kept. Idempotent."""
        ...

    def erase(self, *users: str) -> None:
        """Remove lists of all versions, profiles and caps, free pages included. May take seconds.

        A version that is being written meanwhile can bring a list back: whoever writes must leave erased users out.
        """
        ...

    def retain(self, after_us: int, now_us: int) -> int:
        """Forget users' lists made before ``after_us``, what profiles have from before it, and caps of days gone by.

        The list for everybody stays. Free pages included, as in `erase`; may take seconds. How many lists and profiles
        have changed or gone.
        """
        ...

    def close(self) -> None:
        """Let go of files or connections; the store is not used any more."""
        ...


def dump(store: Store, version: str) -> Iterator[bytes]:
    """A version as lines of JSON, [user, ad_ids, log_p], sorted by user: equal bytes mean equal lists."""
    for user, one in store.scan(version):
        yield msgspec.json.encode([user, one.ad_ids, one.log_p]) + b"\n"


def is_possible(user: str) -> bool:
    """Whether there can be a user of this ID."""
    try:
        return 0 < len(user.encode()) <= MAX_USER_BYTES and "\0" not in user
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def check_users(users: Sequence[str]) -> None:
    """InputError for an ID that cannot be written."""
    for user in users:
        if not is_possible(user):
            raise InputError(f"user {user[:80]!r}: wants 1 to {MAX_USER_BYTES} bytes of UTF-8 without NUL")


def check_caps(user: str, caps: Sequence[Cap], now_us: int, until_us: int, count: int) -> None:
    """InputError for an impossible user; the rest is our own making."""
    check_users([user])
    assert now_us < until_us, f"reserved at {now_us} until {until_us}"
    campaigns = [cap.campaign_id for cap in caps]
    assert len(set(campaigns)) == len(campaigns) and count > 0, f"{count} of each of {campaigns}"
    for cap in caps:
        name = cap.campaign_id.encode()
        assert 0 < len(name) <= MAX_CAMPAIGN_BYTES and b"\0" not in name and 0 <= cap.day < 1 << 31, cap


def first_day(now_us: int) -> int:
    """The first day whose caps still matter."""
    return max(0, now_us // US_PER_DAY - DAYS_KEPT)
