"""Schemas of the tables, the same for every source, and the checks of each row.

Every source has four tables: ``ads``; ``contents``: items that a user watched, read or bought outside ads; ``users``:
their profiles; ``events``: their actions. The data stage adds ``requests`` (times at which an ad could be shown),
``inventories`` (the ads live then) and ``bad_rows`` (dropped rows with the reason). A folder of files may also list its
requests, and ``inventory``: the times and placements in which each ad was live.

Money is int64 in billionths of the currency (``_nanos``), time is UTC in microseconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from leadre.data import text
from leadre.errors import InputError

TEXT = pl.String()
WHOLE = pl.Int64()
TIME = pl.Datetime("us", "UTC")
TEXTS = pl.List(pl.String())
DESCRIPTION_CHARS = 4096  # longest text in the tables; the text of an object is shorter (`text.MAX_CHARS`)
ROW = "__row"  # line number of a raw row, as an editor shows it; for Parquet, the row number from 1
FILE = "__file"
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
INVENTORIES = {"inventory_id": TEXT, "ad_id": TEXT}
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
    """(the inventories of ``requests``, those that only ``empty`` requests have), both sorted."""
    own = requests.select("inventory_id").unique()
    only_empty = empty.select("inventory_id").unique().join(own, on="inventory_id", how="anti")
    inventories = inventories.sort("inventory_id", "ad_id")
    first, second = (
        inventories.join(ids, on="inventory_id", how="semi", maintain_order="left") for ids in (own, only_empty)
    )
    return first, second


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
        parts = _cleaned(frame["category_path"].explode(empty_as_null=False, keep_nulls=False), text.MAX_CHARS)
        lengths = frame["category_path"].list.len().fill_null(0).to_list()
        flat = parts.to_list()
        start = 0
        paths = []
        for length in lengths:
            paths.append([part for part in flat[start : start + length] if part])
            start += length
        frame = frame.with_columns(pl.Series("category_path", paths, dtype=TEXTS))
    return frame


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


def conform(name: str, raw: pl.DataFrame, file: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Convert a raw frame to the types of its schema.

    ``raw`` has the column ROW. Text columns (of CSV and JSON lines) are parsed, and a blank cell is a missing value;
    the types of other columns (of Parquet) must fit. Returns (good rows with ROW and FILE, bad rows in the form of
    BAD_ROWS). Raises InputError if a column is missing or a Parquet column has a type that does not fit.
    """
    check_columns(name, [column for column in raw.columns if column != ROW], file)
    schema = SCHEMAS[name]
    known = {column: kind for column, kind in schema.columns.items() if column in raw.columns}
    texts = [column for column in known if raw.schema[column] in (pl.String, pl.Categorical, pl.Enum)]
    cells = pl.col(texts).cast(TEXT).str.strip_chars(" \t\r\n")
    raw = raw.with_columns(pl.when(cells != "").then(cells))
    typed = raw.with_columns([_typed(raw, column, kind, file, name) for column, kind in known.items()])
    bad = []
    for column, kind in known.items():
        before = raw[column]
        after = typed[column]
        is_missing = after.is_null() & before.is_null() if column in schema.required else after.is_null() & False
        is_unparsed = after.is_null() & before.is_not_null()
        bad.append(_bad_rows(name, file, raw, is_missing, column, "is missing"))
        bad.append(_bad_rows(name, file, raw, is_unparsed, column, f"is not {_type_text(kind)}", before))
        if column in schema.allowed:
            is_unknown = after.is_not_null() & ~after.is_in(list(schema.allowed[column]))
            why = f"is not one of {', '.join(schema.allowed[column])}"
            bad.append(_bad_rows(name, file, raw, is_unknown, column, why, before))
        if kind == WHOLE:
            bad.append(_bad_rows(name, file, raw, (after < 0).fill_null(False), column, "is below zero", before))
    bad_rows = pl.concat(bad)
    keep = [*known, *[column for column in raw.columns if schema.others and column not in known and column != ROW]]
    good = typed.filter(~typed[ROW].is_in(bad_rows["row"].unique().to_list())) if bad_rows.height else typed
    return good.select([*keep, ROW]).with_columns(pl.lit(file).alias(FILE)), bad_rows


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
    return rows.select(
        pl.lit(name).alias("table"),
        pl.col(FILE).alias("file"),
        pl.col(ROW).cast(WHOLE).alias("row"),
        pl.lit(column).alias("column"),
        why.cast(TEXT).alias("why"),
    )


