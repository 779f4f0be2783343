"""Frequency caps in LMDB: reservations of impressions, by day, user and campaign.

Table ``places`` (`reserved` in the code) maps day, user, NUL, campaign to [(reservation ID, until_us)]. Table ``ids``
maps a reservation ID (day, random bytes) to its key in ``places``. The day comes first so that the records of past days
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

from leadre.store.contract import Cap, check_caps, first_day
from leadre.store.lmdb.mapped import MappedFile
from leadre.store.lmdb.tables import PAGE, delete_prefix

PURGED_PER_CALL = 64  # more records than a call of `reserve` adds, so that expired days are used up
POSTED = 0  # the until_us of a reservation whose impression was counted
EMPTY = b"\x90"  # msgpack: an empty list
BOOT = Path("/proc/sys/kernel/random/boot_id")

Reservation = tuple[bytes, int]  # ID, until_us

_reservations = msgspec.msgpack.Decoder(list[Reservation])
_encode = msgspec.msgpack.Encoder().encode


class LmdbCaps:
    """The cap methods of `contract.Store`. ``lock_s`` limits the wait of `reserve` and `void` for other processes."""

    def __init__(self, folder: Path, lock_s: float | None = None) -> None:
        self._lock_s = lock_s
        name = f"caps-{BOOT.read_text().strip() if BOOT.exists() else 'any'}"
        for path in folder.glob("caps-*"):
            if not path.name.startswith(name):
                path.unlink(missing_ok=True)
        self.file = MappedFile.shared(folder / name, ("places", "ids"), sync=False)

    def reserve(
        self, user: str, caps: Sequence[Cap], *, now_us: int, until_us: int, count: int = 1
    ) -> dict[str, list[str]]:
        check_caps(user, caps, now_us, until_us, count)
        granted: dict[str, list[str]] = {}
        with self.file.write(self._lock_s) as (txn, (reserved, ids)):
            for table in (reserved, ids):
                _purge(txn.cursor(table), first_day(now_us), PURGED_PER_CALL)
            for cap in caps:
                key = _day_bytes(cap.day) + f"{user}\0{cap.campaign_id}".encode()
                reservations = _read(txn, reserved, key)
                live = [(id_, until) for id_, until in reservations if until == POSTED or until > now_us]
                for expired in {id_ for id_, _ in reservations} - {id_ for id_, _ in live}:
                    txn.delete(expired, db=ids)
                free = max(0, min(count, cap.limit - len(live)))
                new_ids = [_day_bytes(cap.day) + secrets.token_bytes(12) for _ in range(free)]
                for new_id in new_ids:
                    txn.put(new_id, key, db=ids)
                _write(txn, reserved, key, live + [(new_id, until_us) for new_id in new_ids])
                granted[cap.campaign_id] = [new_id.hex() for new_id in new_ids]
        return granted

    def post(self, reservation: str) -> bool:
        with self.file.write() as (txn, (reserved, ids)):
            posted_id = _id_bytes(reservation)
            key = txn.get(posted_id, db=ids)
            if key is None:
                return False
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
            for day in _days(txn.cursor(reserved)):
                for user in users:
                    for value in delete_prefix(txn.cursor(reserved), day + user.encode() + b"\0"):
                        for id_, _ in _reservations.decode(value):
                            txn.delete(id_, db=ids)

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


def _days(cursor: lmdb.Cursor) -> list[bytes]:
    """Return the distinct days of a table's keys, oldest first."""
    days: list[bytes] = []
    while cursor.set_range(_day_bytes(int.from_bytes(days[-1]) + 1) if days else b"\0"):
        days.append(bytes(cursor.key()[:4]))
    return days


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
