"""Raw rows -> the types of their schema, with a reason for each cell that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from leadre.data import lists, money, times
from leadre.data.money import MAX_UNITS
from leadre.data.sources.options import LIST_SEPARATOR
from leadre.data.tables import (
    BAD_ROWS,
    FILE,
    ROW,
    SCHEMAS,
    TEXT,
    TEXTS,
    TIME,
    WHOLE,
    check_columns,
    has_nothing_visible,
    no_bad_rows,
    plain_name,
    raw_columns,
    shorten,
)
from leadre.data.times import TimeFormat
from leadre.errors import InputError
from leadre.units import NANOS_PER_CPM, NANOS_PER_UNIT

OPEN_ENDS = ("ends_at",)  # columns in which a time after the valid range means never


@dataclass(frozen=True, kw_only=True)
class CellFormat:
    """How cells of files are written. ``numbers``: the profile columns that are numbers.

    ``max_median_amount``: a column of money in units of the currency with a larger median is refused.
    """

    time: TimeFormat = field(default_factory=TimeFormat)
    decimal_comma: bool = False
    max_median_amount: float = MAX_UNITS
    numbers: tuple[str, ...] = ()
    list_separator: str = LIST_SEPARATOR


def conform(
    name: str, raw: pl.DataFrame, file: str, form: CellFormat | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Convert a raw frame to the types of its schema.

    ``raw`` has the column ROW. Text columns (of CSV and JSON) are parsed, and a blank cell is a missing value; the
    types of other columns (of Parquet) must fit. Money in units of a currency is converted to billionths. Returns (good
    rows with ROW and FILE, bad rows in the form of BAD_ROWS). Raises InputError if a column is missing or occurs in two
    forms, if a Parquet column has a type that does not fit, or if a column of units seems to hold billionths.
    """
    form = form or CellFormat()
    raw = _with_plain_names(name, raw, file)
    schema = SCHEMAS[name]
    known = {column: kind for column, kind in raw_columns(name).items() if column in raw.columns}
    texts = [column for column in known if raw.schema[column] in (pl.String, pl.Categorical, pl.Enum)]
    raw = raw.with_columns(pl.col(texts).cast(TEXT).str.strip_chars(" \t\r\n"))
    with_blanks = [column for column in texts if (raw[column].str.len_bytes() == 0).any()]
    raw = raw.with_columns(pl.when(pl.col(with_blanks) != "").then(pl.col(with_blanks)))
    typed = raw.select(ROW)
    bad = []
    for column, kind in known.items():
        place = f"{file}: column {column!r} of {name}"
        values, why = _typed(raw[column], kind, place, form, column in schema.money)
        if column == "title":
            values = values.set(has_nothing_visible(values), None)
        target = schema.money.get(column, column)
        if column in schema.money:
            _check_unit(values, target, place, form.max_median_amount)
        typed = typed.with_columns(values.alias(target))
        if column in schema.required:
            bad.append(_bad_rows(name, file, raw, values.is_null() & why.is_null(), column, "is missing"))
        bad.append(_bad_rows(name, file, raw, why.is_not_null(), column, why))
        if column in schema.allowed:
            is_unknown = values.is_not_null() & ~values.is_in(list(schema.allowed[column]))
            allowed = f"is not one of {', '.join(schema.allowed[column])}"
            bad.append(_bad_rows(name, file, raw, is_unknown, column, allowed, raw[column]))
        if values.dtype == WHOLE:
            bad.append(_bad_rows(name, file, raw, (values < 0).fill_null(False), column, "is below zero", raw[column]))
    if "bid" in known:
        typed, without_type = _bid_of_an_impression(typed)
        why_not = "needs a bid_type (cpm, cpc or cpa), which says what it pays for"
        bad.append(_bad_rows(name, file, raw, without_type, "bid", why_not, raw["bid"]))
    if schema.others:
        for column in [column for column in raw.columns if column not in known and column != ROW]:
            values, is_faulty = _profile(raw[column], column in form.numbers)
            typed = typed.with_columns(values)
            bad.append(_bad_rows(name, file, raw, is_faulty, column, "is not a number", raw[column]))
    bad_rows = pl.concat([no_bad_rows(), *bad])
    good = typed.filter(~typed[ROW].is_in(bad_rows["row"].unique().to_list())) if bad_rows.height else typed
    return good.select(pl.exclude(ROW), ROW).with_columns(pl.lit(file).alias(FILE)), bad_rows


def _with_plain_names(name: str, raw: pl.DataFrame, file: str) -> pl.DataFrame:
    """The frame with the names of the schema, and without columns that the table does not read."""
    schema = SCHEMAS[name]
    known = raw_columns(name)
    plain = {column: plain_name(column) for column in raw.columns if column != ROW}
    renamed = {c: to for c, to in plain.items() if c != to and to in known and to not in raw.columns}
    repeated = [c for c, to in renamed.items() if list(renamed.values()).count(to) > 1]
    if repeated:
        raise InputError(f"{file}: the columns {', '.join(map(repr, repeated))} have one name; keep one of them")
    raw = raw.rename(renamed)
    for decimal, whole in schema.money.items():
        if decimal in raw.columns and whole in raw.columns:
            raise InputError(
                f"{file}: has both {decimal!r} and {whole!r}, the same amount in two units; keep one of them"
            )
    check_columns(name, [column for column in raw.columns if column != ROW], file)
    return raw.select([c for c in raw.columns if c == ROW or c in known or schema.others])


