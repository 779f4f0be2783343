"""Rates of requests: a token bucket for each key, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from leadre.clock import Clock

MAX_KEYS = 10_000  # the key that was counted least recently is forgotten


class RateLimit:
    """A token bucket for each key: ``burst`` requests at once, then ``per_s`` in a second."""

    def __init__(self, clock: Clock, *, burst: float, per_s: float) -> None:
        self._clock = clock
        self._burst = burst
        self._per_s = per_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (left, at_s)

    def take(self, key: str) -> bool:
        """Count a request. False if the key has exceeded the limit."""
        now_s = self._clock.monotonic_s()
        left, at_s = self._buckets.pop(key, (self._burst, now_s))
        left = min(self._burst, left + (now_s - at_s) * self._per_s)
        self._buckets[key] = (left - 1 if left >= 1 else left, now_s)
        if len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)
        return left >= 1

    def __len__(self) -> int:
        return len(self._buckets)
