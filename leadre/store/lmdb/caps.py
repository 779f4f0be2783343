"""Frequency caps in LMDB: reservations of impressions, by day, user and campaign.

Table ``places`` (`reserved` in the code) maps day, user, NUL, campaign to [(reservation ID, until_us)]. Table ``ids``
maps a reservation ID (day, tag of the holder, random bytes)
to its key in ``places``. The day comes first so that the records of past days
are at the front.

The file is never synchronised: a killed process loses nothing, but a power cut could leave the file torn. Its name
therefore contains the boot ID, and files of earlier boots are removed.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import lmdb
import msgspec

from leadre.clock import boot_id
from leadre.store.contract import Cap, check_caps, first_day, holder_tag
from leadre.store.lmdb.mapped import MappedFile
from leadre.store.lmdb.tables import PAGE, keys_of

PURGED_PER_CALL = 64  # more records than a call of `reserve` adds, so that expired days are used up
DAY_BYTES, ID_BYTES = 4, 8  # of a reservation ID, around the tag
POSTED = 0  # the until_us of a reservation whose impression was counted
EMPTY = b"\x90"  # msgpack: an empty list

Reservation = tuple[bytes, int]  # ID, until_us

_reservations = msgspec.msgpack.Decoder(list[Reservation])
_encode = msgspec.msgpack.Encoder().encode


class LmdbCaps:
    """The cap methods of `contract.Store`. ``lock_s`` limits the wait of `reserve` and `void` for other processes."""

    def __init__(self, folder: Path, lock_s: float | None = None) -> None:
        self._lock_s = lock_s
        name = f"caps-{boot_id()}"
        for path in folder.glob("caps-*"):
            if not path.name.startswith(name):
                path.unlink(missing_ok=True)
        self.file = MappedFile.shared(folder / name, ("places", "ids"), sync=False)

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
        check_caps(user, caps, now_us, until_us, count)
        tag = holder_tag(holder)
        granted: dict[str, list[str]] = {}
        day = first_day(now_us if certain_us is None else certain_us)
        with self.file.write(self._lock_s) as (txn, (reserved, ids)):
            for table in (reserved, ids):
                _purge(txn.cursor(table), day, PURGED_PER_CALL)
            for cap in caps:
                key = _key(user, cap)
                reservations = _read(txn, reserved, key)
                live = [(id_, until) for id_, until in reservations if until == POSTED or until > now_us]
                for expired in {id_ for id_, _ in reservations} - {id_ for id_, _ in live}:
                    txn.delete(expired, db=ids)
                counted = [id_ for id_, until in live if until == POSTED or id_[DAY_BYTES:].startswith(tag)]
                free = max(0, min(count, cap.limit - len(counted)))
                new_ids = [_day_bytes(cap.day) + tag + secrets.token_bytes(ID_BYTES) for _ in range(free)]
                for new_id in new_ids:
                    txn.put(new_id, key, db=ids)
                _write(txn, reserved, key, live + [(new_id, until_us) for new_id in new_ids])
                granted[cap.campaign_id] = [new_id.hex() for new_id in new_ids]
        return granted

    def post(self, reservation: str, user: str = "", cap: Cap | None = None) -> bool:
        with self.file.write() as (txn, (reserved, ids)):
            posted_id = _id_bytes(reservation)
            key = txn.get(posted_id, db=ids)
            if key is None:
                if cap is None:
                    return False
                key = _key(user, cap)
                txn.put(posted_id, key, db=ids)
                _write(txn, reserved, key, [*_read(txn, reserved, key), (posted_id, POSTED)])
                return True
            reservations = _read(txn, reserved, key)
            changed = [(id_, POSTED if id_ == posted_id else until) for id_, until in reservations]
            _write(txn, reserved, key, changed)
            return True

    def void(self, reservations: Sequence[str]) -> None:
        with self.file.write(self._lock_s) as (txn, (reserved, ids)):
            for void_id in map(_id_bytes, reservations):
                key = txn.get(void_id, db=ids)
                if key is None:
                    continue
                stored = _read(txn, reserved, key)
                if (void_id, POSTED) not in stored:
                    txn.delete(void_id, db=ids)
                    _write(txn, reserved, key, [other for other in stored if other[0] != void_id])

    def erase(self, users: Sequence[str]) -> None:
        """Delete the users' reservations of all days; their bytes stay on free pages until `compact`."""
        with self.file.write() as (txn, (reserved, ids)):
            for key in keys_of(txn.cursor(reserved), users, lambda key: key[4:].partition(b"\0")[0]):
                for id_, _ in _read(txn, reserved, key):
                    txn.delete(id_, db=ids)
                txn.delete(key, db=reserved)

    def purge(self, now_us: int) -> None:
        """Delete the records of past days, in pages of `PAGE`."""
        purged = PAGE
        while purged:
            with self.file.write() as (txn, tables):
                purged = sum(_purge(txn.cursor(table), first_day(now_us), PAGE) for table in tables)


def _purge(cursor: lmdb.Cursor, day: int, max_records: int) -> int:
    """Delete up to ``max_records`` records of days before ``day``; returns how many."""
    for deleted in range(max_records):
        if not cursor.first() or bytes(cursor.key()) >= _day_bytes(day):
            return deleted
        cursor.delete()
    return max_records


def _key(user: str, cap: Cap) -> bytes:
    return _day_bytes(cap.day) + f"{user}\0{cap.campaign_id}".encode()


def _day_bytes(day: int) -> bytes:
    return day.to_bytes(4)


def _read(txn: lmdb.Transaction, reserved: lmdb._Database, key: bytes | memoryview) -> list[Reservation]:
    return _reservations.decode(txn.get(key, db=reserved, default=EMPTY))


def _write(
    txn: lmdb.Transaction, reserved: lmdb._Database, key: bytes | memoryview, reservations: list[Reservation]
) -> None:
    if reservations:
        txn.put(key, _encode(reservations), db=reserved)
    else:
        txn.delete(key, db=reserved)


def _id_bytes(reservation: str) -> bytes:
    """Return the ID's bytes; for a malformed ID, bytes that no reservation has."""
    with suppress(ValueError):
        return bytes.fromhex(reservation)[:64] or b"\0"
    return b"\0"
