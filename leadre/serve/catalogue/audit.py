"""The audit trail: each change of campaigns, ads, keys, origins and limits, with its author and the values around it.

An entry is a row of ``manage.db``, written in the transaction of its change. Triggers refuse to change or delete a row,
so an entry lives as long as the state folder. No entry has the secret of a key or an ID of a user.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from leadre.clock import Clock, SystemClock

Kind = Literal["campaign", "ad", "import", "key", "origins", "limits", "page", "token keys", "object", "ranker"]
COLUMNS = "number, at_us, key_id, by_account, kind, item_id, advertiser_id, before, after"


@dataclass(frozen=True, kw_only=True)
class Author:
    """The key behind a change. ``key_id`` "": a command on the bidder's machine. ``account`` "": an operator.

    ``is_reviewed``: an operator reviews the author's ads before they are shown.
    """

    key_id: str = ""
    account: str = ""
    is_reviewed: bool = False
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of one item, as JSON before and after it; "" before it existed. ``advertiser_id`` "": of no account."""

    kind: Kind
    item_id: str
    advertiser_id: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A change with its author and time. Numbers rise in the order of the changes."""

    number: int
    at_us: int
    key_id: str
    by_account: str
    kind: Kind
    item_id: str
    advertiser_id: str
    before: str
    after: str


def append(connection: sqlite3.Connection, author: Author, changes: Iterable[Change]) -> None:
    """Add changes inside the transaction that makes them."""
    at_us = author.clock.now_us()
    connection.executemany(
        "INSERT INTO audit (at_us, key_id, by_account, kind, item_id, advertiser_id, before, after)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                at_us,
                author.key_id,
                author.account,
                change.kind,
                change.item_id,
                change.advertiser_id,
                change.before,
                change.after,
            )
            for change in changes
        ),
    )


def read(
    connection: sqlite3.Connection, *, advertiser_id: str = "", item_id: str = "", after: int = 0, limit: int = 100
) -> list[Entry]:
    """Entries in the order of the changes, those behind the number ``after``. "" filters nothing."""
    filters = {name: value for name, value in (("advertiser_id", advertiser_id), ("item_id", item_id)) if value}
    where = " AND ".join(["number > ?", *(f"{column} = ?" for column in filters)])
    query = f"SELECT {COLUMNS} FROM audit WHERE {where} ORDER BY number LIMIT ?"
    names = COLUMNS.split(", ")
    rows = connection.execute(query, [after, *filters.values(), limit])
    return [Entry(**dict(zip(names, row, strict=True))) for row in rows]
