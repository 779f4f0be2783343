"""The last hour of the bidder's metrics: increases, rates and quantiles from samples of their totals.

A counter is a total since the start, so a thread of the management process samples all of them every `SAMPLE_S`. The
process keeps the last `MAX_SAMPLES` in memory; after a restart the history is empty.

Letters: T samples, C columns, B buckets.
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
from leadre.units import US_PER_S

Totals = Mapping[tuple[str, str, str], float]  # as `telemetry.totals` returns them

SAMPLE_S = 10.0
MAX_SAMPLES = 360
OUTCOMES = ("bid", "no_bid", "shed", "bad")
SOURCES = ("stored", "generated", "contextual")
REASONS = tuple(reason.name.lower() for reason in NoBid)
GENERATIONS = ("complete", "cut", "late", "gone")
COLUMNS = (  # (metric, label, value of the label)
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
    """Samples, oldest first: ``at_s_T`` in seconds since 1970, ``totals_TC`` the totals of `COLUMNS` at that time."""

    at_s_T: NDArray[np.float64]
    totals_TC: NDArray[np.float64]

    def since(self, seconds: float) -> MetricHistory:
        """The history from the last sample that is ``seconds`` older than the newest one, or from the first sample."""
        old = np.flatnonzero(self.at_s_T <= self.at_s_T[-1] - seconds)
        first = int(old[-1]) if len(old) else 0
        return MetricHistory(self.at_s_T[first:], self.totals_TC[first:])

    @property
    def seconds(self) -> float:
        """Time from the first sample to the last."""
        return float(self.at_s_T[-1] - self.at_s_T[0])

    def totals(self, metric: str) -> NDArray[np.float64]:
        """[T, columns of ``metric``] totals."""
        return self.totals_TC[:, [number for number, (name, _, _) in enumerate(COLUMNS) if name == f"leadre_{metric}"]]

    def increase(self, metric: str) -> NDArray[np.float64]:
        """[columns of ``metric``] increase from the first sample to the last."""
        totals = self.totals(metric)
        increase: NDArray[np.float64] = totals[-1] - totals[0]
        return increase

    def rates(self, metric: str) -> NDArray[np.float64]:
        """[T - 1, columns of ``metric``] increase per second between samples."""
        return np.diff(self.totals(metric), axis=0) / np.maximum(np.diff(self.at_s_T), 1e-3)[:, None]


class MetricRecorder:
    """Samples the totals that ``read_totals`` returns. Thread-safe."""

    def __init__(self, clock: Clock, read_totals: Callable[[], Totals] = telemetry.totals) -> None:
        self._clock = clock
        self._read_totals = read_totals
        self._samples: deque[tuple[float, NDArray[np.float64]]] = deque(maxlen=MAX_SAMPLES)
        self._lock = threading.Lock()
        self.sample()

    def sample(self) -> None:
        """Add a sample; a full history drops its oldest one."""
        sample = self._take()
        with self._lock:
            self._samples.append(sample)

    def run(self) -> None:
        """Sample every `SAMPLE_S`; never returns."""
        while True:
            time.sleep(SAMPLE_S)
            with contextlib.suppress(OSError, ValueError, struct.error):  # files of a starting worker are incomplete
                self.sample()

    def read(self) -> MetricHistory:
        """All samples, plus one taken by this call."""
        sample = self._take()
        with self._lock:
            samples = [*self._samples, sample]
        return MetricHistory(np.array([at_s for at_s, _ in samples]), np.array([totals_C for _, totals_C in samples]))

    def _take(self) -> tuple[float, NDArray[np.float64]]:
        totals = self._read_totals()
        return self._clock.now_us() / US_PER_S, np.array([totals.get(column, 0.0) for column in COLUMNS])


def quantile(edges_B: tuple[float, ...], cumulative_B: NDArray[np.float64], q: float) -> float:
    """The ``q`` quantile of a histogram, interpolated linearly within a bucket; NaN if it is empty.

    ``edges_B``: the upper edges of the buckets. ``cumulative_B``: the number of values up to each edge, then the number
    of all values. A quantile beyond the last edge is that edge.
    """
    rank = q * cumulative_B[-1]
    if not cumulative_B[-1]:
        return np.nan
    bucket = int(np.searchsorted(cumulative_B, rank))
    if bucket >= len(edges_B):
        return edges_B[-1]
    low_edge, low = (edges_B[bucket - 1], float(cumulative_B[bucket - 1])) if bucket else (0.0, 0.0)
    share = (rank - low) / max(float(cumulative_B[bucket]) - low, 1e-12)
    return float(low_edge + share * (edges_B[bucket] - low_edge))
