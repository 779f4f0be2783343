"""Schemas of the tables, the same for every source, and the checks of each row.

Every source has four tables: ``ads``; ``contents``: items that a user watched, read or bought outside ads; ``users``:
their profiles; ``events``: their actions. The data stage adds ``requests`` (times at which an ad could be shown),
``inventories`` (the windows in which ads were live, see ``data/inventories.py``) and ``bad_rows`` (dropped rows with
the reason). A folder of files may also list its requests, and ``inventory``: the times and placements in which each ad
was live.

Money is int64 in billionths of the currency (``_nanos``), time is UTC in microseconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.data import text
from leadre.errors import InputError

TEXT = pl.String()
WHOLE = pl.Int64()
TIME = pl.Datetime("us", "UTC")
TEXTS = pl.List(pl.String())
DESCRIPTION_CHARS = 4096  # longest text in the tables; the text of an object is shorter (`text.MAX_CHARS`)
ROW = "__row"  # line number of a raw row, as an editor shows it; for Parquet, the row number from 1
FILE = "__file"
# A character that can be seen (the others are letters by their category), and one that cannot.
_VISIBLE = r"[\p{L}\p{N}\p{P}\p{S}&&[^\x{115f}\x{1160}\x{17b4}\x{17b5}\x{2800}\x{3164}\x{ffa0}]]"
_HIDDEN = r"[\p{C}\p{Z}&&[^ ]]"
LIST_MARK = "\x1f"  # joins list entries that pass through a text column (ASCII unit separator)

DOMAINS = ("content", "ad")
ACTIONS = ("impression", "click", "conversion", "view")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Columns of one table. ``allowed``: the values of a text column."""

    key: str | None
    required: Mapping[str, pl.DataType]
    optional: Mapping[str, pl.DataType] = field(default_factory=dict)
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: bool = False  # further columns are kept as they are (user profiles)
    money: Mapping[str, str] = field(
        default_factory=dict
    )  # column in units of the currency -> its column in billionths

    @property
    def columns(self) -> dict[str, pl.DataType]:
        return {**self.required, **self.optional}


SCHEMAS: dict[str, Schema] = {
    "ads": Schema(
        key="ad_id",
        required={"ad_id": TEXT, "title": TEXT},
        optional={
            "object_id": TEXT,  # the marketing object, which many ads may share; if missing, the ad itself
            "advertiser_id": TEXT,
            "description": TEXT,
            "brand": TEXT,
            "category_path": TEXTS,
            "price_nanos": WHOLE,
            "currency": TEXT,
            "landing_url": TEXT,
            "adomain": TEXT,
            "iab_category": TEXT,
            "creative_sizes": TEXTS,  # "300x250"
            "bid_nanos": WHOLE,
            "bid_type": TEXT,
            "daily_budget_nanos": WHOLE,
            "status": TEXT,
            "starts_at": TIME,
            "ends_at": TIME,
        },
        allowed={"bid_type": ("cpm", "cpc", "cpa"), "status": ("active", "paused", "ended")},
        money={"price": "price_nanos", "bid": "bid_nanos", "daily_budget": "daily_budget_nanos"},
    ),
    "contents": Schema(
        key="content_id",
        required={"content_id": TEXT, "title": TEXT},
        optional={"category_path": TEXTS, "brand": TEXT, "description": TEXT},
    ),
    "users": Schema(key="user_id", required={"user_id": TEXT}, others=True),
    "events": Schema(
        key=None,
        required={"user_id": TEXT, "at": TIME, "domain": TEXT, "item_id": TEXT, "action": TEXT},
        optional={"value_nanos": WHOLE, "placement_id": TEXT, "request_id": TEXT},
        allowed={"domain": DOMAINS, "action": ACTIONS},
        money={"value": "value_nanos"},
    ),
    "inventory": Schema(
        key=None, required={"ad_id": TEXT}, optional={"placement_id": TEXT, "starts_at": TIME, "ends_at": TIME}
    ),
    "requests": Schema(
        key="request_id",
        required={"request_id": TEXT, "user_id": TEXT, "at": TIME},
        optional={"placement_id": TEXT},
    ),
}

