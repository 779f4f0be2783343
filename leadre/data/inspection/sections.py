"""Sections of a config with a reason beside each guess, and the SQL of columns of an excerpt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from leadre.data.inspection import roles
from leadre.data.inspection.excerpts import Excerpt


@dataclass(kw_only=True)
class Section:
    """One section of a config: (key, TOML value, reason of a guess or ""), and the tables in ``actions``."""

    title: str
    table: Excerpt
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    actions: list[tuple[str, str]] = field(default_factory=list)  # TOML table, reason

    def add(self, key: str, value: object, why: str = "") -> None:
        """``value``: a text, truth value or list of texts; ``why``: the reason of a guess."""
        name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml(key)
        self.lines.append((name, toml(value), why))

    def text(self) -> Iterator[str]:
        """The lines of the section."""
        yield f"[{self.title}]"
        for key, value, why in self.lines:
            yield _line(f"{key} = {value}", why)
        if self.actions:
            yield "actions = ["
            for value, why in self.actions:
                yield _line(f"    {value},", why)
            yield "]"


@dataclass(kw_only=True)
class Draft:
    """The sections of a config, options of [data], and the parts of the logs that were not found."""

    options: list[tuple[str, str, str]] = field(default_factory=list)  # key, TOML value, reason
    sections: list[Section] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # needed: the config does not run without
    absent: list[str] = field(default_factory=list)  # not needed, but worth a look


def toml(value: object) -> str:
    """A text, truth value or list of texts as a TOML value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and '"' in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(text: str, why: str) -> str:
    return f"{text}  # guess: {why}" if why else text


def sql(column: str) -> str:
    """The name of a column in SQL, quoted unless it is a plain word."""
    try:
        is_plain = re.fullmatch(r"[A-Za-z_]\w*", column) and pl.sql_expr(column).meta.root_names() == [column]
    except pl.exceptions.PolarsError:
        is_plain = False
    return column if is_plain else f'"{column}"'


def amount(table: Excerpt, column: str) -> str:
    """The expression of a column of money; "" if it holds none."""
    if table.frame.schema[column].is_nested():
        return ""
    texts = roles.cells(table.frame, column)
    share = roles.share_of_numbers(texts)
    if share >= roles.MIN_SHARE:
        return sql(column) if share == 1 else f"TRY_CAST({sql(column)} AS DOUBLE)"
    if len(texts) and texts.str.contains(r"^\d+,\d{1,2}$").sum() >= 0.5 * len(texts):
        return f"REPLACE({sql(column)}, ',', '.')"
    return ""
