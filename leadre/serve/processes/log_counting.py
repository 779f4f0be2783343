"""Counting a part of the event log, in a process of its own: the events of ads and campaigns, and which ads are live.

It imports no metrics: their files must exist before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from leadre.errors import StorageError
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestTag, StatusRecord
from leadre.serve.processes import process_setup
from leadre.serve.processes.count_snapshot import CountSnapshot
from leadre.serve.processes.event_counts import EventCounts

_DECODER = msgspec.msgpack.Decoder(RequestTag | EventRecord | StatusRecord)


class LogPart(msgspec.Struct, frozen=True, kw_only=True):
    """The records behind number ``after`` up to ``last`` of the log in a folder.

    ``zones``: campaign ID -> IANA time zone. ``live``: ads that are live at its beginning.
    """

    folder: str
    after: int
    last: int
    zones: Mapping[str, str]
    live: Collection[str]


def run(sender: Connection, part: LogPart) -> None:
    """Send the counts of a part of the log, or the reason for which there are none."""
    process_setup.set_up()
    os.nice(process_setup.NICE)
    reply: CountSnapshot | str
    try:
        reply = count(part)
    except StorageError as error:
        reply = str(error)
    with contextlib.suppress(BrokenPipeError):  # the writer has ended
        sender.send_bytes(msgspec.msgpack.encode(reply))


def count(part: LogPart) -> CountSnapshot:
    """The counts of a part of the log. StorageError if it is damaged."""
    counts = EventCounts(lambda campaign_id: part.zones.get(campaign_id, "UTC"))
    live = set(part.live)
    for body in _bodies(Path(part.folder), part.after, part.last):
        record = _DECODER.decode(body)
        if isinstance(record, EventRecord):
            counts.add(record)
        elif isinstance(record, StatusRecord):
            (live.add if record.is_live else live.discard)(record.ad_id)
    by_ad, by_day = counts.totals()
    return CountSnapshot(last=part.last, by_ad=by_ad, by_day=by_day, live=sorted(live))


def missing_bytes(folder: Path, after: int) -> int:
    """Bytes of the segments that have records behind number ``after``."""
    return sum(path.stat().st_size for path, _ in event_log.segments_behind(folder, after))


def _bodies(folder: Path, after: int, last: int) -> Iterator[bytes]:
    """The msgpack of each record of a part of the log. StorageError if it is damaged."""
    for path, is_open in event_log.segments_behind(folder, after):
        if event_log.first_number(path) > last:
            return
        with contextlib.suppress(FileNotFoundError):  # deleted by retention since the folder was listed
            for number, body in event_log.bodies_of(path, is_open):
                if after < number <= last:
                    yield body
