"""Amounts of money in units of a currency (``2.50``) -> billionths, without rounding of what is written."""

from __future__ import annotations

import re

import polars as pl

from leadre.units import NANOS_PER_UNIT

MAX_UNITS = (2**63 - 1) // NANOS_PER_UNIT - 1  # billionths of more do not fit into int64


def nanos(raw: pl.Series, *, decimal_comma: bool) -> tuple[pl.Series, pl.Series]:
    """(billionths as Int64, null where missing or not usable; reasons as text, null where there is none).

    ``raw`` holds text, numbers or decimals; NaN is a missing value. Digits after the ninth are dropped.
    """
    if raw.dtype.is_float():
        # As text, a Float32 of 19.99 is 19.99; cast at once it would be 19.989999771.
        raw = (raw if raw.dtype == pl.Float64 else raw.cast(pl.String).cast(pl.Float64)).fill_nan(None)
        is_usable = (raw.abs() <= MAX_UNITS).fill_null(False)
        result = (raw.set(~is_usable, None) * NANOS_PER_UNIT).round().cast(pl.Int64)
    else:
        decimal_comma &= raw.dtype == pl.String  # a decimal of Parquet has a point as text
        mark = "," if decimal_comma else r"\."
        text = raw.cast(pl.String)
        amount = text.str.extract(rf"^([+-]?(?:[0-9]{{1,10}}(?:{mark}[0-9]*)?|{mark}[0-9]+))$")
        units = amount.str.extract(r"^[+-]?([0-9]*)").replace("", "0").cast(pl.Int64)
        is_usable = (units <= MAX_UNITS).fill_null(False)
        fraction = amount.str.extract(rf"{mark}([0-9]{{0,9}})").fill_null("").str.pad_end(9, "0").cast(pl.Int64)
        sign = 1 - 2 * amount.str.starts_with("-").fill_null(False).cast(pl.Int64)
        result = (units.set(~is_usable, None) * NANOS_PER_UNIT + fraction) * sign
    is_faulty = raw.is_not_null() & ~is_usable
    whys = [_reason(str(value), decimal_comma) for value in raw.filter(is_faulty).to_list()]
    reasons = pl.repeat(None, len(raw), dtype=pl.String, eager=True)
    return result, reasons.scatter(is_faulty.arg_true(), pl.Series(whys, dtype=pl.String))


def _reason(text: str, decimal_comma: bool) -> str:
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    if re.fullmatch(r"[+-]?\d{10,}(,\d*)?" if decimal_comma else r"[+-]?\d{10,}(\.\d*)?", text):
        return f"is more than {MAX_UNITS:,}: {shown}; this column is in units of the currency, not in billionths"
    hint = ""
    if re.fullmatch(r"[+-]?\d{1,3}(?:[.,'\s]\d{3})+(?:[.,]\d*)?", text):
        hint = "; write it without marks between thousands"
    elif re.fullmatch(r"[+-]?\d*,\d*", text):
        hint = "; for a decimal comma, --decimal-comma true"
    return f"is not an amount such as {'2,50' if decimal_comma else '2.50'}: {shown}{hint}"
