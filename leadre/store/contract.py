"""Contract of the stores: data types and the `Store` protocol; tests/store/contract_store.py checks every store.

Keys contain the plain user ID, not a hash of it, so that an erasure leaves no pseudonym behind. A user ID has 1 to 400
bytes of UTF-8, no NUL, and is not "*": reads of another ID return None, writes raise InputError. Any thread and any
process may read and write. Each process opens the store itself; a fork must not inherit it. Every method may raise
`StoreDown`; the next call tries again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol

import msgspec

from leadre.errors import InputError
from leadre.units import US_PER_DAY

EVERYBODY = "*"  # user ID of the list for users without one
MAX_RECENT = 1024
MAX_SEGMENTS = 256
MAX_USER_BYTES = 400
TAG_BYTES = 4
MAX_CAMPAIGN_BYTES = 96
MAX_SWITCHES = 16  # list versions in `ListVersions.history`, the current one included
DAYS_KEPT = 2  # days until `Store.retain` deletes the caps of a day: by then it has ended in every time zone


class StoredList(msgspec.Struct, frozen=True, array_like=True):
    """Ads for one user, best first, with their log-probabilities among the live ads. ``version``: the list version."""

    version: str
    made_at_us: int
    ad_ids: tuple[str, ...]
    log_p: tuple[float, ...]


class ProfileEvent(msgspec.Struct, frozen=True, array_like=True):
    """One action of a user on an object, and its value. ``domain``: "ad" or "content"."""

    object_id: str
    at_us: int
    domain: str
    value_nanos: int = 0


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """Recent events of a user, oldest first, and the user's segments. Stores write the `bounded` copy.

    Events before ``log_until_us`` come from an imported log, which was read at ``log_read_at_us``, and so do the
    ``attributes``: the user's row of the users table, without empty columns.
    """

    user_id: str
    recent: tuple[ProfileEvent, ...] = ()
    segments: tuple[str, ...] = ()
    updated_at_us: int = 0
    log_until_us: int = 0
    log_read_at_us: int = 0
    attributes: dict[str, str | float] = {}

    def bounded(self) -> Profile:
        """Return a copy with the last `MAX_RECENT` events and the first `MAX_SEGMENTS` segments."""
        recent = self.recent[-MAX_RECENT:]
        return msgspec.structs.replace(self, recent=recent, segments=self.segments[:MAX_SEGMENTS])

    def retained(self, after_us: int) -> Profile | None:
        """Return a copy without the events received before ``after_us``; None if nothing newer is left.

        Events of an imported log count as received when the log was read, as the log may have ended years ago.
        """
        recent = tuple(
            event
            for event in self.recent
            if (self.log_read_at_us if event.at_us < self.log_until_us else event.at_us) >= after_us
        )
        if not recent and max(self.updated_at_us, self.log_read_at_us) < after_us:
            return None
        return msgspec.structs.replace(self, recent=recent)


class Cap(msgspec.Struct, frozen=True, array_like=True):
    """At most ``limit`` impressions of a campaign per user on ``day``: days since 1970 in the campaign's time zone."""

    campaign_id: str
    day: int
    limit: int


