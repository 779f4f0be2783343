"""Options of ``leadre data`` for a folder of files, apart from its reader, so that ``--help`` imports no parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from leadre.config import option

TimeUnit = Literal["us", "s", "ms", "ns", "calendar"]
LIST_SEPARATOR = " > "
TIME_UNITS: tuple[str, ...] = get_args(TimeUnit)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How files are read, and the limits beyond which the run stops."""

    max_bad_share: float = option(0.01, "share of bad rows in a table above which the run stops", at_least=0, at_most=1)
    max_field_bytes: int = option(1 << 20, "longest field of a log file in bytes (of JSON: longest object)", at_least=1)
    max_unpacked_bytes: int = option(1 << 36, "largest size of a compressed file once it is unpacked", at_least=1)
    unordered: bool = option(False, "accept events that are not in order of time, and sort them")
    earliest: str = option("1990-01-01", "rows with a time before this date are bad")
    latest: str = option("2100-01-01", "rows with a time at or after this date are bad; ads that end then never end")
    time_unit: TimeUnit = option(
        "us", "times that are numbers: since 1970 in this unit, or digits from yyyyMMdd to yyyyMMddHHmmssSSS (calendar)"
    )
    time_zone: str = option("UTC", "zone of times without an offset, such as Asia/Shanghai")
    time_origin: str = option("1970-01-01", "time from which times that are numbers count")
    decimal_comma: bool = option(False, "amounts of money are written 2,50")
    max_median_amount: float = option(
        1_000_000, "median of a column of money in units above which the run stops: it seems billionths", at_least=0
    )
    profile_numbers: tuple[str, ...] = option((), "columns of users that are numbers and not codes, such as age")
    list_separator: str = option(
        LIST_SEPARATOR, "between the entries of a list in a text cell, such as a category path"
    )
    content_prefix: str = option("", "text before the IDs of contents, if they coincide with IDs of ads")
    layout: str = option("", "name of the layout of a public log that this package maps; ? lists them")
    columns: dict[str, Any] | None = option(
        None, "the section [data.columns]: files and columns of logs of any layout (docs/logs.md)"
    )
    events: dict[str, Any] | None = option(None, "the section [data.events]: the events of logs of any layout")
