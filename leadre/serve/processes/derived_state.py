"""State derived from the event log: counters, recent records, logged ad statuses. Each start rebuilds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leadre.serve.events import event_log
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord, Record, RequestRecord, StatusRecord
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.serve.processes.event_counts import EventCounts
from leadre.serve.processes.recent_records import RecentRecords


class DerivedState:
    """Counters and recent records; the writer adds every record that it appends to the log.

    ``last`` is the number of the last log record that they contain.
    """

    def __init__(self, folder: Path, log: EventLog, catalogue_sync: CatalogueSync) -> None:
        self._folder = folder
        self._log = log
        self._catalogue_sync = catalogue_sync
        self.counts = EventCounts(catalogue_sync.zone_of)
        self.recent = RecentRecords()
        self.last = 0

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
            self.recent.add(record)
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