def _typed(
    raw: pl.Series, kind: pl.DataType, place: str, form: CellFormat, is_money: bool
) -> tuple[pl.Series, pl.Series]:
    """(the column as ``kind``, null where missing or not usable; reasons as text, null where there is none)."""
    raw_kind = raw.dtype
    no_reason = pl.repeat(None, len(raw), dtype=TEXT, eager=True)
    if raw_kind == pl.Null:
        return raw.cast(WHOLE if is_money else kind), no_reason
    if is_money and (raw_kind == TEXT or raw_kind.is_numeric()):
        return money.nanos(raw, decimal_comma=form.decimal_comma)
    if is_money:
        raise InputError(f"{place} has the type {raw_kind}; it must be an amount: write it as a decimal or a number")
    is_number = raw_kind.is_integer() or (raw_kind.is_float() and form.time.unit in ("s", "ms"))
    if kind == TIME and (raw_kind in (TEXT, pl.Date) or isinstance(raw_kind, pl.Datetime) or is_number):
        micros, why = times.micros(raw, form.time, open_end=raw.name in OPEN_ENDS)
        return micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"), why
    if kind == TEXTS and raw_kind == TEXT:
        return lists.entries(raw, form.list_separator), no_reason
    if raw_kind == TEXT:
        values = pl.DataFrame(raw).select(_from_text(pl.col(raw.name), kind)).to_series()
    elif kind in (TEXT, WHOLE) and raw_kind.is_integer():
        values = raw.cast(kind, strict=False)
    elif kind == TEXTS and raw_kind == pl.List(pl.String):
        values = raw
    else:
        raise InputError(f"{place} has the type {raw_kind}; it must be {_type_text(kind)}: {_advice(kind, raw_kind)}")
    is_faulty = values.is_null() & raw.is_not_null()
    if not is_faulty.any():
        return values, no_reason
    reasons = [f"is not {_type_text(kind)}: {shorten(value)}" for value in raw.filter(is_faulty).to_list()]
    return values, no_reason.scatter(is_faulty.arg_true(), pl.Series(reasons))


def _check_unit(nanos: pl.Series, target: str, place: str, max_median_amount: float) -> None:
    """Raise InputError if the usual amount is too large for units of a currency, as billionths and millionths are.

    The median decides: one expensive thing is no fault of the column.
    """
    median_nanos = nanos.filter(nanos > 0).median()
    if isinstance(median_nanos, float) and median_nanos > max_median_amount * NANOS_PER_UNIT:
        raise InputError(
            f"{place}: half of the amounts are {median_nanos / NANOS_PER_UNIT:,.0f} or more, and this column is in"
            f" units of the currency. Write billionths into {target!r}; if the amounts are right, raise"
            f" --max-median-amount {max_median_amount:.0f}"
        )


def _bid_of_an_impression(typed: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """(rows in which a bid of a cpm ad, written for 1,000 impressions, is for one; mask of bids without a type)."""
    if "bid_type" not in typed.columns:
        return typed, typed["bid_nanos"].is_not_null()
    per_unit = NANOS_PER_UNIT // NANOS_PER_CPM
    of_one = pl.when(pl.col("bid_type") == "cpm").then(pl.col("bid_nanos") // per_unit).otherwise("bid_nanos")
    return typed.with_columns(bid_nanos=of_one), typed["bid_nanos"].is_not_null() & typed["bid_type"].is_null()


def _profile(raw: pl.Series, is_number: bool) -> tuple[pl.Series, pl.Series]:
    """(a profile column, mask of its cells that are infinite, or are text in a column that is declared as numbers)."""
    if raw.dtype in (pl.String, pl.Categorical, pl.Enum):
        raw = raw.cast(TEXT).str.strip_chars(" \t\r\n").replace("", None)
    if raw.dtype.is_float():
        return raw, raw.is_infinite().fill_null(False)
    if is_number and raw.dtype.is_decimal():
        raw = raw.cast(pl.Float64)
    if not is_number or raw.dtype != TEXT:
        return raw, raw.is_null() & False
    is_whole = raw.drop_nulls().str.contains(r"^[+-]?\d{1,18}$").all()
    values = raw.cast(WHOLE if is_whole else pl.Float64, strict=False)
    if not is_whole:
        values = values.set(~values.is_finite().fill_null(True), None)
    return values, values.is_null() & raw.is_not_null()


def _bad_rows(
    name: str,
    file: str,
    raw: pl.DataFrame,
    mask: pl.Series,
    column: str,
    why: str | pl.Series,
    values: pl.Series | None = None,
) -> pl.DataFrame:
    """The rows of ``raw`` that ``mask`` selects, in the form of BAD_ROWS; the reasons quote ``values``."""
    if not mask.any():
        return no_bad_rows()
    rows = raw[ROW].filter(mask).cast(WHOLE)
    whys = why.filter(mask).to_list() if isinstance(why, pl.Series) else [why] * rows.len()
    if values is not None:
        whys = [f"{why}: {shorten(value)}" for value in values.filter(mask).to_list()]
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


def _from_text(cells: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """The expression that parses text cells as ``kind``; null for a cell that does not parse."""
    if kind == WHOLE:
        return cells.cast(WHOLE, strict=False)
    return cells


def _type_text(kind: pl.DataType) -> str:
    return {WHOLE: "a whole number", TIME: "a time such as 2026-03-01T08:30:00Z", TEXTS: "a list of texts"}.get(
        kind, "text"
    )


def _advice(kind: pl.DataType, raw_kind: pl.DataType) -> str:
    types = {
        WHOLE: "money as int64 in billionths of the currency",
        TIME: "a timestamp in UTC",
        TEXTS: "list<string>",
    }
    seconds = "; for seconds since 1970, --time-unit s" if kind == TIME and raw_kind.is_float() else ""
    return "write it as " + types.get(kind, "string") + seconds
