"""Amazon 2014 reviews, 5-core, with the leave-one-out protocol of the sequential-recommendation papers.

Two forms, recognised by the files in ``path``:

    compact     ``*.seq.txt.gz`` (user, then items in order) and ``*.items.jsonl.gz`` (asin, title, categories, ...)
    original    ``reviews_*_5.json[.gz]`` (strict JSON lines) and ``meta_*.json[.gz]`` (Python literals, one a line)

Every interaction is a conversion in the ad domain and every item is always live. The last item of a user is the test,
the last but one validation, the others but the first train (the first has no history). Only the order is known: 9,719
of 22,363 Beauty users have validation and test items on the same day. So the time of an item is its position in the
user's sequence, in seconds; all validation items have one later time and all test items another. As in any other log,
training time then ends before the first held-out item.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from leadre.data import tables
from leadre.data.tables import Tables
from leadre.errors import InputError
from leadre.units import US_PER_S

INVENTORY = "all-items"
MAX_LINE_BYTES = 4 << 20
_START_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * US_PER_S
_VALID_US = _START_US + 1_000_000 * US_PER_S
_TEST_US = _START_US + 2_000_000 * US_PER_S
_ASIN = re.compile(r"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")

BadRows = list[tuple[str, str, int, str, str]]  # columns as in BAD_ROWS


def read(path: Path, max_bad_share: float = 0.01) -> Tables:
    """Read either form. Raises InputError if files are missing or more than ``max_bad_share`` of the rows are bad."""
    if not path.is_dir():
        raise InputError(f"{path}: not a folder; --path is the folder of the reviews and the items")
    bad: BadRows = []
    compact = sorted(path.glob("*.seq.txt.gz"))
    reviews = sorted([*path.glob("reviews_*.json"), *path.glob("reviews_*.json.gz")])
    if len(compact) + len(reviews) != 1:
        names = ", ".join(entry.name for entry in compact + reviews) or "none"
        raise InputError(
            f"{path}: expected one *.seq.txt.gz or one reviews_*.json[.gz], found {names}; keep exactly one"
        )
    if compact:
        sequences, total = _compact_sequences(compact[0], bad)
        items = _compact_items(_single_file(path, ("*.items.jsonl.gz",)), bad)
    else:
        sequences, total = _review_sequences(reviews[0], bad)
        reviewed = {item for sequence in sequences.values() for item in sequence}
        items = _meta_items(_single_file(path, ("meta_*.json", "meta_*.json.gz")), reviewed, bad)
    bad_rows = pl.DataFrame(bad, schema=tables.BAD_ROWS, orient="row")
    tables.check_share(bad_rows, {"events": total, "ads": max(1, len(items))}, max_bad_share)
    return _tables(sequences, items, bad_rows)


def _tables(sequences: dict[str, list[str]], items: dict[str, dict[str, Any]], bad_rows: pl.DataFrame) -> Tables:
    """Sequences of 3 or more items -> tables; the title of an item without metadata is its ID."""
    sequences = {user: sequence for user, sequence in sequences.items() if len(sequence) >= 3}
    if not sequences:
        raise InputError(
            "no user has 3 items, the least for leave-one-out (a training, a validation and a test item);"
            " check the reviews"
        )
    users = list(sequences)
    lengths = np.array([len(sequences[user]) for user in users])
    flat = [item for user in users for item in sequences[user]]
    position = np.concatenate([np.arange(n) for n in lengths])
    left = np.repeat(lengths, lengths) - position  # 1 = last
    assert lengths.max() < 1_000_000, (
        f"a sequence of {lengths.max()} items, at most 999,999: it would overlap the validation time"
    )
    at_us = np.where(left == 1, _TEST_US, np.where(left == 2, _VALID_US, _START_US + position * US_PER_S))
    at = pl.from_epoch(pl.Series("at", at_us), time_unit="us").dt.replace_time_zone("UTC")
    user_column = pl.Series("user_id", users).gather(np.repeat(np.arange(len(users)), lengths))
    split = pl.Series("split", np.where(left == 1, "test", np.where(left == 2, "valid", "train")))
    events = pl.DataFrame({"user_id": user_column, "at": at, "item_id": flat}).with_columns(
        domain=pl.lit("ad"),
        action=pl.lit("conversion"),
        value_nanos=pl.lit(0, pl.Int64),
        request_id=pl.format("{}-{}", user_column, pl.Series(position)),
    )
    requests = events.with_columns(split, placement_id=pl.lit("shop"), inventory_id=pl.lit(INVENTORY))
    ads = _ads(sorted(set(flat)), items)
    return Tables(
        ads=ads,
        contents=pl.DataFrame(schema=tables.SCHEMAS["contents"].columns),
        users=pl.DataFrame({"user_id": users}),
        events=tables.complete("events", events),
        requests=requests.filter(pl.Series(position > 0)).select(list(tables.REQUESTS)),
        inventories=tables.always_live(ads.select("ad_id", inventory_id=pl.lit(INVENTORY))),
        bad_rows=bad_rows,
    )


def _ads(names: list[str], items: dict[str, dict[str, Any]]) -> pl.DataFrame:
    known = [items.get(name, {}) for name in names]
    paths = [[str(part) for part in next(iter(item.get("categories") or [[]]), [])] for item in known]
    frame = pl.DataFrame(
        {
            "ad_id": names,
            "object_id": names,
            "title": [str(item.get("title") or name) for item, name in zip(known, names, strict=True)],
            "brand": pl.Series([_brand(item) for item in known], dtype=pl.String),
            "category_path": pl.Series(paths, dtype=pl.List(pl.String)),
            "description": pl.Series([_text(item.get("description")) for item in known], dtype=pl.String),
            "price_nanos": pl.Series([_price_nanos(item.get("price")) for item in known], dtype=pl.Int64),
            "currency": ["USD"] * len(names),
            "status": ["active"] * len(names),
        }
    )
    return tables.complete("ads", frame)


def _compact_sequences(path: Path, bad: BadRows) -> tuple[dict[str, list[str]], int]:
    sequences: dict[str, list[str]] = {}
    row = 0
    for row, line in _lines(path, "events", bad):
        user, *items = line.split()
        if user in sequences:
            raise InputError(
                f"{path.name}, row {row}, column 'user': {user!r} occurs again; keep one line for each user"
            )
        sequences[user] = items
    return sequences, row


def _compact_items(path: Path, bad: BadRows) -> dict[str, dict[str, Any]]:
    items: dict[str, dict[str, Any]] = {}
    for row, line in _lines(path, "ads", bad):
        item = _parse(json.loads, line, path, row, "ads", bad)
        if item is not None:
            attributes = item.get("attributes")
            first = attributes[0] if isinstance(attributes, list) and attributes else None  # the brand comes first
            _add(items, item | {"brand": first}, path, row, bad)
    return items


def _review_sequences(path: Path, bad: BadRows) -> tuple[dict[str, list[str]], int]:
    """Items by review time; those of one day in file order, as in the papers."""
    reviews: dict[str, list[tuple[int, str]]] = defaultdict(list)
    row = 0
    for row, line in _lines(path, "events", bad):
        review = _parse(json.loads, line, path, row, "events", bad)
        if review is None:
            continue
        user, item, at_s = (review.get(key) for key in ("reviewerID", "asin", "unixReviewTime"))
        for key, value, kind in (("reviewerID", user, str), ("asin", item, str), ("unixReviewTime", at_s, int)):
            if not isinstance(value, kind):
                bad.append(("events", path.name, row, key, f"is not {kind.__name__}: {tables.shorten(value)}"))
                break
        else:
            reviews[str(user)].append((int(str(at_s)), str(item)))
    ordered = {user: sorted(entries, key=lambda entry: entry[0]) for user, entries in reviews.items()}
    return {user: [item for _, item in entries] for user, entries in ordered.items()}, row


def _meta_items(path: Path, reviewed: set[str], bad: BadRows) -> dict[str, dict[str, Any]]:
    """Metadata of the reviewed items. The lines are Python literals; ``literal_eval`` executes no code."""
    items: dict[str, dict[str, Any]] = {}
    for row, line in _lines(path, "ads", bad):
        asin = _ASIN.search(line)
        if asin is not None and asin[1] not in reviewed:
            continue  # the metadata covers the whole shop; parsing all of it would take minutes
        item = _parse(ast.literal_eval, line, path, row, "ads", bad)
        if item is not None and item.get("asin") in reviewed:
            _add(items, item, path, row, bad)
    return items


def _add(items: dict[str, dict[str, Any]], item: dict[str, Any], path: Path, row: int, bad: BadRows) -> None:
    asin = item.get("asin")
    if not isinstance(asin, str) or not asin:
        bad.append(("ads", path.name, row, "asin", "is missing"))
        return
    if asin in items:
        raise InputError(f"{path.name}, row {row}, column 'asin': {asin!r} occurs again; keep one row for each item")
    items[asin] = item


def _parse(parser: Any, line: str, path: Path, row: int, table: str, bad: BadRows) -> dict[str, Any] | None:
    try:
        parsed = parser(line)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # MemoryError: literal_eval's nesting limit
        bad.append((table, path.name, row, "", f"cannot be read: {tables.shorten(error)}"))
        return None
    if not isinstance(parsed, dict):
        bad.append((table, path.name, row, "", f"is not an object: {tables.shorten(line)}"))
        return None
    return parsed


def _lines(path: Path, table: str, bad: BadRows) -> Iterator[tuple[int, str]]:
    """(row, text) of the non-blank lines. Invalid UTF-8 makes a bad row, a line over MAX_LINE_BYTES an InputError."""
    row = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                row += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(
                        f"{path.name}, row {row}: a line over {MAX_LINE_BYTES:,} bytes;"
                        " check that the file has one item a line"
                    )
                try:
                    text = line.decode().strip()
                except UnicodeDecodeError:
                    bad.append((table, path.name, row, "", "is not valid UTF-8"))
                    continue
                if text:
                    yield row, text
    except (OSError, EOFError) as error:
        raise InputError(f"{path.name}, after row {row}: cannot be read ({error}); download the file again") from error
    if row == 0:
        raise InputError(f"{path.name}: the file is empty; download it again")


def _single_file(path: Path, patterns: tuple[str, ...]) -> Path:
    files = sorted(entry for pattern in patterns for entry in path.glob(pattern))
    if len(files) != 1:
        names = ", ".join(entry.name for entry in files) or "none"
        raise InputError(f"{path}: expected one file {' or '.join(patterns)}, found {names}; keep exactly one")
    return files[0]


def _brand(item: dict[str, Any]) -> str | None:
    brand = item.get("brand")
    return str(brand) if brand and brand != "Unknown" else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _price_nanos(price: object) -> int | None:
    """Dollars -> billionths, through whole cents."""
    return round(price * 100) * 10_000_000 if isinstance(price, int | float) and not isinstance(price, bool) else None