class ListVersions(msgspec.Struct, frozen=True, array_like=True):
    """Versions of the users' lists: ``names`` of all, oldest first; ``history`` of the current one, newest last.

    Immutable: the methods return a changed copy.
    """

    names: tuple[str, ...] = ()
    history: tuple[str, ...] = ()

    @property
    def current(self) -> str | None:
        return self.history[-1] if self.history else None

    def add(self, name: str) -> ListVersions:
        """Add a version. InputError for a name that is not 1 to 64 letters, digits, '.', '_' and '-'."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise InputError(f"version {name!r}: use up to 64 letters, digits, '.', '_' and '-'")
        return self if name in self.names else ListVersions((*self.names, name), self.history)

    def switch(self, name: str) -> ListVersions:
        """Make ``name`` current. InputError if it does not exist."""
        self.check(name)
        return self if name == self.current else ListVersions(self.names, (*self.history, name)[-MAX_SWITCHES:])

    def rollback(self) -> ListVersions:
        """Make the previous version current. InputError if there is none."""
        if not self.history:
            raise InputError("the store has no lists: no version is current; run `leadre generate lists`")
        if len(self.history) < 2:
            raise InputError(f"no version was current before {self.current!r}; there is nothing to roll back to")
        return ListVersions(self.names, self.history[:-1])

    def drop(self, name: str) -> ListVersions:
        """Remove ``name``, from the history too. InputError if it does not exist or is current."""
        self.check(name)
        if name == self.current:
            raise InputError(f"version {name!r} is the current one; switch to another before you drop it")
        names = tuple(other for other in self.names if other != name)
        history = [other for other in self.history if other != name]
        # groupby: after b is dropped, the history a, b, a is a
        return ListVersions(names, tuple(other for other, _ in groupby(history)))

    def check(self, name: str) -> None:
        """InputError if the version does not exist."""
        if name not in self.names:
            raise InputError(f"there are no lists of version {name!r}, only {', '.join(self.names) or 'none at all'}")


class Store(Protocol):
    """Lists, profiles and frequency caps of users."""

    def put_lists(self, version: str, lists: Mapping[str, StoredList]) -> None:
        """Write users' lists, thousands per call, into a version; a new version is added. Idempotent.

        Readers do not see a version before `switch`, so it may be incomplete.
        """
        ...

    def read_list(self, user: str) -> StoredList | None:
        """Return the user's list in the current version."""
        ...

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        """Yield (user, list) of a version, in the byte order of user IDs. InputError if the version does not exist.

        The store is read in pages, so writes during the scan may appear.
        """
        ...

    def versions(self) -> ListVersions:
        """Return the versions, with the current one."""
        ...

    def switch(self, version: str) -> None:
        """Make a version current, for all readers at once. InputError if it does not exist."""
        ...

    def rollback(self) -> str:
        """Make the previous version current; returns its name. InputError if there is none."""
        ...

    def drop(self, version: str) -> None:
        """Delete a version. InputError for the current one."""
        ...

    def read_profile(self, user: str) -> Profile | None: ...

    def find_user(self, *users: str) -> str:
        """Return the first of the users that has a profile or a list of the current version; "" if none has."""
        ...

    def write_profiles(self, *profiles: Profile) -> None:
        """Replace the profiles of these users; the last writer wins."""
        ...

    def reserve(
        self,
        user: str,
        caps: Sequence[Cap],
        *,
        now_us: int,
        until_us: int,
        count: int = 1,
        certain_us: int | None = None,
        holder: str = "",
    ) -> dict[str, list[str]]:
        """Reserve impressions under a user's frequency caps: campaign -> reservation IDs, up to ``count`` each. Atomic.

        ``count`` is the number of slots of a request. A reservation counts until it is void or past its ``until_us``,
        and a posted one for the whole day; their number never exceeds a cap's limit, with any number of processes. A
        limit of 0 grants nothing: leave out campaigns without a cap. Caps of days that are over by ``certain_us``
        (default ``now_us``) may be deleted.

        A reservation that is not posted counts for its own ``holder`` alone. So a caller that shows no bid keeps no ad
        from the other callers; two of them that show theirs at once may exceed the limit.
        """
        ...

    def post(self, reservation: str, user: str = "", cap: Cap | None = None) -> bool:
        """Count the reservation as an impression of its day. Idempotent.

        A reservation that is void or past its time may be gone: the impression is then counted under the ``cap``
        of ``user``, also beyond its limit. False if it is gone and they are not given.
        """
        ...

    def void(self, *reservations: str) -> None:
        """Free reservations whose bid lost or was not sent; posted ones stay. Idempotent."""
        ...

    def erase(self, *users: str) -> None:
        """Delete the users' lists of all versions, profiles and reservations, and clear free pages. May take seconds.

        A job that writes lists at the same time could restore one: writers must leave out erased users.
        """
        ...

    def retain(self, after_us: int, now_us: int) -> int:
        """Delete users' lists made and profile events received before ``after_us``, and reservations of past days.

        The list for unknown users stays. Free pages are cleared, as in `erase`; may take seconds. Returns the number of
        lists and profiles changed or deleted.
        """
        ...

    def close(self) -> None:
        """Close files or connections; the store must not be used afterwards."""
        ...


def dump(store: Store, version: str) -> Iterator[bytes]:
    """Yield a version as lines of JSON, [user, ad_ids, log_p], sorted by user: equal bytes mean equal lists."""
    for user, listed in store.scan(version):
        yield msgspec.json.encode([user, listed.ad_ids, listed.log_p]) + b"\n"


def is_possible(user: str) -> bool:
    """Return whether the user ID is valid: 1 to `MAX_USER_BYTES` bytes of UTF-8 without NUL, and not `EVERYBODY`."""
    try:
        return 0 < len(user.encode()) <= MAX_USER_BYTES and "\0" not in user and user != EVERYBODY
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def has_list(user: str) -> bool:
    """Return whether a list can be stored for it: a valid user ID, or `EVERYBODY`."""
    return user == EVERYBODY or is_possible(user)


def check_users(users: Sequence[str]) -> None:
    """InputError for an invalid user ID."""
    for user in users:
        if not is_possible(user):
            why = f"wants 1 to {MAX_USER_BYTES} bytes of UTF-8 without NUL, and not {EVERYBODY!r}"
            raise InputError(f"user {user[:80]!r}: {why}")


def holder_tag(holder: str) -> bytes:
    """The bytes of a holder in the IDs of its reservations."""
    return hashlib.blake2b(holder.encode(), digest_size=TAG_BYTES).digest() if holder else bytes(TAG_BYTES)


def check_caps(user: str, caps: Sequence[Cap], now_us: int, until_us: int, count: int) -> None:
    """InputError for an invalid user ID. The other arguments come from our own code, so they are asserted."""
    check_users([user])
    assert now_us < until_us, f"reserved at {now_us} until {until_us}"
    campaigns = [cap.campaign_id for cap in caps]
    assert len(set(campaigns)) == len(campaigns) and count > 0, f"{count} of each of {campaigns}"
    for cap in caps:
        name = cap.campaign_id.encode()
        assert 0 < len(name) <= MAX_CAMPAIGN_BYTES and b"\0" not in name and 0 <= cap.day < 1 << 31, cap


def first_day(now_us: int) -> int:
    """Return the first day whose caps are kept."""
    return max(0, now_us // US_PER_DAY - DAYS_KEPT)
