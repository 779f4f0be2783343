"""Users who were erased, remembered without being named.

A token that is still about must not bring them back, so a keyed hash of each stays.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from leadre.serve.events import durable
from leadre.store import erased
from leadre.store.erased import KEY_BYTES


class ErasedUsers:
    """A set of users in a file of `leadre.store.erased`.

    One process adds, others `follow`; whoever makes the file does so before they start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            durable.replace(path, secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n", mode=0o600)
        self._read_at = (0, 0)
        self.follow()

    def follow(self) -> None:
        """Read what another process has added. InputError where the file is damaged."""
        found = self._path.stat()
        if (found.st_ino, found.st_mtime_ns) != self._read_at:
            self._key, self._hashes = erased.read(self._path)
            self._read_at = found.st_ino, found.st_mtime_ns

    def add(self, user_id: str) -> None:
        """From now on ``user_id in`` is true, after a restart too."""
        self._hashes.add(erased.user_hash(self._key, user_id))
        lines = [self._key.hex(), *sorted(self._hashes)]
        durable.replace(self._path, "".join(f"{line}\n" for line in lines).encode(), mode=0o600)

    def __contains__(self, user_id: str) -> bool:
        return bool(self._hashes) and erased.user_hash(self._key, user_id) in self._hashes