# The tables that the data stage adds, and ranked lists, which generate and rank write.
REQUESTS = {"request_id": TEXT, "user_id": TEXT, "at": TIME, "placement_id": TEXT, "inventory_id": TEXT, "split": TEXT}
INVENTORIES = {"inventory_id": TEXT, "ad_id": TEXT, "starts_at": TIME, "ends_at": TIME}
LISTS = {"request": pl.Int32(), "view": pl.String(), "ads": pl.List(pl.Int32()), "scores": pl.List(pl.Float32())}
BAD_ROWS = {"table": TEXT, "file": TEXT, "row": WHOLE, "column": TEXT, "why": TEXT}


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables that a source returns and the artifact holds: columns of SCHEMAS, REQUESTS, INVENTORIES, BAD_ROWS.

    ``empty_requests`` lack a positive action. Ranking reads them beside ``requests``, all other stages do not.
    ``empty_inventories`` holds the inventories that only they have.
    """

    ads: pl.DataFrame
    contents: pl.DataFrame
    users: pl.DataFrame
    events: pl.DataFrame
    requests: pl.DataFrame
    inventories: pl.DataFrame
    bad_rows: pl.DataFrame
    empty_requests: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REQUESTS))
    empty_inventories: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=INVENTORIES))

    @classmethod
    def names(cls) -> list[str]:
        """The tables' names, which are the stems of their files."""
        return list(cls.__dataclass_fields__)

    def named(self) -> dict[str, pl.DataFrame]:
        """Name -> frame."""
        return {name: getattr(self, name) for name in self.names()}


