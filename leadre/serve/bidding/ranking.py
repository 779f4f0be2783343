"""Guard of the ranker: no request is late and none fails because of it.

With less time left than a ranking lately took, or after an error, a request has no rates: its candidates keep the price
of their counts and the order of their source.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from leadre import telemetry
from leadre.background import TaskHealth
from leadre.clock import Clock
from leadre.errors import FaultError
from leadre.serve.rankers.rates import Rates

FORGET = 0.95  # what each further request leaves of the time of the slowest ranking


class RankingGuard:
    """Time and errors of the rankings of one process. ``cost_s``: of the slowest one, forgotten over later requests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._health = TaskHealth("ranking", clock)
        self.cost_s = 0.0

    @property
    def is_failing(self) -> bool:
        """Whether the last rankings all failed."""
        return self._health.is_failing

    def attempt(self, score: Callable[[float], Rates], until_s: float) -> Rates | None:
        """``score`` of the monotonic time, or None. An error is counted, and reported once a minute."""
        started_s = self._clock.monotonic_s()
        if until_s - started_s <= self.cost_s:
            self.cost_s *= FORGET
            telemetry.RANKINGS.labels("late").inc()
            return None
        try:
            rates = self._health.attempt(lambda: score(started_s))
        except FaultError:
            telemetry.RANKINGS.labels("failed").inc()
            return None
        self.cost_s = max(self._clock.monotonic_s() - started_s, FORGET * self.cost_s)
        telemetry.RANKINGS.labels("ranked" if np.isfinite(rates.p_K).any() else "unknown").inc()
        return rates
