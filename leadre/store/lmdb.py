"""The store in a folder, without a server: memory-mapped files (LMDB) that any process of the machine may open.

Three files, so that nothing waits for a disk that need not: ``lists`` (a commit is on the disk), ``profiles`` (the
last commits may be lost in a power cut) and ``caps``, which is never synchronised: a killed process loses nothing, and
as a power cut could leave it torn, a file of an earlier boot is not opened.

LMDB leaves deleted bytes on free pages. `erase` therefore copies what lives into a new file of the next number, which
takes the place of the old one when it is complete; other processes look for a newer number five times a second.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import lmdb
import msgspec

from leadre.errors import InputError
from leadre.store.contract import (
    EVERYBODY,
    Cap,
    ListVersions,
    Profile,
    StoredList,
    check_caps,
    check_users,
    first_day,
    is_possible,
)
from leadre.store.mapped import MappedFile

PAGE = 1000
PURGED_A_CALL = 64
KEPT = 0  # in the place of a time until which a reservation counts
STATE = b"versions"
BOOT = Path("/proc/sys/kernel/random/boot_id")

_lists = msgspec.msgpack.Decoder(StoredList)
_profiles = msgspec.msgpack.Decoder(Profile)
_versions = msgspec.msgpack.Decoder(ListVersions)
_held = msgspec.msgpack.Decoder(list[tuple[bytes, int]])
_encode = msgspec.msgpack.Encoder().encode


class LmdbStore:
    """`contract.Store` in a folder, which is made where missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"store {folder}: cannot be made a folder ({error.strerror})") from error
        caps = f"caps-{BOOT.read_text().strip() if BOOT.exists() else 'any'}"
        for path in folder.glob("caps-*"):
            if not path.name.startswith(caps):
                path.unlink(missing_ok=True)
        self._lists = MappedFile.at(folder / "lists", ("state", "lists"))
        self._profiles = MappedFile.at(folder / "profiles", ("profiles",), metasync=False)
        self._caps = MappedFile.at(folder / caps, ("places", "ids"), sync=False)

    # Lists: version, NUL, user -> list

    def put_lists(self, version: str, lists: Mapping[str, StoredList]) -> None:
        check_users(list(lists))
        with self._lists.write() as (txn, (state, table)):
            known = _read_versions(txn, state)
            if known.with_name(version) != known:
                txn.put(STATE, _encode(known.with_name(version)), db=state)
            start = version.encode() + b"\0"
            rows = ((start + user.encode(), _encode(lists[user])) for user in sorted(lists))
            txn.cursor(table).putmulti(rows)

    def read_list(self, user: str) -> StoredList | None:
        if not is_possible(user):
            return None
        with self._lists.read() as (txn, (state, table)):
            current = _read_versions(txn, state).current
            if current is None:
                return None
            found = txn.get(f"{current}\0{user}".encode(), db=table)
            return None if found is None else _lists.decode(found)

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        self.versions().check(version)
        after = start = version.encode() + b"\0"
        while True:
            page: list[tuple[str, StoredList]] = []
            with self._lists.read() as (txn, (_, table)):
                for key, value in _under(txn.cursor(table), start, after):
                    page.append((key[len(start) :].decode(), _lists.decode(value)))
                    if len(page) == PAGE:
                        break
            yield from page
            if len(page) < PAGE:
                return
            after = start + page[-1][0].encode() + b"\0"

    def versions(self) -> ListVersions:
        with self._lists.read() as (txn, (state, _)):
            return _read_versions(txn, state)

    def switch(self, version: str) -> None:
        with self._lists.write() as (txn, (state, _)):
            txn.put(STATE, _encode(_read_versions(txn, state).switch(version)), db=state)

    def rollback(self) -> str:
        with self._lists.write() as (txn, (state, _)):
            changed = _read_versions(txn, state).rollback()
            txn.put(STATE, _encode(changed), db=state)
        assert changed.current is not None
        return changed.current

    def drop(self, version: str) -> None:
        with self._lists.write() as (txn, (state, table)):
            txn.put(STATE, _encode(_read_versions(txn, state).without(version)), db=state)
            _delete_under(txn.cursor(table), version.encode() + b"\0")

    # Profiles: user -> profile

    def read_profile(self, user: str) -> Profile | None:
        if not is_possible(user):
            return None
        with self._profiles.read() as (txn, (table,)):
            found = txn.get(user.encode(), db=table)
            return None if found is None else _profiles.decode(found)

    def write_profiles(self, *profiles: Profile) -> None:
        check_users([profile.user_id for profile in profiles])
        with self._profiles.write() as (txn, (table,)):
            for profile in profiles:
                txn.put(profile.user_id.encode(), _encode(profile.bounded()), db=table)

    # Caps. Places: day, user, NUL, campaign -> [(ID, until_us)]; IDs: day, random -> key of its places.
    # The day comes first so that days gone by lie together at the front.

    def reserve(
        self, user: str, caps: Sequence[Cap], *, now_us: int, until_us: int, count: int = 1
    ) -> dict[str, list[str]]:
        check_caps(user, caps, now_us, until_us, count)
        granted: dict[str, list[str]] = {}
        with self._caps.write() as (txn, (places, ids)):
            for table in (places, ids):
                _purge(txn.cursor(table), first_day(now_us), PURGED_A_CALL)
            for cap in caps:
                key = _day(cap.day) + f"{user}\0{cap.campaign_id}".encode()
                held = _held.decode(txn.get(key, db=places, default=b"\x90"))
                live = [(one, until) for one, until in held if until == KEPT or until > now_us]
                for one in {one for one, _ in held} - {one for one, _ in live}:
                    txn.delete(one, db=ids)
                free = max(0, min(count, cap.limit - len(live)))
                fresh = [_day(cap.day) + secrets.token_bytes(12) for _ in range(free)]
                for one in fresh:
                    txn.put(one, key, db=ids)
                _put_places(txn, places, key, live + [(one, until_us) for one in fresh])
                granted[cap.campaign_id] = [one.hex() for one in fresh]
        return granted

    def keep(self, reservation: str) -> bool:
        with self._caps.write() as (txn, (places, ids)):
            one = _from_hex(reservation)
            key = txn.get(one, db=ids)
            if key is None:
                return False
            held = _held.decode(txn.get(key, db=places, default=b"\x90"))
            _put_places(txn, places, bytes(key), [(other, KEPT if other == one else until) for other, until in held])
            return True

    def release(self, *reservations: str) -> None:
        with self._caps.write() as (txn, (places, ids)):
            for one in map(_from_hex, reservations):
                key = txn.get(one, db=ids)
                if key is None:
                    continue
                held = _held.decode(txn.get(key, db=places, default=b"\x90"))
                if (one, KEPT) not in held:
                    txn.delete(one, db=ids)
                    _put_places(txn, places, bytes(key), [other for other in held if other[0] != one])

    def erase(self, *users: str) -> None:
        known = [user for user in users if is_possible(user)]
        with self._lists.write() as (txn, (state, table)):
            for version in _read_versions(txn, state).names:
                for user in known:
                    txn.delete(f"{version}\0{user}".encode(), db=table)
        with self._profiles.write() as (txn, (table,)):
            for user in known:
                txn.delete(user.encode(), db=table)
        with self._caps.write() as (txn, (places, ids)):
            for day in _days(txn.cursor(places)):
                for user in known:
                    for held in _delete_under(txn.cursor(places), day + user.encode() + b"\0"):
                        for one, _ in _held.decode(held):
                            txn.delete(one, db=ids)
        for file in (self._lists, self._profiles, self._caps):
            file.compact()

    def retain(self, after_us: int, now_us: int) -> int:
        everybody = f"\0{EVERYBODY}".encode()

        def listed(key: bytes, value: bytes) -> bytes | None:
            return value if key.endswith(everybody) or _lists.decode(value).made_at_us >= after_us else None

        def profiled(key: bytes, value: bytes) -> bytes | None:
            old = _profiles.decode(value)
            new = old.retained(after_us)
            return value if new == old else None if new is None else _encode(new)

        counts = [_sweep(file, decide) for file, decide in ((self._lists, listed), (self._profiles, profiled))]
        purged = PAGE
        while purged:
            with self._caps.write() as (txn, tables):
                purged = sum(_purge(txn.cursor(table), first_day(now_us), PAGE) for table in tables)
        # `reserve` purges too, and leaves free pages
        for file, count in ((self._lists, counts[0]), (self._profiles, counts[1]), (self._caps, 1)):
            if count:
                file.compact()
        return sum(counts)

    def copy(self, folder: Path) -> None:
        """Lists and profiles, each as of one moment, into an existing folder, which can be opened as a store.

        Caps stay: they are of this machine's boot and of a day.
        """
        for file in (self._lists, self._profiles):
            file.copy(folder)

    def close(self) -> None:
        with suppress(AttributeError):  # closed already
            del self._lists, self._profiles, self._caps  # each file closes when nobody in this process uses it