def inventories_of(
    requests: pl.DataFrame, empty: pl.DataFrame, inventories: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(the inventories of ``requests`` with the windows of all, those that only ``empty`` requests have), sorted."""
    inventories = inventories.sort(list(INVENTORIES))
    own = requests["inventory_id"].unique()
    of_empty = pl.col("inventory_id").is_in(empty["inventory_id"].unique().implode())
    of_requests = pl.col("inventory_id").is_null() | pl.col("inventory_id").is_in(own.implode())
    return inventories.filter(of_requests), inventories.filter(of_empty & ~of_requests)


def always_live(ads: pl.DataFrame) -> pl.DataFrame:
    """The table ``inventories`` of rows with ``inventory_id`` and ``ad_id`` alone: windows without bounds."""
    return ads.with_columns(starts_at=pl.lit(None, TIME), ends_at=pl.lit(None, TIME)).select(list(INVENTORIES))


def positions(values: pl.Series, vocabulary: pl.Series, *, missing: bool = False) -> NDArray[np.int32]:
    """Position of each value in ``vocabulary`` (distinct); -1 where absent, which is an error unless ``missing``."""
    table = pl.DataFrame({"value": vocabulary, "index": pl.int_range(len(vocabulary), dtype=pl.Int32, eager=True)})
    index = pl.DataFrame({"value": values}).join(table, on="value", how="left", maintain_order="left")["index"]
    assert missing or index.null_count() == 0, f"{index.null_count()} of {len(values)} {values.name} are unknown"
    result: NDArray[np.int32] = index.fill_null(-1).to_numpy().astype(np.int32)
    return result


def micros(at: pl.Series) -> NDArray[np.int64]:
    """Times as microseconds since 1970 UTC."""
    result: NDArray[np.int64] = at.dt.epoch("us").to_numpy().astype(np.int64)
    return result


def no_bad_rows() -> pl.DataFrame:
    return pl.DataFrame(schema=BAD_ROWS)


def complete(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with all columns of its schema, in order; missing optional columns are null. Asserts the types."""
    schema = SCHEMAS[name]
    missing = [
        pl.lit(None, kind).alias(column) for column, kind in schema.columns.items() if column not in frame.columns
    ]
    others = [column for column in frame.columns if column not in schema.columns] if schema.others else []
    frame = frame.with_columns(missing).select([*schema.columns, *others])
    wrong = {column: frame.schema[column] for column, kind in schema.columns.items() if frame.schema[column] != kind}
    assert not wrong, f"{name}: {wrong}"
    return frame


def sanitise(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with its texts cleaned (``text.clean``): titles, brands, descriptions, paths, profiles; no IDs."""
    profile = [column for column, kind in frame.schema.items() if SCHEMAS[name].others and kind == TEXT]
    columns = [c for c in ("title", "brand", "description", *profile) if c in frame.columns and c != SCHEMAS[name].key]
    for column in columns:
        cleaned = _cleaned(frame[column], DESCRIPTION_CHARS)
        frame = frame.with_columns(cleaned.fill_null("") if column == "title" else cleaned)
    if "category_path" in frame.columns:
        parts = frame["category_path"].explode().drop_nulls().unique()
        part = pl.element().replace(parts, _cleaned(parts, text.MAX_CHARS)) if len(parts) else pl.element()
        frame = frame.with_columns(pl.col("category_path").fill_null([]).list.eval(part.drop_nulls()))
    return frame


def plain_name(column: str) -> str:
    """The name by which a column of a file is compared with the schema: without blanks around it, in lower case."""
    return column.strip().lower()


def raw_columns(name: str) -> dict[str, pl.DataType]:
    """The columns that files of a table may have: those of the schema, and money in units of a currency."""
    schema = SCHEMAS[name]
    return {**schema.columns, **dict.fromkeys(schema.money, TEXT)}


@dataclass(frozen=True, kw_only=True)
class FileColumns:
    """The columns that are read from the files of a table: plain names (`plain_name`) and types.

    The name of a field of an object (JSON) or struct (Parquet) has that of its column before a dot: ``geo.country``.
    ``others``: all further columns are read as well. ``header``: the names of the columns of files without a header.
    """

    table: str
    known: Mapping[str, pl.DataType]
    others: bool = False
    header: tuple[str, ...] = ()
    quoted: bool = True  # in separated files, quotes around a field are no text
    amounts: tuple[str, ...] = ()  # columns of money in units of a currency

    @cached_property
    def parents(self) -> frozenset[str]:
        """Plain names of columns of which fields are read."""
        return frozenset(name[: dot.start()] for name in self.known for dot in re.finditer(r"\.", name))

    def reads(self, column: str) -> bool:
        """Whether values of the column are loaded."""
        name = plain_name(column)
        return self.others or name in self.known or name in self.parents


def file_columns(name: str) -> FileColumns:
    """The columns of files that have the schema of a table."""
    schema = SCHEMAS[name]
    return FileColumns(table=name, known=raw_columns(name), others=schema.others, amounts=tuple(schema.money))


def check_reserved(columns: Iterable[str], file: str) -> None:
    """Raise InputError for a column with a name under which rows carry their place."""
    for column in columns:
        if column in (ROW, FILE):
            raise InputError(f"{file}: column {column!r} has a name that is reserved for the place of a row; rename it")


def check_columns(name: str, columns: list[str], file: str) -> None:
    """Raise InputError if a required column is missing; the message names the most similar column."""
    schema = SCHEMAS[name]
    for column in schema.required:
        if column in columns:
            continue
        unknown = [other for other in columns if other not in schema.columns]
        similar = difflib.get_close_matches(column, unknown, n=1, cutoff=0.6)
        hint = f"rename {similar[0]!r} to it" if similar else f"the file has {', '.join(columns) or 'no columns'}"
        raise InputError(f"{file}: column {column!r} is missing, and {name} needs it; {hint}")


def unread_columns(read: FileColumns, columns: Iterable[str], expected: Iterable[str]) -> str | None:
    """The names of columns that are not read, with the nearest of the ``expected`` names; None if all are read."""
    unread = [column for column in columns if not read.reads(column) and column not in (ROW, FILE)]
    if not unread:
        return None
    free = [column for column in expected if column not in {plain_name(column) for column in columns}]
    near = {c: difflib.get_close_matches(plain_name(c), free, n=1, cutoff=0.75) for c in unread}
    shown = [f"{c!r} (rename it if it is {near[c][0]!r})" if near[c] else repr(c) for c in unread]
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    shown.sort(key=lambda text: "rename" not in text)
    return f"not read: column{'s' * (len(shown) > 1)} {', '.join(shown[:10])}{more}"


def check_unique(name: str, frame: pl.DataFrame) -> None:
    """Raise InputError if two rows share an ID: an event with this ID would be ambiguous."""
    key = SCHEMAS[name].key
    assert key is not None, name
    repeated = frame.filter(frame[key].is_duplicated())
    if repeated.height:
        value = repeated[key][0]
        rows = repeated.filter(pl.col(key) == value)
        places = " and ".join(f"{file}, row {row}" for row, file in rows.select(ROW, FILE).head(2).iter_rows())
        count = repeated[key].n_unique()
        more = f" ({count:,} IDs are repeated)" if count > 1 else ""
        raise InputError(f"{places}, column {key!r}: both are {shorten(value)}{more}; keep one row for each ID")


def check_share(bad_rows: pl.DataFrame, read_rows: Mapping[str, int], max_share: float) -> None:
    """Raise InputError if more than ``max_share`` of a table's rows are bad; the message has reasons and examples.

    ``read_rows``: rows read, by table.
    """
    for name, total in read_rows.items():
        bad = bad_rows.filter(pl.col("table") == name)
        count = bad.select("file", "row").n_unique() if bad.height else 0
        if count <= max_share * total:
            continue
        reasons = bad.with_columns(reason=pl.col("why").str.split(": ").list.first())
        lines = [
            f"  {n:,} x column {column!r} {reason}; first: {file}, row {row}: {why}"
            for column, reason, n, file, row, why in reasons.group_by("column", "reason", maintain_order=True)
            .agg(pl.len().alias("n"), pl.first("file"), pl.first("row"), pl.first("why"))
            .sort("n", descending=True)
            .head(5)
            .iter_rows()
        ]
        cure = "repair the rows or raise the limit" if count < total / 2 else "correct the column as below"
        raise InputError(
            f"{name}: {count:,} of {total:,} rows are bad, more than --max-bad-share {max_share:g} allows; {cure}\n"
            + "\n".join(lines)
        )


def as_bad_rows(name: str, rows: pl.DataFrame, column: str, why: pl.Expr) -> pl.DataFrame:
    """``rows`` (with ROW and FILE) in the form of BAD_ROWS; ``why`` is an expression over their columns."""
    bad_rows = rows.select(
        pl.lit(name).alias("table"),
        pl.col(FILE).alias("file"),
        pl.col(ROW).cast(WHOLE).alias("row"),
        pl.lit(column).alias("column"),
        why.cast(TEXT).alias("why"),
    )
    return bad_rows.with_columns(escaped(bad_rows["why"]))


def has_nothing_visible(texts: pl.Series) -> pl.Series:
    """Mask of the texts of which `text.clean` leaves nothing; false for a missing text."""
    may_be = (~texts.str.contains(_VISIBLE)).fill_null(False)
    return may_be.scatter(may_be.arg_true(), [not text.clean(value) for value in texts.filter(may_be).to_list()])


def escaped(texts: pl.Series) -> pl.Series:
    """The texts with escapes for characters that no reader sees, such as ``\\xa0``, a blank that breaks no line."""
    is_hidden = texts.str.contains(_HIDDEN).fill_null(False)
    shown = [
        "".join(char if char.isprintable() else repr(char)[1:-1] for char in value)
        for value in texts.filter(is_hidden).to_list()
    ]
    return texts.scatter(is_hidden.arg_true(), pl.Series(shown, dtype=pl.String))


def shorten(value: object, limit: int = 60) -> str:
    """A value for a message: quoted, at most ``limit`` characters."""
    shown = str(value)
    return repr(shown if len(shown) <= limit else shown[: limit - 3] + "...")


def _cleaned(values: pl.Series, max_chars: int) -> pl.Series:
    """The cleaned values, each distinct value cleaned once; null if no character is left."""
    distinct = values.drop_nulls().unique()
    clean = [text.clean(value, max_chars) or None for value in distinct.to_list()]
    return values.replace(distinct, pl.Series(clean, dtype=TEXT)) if len(distinct) else values
