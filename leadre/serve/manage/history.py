"""The last hour of the bidder's metrics: increases, rates and quantiles from samples of their totals.

A counter is a total since the start, so a background task of the management process samples all of them every
`SAMPLE_S`. The process keeps the last `MAX_SAMPLES` in memory; after a restart the history is empty. An interval is a
gap if it lacks samples or a total decreased, as after a restart of the bidder; a gap has no rates. A failed sample is
counted.

Letters: T samples, C columns, B buckets.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leadre import telemetry
from leadre.background import TaskHealth
from leadre.clock import Clock
from leadre.errors import FaultError
from leadre.serve.events.calibration import SLICES
from leadre.serve.protocol.openrtb import NoBid
from leadre.units import US_PER_S

Totals = Mapping[tuple[str, str, str], float]  # as `telemetry.totals` returns them

SAMPLE_S = 10.0
MAX_GAP_S = 1.5 * SAMPLE_S  # a longer interval lacks a sample
MAX_SAMPLES = 360
OUTCOMES = ("bid", "no_bid", "shed", "bad", "foreign")
INVALID = ("bad", "foreign")  # requests that no bid could answer
SOURCES = ("stored", "generated", "contextual")
REASONS = tuple(reason.name.lower() for reason in NoBid)
GENERATIONS = ("complete", "cut", "late", "gone")
RANKINGS = ("ranked", "unknown", "late", "failed")
COLUMNS = (  # (metric, label, value of the label)
    *(("leadre_answers_total", "outcome", name) for name in OUTCOMES),
    *(("leadre_bids_total", "source", name) for name in SOURCES),
    *(("leadre_no_bids_total", "reason", name) for name in REASONS),
    *(("leadre_generations_total", "outcome", name) for name in GENERATIONS),
    *(("leadre_rankings_total", "outcome", name) for name in RANKINGS),
    *(("leadre_expected_events_total", "slice", name) for name in SLICES),
    *(("leadre_observed_events_total", "slice", name) for name in SLICES),
    *(("leadre_miscalibrated", "slice", name) for name in SLICES),
    *(("leadre_degraded", "part", name) for name in telemetry.PARTS),
    *(("leadre_answer_seconds_bucket", "le", telemetry.edge(edge)) for edge in (*telemetry.LATENCY_S, np.inf)),
    *(("leadre_list_age_seconds_bucket", "le", telemetry.edge(edge)) for edge in (*telemetry.AGE_S, np.inf)),
)
GAUGES = ("leadre_degraded", "leadre_miscalibrated")
IS_COUNTER_C = np.array([metric not in GAUGES for metric, _, _ in COLUMNS])


@dataclass(frozen=True)
class MetricHistory:
    """Samples, oldest first: ``at_s_T`` in seconds since 1970, ``totals_TC`` the totals of `COLUMNS` at that time.

    ``failures``: samples that failed since the process started; ``failure``: the error of the newest of them.
    """

    at_s_T: NDArray[np.float64]
    totals_TC: NDArray[np.float64]
    failures: int = 0
    failure: str = ""

    def since(self, seconds: float) -> MetricHistory:
        """The history from the last sample that is ``seconds`` older than the newest one, or from the first sample."""
        old = np.flatnonzero(self.at_s_T <= self.at_s_T[-1] - seconds)
        first = int(old[-1]) if len(old) else 0
        return replace(self, at_s_T=self.at_s_T[first:], totals_TC=self.totals_TC[first:])

    @property
    def seconds(self) -> float:
        """Time from the first sample to the last."""
        return float(self.at_s_T[-1] - self.at_s_T[0])

    def totals(self, metric: str) -> NDArray[np.float64]:
        """[T, columns of ``metric``] totals."""
        return self.totals_TC[:, [number for number, (name, _, _) in enumerate(COLUMNS) if name == f"leadre_{metric}"]]

    def increase(self, metric: str) -> NDArray[np.float64]:
        """[columns of ``metric``] increase from the first sample to the last; a decrease of a total counts as 0."""
        increase: NDArray[np.float64] = np.diff(self.totals(metric), axis=0).clip(min=0).sum(axis=0)
        return increase

    def increases(self, metric: str) -> NDArray[np.float64]:
        """[T - 1, columns of ``metric``] increase between samples; NaN in a gap."""
        is_gap = np.diff(self.at_s_T) > MAX_GAP_S
        is_gap |= (np.diff(self.totals_TC[:, IS_COUNTER_C], axis=0) < 0).any(axis=1)
        return np.where(is_gap[:, None], np.nan, np.diff(self.totals(metric), axis=0))

    def rates(self, metric: str) -> NDArray[np.float64]:
        """[T - 1, columns of ``metric``] increase per second between samples; NaN in a gap."""
        return self.increases(metric) / np.diff(self.at_s_T)[:, None]

    def seconds_away(self) -> dict[str, float]:
        """Part of the bidder -> seconds in which it was away, a sample at a time; without gaps."""
        seconds = np.diff(self.at_s_T)
        away_TP = (self.totals("degraded")[1:] > 0) * (seconds <= MAX_GAP_S)[:, None]
        return dict(zip(telemetry.PARTS, (seconds @ away_TP).tolist(), strict=True))


Sample = tuple[float, NDArray[np.float64]]  # seconds since 1970, totals of `COLUMNS`


class MetricRecorder:
    """Samples the totals that ``read_totals`` returns. Thread-safe."""

    def __init__(self, clock: Clock, read_totals: Callable[[], Totals] = telemetry.totals) -> None:
        self._clock = clock
        self._read_totals = read_totals
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._health = TaskHealth("metric samples", clock)
        self._failures = 0
        self._failure = ""
        self._lock = threading.Lock()
        self.sample()

    def sample(self) -> None:
        """Add a sample; a full history drops its oldest one."""
        sample = self._take()
        with self._lock:
            self._samples.extend([] if sample is None else [sample])

    def read(self) -> MetricHistory:
        """All samples, plus one taken by this call; one of zeros if every sample failed."""
        newest = self._take()
        with self._lock:
            samples = [*self._samples, *([] if newest is None else [newest])]
            failures = self._failures
            failure = self._failure
        samples = samples or [(self._clock.now_us() / US_PER_S, np.zeros(len(COLUMNS)))]
        at_s_T = np.array([at_s for at_s, _ in samples])
        # A clock that was set back: samples of a time that has not come yet are left out.
        is_past_T = np.append(at_s_T[:-1] < np.minimum.accumulate(at_s_T[::-1])[::-1][1:], True)
        totals_TC = np.array([totals_C for _, totals_C in samples])
        return MetricHistory(at_s_T[is_past_T], totals_TC[is_past_T], failures, failure)

    def _take(self) -> Sample | None:
        """A sample; None if it failed. Files of a starting process are incomplete; a damaged one may raise anything."""
        try:
            totals_C = self._health.attempt(self._read_columns)
        except FaultError as error:
            with self._lock:
                self._failures += 1
                self._failure = f"{type(error.__cause__).__name__}: {error.__cause__}"
            return None
        return self._clock.now_us() / US_PER_S, totals_C

    def _read_columns(self) -> NDArray[np.float64]:
        totals = self._read_totals()
        return np.array([totals.get(column, 0.0) for column in COLUMNS], np.float64)


def bucket(edges_B: tuple[float, ...], cumulative_B: NDArray[np.float64], q: float) -> tuple[float, float]:
    """The edges of the bucket with the ``q`` quantile; the upper one is infinite beyond the last edge. NaN if empty.

    ``edges_B``: the upper edges of the buckets. ``cumulative_B``: the number of values up to each edge, then the number
    of all values.
    """
    if not cumulative_B[-1] > 0:
        return np.nan, np.nan
    number = int(np.searchsorted(cumulative_B, q * cumulative_B[-1]))
    low_edge, *_ = edges_B[number - 1 : number] or (0.0,)
    high_edge, *_ = edges_B[number : number + 1] or (np.inf,)
    return float(low_edge), float(high_edge)


def quantile(edges_B: tuple[float, ...], cumulative_B: NDArray[np.float64], q: float) -> float:
    """The ``q`` quantile of a histogram, interpolated linearly within a bucket; NaN if it is empty.

    The arguments are those of `bucket`. A quantile beyond the last edge is that edge.
    """
    low_edge, high_edge = bucket(edges_B, cumulative_B, q)
    if not np.isfinite(high_edge):
        return low_edge
    number = edges_B.index(high_edge)
    low = float(cumulative_B[number - 1]) if number else 0.0
    share = (q * float(cumulative_B[-1]) - low) / max(float(cumulative_B[number]) - low, 1e-12)
    return low_edge + share * (high_edge - low_edge)
