"""Records of the most recent requests, which the API and the status page explain."""

from __future__ import annotations

from collections import OrderedDict

from leadre.serve.events.records import RequestRecord, without_user

MAX_RECENT = 20_000  # requests


class RecentRecords:
    """The last `MAX_RECENT` records, by our request ID and by the caller's."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, RequestRecord] = OrderedDict()

    def add(self, record: RequestRecord) -> None:
        for request_id in (record.request_id, record.caller_request_id):
            self._by_id[request_id] = record
        while len(self._by_id) > 2 * MAX_RECENT:
            self._by_id.popitem(last=False)

    def __contains__(self, record: RequestRecord) -> bool:
        """Whether the record is known: a worker that received no acknowledgement sends it again."""
        known = self._by_id.get(record.request_id)
        return known is not None and known.request_id == record.request_id

    def find(self, request_id: str) -> RequestRecord | None:
        """The record of a request; "" is the newest."""
        return self._by_id.get(request_id or next(reversed(self._by_id), ""))

    def forget_before(self, oldest_us: int) -> None:
        """Remove records of requests before ``oldest_us``."""
        expired = [request_id for request_id, record in self._by_id.items() if record.at_us < oldest_us]
        for request_id in expired:
            del self._by_id[request_id]

    def erase(self, user_id: str) -> None:
        """Remove the user from all records."""
        for request_id, record in list(self._by_id.items()):
            if record.user_id == user_id:
                self._by_id[request_id] = without_user(record)