def _read_versions(txn: lmdb.Transaction, state: lmdb._Database) -> ListVersions:
    found = txn.get(STATE, db=state)
    return ListVersions() if found is None else _versions.decode(found)


def _under(cursor: lmdb.Cursor, start: bytes, after: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records whose key begins with ``start``, from ``after`` on."""
    found = cursor.set_range(after)
    while found and bytes(cursor.key()).startswith(start):
        yield bytes(cursor.key()), bytes(cursor.value())
        found = cursor.next()


def _delete_under(cursor: lmdb.Cursor, start: bytes) -> list[bytes]:
    """Delete the records whose key begins with ``start``; returns what they held."""
    gone = []
    while cursor.set_range(start) and bytes(cursor.key()).startswith(start):
        gone.append(bytes(cursor.value()))
        cursor.delete()
    return gone


def _purge(cursor: lmdb.Cursor, day: int, at_most: int) -> int:
    """Delete records of days before ``day``; how many. In a call at least more than it adds, so that they come to an
    end."""
    for gone in range(at_most):
        if not cursor.first() or bytes(cursor.key()) >= _day(day):
            return gone
        cursor.delete()
    return at_most


def _sweep(file: MappedFile, decide: Callable[[bytes, bytes], bytes | None]) -> int:
    """Give each record of a file's last table the value that ``decide`` says, None = none; how many were others.

    In pages, so that whoever wants to write need not wait for long.
    """
    after, changed = b"", 0
    while True:
        with file.write() as (txn, tables):
            table = tables[-1]
            page = list(islice(_under(txn.cursor(table), b"", after), PAGE))
            for key, value in page:
                new = decide(key, value)
                if new != value:
                    changed += 1
                    txn.delete(key, db=table) if new is None else txn.put(key, new, db=table)
        if len(page) < PAGE:
            return changed
        after = page[-1][0] + b"\0"


def _days(cursor: lmdb.Cursor) -> list[bytes]:
    days: list[bytes] = []
    while cursor.set_range(_day(int.from_bytes(days[-1]) + 1) if days else b"\0"):
        days.append(bytes(cursor.key()[:4]))
    return days


def _day(day: int) -> bytes:
    return day.to_bytes(4)


def _put_places(txn: lmdb.Transaction, places: lmdb._Database, key: bytes, held: list[tuple[bytes, int]]) -> None:
    if held:
        txn.put(key, _encode(held), db=places)
    else:
        txn.delete(key, db=places)


def _from_hex(reservation: str) -> bytes:
    """Its bytes; of what is no reservation, bytes that no reservation has."""
    with suppress(ValueError):
        return bytes.fromhex(reservation)[:64] or b"\0"
    return b"\0"
