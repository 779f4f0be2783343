"""The fast part of `writer_history.build`: log segments, tables, ledger and counts, copied from one template.

The template is a chunk of requests and their events, made by the code of the bidder. Chunks differ in numbers, users
and times alone, whose bytes have the same length in each; so a chunk of the log is a copy of the template's bytes with
these replaced, and a part of a table is a copy of the template's rows.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from numpy.typing import NDArray
from writer_records import (
    ADS,
    ERASED,
    NONCE_FACTOR,
    PER_REQUEST,
    USER_STEP,
    USERS,
    events_of,
    nonce_of,
    records_of,
    user_period,
)

from leadre import database
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Charge
from leadre.serve.events import table_parts, table_position, training
from leadre.serve.events.event_log import MAGIC, framed
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord
from leadre.serve.paths import StatePaths
from leadre.serve.processes import count_snapshot
from leadre.serve.processes.count_snapshot import CountSnapshot
from leadre.serve.processes.event_counts import EventCounts
from leadre.units import US_PER_HOUR, US_PER_S

CHUNK = ADS  # requests appended at once; the ads of a request follow from its number modulo ADS
PART_CHUNKS = 30  # of one part of a table, which is then about as large as those that serving merges no more
DIGITS = 16  # of the number in an ID
TEMPLATE_US = 0x0006_1234_5678_9ABC  # the time of the template: eight bytes that are nowhere else in it
CRC_START = 4  # bytes of a frame
CRC_END = 8
WRITTEN_START = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """The times of a history of ``count`` requests from ``began_us`` to ``now_us``. A chunk has one time."""

    began_us: int
    now_us: int
    count: int

    def of(self, chunk: int) -> int:
        """The time of a chunk; those behind ``count`` requests come now."""
        span_us = self.now_us - self.began_us
        return min(self.now_us, self.began_us + round(chunk * CHUNK * span_us / self.count))

    def day_of(self, chunk: int) -> date:
        return datetime.fromtimestamp(self.of(chunk) / US_PER_S, UTC).date()


def write(paths: StatePaths, chunks: int, times: Times, *, segment_bytes: int, has_snapshot: bool) -> None:
    """Write the first ``chunks`` of a history into a folder that has the catalogue and its budgets alone."""
    _write_log(paths.events, chunks, times, segment_bytes)
    _write_tables(paths.tables, chunks, times)
    _write_ledger(paths.ledger, chunks, times)
    if has_snapshot:
        _write_counts(paths.counts, chunks, times)


def _write_log(folder: Path, chunks: int, times: Times, segment_bytes: int) -> None:
    """Write the segments, which are cut as `EventLog.append` cuts them."""
    folder.mkdir()
    template = LogTemplate()
    size = segment_bytes
    began_us = 0
    with ExitStack() as segment:
        for chunk in range(chunks):
            at_us = times.of(chunk)
            data = template.chunk(chunk, at_us, times.count)
            if at_us - began_us >= US_PER_HOUR or size + len(data) > segment_bytes:
                segment.close()
                file = segment.enter_context((folder / f"{_first_number(chunk):020d}.log").open("wb", buffering=0))
                segment.callback(os.fsync, file.fileno())  # pages that wait for the disk would fill the memory
                file.write(MAGIC)
                size = len(MAGIC)
                began_us = at_us
            file.write(data)
            size += len(data)


def _first_number(chunk: int) -> int:
    """The number of a chunk's first record."""
    return chunk * CHUNK * PER_REQUEST + 1


