"""Refused bid requests, and values left out of others: counted by field and reason, and logged at a limited rate.

Metrics and lines name fields of the schema and reasons of ours. They contain no value of a request, so that no user ID
gets into a log, and no caller can add a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from leadre import progress, telemetry
from leadre.clock import Clock
from leadre.errors import BadRequest
from leadre.serve.protocol.decode import field_of, known_fields

LOG_EVERY_S = 60.0  # between two lines about the same field and reason
MAX_LINES = 10  # in that time, of all fields and reasons together
OTHER = "other"  # in place of a field that the schema lacks


class Refusals:
    """Counts of one worker."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s = float("-inf")
        self._unlogged: Counter[tuple[str, str, str]] = Counter()  # route, field, reason
        self._logged: set[tuple[str, str, str]] = set()  # since `_since_s`

    def refused(self, route: str, error: BadRequest) -> None:
        """Count a request with status 400 or 415."""
        field = field_of(error.field)
        field = field if field in known_fields() else OTHER
        telemetry.BAD_REQUESTS.labels(route, field, error.reason).inc()
        self._log(route, field, error.reason)

    def left_out(self, fields: Iterable[str]) -> None:
        """Count fields of a request that was read without a value of a wrong type."""
        for field in fields:
            telemetry.LEFT_OUT_VALUES.labels(field).inc()

    def _log(self, route: str, field: str, reason: str) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._since_s >= LOG_EVERY_S:
            self._since_s = now_s
            self._logged.clear()
        key = (route, field, reason)
        self._unlogged[key] += 1
        if key in self._logged or len(self._logged) == MAX_LINES:
            return
        self._logged.add(key)
        count = self._unlogged.pop(key)
        progress.say(f"serve: /openrtb2/{route} refused {count:,} requests: {field}: {reason}; ?pretty=1 shows details")
