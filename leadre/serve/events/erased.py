"""Erased users, stored as keyed hashes.

Tokens signed before an erasure still carry the user's ID; events that return with them must not restore the user.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from leadre.serve.events import durable
from leadre.store import erased
from leadre.store.erased import KEY_BYTES


class ErasedUsers:
    """The set of erased users in a file of `leadre.store.erased`. The file is created if it is missing.

    One process adds users; other processes `follow`, and start after the file exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            durable.replace(path, erased.encode(secrets.token_bytes(KEY_BYTES), set()), mode=0o600)
        self._version = (0, 0)  # inode and modification time of the file that was read last
        self.follow()

    def follow(self) -> bool:
        """Read the file if another process replaced it; whether one has. InputError if it is damaged."""
        stat = self._path.stat()
        version = (stat.st_ino, stat.st_mtime_ns)
        if version == self._version:
            return False
        self._key, self._hashes = erased.read(self._path)
        self._version = version
        return True

    def add(self, user_id: str) -> None:
        """Add a user; on return the file with the hash is on the disk."""
        self._hashes.add(erased.user_hash(self._key, user_id))
        durable.replace(self._path, erased.encode(self._key, self._hashes), mode=0o600)

    def __contains__(self, user_id: str) -> bool:
        return erased.is_erased(self._key, self._hashes, user_id)
