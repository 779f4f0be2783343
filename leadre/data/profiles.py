"""Profile columns of any type -> text and numbers, so that a profile reads the same from every form of file."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from leadre.data.tables import FILE, TEXT
from leadre.errors import InputError


def check_types(frames: Sequence[pl.DataFrame], key: str) -> None:
    """Raise InputError if a column has two types in two files; whole numbers and fractions are one type."""
    first: dict[str, tuple[pl.DataType, str]] = {}
    for frame in frames:
        for column, kind in frame.schema.items():
            if column == key or kind == pl.Null or not frame.height:
                continue
            before, file = first.setdefault(column, (kind, frame[FILE][0]))
            if before != kind and not (before.is_numeric() and kind.is_numeric()):
                raise InputError(
                    f"{frame[FILE][0]}: column {column!r} has the type {kind}, but {before} in {file}; write it with"
                    " one type in all files"
                )


def plain(users: pl.DataFrame, key: str) -> tuple[pl.DataFrame, list[str]]:
    """(the frame with text and numbers alone, the columns left out because words cannot express them).

    Truth values are ``true`` and ``false``, dates ISO 8601. Lists of texts or whole numbers are joined by commas.
    NaN is missing.
    """
    left_out = []
    for column, kind in users.schema.items():
        if column == key or kind == TEXT or kind.is_integer():
            continue
        values = pl.col(column)
        if kind.is_float():
            users = users.with_columns(values.fill_nan(None))
        elif kind == pl.Boolean or kind in (pl.Categorical, pl.Enum, pl.Date, pl.Time, pl.Null) or kind.is_decimal():
            users = users.with_columns(values.cast(TEXT))
        elif isinstance(kind, pl.Datetime):
            users = users.with_columns(values.dt.to_string("iso:strict"))
        elif isinstance(kind, pl.List) and (kind.inner == TEXT or kind.inner.is_integer()):
            users = users.with_columns(values.cast(pl.List(TEXT)).list.join(", "))
        else:
            left_out.append(column)
    return users.drop(left_out), left_out
