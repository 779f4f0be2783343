"""IDs that callers choose, an exchange's request ID and an advertiser's event ID, stored as keyed hashes alone.

A caller may put a user's ID into them. A lookup by the ID and the recognition of a repetition need no clear text: the
hash of the same ID is the same. Files of earlier releases hold clear IDs, which a start of the writer replaces.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

from leadre import database
from leadre.serve.events.key_file import open_key

CLEAN = 0x4C454144  # `application_id` of a ledger without clear event IDs, free pages included
_is_hash = re.compile(r"#[0-9a-f]{32}").fullmatch


class CallerIds:
    """Keyed hashes of callers' IDs. The key is in the state folder, so a backup knows the IDs again."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the key file, or create it. InputError for a file with any other content."""
        return cls(open_key(path))

    def hash(self, kind: Literal["request", "event"], caller_id: str) -> str:
        """The hash of an ID; "" of "". A request and an event of one ID have different hashes."""
        if not caller_id:
            return ""
        text = f"{kind}\0{caller_id}".encode(errors="surrogatepass")
        return f"#{hashlib.blake2b(text, key=self._key, digest_size=16).hexdigest()}"

    def hash_once(self, kind: Literal["request", "event"], logged_id: str) -> str:
        """The hash of an ID that may be one already, as in a log that earlier releases began."""
        return logged_id if _is_hash(logged_id) else self.hash(kind, logged_id)


def clean_ledger(connection: sqlite3.Connection, caller_ids: CallerIds) -> None:
    """Replace the clear event IDs of an earlier release by their hashes, also in free pages and in the WAL file.

    A disk without room for the copy that this takes leaves clear bytes in free pages; the next start tries again.
    """
    renamed = [
        (f"{scope}/{campaign_id}/{caller_ids.hash('event', event_id)}", key)
        for scope in ("conv", "test")  # as `leadre.serve.events.outcomes` makes the keys of conversions
        for key, campaign_id in connection.execute(
            "SELECT event_id, campaign_id FROM entries WHERE event_id >= ? AND event_id < ?", (f"{scope}/", f"{scope}0")
        )
        if not _is_hash(event_id := key[len(f"{scope}/{campaign_id}/") :])
    ]
    if renamed:
        with database.transaction(connection):
            connection.executemany("UPDATE OR REPLACE entries SET event_id = ? WHERE event_id = ?", renamed)
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    if renamed or mark != CLEAN:
        with suppress(sqlite3.OperationalError):
            connection.execute("VACUUM")
            connection.execute(f"PRAGMA application_id={CLEAN}")
            database.truncate_wal(connection)
