"""Operations on LMDB tables that lists, profiles and caps share: range scan, range delete, paged rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import lmdb

from leadre.extended_ids import covers
from leadre.store.lmdb.mapped import MappedFile

PAGE = 1000  # records per transaction, so that other writers wait briefly


def scan_prefix(cursor: lmdb.Cursor, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of keys that begin with ``prefix``, from ``start`` on."""
    has_record = cursor.set_range(start)
    while has_record and bytes(cursor.key()).startswith(prefix):
        yield bytes(cursor.key()), bytes(cursor.value())
        has_record = cursor.next()


def delete_prefix(cursor: lmdb.Cursor, prefix: bytes) -> list[bytes]:
    """Delete the records whose key begins with ``prefix``; returns their values."""
    values = []
    while cursor.set_range(prefix) and bytes(cursor.key()).startswith(prefix):
        values.append(bytes(cursor.value()))
        cursor.delete()
    return values


def keys_of(cursor: lmdb.Cursor, users: Sequence[str], user_of: Callable[[bytes], bytes]) -> list[bytes]:
    """Return the keys of the users whom an erasure of ``users`` covers. ``user_of``: key -> bytes of its user ID."""
    ends = tuple(user.encode() for user in users)  # also that of an extended ID
    return [
        bytes(key)
        for key in cursor.iternext(keys=True, values=False)
        if (user := user_of(bytes(key))).endswith(ends) and covers(users, user.decode())
    ]


def rewrite(file: MappedFile, new_value: Callable[[bytes, bytes], bytes | None]) -> int:
    """Replace each value of a file's last table by ``new_value(key, value)``; None deletes the record.

    Returns the number of changed records. Works in pages of `PAGE`, so that other writers wait briefly.
    """
    start = b""
    changed = 0
    while True:
        with file.write() as (txn, tables):
            table = tables[-1]
            page = list(islice(scan_prefix(txn.cursor(table), b"", start), PAGE))
            for key, value in page:
                new = new_value(key, value)
                if new != value:
                    changed += 1
                    txn.delete(key, db=table) if new is None else txn.put(key, new, db=table)
        if len(page) < PAGE:
            return changed
        start = page[-1][0] + b"\0"
