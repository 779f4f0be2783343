"""Plans: the share of a day's budget that is to be spent by each moment, and the forecast of traffic for such a plan.

A position is the elapsed part of the campaign's day, 0 to 1: a day of 23 or 25 hours has its hours stretched alike.
Letters: S equal parts of the day, D days, H hours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HOURS = 24
FORECAST_DAYS = 7
TRIMMED_DAYS = 3  # from so many days on the highest count of an hour is left out


@dataclass(frozen=True)
class Plan:
    """Shares of the budget by part of the day, at least 0, sum 1; within a part the budget is spent evenly."""

    share_S: tuple[float, ...]

    @classmethod
    def of(cls, weight_S: Sequence[float] | Floats) -> Plan:
        """The plan in proportion to weights, of which one is above 0."""
        total = float(np.sum(weight_S))
        assert total > 0 and min(weight_S) >= 0, weight_S
        return cls(tuple(float(weight) / total for weight in weight_S))

    def by(self, position: float) -> float:
        """The share that is to be spent by a position of the day."""
        steps = min(max(position, 0.0), 1.0) * len(self.share_S)
        whole = min(int(steps), len(self.share_S) - 1)
        return min(self._before_S[whole] + (steps - whole) * self.share_S[whole], 1.0)

    @cached_property
    def _before_S(self) -> list[float]:
        return [0.0, *np.cumsum(self.share_S).tolist()]


def even(hours: Collection[int] = ()) -> Plan:
    """Evenly by the clock, within the hours of the day in which the campaign bids; () = all."""
    return Plan.of(_open(hours))


def front_loaded(hours: Collection[int] = ()) -> Plan:
    """At twice the mean rate when the day begins, falling to 0 at its end, within the campaign's hours."""
    weight_H = _open(hours) * (HOURS - np.arange(HOURS) - 0.5)
    return Plan.of(weight_H)


def by_traffic(forecast_H: Sequence[float] | Floats, hours: Collection[int] = ()) -> Plan:
    """In proportion to the eligible auctions of each hour; evenly if none is forecast within the campaign's hours."""
    weight_H = _open(hours) * np.asarray(forecast_H, float)
    return Plan.of(weight_H) if weight_H.any() else even(hours)


def forecast(eligible_DH: Sequence[Sequence[int]]) -> Floats | None:
    """[H] eligible auctions to expect in each hour: the mean of up to `FORECAST_DAYS` whole days before this one.

    From three days on the highest count of each hour is left out: anyone can send requests, and one flooded hour would
    keep the budget back for a week. None until one whole day with auctions has been seen. The day to be planned is
    never among the days.
    """
    days_DH = np.array([day_H for day_H in eligible_DH[-FORECAST_DAYS:] if sum(day_H)], float)
    if len(days_DH) >= TRIMMED_DAYS:
        return np.asarray((days_DH.sum(0) - days_DH.max(0)) / (len(days_DH) - 1), float)
    return days_DH.mean(0) if len(days_DH) else None


def _open(hours: Collection[int]) -> Floats:
    if not hours:
        return np.ones(HOURS)
    open_H = np.zeros(HOURS)
    open_H[list(hours)] = 1.0
    return open_H
