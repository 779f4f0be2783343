"""Append-only parts of a daily table, so that the cost of a flush depends on the new rows alone.

    TABLE/DAY.FIRST-LAST.parquet   the rows of a day (UTC) from log records FIRST to LAST, each with 20 digits

Small parts of a day are merged when there are many; a merge takes a few MiB, and the rows of `MERGED_RECORDS` at most,
as packed rows may take a thousand times as much memory. ``DAY.parquet`` is a whole day,
written by an earlier release; nothing is added to it. Readers that hold `leadre.data.sources.raw.reading` see no row
twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from leadre.data.sources.raw import LOCK
from leadre.serve.events import durable

MERGED = 8  # small parts of a day that are merged into one
MERGED_RECORDS = 200_000  # of the log whose rows are merged at once; a part of half as many is merged no more
LEVELS = (1 << 15, 1 << 18, 1 << 21)  # bytes; parts below a level are merged with each other


class Part(NamedTuple):
    """A file of a daily table. ``first`` is 0 for the file of a whole day."""

    day: str
    first: int
    last: int
    path: Path


def path_of(folder: Path, day: str, first: int, last: int) -> Path:
    """The path of a part in the folder of its table."""
    return folder / f"{day}.{first:020d}-{last:020d}.parquet"


def parts(folder: Path, day: str = "") -> list[Part]:
    """The parts of a table, of one day or of all, by day and first record; of two with one first record the longer."""
    return sorted(
        (_part(path) for path in folder.glob(f"{day}*.parquet")), key=lambda part: (part.day, part.first, -part.last)
    )


def _part(path: Path) -> Part:
    day, _, numbers = path.stem.partition(".")
    if numbers:
        first, last = numbers.split("-")
        return Part(day, int(first), int(last), path)
    return Part(day, 0, _greatest(path, "number"), path)


def _greatest(path: Path, column: str) -> int:
    """The greatest value of a column, from the statistics of the file; 2**63 - 1 if it has none, 0 if it is damaged."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, ValueError):  # ArrowInvalid is a ValueError; the reader of the rows reports it
        return 0
    index = metadata.schema.names.index(column)
    statistics = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
    return max((item.max if item is not None else (1 << 63) - 1 for item in statistics), default=0)


def to_merge(of_day: Sequence[Part]) -> list[Part]:
    """The newest parts of a day that are due to be merged; [] if none are."""
    for level in LEVELS:
        small = []
        records = 0
        for part in reversed(of_day):
            length = part.last - part.first + 1
            if not part.first or part.path.stat().st_size >= level or length >= MERGED_RECORDS // 2:
                break
            small.append(part)
            records += length
            if records >= MERGED_RECORDS // 2:
                return small[::-1]
        if len(small) >= MERGED:
            return small[::-1]
    return []


def redundant(sorted_parts: Sequence[Part]) -> list[Part]:
    """Parts whose records are in another one, because a merge was killed."""
    days = itertools.groupby((part for part in sorted_parts if part.first), key=lambda part: part.day)
    inner = []
    for _, of_day in days:
        last = 0
        for part in of_day:
            if part.last <= last:
                inner.append(part)
            last = max(last, part.last)
    return inner


def merging(folder: Path) -> AbstractContextManager[bool]:
    """Whether parts may be merged now: False while a reader holds `leadre.data.sources.raw.reading`."""
    return durable.exclusive(folder / LOCK, wait=False)
