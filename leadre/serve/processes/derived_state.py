"""State derived from the event log: counters, recent records, logged ad statuses.

A start reads the counters and statuses from a snapshot and adds the log records behind it. Recent records come from the
newest segments of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from leadre.serve.events import event_log
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord, Record, RequestRecord, StatusRecord
from leadre.serve.processes import count_snapshot
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.count_snapshot import CountSnapshot
from leadre.serve.processes.event_counts import EventCounts
from leadre.serve.processes.recent_records import MAX_RECENT, RecentRecords


class DerivedState:
    """Counters and recent records; the writer adds every record that it appends to the log.

    ``last`` is the number of the last log record that they contain. ``snapshot`` is the path of the counts.
    """

    def __init__(
        self,
        snapshot: Path,
        log: EventLog,
        catalogue_sync: CatalogueSync,
        without_erased: Callable[[RequestRecord], RequestRecord],
    ) -> None:
        self._path = snapshot
        self._folder = log.folder
        self._log = log
        self._without_erased = without_erased
        self._catalogue_sync = catalogue_sync
        self.counts = EventCounts(catalogue_sync.zone_of)
        self.recent = RecentRecords()
        self.last = 0
        self._saved = 0  # the number of the last record in the snapshot

    def load(self) -> None:
        """Read the snapshot, the recent records, and the log records behind the snapshot: all of them without one."""
        snapshot = count_snapshot.read(self._path, self._log.last)
        if snapshot is not None:
            self.counts.restore(snapshot.by_ad, snapshot.by_day)
            self._catalogue_sync.restore(snapshot.live)
            self.last = self._saved = snapshot.last
            for record in _newest_requests(self._folder, snapshot.last):
                self.add(record)
        self.catch_up()

    def save(self) -> None:
        """Write the snapshot, unless it is current. StorageError if the disk refuses."""
        if self._saved < self.last:
            live = self._catalogue_sync.logged_live()
            by_ad, by_day = self.counts.totals()
            count_snapshot.write(self._path, CountSnapshot(last=self.last, by_ad=by_ad, by_day=by_day, live=live))
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
        """Add one record of the log to the counters, recent records or ad statuses."""
        if isinstance(record, RequestRecord):
            self.recent.add(self._without_erased(record))  # an erasure may not have reached the log yet
        elif isinstance(record, StatusRecord):
            self._catalogue_sync.add(record)
        elif isinstance(record, EventRecord):
            self.counts.add(record)

    def set_current(self) -> None:
        """Set ``last`` to the end of the log. The caller has added all of its records."""
        self.last = self._log.last

    def follow_catalogue(self, now_us: int) -> None:
        """Load changes of the catalogue, and log which ads are newly live or no longer live."""
        self._catalogue_sync.refresh(now_us)
        changes = self._catalogue_sync.status_changes(now_us)
        if changes:
            self.append(changes, now_us)
        self._catalogue_sync.set_logged()


def _newest_requests(folder: Path, last: int) -> list[RequestRecord]:
    """At least the newest `MAX_RECENT` requests up to record ``last``, if there are as many, oldest first."""
    newest: list[RequestRecord] = []
    for path in reversed(event_log.segments(folder)):
        if len(newest) >= MAX_RECENT:
            break
        entries = event_log.entries_of(path, is_open=True)
        numbered = ((entry.number, entry.record) for entry in entries)
        newest[:0] = [record for number, record in numbered if number <= last and isinstance(record, RequestRecord)]
    return newest
