"""Cells that are read as they are written, and probably mean something else: notes for the user."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from leadre.data import lists
from leadre.data.tables import ROW, SCHEMAS, TEXT, TEXTS, plain_name

MISSING_WORDS = ("NULL", "null", "\\N", "None", "nan", "NaN", "NA", "N/A", "<NA>")  # of databases and data frames


def notes(table: str, raw: pl.DataFrame, typed: pl.DataFrame, list_separator: str) -> Iterator[str]:
    """Notes on the rows of one file: words for a missing value, and lists that another separator would split."""
    schema = SCHEMAS[table]
    texts = [column for column in raw.columns if raw.schema[column] == TEXT and column != ROW]
    for column in texts:
        name = plain_name(column)
        kind = schema.columns.get(name, TEXT if schema.others else None)
        if kind == TEXT and name not in schema.required:
            words = raw[column].filter(raw[column].is_in(MISSING_WORDS))
            if len(words):
                yield f"column {column!r} has the text {words[0]!r}; leave the cell blank if it means a missing value"
        elif kind == TEXTS and (mark := lists.unsplit(typed[name])):
            yield (
                f"no cell of {column!r} has the separator {list_separator!r}; if {mark!r} separates entries, pass"
                f" --list-separator {mark!r}"
            )