class LogTemplate:
    """The bytes of one chunk in the log, and the places of its numbers, users, nonces and times."""

    def __init__(self) -> None:
        users = [f"user-{number:08d}" for number in range(CHUNK)]
        records = [record for number in range(CHUNK) for record in records_of(number, users[number], TEMPLATE_US)]
        frames = [framed(number, TEMPLATE_US, record) for number, record in enumerate(records, 1)]
        ends = np.cumsum([len(frame) for frame in frames])
        self._starts = np.concatenate([[0], ends[:-1]])
        self._checked = list(zip((self._starts + CRC_END).tolist(), ends.tolist(), strict=True))
        self._bytes = np.frombuffer(b"".join(frames), np.uint8)
        known = {record.known_until_us for record in records if isinstance(record, EventRecord)}
        self._times = self._places(frames, [TEMPLATE_US.to_bytes(8, "big")] * CHUNK)
        self._known = {  # time from the bid -> places
            known_us - TEMPLATE_US: self._places(frames, [known_us.to_bytes(8, "big")] * CHUNK) for known_us in known
        }
        self._users = self._places(frames, [user.encode() for user in users])
        self._nonces = self._places(frames, [nonce_of(number).hex().encode() for number in range(CHUNK)])
        self._numbers = np.hstack(
            [
                self._places(frames, [f"{name}-{number:0{DIGITS}d}".encode() for number in range(CHUNK)], len(name) + 1)
                for name in ("request", "bid", "caller")
            ]
        )

    def _places(self, frames: Sequence[bytes], words: Sequence[bytes], skipped: int = 0) -> NDArray[np.int64]:
        """Places of each request's word in its frames, ``skipped`` bytes further, and the request of each; [2, N]."""
        pairs = [
            (start + offset + skipped, row // PER_REQUEST)
            for row, (frame, start) in enumerate(zip(frames, self._starts.tolist(), strict=True))
            for offset in _offsets(frame, words[row // PER_REQUEST])
        ]
        return np.array(pairs, np.int64).T

    def chunk(self, chunk: int, at_us: int, count: int) -> bytearray:
        """The bytes of a chunk of a history of ``count`` requests."""
        data = self._bytes.copy()
        numbers = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        _fill(data, self._numbers, _digits(numbers, DIGITS))
        _fill(data, self._users, _users(numbers, count))
        _fill(data, self._nonces, _nonces(numbers))
        _fill(data, self._times, _repeated(at_us.to_bytes(8, "big")))
        for after_us, places in self._known.items():
            _fill(data, places, _repeated((at_us + after_us).to_bytes(8, "big")))
        first = _first_number(chunk)
        framed_numbers = np.arange(first, first + CHUNK * PER_REQUEST, dtype="<u8")
        written = np.frombuffer(at_us.to_bytes(8, "little"), np.uint8)
        data[self._starts[:, None] + CRC_END + np.arange(8)] = framed_numbers.view(np.uint8).reshape(-1, 8)
        data[self._starts[:, None] + WRITTEN_START + np.arange(8)] = written
        view = memoryview(data)
        crcs = np.array([zlib.crc32(view[start:end]) for start, end in self._checked], "<u4")
        data[self._starts[:, None] + CRC_START + np.arange(4)] = crcs.view(np.uint8).reshape(-1, 4)
        return bytearray(data)


def _offsets(frame: bytes, word: bytes) -> Iterator[int]:
    offset = frame.find(word)
    while offset >= 0:
        yield offset
        offset = frame.find(word, offset + 1)


def _fill(data: NDArray[np.uint8], places: NDArray[np.int64], words: NDArray[np.uint8]) -> None:
    """Write the word of each request, [CHUNK, bytes], at its places."""
    starts, requests = places
    data[starts[:, None] + np.arange(words.shape[1])] = words[requests]


def _repeated(word: bytes) -> NDArray[np.uint8]:
    return np.tile(np.frombuffer(word, np.uint8), (CHUNK, 1))


def _digits(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    return (numbers[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


def _users(numbers: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """`user_of` of many requests, as bytes."""
    users = np.hstack([_repeated(b"user-"), _digits(numbers * USER_STEP % USERS, 8)])
    users[numbers % user_period(count) == 0] = np.frombuffer(ERASED.encode(), np.uint8)
    return users


def _nonces(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`nonce_of` of many numbers, as bytes of hexadecimal digits."""
    spread = numbers.astype(np.uint64) * np.uint64(NONCE_FACTOR)
    values = np.hstack(
        [spread.astype(">u8").view(np.uint8).reshape(-1, 8), numbers.astype(">u4").view(np.uint8).reshape(-1, 4)]
    )
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    return np.stack([digits[values >> 4], digits[values & 15]], axis=2).reshape(len(numbers), -1)


def _write_tables(folder: Path, chunks: int, times: Times) -> None:
    """Write the parts of all daily tables, and the position behind them."""
    templates = _table_templates()
    for day, of_day in groupby(range(chunks), times.day_of):
        numbers = list(of_day)
        for start in range(0, len(numbers), PART_CHUNKS):
            part = numbers[start : start + PART_CHUNKS]
            for name, template in templates.items():
                path = table_parts.path_of(
                    folder / name, day.isoformat(), _first_number(part[0]), _first_number(part[-1] + 1) - 1
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                _part(template, part, times).write_parquet(path)
    table_position.write(folder, _first_number(chunks) - 1, None)


def _table_templates() -> dict[str, pl.DataFrame]:
    """The rows of the template by daily table, made and read as those of the bidder."""
    records = [record for number in range(CHUNK) for record in records_of(number, "user", TEMPLATE_US)]
    with TemporaryDirectory() as scratch:
        log = Path(scratch, "log")
        tables = Path(scratch, "tables")
        with EventLog(log) as writer:
            writer.append(records, TEMPLATE_US)
        training.compact(log, tables, ())
        return {path.parent.name: pl.read_parquet(path) for path in tables.glob("*/*.parquet")}


def _part(template: pl.DataFrame, chunks: Sequence[int], times: Times) -> pl.DataFrame:
    """The rows of consecutive chunks, as a flush sorts them."""
    shifts = np.repeat([_first_number(chunk) - 1 for chunk in chunks], template.height)
    times_us = np.repeat([times.of(chunk) for chunk in chunks], template.height)
    number = pl.col(training.NUMBER)
    request = (number - 1) // PER_REQUEST
    rows = pl.concat([template] * len(chunks)).with_columns(
        number + pl.Series(shifts), pl.Series("at", times_us).cast(template.schema["at"])
    )
    rows = rows.with_columns(_id("request", request).alias("request_id"), _user(request, times.count).alias("user_id"))
    if "bids" in rows.columns:
        bid = pl.col("bids").list.first().struct.with_fields(bid_id=_id("bid", request))
        rows = rows.with_columns(pl.concat_list(bid).alias("bids"))
    return rows.select(template.columns).cast(dict(template.schema)).sort("at", training.NUMBER)


def _id(name: str, request: pl.Expr) -> pl.Expr:
    return pl.format(f"{name}-{{}}", request.cast(pl.String).str.zfill(DIGITS))


def _user(request: pl.Expr, count: int) -> pl.Expr:
    user = pl.format("user-{}", (request * USER_STEP % USERS).cast(pl.String).str.zfill(8))
    return pl.when(request % user_period(count) == 0).then(pl.lit(ERASED)).otherwise(user)


def _write_ledger(path: Path, chunks: int, times: Times) -> None:
    """Charge the sums of each campaign and day, and store the events that the ledger has not forgotten by now."""
    events = [event for number in range(CHUNK) for event in events_of(number, "", TEMPLATE_US)]
    owed_nanos: Counter[str] = Counter()
    for event in events:
        owed_nanos[event.outcome.campaign_id] += event.owed_nanos
    last_us = max(event.known_until_us for event in events) - TEMPLATE_US
    with Ledger(path) as ledger:
        for day, of_day in groupby(range(chunks), times.day_of):
            numbers = list(of_day)
            charges = [
                Charge(
                    event_id=f"{campaign_id}/{day}",
                    campaign_id=campaign_id,
                    nanos=nanos * len(numbers),
                    at_us=times.of(numbers[0]),
                    known_until_us=1,
                )
                for campaign_id, nanos in owed_nanos.items()
            ]
            ledger.apply(charges, times.now_us)
        ledger.connection.execute("PRAGMA cache_size = -400000")  # KiB; keys arrive in no order
        for chunk in range(chunks):
            if times.of(chunk) + last_us > times.now_us:
                _insert_entries(ledger, chunk, times, events)
        with database.transaction(ledger.connection):
            ledger.log_number = _first_number(chunks) - 1


def _insert_entries(ledger: Ledger, chunk: int, times: Times, events: Iterable[EventRecord]) -> None:
    """Store the events of one chunk as posted, unless forgotten by now; ``events``: those of the template, in order."""
    day = times.day_of(chunk).isoformat()
    shift_us = times.of(chunk) - TEMPLATE_US
    nonces = [bytes(nonce).decode() for nonce in _nonces(np.arange(chunk * CHUNK, (chunk + 1) * CHUNK))]
    per_request = PER_REQUEST - 1
    rows = [
        (
            f"{nonces[row // per_request]}/{event.outcome.kind}",
            event.outcome.campaign_id,
            day if event.owed_nanos else "",
            event.known_until_us + shift_us,
            event.owed_nanos,
            0,
        )
        for row, event in enumerate(events)
        if event.known_until_us + shift_us > times.now_us
    ]
    with database.transaction(ledger.connection):
        ledger.connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)


def _write_counts(path: Path, chunks: int, times: Times) -> None:
    """Write the snapshot of the counts."""
    counts = EventCounts(lambda campaign_id: "UTC")
    for number in range(CHUNK):
        for event in events_of(number, "", TEMPLATE_US):
            counts.add(event)
    by_ad, by_day = counts.totals()
    days = Counter(times.day_of(chunk) for chunk in range(chunks))
    snapshot = CountSnapshot(
        last=_first_number(chunks) - 1,
        by_ad={ad_id: (events[0] * chunks, events[1] * chunks, events[2] * chunks) for ad_id, events in by_ad.items()},
        by_day=[
            (campaign_id, day.isoformat(), (sums[0] * n, sums[1] * n, sums[2] * n, sums[3] * n))
            for day, n in days.items()
            for campaign_id, _, sums in by_day
        ],
        live=[],
    )
    count_snapshot.write(path, snapshot)
