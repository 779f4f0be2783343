"""Profiles in LMDB. Table ``profiles``: user ID -> profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from leadre.store.contract import Profile, check_users, is_possible
from leadre.store.lmdb.mapped import MappedFile
from leadre.store.lmdb.tables import keys_of, rewrite

_profiles = msgspec.msgpack.Decoder(Profile)
_encode = msgspec.msgpack.Encoder().encode


class LmdbProfiles:
    """The profile methods of `contract.Store`. A power cut may lose the last commits, but cannot damage the file."""

    def __init__(self, path: Path, lock_s: float | None = None) -> None:
        self._lock_s = lock_s
        self.file = MappedFile.shared(path, ("profiles",), metasync=False)

    def read(self, user: str) -> Profile | None:
        if not is_possible(user):
            return None
        with self.file.read(self._lock_s) as (txn, (table,)):
            value = txn.get(user.encode(), db=table)
            return None if value is None else _profiles.decode(value)

    def have(self, users: Sequence[str]) -> list[bool]:
        """For each user, whether there is a profile."""
        with self.file.read(self._lock_s) as (txn, (table,)):
            return [txn.get(user.encode(), db=table) is not None for user in users]

    def write(self, profiles: Sequence[Profile]) -> None:
        check_users([profile.user_id for profile in profiles])
        with self.file.write() as (txn, (table,)):
            for profile in profiles:
                txn.put(profile.user_id.encode(), _encode(profile.bounded()), db=table)

    def erase(self, users: Sequence[str]) -> None:
        """Delete the users' profiles; their bytes stay on free pages until `compact`."""
        with self.file.write() as (txn, (table,)):
            for key in keys_of(txn.cursor(table), users, bytes):
                txn.delete(key, db=table)

    def users(self) -> list[str]:
        with self.file.read() as (txn, (table,)):
            return [bytes(key).decode() for key in txn.cursor(table).iternext(keys=True, values=False)]

    def retain(self, after_us: int) -> int:
        """Apply `Profile.retained` to every profile; returns how many changed or were deleted."""

        def new_value(key: bytes, value: bytes) -> bytes | None:
            profile = _profiles.decode(value)
            retained = profile.retained(after_us)
            if retained is None:
                return None
            return value if retained == profile else _encode(retained)

        return rewrite(self.file, new_value)
