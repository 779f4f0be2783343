"""The history of `bench/writer.py`: a state folder with a log, tables and a ledger as serving writes them.

`grow` appends through the code of the writer. `build` does so for the last requests alone, and copies those before them
from a template (`history_blocks`): minutes instead of hours for 10 million requests.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import history_blocks
from history_blocks import CHUNK, Times
from writer_records import PER_REQUEST, ads, fill_catalogue, paths_of, records_of, user_of

from leadre.auction.budget.ledger import Ledger
from leadre.clock import SystemClock
from leadre.serve.events import training
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.outcomes import EventProcessor
from leadre.serve.paths import StatePaths
from leadre.units import US_PER_DAY

COMPLETE = "requests"  # the file with the length of a history; written last
SEGMENT_BYTES = 64 << 20


def times_of(count: int, days: float) -> Times:
    """The times of a history of ``days`` until now."""
    now_us = SystemClock().now_us()
    return Times(began_us=now_us - round(days * US_PER_DAY), now_us=now_us, count=count)


def grow(paths: StatePaths, count: int, times: Times, segment_bytes: int = SEGMENT_BYTES) -> None:
    """Append requests and events until the log has ``count`` requests, and post the events."""
    if not paths.manage_database.exists():
        fill_catalogue(paths)
    with (
        EventLog(paths.events, sync=lambda file: None, segment_bytes=segment_bytes) as log,
        Ledger(paths.ledger) as ledger,
    ):
        for start in range(log.last // PER_REQUEST, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            at_us = times.of(start // CHUNK)
            records = [
                record for number in numbers for record in records_of(number, user_of(number, times.count), at_us)
            ]
            log.append(records, at_us)
        EventProcessor(ledger, log)
        while ledger.forget(times.now_us):
            pass


def requests_in(paths: StatePaths) -> int:
    """The number of requests in the log."""
    with EventLog(paths.events) as log:
        return log.last // PER_REQUEST


def flush(paths: StatePaths) -> None:
    """Add the new records of the log to the tables, as the bidder does."""
    while training.compact(paths.events, paths.tables, ads()):
        pass


def build(
    folder: Path, count: int, times: Times, *, has_snapshot: bool = True, segment_bytes: int = SEGMENT_BYTES
) -> StatePaths:
    """The state folder of a history, with tables up to its end; one that exists if it is as long."""
    paths = paths_of(folder)
    complete = folder / COMPLETE
    if complete.exists() and int(complete.read_text()) == count:
        return paths
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fill_catalogue(paths)
    chunks = (count - 1) // CHUNK  # the last one or its part is written by `grow`
    history_blocks.write(paths, chunks, times, segment_bytes=segment_bytes, has_snapshot=has_snapshot)
    grow(paths, count, times, segment_bytes)
    flush(paths)
    complete.write_text(str(count))
    return paths
