"""Readings of test sets, in the append-only log ``work/readings.jsonl`` of all runs of a work folder.

The best of many readings of a test set is partly chance. So a test set is for one reading of each row, after all
choices, and the log shows how often each row was read. It is written before the figures are computed, so that a killed
run counts too. Validation is for choosing, and has no log.

A test set is known by the hash of its tables. The same logs with other options of ``leadre data`` count as another one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from leadre import artifact, progress

FILE = "readings.jsonl"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reading of one row, a line of the log."""

    date: str  # UTC, to the second
    test_set: str  # hash of the tables artifact
    row: str
    run: str
    requests: int  # requests of the test set that were read; a sample of users is a reading too
    config: str  # hash of config, lists and tables: equal hashes give equal figures
    code: str


def record(
    work: Path, data: artifact.Artifact, rows: Sequence[str], *, run: str, requests: int, config: Mapping[str, object]
) -> list[Reading]:
    """Append a reading of each row, warn of rows that were read before, and return all readings of this test set.

    Oldest first. ``config``: what decides the figures besides the tables. Concurrent runs may append to one log.
    """
    earlier = of_test_set(work, data.hash)
    reading = Reading(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        test_set=data.hash,
        row="",
        run=run,
        requests=requests,
        config=artifact.resume_key(config, [data]),
        code=artifact.code_version(),
    )
    new = [dataclasses.replace(reading, row=row) for row in rows]
    _append(work / FILE, new)
    counts = count(earlier)
    repeated = [f"{row} ({counts[row]})" for row in rows if row in counts]
    if repeated:
        progress.say(
            f"warning: rows of this test set that have been read before, how often: {', '.join(repeated)}. Choose on"
            f" validation (--split valid); {work / FILE} has the readings"
        )
    return [*earlier, *new]


def of_test_set(work: Path, test_set: str) -> list[Reading]:
    """The readings of one test set, oldest first; empty without a log."""
    path = work / FILE
    if not path.is_file():
        return []
    readings = [Reading(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [reading for reading in readings if reading.test_set == test_set]


def count(readings: Sequence[Reading]) -> dict[str, int]:
    """Row -> number of its readings."""
    counts: dict[str, int] = {}
    for reading in readings:
        counts[reading.row] = counts.get(reading.row, 0) + 1
    return counts


def _append(path: Path, readings: Sequence[Reading]) -> None:
    """Append all lines in one write, which other processes do not interrupt; on return they are on the disk."""
    text = "".join(json.dumps(dataclasses.asdict(reading)) + "\n" for reading in readings)
    with path.open("ab", buffering=0) as file:
        file.write(text.encode())
        os.fsync(file.fileno())
