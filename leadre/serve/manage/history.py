"""The last hour of what the bidder counted, and what can be told of it: rates, fill, quantiles.

Counters know sums alone, so a thread of the management process notes them every `EVERY_S`. The notes are in its memory,
at most `KEPT` of them, and begin anew with it; nothing is counted twice. Letters: T notes, C columns, B buckets.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre import telemetry
from leadre.clock import Clock
from leadre.serve.protocol.openrtb import NoBid

Totals = Mapping[tuple[str, str, str], float]  # as `telemetry.totals` has them

EVERY_S, KEPT = 10.0, 360
OUTCOMES = ("bid", "no_bid", "shed", "bad")
SOURCES = ("stored", "generated", "contextual")
REASONS = tuple(reason.name.lower() for reason in NoBid)
GENERATIONS = ("complete", "cut", "late", "gone")
COLUMNS = (
    *(("leadre_answers_total", "outcome", name) for name in OUTCOMES),
    *(("leadre_bids_total", "source", name) for name in SOURCES),
    *(("leadre_no_bids_total", "reason", name) for name in REASONS),
    *(("leadre_generations_total", "outcome", name) for name in GENERATIONS),
    *(("leadre_degraded", "part", name) for name in telemetry.PARTS),
    *(("leadre_answer_seconds_bucket", "le", telemetry.edge(edge)) for edge in (*telemetry.LATENCY_S, np.inf)),
    *(("leadre_list_age_seconds_bucket", "le", telemetry.edge(edge)) for edge in (*telemetry.AGE_S, np.inf)),
)


@dataclass(frozen=True)
class MetricHistory:
    """Notes in order: ``at_s_T`` seconds since 1970, ``counts_TC`` what had been counted by then, as in `COLUMNS`."""

    at_s_T: NDArray[np.float64]
    counts_TC: NDArray[np.float64]

    def since(self, seconds: float) -> MetricHistory:
        """From the last note that is at least so old, or the first."""
        old = np.flatnonzero(self.at_s_T <= self.at_s_T[-1] - seconds)
        first = int(old[-1]) if len(old) else 0
        return MetricHistory(self.at_s_T[first:], self.counts_TC[first:])

    @property
    def seconds(self) -> float:
        """From the first note to the last."""
        return float(self.at_s_T[-1] - self.at_s_T[0])

    def of(self, metric: str) -> NDArray[np.float64]:
        """[T, columns of a metric] what had been counted."""
        return self.counts_TC[:, [number for number, (name, _, _) in enumerate(COLUMNS) if name == f"leadre_{metric}"]]

    def grown(self, metric: str) -> NDArray[np.float64]:
        """[columns of a metric] what came from the first note to the last."""
        counts = self.of(metric)
        grown: NDArray[np.float64] = counts[-1] - counts[0]
        return grown

    def rates(self, metric: str) -> NDArray[np.float64]:
        """[T - 1, columns of a metric] what came in a second."""
        return np.diff(self.of(metric), axis=0) / np.maximum(np.diff(self.at_s_T), 1e-3)[:, None]


class MetricRecorder:
    """Notes what ``totals`` says. Any thread may call."""

    def __init__(self, clock: Clock, totals: Callable[[], Totals] = telemetry.totals) -> None:
        self._clock = clock
        self._totals = totals
        self._notes: deque[tuple[float, NDArray[np.float64]]] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self.note()

    def note(self) -> None:
        """One note more; the oldest goes."""
        now = self._now()
        with self._lock:
            self._notes.append(now)

    def run(self) -> None:
        """Note for ever."""
        while True:
            time.sleep(EVERY_S)
            with contextlib.suppress(OSError, ValueError, struct.error):  # the files of a worker that is just starting
                self.note()

    def read(self) -> MetricHistory:
        """The notes, and how it is now."""
        now = self._now()
        with self._lock:
            notes = [*self._notes, now]
        return MetricHistory(np.array([at_s for at_s, _ in notes]), np.array([counts_C for _, counts_C in notes]))

    def _now(self) -> tuple[float, NDArray[np.float64]]:
        totals = self._totals()
        return self._clock.now_us() / 1e6, np.array([totals.get(column, 0.0) for column in COLUMNS])


def quantile(edges_B: tuple[float, ...], grown_B: NDArray[np.float64], q: float) -> float:
    """The ``q`` quantile of what fell into buckets, linear within one; NaN of nothing.

    ``edges_B`` are upper edges; ``grown_B`` counts what is at most as large, with one bucket more, for all. What is
    larger than the last edge counts as the last edge.
    """
    wanted = q * grown_B[-1]
    if not grown_B[-1]:
        return np.nan
    bucket = int(np.searchsorted(grown_B, wanted))
    if bucket >= len(edges_B):
        return edges_B[-1]
    low_edge, low = (edges_B[bucket - 1], float(grown_B[bucket - 1])) if bucket else (0.0, 0.0)
    share = (wanted - low) / max(float(grown_B[bucket]) - low, 1e-12)
    return float(low_edge + share * (edges_B[bucket] - low_edge))