def shorten(value: object, limit: int = 60) -> str:
    """A value for a message: quoted, at most ``limit`` characters."""
    shown = str(value)
    return repr(shown if len(shown) <= limit else shown[: limit - 3] + "...")


def _bad_rows(
    name: str, file: str, raw: pl.DataFrame, mask: pl.Series, column: str, why: str, values: pl.Series | None = None
) -> pl.DataFrame:
    """The rows of ``raw`` that ``mask`` selects, in the form of BAD_ROWS; the reasons quote ``values``."""
    if not mask.any():
        return no_bad_rows()
    rows = raw[ROW].filter(mask).cast(WHOLE)
    whys = [why] * rows.len() if values is None else [f"{why}: {shorten(v)}" for v in values.filter(mask).to_list()]
    return pl.DataFrame(
        {
            "table": [name] * rows.len(),
            "file": [file] * rows.len(),
            "row": rows,
            "column": [column] * rows.len(),
            "why": whys,
        },
        schema=BAD_ROWS,
    )


def _cleaned(values: pl.Series, max_chars: int) -> pl.Series:
    """The cleaned values, each distinct value cleaned once; null if no character is left."""
    clean = {value: text.clean(value, max_chars) or None for value in values.drop_nulls().unique().to_list()}
    return pl.Series(values.name, [None if v is None else clean[v] for v in values.to_list()], dtype=TEXT)


def _type_text(kind: pl.DataType) -> str:
    return {WHOLE: "a whole number", TIME: "a time such as 2026-03-01T08:30:00Z", TEXTS: "a list of texts"}.get(
        kind, "text"
    )


def _typed(raw: pl.DataFrame, column: str, kind: pl.DataType, file: str, name: str) -> pl.Expr:
    """The expression that converts a raw column to ``kind``; null for a value that does not fit."""
    raw_kind = raw.schema[column]
    col = pl.col(column)
    if raw_kind == pl.Null:
        return col.cast(kind)
    if raw_kind == pl.String:
        return _from_text(col, kind).alias(column)
    if kind == TEXT and raw_kind.is_integer():
        return col.cast(TEXT)
    if kind == WHOLE and raw_kind.is_integer():
        return col.cast(WHOLE, strict=False)
    if kind == TIME and isinstance(raw_kind, pl.Datetime):
        zoned = col.dt.replace_time_zone("UTC") if raw_kind.time_zone is None else col.dt.convert_time_zone("UTC")
        return zoned.dt.cast_time_unit("us")
    if kind == TIME and raw_kind == pl.Int64:
        return pl.from_epoch(col, time_unit="us").dt.replace_time_zone("UTC")
    if kind == TEXTS and raw_kind == pl.List(pl.String):
        return col
    raise InputError(
        f"{file}: column {column!r} of {name} has the type {raw_kind}; it must be {_type_text(kind)}: {_advice(kind)}"
    )


def _advice(kind: pl.DataType) -> str:
    types = {WHOLE: "money as int64 in billionths of the currency", TIME: "a timestamp in UTC", TEXTS: "list<string>"}
    return "write it as " + types.get(kind, "string")


def _from_text(cells: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """The expression that parses text cells as ``kind``; null for a cell that does not parse."""
    if kind == WHOLE:
        return cells.cast(WHOLE, strict=False)
    if kind == TEXTS:
        is_marked = cells.str.contains(LIST_MARK, literal=True)
        return pl.when(is_marked).then(cells.str.split(LIST_MARK).list.slice(1)).otherwise(cells.str.split(" > "))
    if kind == TIME:
        return _time_from_text(cells)
    return cells


def _time_from_text(cells: pl.Expr) -> pl.Expr:
    """Parse ISO 8601 with an offset or without one (UTC), a date alone, or 15 to 17 digits: microseconds since 1970.

    Ten digits (seconds) and thirteen (milliseconds) are rejected: as microseconds they would be times in 1970.
    """
    micros = pl.when(cells.str.contains(r"^\d{15,17}$")).then(cells).cast(WHOLE, strict=False)
    iso = cells.str.replace(r"^(\d{4}-\d\d-\d\d) (\d)", "${1}T${2}").str.replace(r"[Zz]$", "+00:00")
    iso = iso.str.replace(r"^(\d{4}-\d\d-\d\d)$", "${1}T00:00:00").str.replace(r"(T\d\d:\d\d)([+-]|$)", "${1}:00${2}")
    iso = iso.str.replace(r"(T[\d:.]+)$", "${1}+00:00")
    parsed = iso.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False)
    return pl.coalesce(pl.from_epoch(micros, time_unit="us").dt.replace_time_zone("UTC"), parsed)
