"""State derived from the event log: counters, pacing, shading, recent records, logged ad statuses.

A start reads the counters and statuses from a snapshot and adds the log records behind it. If these are many, as
without a snapshot, another process counts them (`history_count`), and until then the counters are not whole. Recent
records come from the newest segments of the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from leadre.errors import FaultError, StorageError
from leadre.serve.events import event_log, records
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord, Record, RequestRecord, StatusRecord
from leadre.serve.processes import count_snapshot, log_counting
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.count_snapshot import CountSnapshot
from leadre.serve.processes.event_counts import EventCounts
from leadre.serve.processes.history_count import HistoryCount
from leadre.serve.processes.log_counting import LogPart
from leadre.serve.processes.pacing_state import PacingState
from leadre.serve.processes.recent_records import MAX_BYTES, MAX_RECENT, RecentRecords
from leadre.serve.processes.shading_state import ShadingState

FOREGROUND_BYTES = 128 << 20  # of the log, which a start counts itself in some seconds


class DerivedState:
    """Counters and recent records; the writer adds every record that it appends to the log.

    ``last`` is the number of the last log record that they contain, except those of ``_missing``, which another process
    counts. ``snapshot`` is the path of the counts, ``exp_s`` that of `Settings`.
    """

    def __init__(
        self,
        snapshot: Path,
        log: EventLog,
        catalogue_sync: CatalogueSync,
        as_known: Callable[[RequestRecord], RequestRecord],
        exp_s: int,
    ) -> None:
        self._path = snapshot
        self._folder = log.folder
        self._log = log
        self._as_known = as_known
        self._catalogue_sync = catalogue_sync
        self.pacing = PacingState(catalogue_sync, exp_s)
        self.shading = ShadingState(catalogue_sync, exp_s)
        self.counts = EventCounts(catalogue_sync.zone_of)
        self.recent = RecentRecords()
        self.last = 0
        self._saved = 0  # the number of the last record in the snapshot
        self._missing: LogPart | None = None
        self._counting: HistoryCount | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the counters contain all records of the log."""
        return self._missing is None

    def load(self) -> None:
        """Read the snapshot and the recent records, and count the log records behind the snapshot, or have it done."""
        snapshot = count_snapshot.read(self._path, self._log.last)
        if snapshot is not None:
            self.counts.extend(snapshot.by_ad, snapshot.by_day)
            self._catalogue_sync.restore(snapshot.live)
            self.pacing.restore(snapshot.pacing)
            self.shading.restore(snapshot.shading)
            self.last = self._saved = snapshot.last
        is_behind = self.last < self._log.last
        if is_behind and log_counting.missing_bytes(self._folder, self.last) > FOREGROUND_BYTES:
            self._missing = LogPart(
                folder=str(self._folder),
                after=self.last,
                last=self._log.last,
                zones=self._catalogue_sync.zones(),
                live=self._catalogue_sync.logged_live(),
            )
            self.last = self._log.last
        for record in _newest_requests(self._folder, self.last) if self.last else ():
            self.recent.add(self._as_known(record))
        self.catch_up()

    def start_count(self) -> None:
        """Start the process that counts what is missing, unless it runs."""
        if self._missing is not None and self._counting is None:
            self._counting = HistoryCount(self._missing)

    def add_history(self) -> None:
        """Add the counts of the process when it has ended, and save all. FaultError if it failed."""
        if self._counting is None:
            return
        try:
            part = self._counting.poll()
        except FaultError:
            self._counting = None
            raise
        if part is not None:
            self.counts.extend(part.by_ad, part.by_day)
            self._catalogue_sync.restore(part.live)
            self._missing = self._counting = None
            self.save()

    def close(self) -> None:
        """Save the counts, unless the disk refuses, and end the process that counts."""
        with contextlib.suppress(StorageError):
            self.save()
        if self._counting is not None:
            self._counting.stop()

    def save(self) -> None:
        """Write the snapshot, unless it is current or some counts are missing. StorageError if the disk refuses."""
        if self.is_whole and self._saved < self.last:
            live = self._catalogue_sync.logged_live()
            by_ad, by_day = self.counts.totals()
            snapshot = CountSnapshot(
                last=self.last,
                by_ad=by_ad,
                by_day=by_day,
                live=live,
                pacing=self.pacing.snapshot(),
                shading=self.shading.snapshot(),
            )
            count_snapshot.write(self._path, snapshot)
            self._saved = self.last

    def append(self, records: Sequence[Record], now_us: int) -> None:
        """Append records to the log and add them here. StorageError if the disk refuses."""
        self.catch_up()
        self._log.append(records, now_us)
        for record in records:
            self.add(record)
        self.set_current()

    def catch_up(self) -> None:
        """Add the log records that are still missing: all of them at the start, later those of a failed commit."""
        if self.last < self._log.last:
            for entry in event_log.read(self._folder, self.last):
                self.add(entry.record)
            self.set_current()

    def add(self, record: Record) -> None:
        """Add one record of the log to counters, pacing, shading, recent records or ad statuses."""
        if isinstance(record, RequestRecord):
            self.recent.add(self._as_known(record))  # an erasure may not have reached the log yet
            self.pacing.add(record)
            self.shading.add(record)
        elif isinstance(record, StatusRecord):
            self._catalogue_sync.add(record)
        elif isinstance(record, EventRecord):
            self.counts.add(record)
            self.pacing.add(record)
            self.shading.add(record)

    def set_current(self) -> None:
        """Set ``last`` to the end of the log. The caller has added all of its records."""
        self.last = self._log.last

    def follow_catalogue(self, now_us: int) -> None:
        """Load changes of the catalogue, and log which ads are newly live or no longer live.

        While the history is counted, nothing is logged: the ads that were live are not known yet.
        """
        self._catalogue_sync.refresh(now_us)
        if not self.is_whole:
            return
        changes = self._catalogue_sync.status_changes(now_us)
        if changes:
            self.append(changes, now_us)
        self._catalogue_sync.set_logged()


def _newest_requests(folder: Path, last: int) -> Iterator[RequestRecord]:
    """The newest requests up to record ``last``, oldest first: of so many segments that they have enough of them."""
    newest: list[bytes] = []  # as objects they would take four times the memory
    size = 0
    for path in reversed(event_log.segments(folder)):
        if len(newest) >= MAX_RECENT or size >= MAX_BYTES:
            break
        numbered = event_log.bodies_of(path, is_open=True)
        bodies = [body for number, body in numbered if number <= last and records.is_request(body)]
        size += sum(map(len, bodies))
        newest[:0] = bodies
    for body in newest:
        record = records.decode(body)
        assert isinstance(record, RequestRecord)
        yield record
