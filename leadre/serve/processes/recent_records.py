"""Records of the most recent requests, which the API and the status page explain."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from leadre.extended_ids import covers
from leadre.serve.events import records, user_records, user_texts
from leadre.serve.events.records import RequestRecord

MAX_RECENT = 20_000  # requests that are known
MAX_BYTES = 64 << 20  # of the newest of them that can be explained


@dataclass(slots=True)
class _Recent:
    """A record as its bytes in the log: its objects would take four times the memory, and time of every collection.

    ``packed`` is empty if later records have taken its room.
    """

    request_id: str
    at_us: int
    user_id: str
    packed: bytes


class RecentRecords:
    """The last records, by our request ID and by the caller's: `MAX_RECENT` are known, `MAX_BYTES` are stored."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._by_id: OrderedDict[str, _Recent] = OrderedDict()
        self._stored: deque[_Recent] = deque()  # those with bytes, oldest first
        self._max_bytes = max_bytes
        self._bytes = 0

    def add(self, record: RequestRecord) -> None:
        recent = _Recent(record.request_id, record.at_us, record.user_id, records.encode(record))
        for request_id in (record.request_id, record.caller_request_id):
            self._by_id[request_id] = recent
        self._stored.append(recent)
        self._bytes += len(recent.packed)
        while self._bytes > self._max_bytes and len(self._stored) > 1:
            self._empty(self._stored.popleft())
        while len(self._by_id) > 2 * MAX_RECENT:
            self._empty(self._by_id.popitem(last=False)[1])
        while self._stored and not self._stored[0].packed:
            self._stored.popleft()

    def __contains__(self, record: RequestRecord) -> bool:
        """Whether the record is known: a worker that received no acknowledgement sends it again."""
        known = self._by_id.get(record.request_id)
        return known is not None and known.request_id == record.request_id

    def find(self, request_id: str) -> RequestRecord | None:
        """The record of a request, if it is stored; "" is the newest."""
        recent = self._by_id.get(request_id or next(reversed(self._by_id), ""))
        return _record(recent) if recent is not None and recent.packed else None

    def forget_before(self, oldest_us: int) -> None:
        """Remove records of requests before ``oldest_us``."""
        expired = [request_id for request_id, recent in self._by_id.items() if recent.at_us < oldest_us]
        for request_id in expired:
            self._empty(self._by_id.pop(request_id))

    def erase(self, user_id: str) -> None:
        """Remove the user from all records, and the texts of callers that contain the ID."""
        users = [user_id]
        inside = [user.encode() for user in user_texts.long_enough(users)]
        for recent in self._by_id.values():
            if covers(users, recent.user_id):
                recent.user_id = ""
                recent.packed = recent.packed and user_records.erased_body(recent.packed, users)
            elif any(user in recent.packed for user in inside):
                recent.packed = user_texts.scrubbed_body(recent.packed, users)

    def _empty(self, recent: _Recent) -> None:
        """Give the room of a record to later ones."""
        self._bytes -= len(recent.packed)
        recent.packed = b""


def _record(recent: _Recent) -> RequestRecord:
    record = records.decode(recent.packed)
    assert isinstance(record, RequestRecord)
    return record
