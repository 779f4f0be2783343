"""Lines on stderr about the disk of a process, or a database on it: that it refuses, and that it accepts again."""

from __future__ import annotations

import contextlib
import math

from leadre import progress
from leadre.background import REPORT_S
from leadre.clock import Clock


class DiskReports:
    """Reports of one part: of a refusal at most once every `REPORT_S`, and then of the next success.

    The caller knows what shows one: a batch without records needs no room.
    """

    def __init__(self, part: str, clock: Clock) -> None:
        self._part = part
        self._clock = clock
        self._report_at_s = -math.inf  # monotonic time from which a refusal is reported
        self._is_reported = False  # a refusal, since the last write

    def refused(self, why: str) -> None:
        """A write failed."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._report_at_s:
            self._report_at_s = now_s + REPORT_S
            self._is_reported = True
            self._say(f"waits for its disk: {why}")

    def accepted(self) -> None:
        """A write succeeded, or a read of a database that another program may lock."""
        if self._is_reported:
            self._is_reported = False
            self._say("goes on")

    def _say(self, what: str) -> None:
        with contextlib.suppress(OSError):  # stderr may be a file on the same disk
            progress.say(f"serve: {self._part} {what}")
