"""Users' lists in LMDB. Table ``lists``: version + NUL + user ID -> list. Table ``state``: one row, the versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lmdb
import msgspec

from leadre.store.contract import EVERYBODY, ListVersions, StoredList, check_users, has_list
from leadre.store.lmdb.mapped import MappedFile
from leadre.store.lmdb.tables import PAGE, delete_prefix, keys_of, rewrite, scan_prefix

STATE = b"versions"  # the key of that row

_lists = msgspec.msgpack.Decoder(StoredList)
_versions = msgspec.msgpack.Decoder(ListVersions)
_encode = msgspec.msgpack.Encoder().encode


class LmdbLists:
    """The list methods of `contract.Store`."""

    def __init__(self, path: Path, lock_s: float | None = None) -> None:
        self._lock_s = lock_s
        self.file = MappedFile.shared(path, ("state", "lists"))

    def put(self, version: str, lists: Mapping[str, StoredList]) -> None:
        check_users([user for user in lists if user != EVERYBODY])
        with self.file.write() as (txn, (state, table)):
            versions = _read_versions(txn, state)
            if versions.add(version) != versions:
                txn.put(STATE, _encode(versions.add(version)), db=state)
            prefix = version.encode() + b"\0"
            rows = ((prefix + user.encode(), _encode(lists[user])) for user in sorted(lists))
            txn.cursor(table).putmulti(rows)

    def read(self, user: str) -> StoredList | None:
        if not has_list(user):
            return None
        with self.file.read(self._lock_s) as (txn, (state, table)):
            current = _read_versions(txn, state).current
            if current is None:
                return None
            value = txn.get(f"{current}\0{user}".encode(), db=table)
            return None if value is None else _lists.decode(value)

    def have(self, users: Sequence[str]) -> list[bool]:
        """For each user, whether the current version has a list."""
        with self.file.read(self._lock_s) as (txn, (state, table)):
            current = _read_versions(txn, state).current
            return [
                current is not None and txn.get(f"{current}\0{user}".encode(), db=table) is not None for user in users
            ]

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        self.versions().check(version)
        prefix = version.encode() + b"\0"
        start = prefix
        while True:
            page: list[tuple[str, StoredList]] = []
            with self.file.read() as (txn, (_, table)):
                for key, value in scan_prefix(txn.cursor(table), prefix, start):
                    page.append((key[len(prefix) :].decode(), _lists.decode(value)))
                    if len(page) == PAGE:
                        break
            yield from page
            if len(page) < PAGE:
                return
            start = prefix + page[-1][0].encode() + b"\0"

    def versions(self) -> ListVersions:
        with self.file.read() as (txn, (state, _)):
            return _read_versions(txn, state)

    def switch(self, version: str) -> None:
        with self.file.write() as (txn, (state, _)):
            txn.put(STATE, _encode(_read_versions(txn, state).switch(version)), db=state)

    def rollback(self) -> str:
        with self.file.write() as (txn, (state, _)):
            versions = _read_versions(txn, state).rollback()
            txn.put(STATE, _encode(versions), db=state)
        assert versions.current is not None
        return versions.current

    def drop(self, version: str) -> None:
        with self.file.write() as (txn, (state, table)):
            txn.put(STATE, _encode(_read_versions(txn, state).drop(version)), db=state)
            delete_prefix(txn.cursor(table), version.encode() + b"\0")

    def erase(self, users: Sequence[str]) -> None:
        """Delete the users' lists in all versions; their bytes stay on free pages until `compact`."""
        with self.file.write() as (txn, (_, table)):
            for key in keys_of(txn.cursor(table), users, lambda key: key.partition(b"\0")[2]):
                txn.delete(key, db=table)

    def users(self) -> list[str]:
        """The users of all versions, once for each of their lists."""
        with self.file.read() as (txn, (_, table)):
            keys = txn.cursor(table).iternext(keys=True, values=False)
            return [bytes(key).partition(b"\0")[2].decode() for key in keys]

    def retain(self, after_us: int) -> int:
        """Delete lists made before ``after_us``, except the list for unknown users; returns how many."""
        everybody = f"\0{EVERYBODY}".encode()

        def new_value(key: bytes, value: bytes) -> bytes | None:
            return value if key.endswith(everybody) or _lists.decode(value).made_at_us >= after_us else None

        return rewrite(self.file, new_value)


def _read_versions(txn: lmdb.Transaction, state: lmdb._Database) -> ListVersions:
    value = txn.get(STATE, db=state)
    return ListVersions() if value is None else _versions.decode(value)
