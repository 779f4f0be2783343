"""Plans: the share of a day's budget that is to be spent by each moment, and the forecast of traffic for such a plan.

A position is the elapsed part of the campaign's day, 0 to 1. A plan is in real time: on a day on which clocks change,
an hour that is skipped has no money, and one that is passed twice has money twice.

Letters: S equal parts of the day, quarters of an hour for a plan by hours; D days, H hours of the clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HOURS = 24
QUARTERS = 4  # of an hour
USUAL_DAY: tuple[int, ...] = tuple(hour for hour in range(HOURS) for _ in range(QUARTERS))  # hour of each quarter
FORECAST_DAYS = 7
TRIMMED_DAYS = 3  # from so many days on the highest count of an hour is left out
MAX_PEAK = 3.0  # of fewer days: the most that an hour counts, in median hours of its day
EMPTY = 1e-3  # of the mean hour: fewer auctions are none


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


def even(hours: Collection[int] = (), hour_S: Sequence[int] = USUAL_DAY) -> Plan:
    """Evenly by the clock, within the hours in which the campaign bids; () = all.

    ``hour_S``: the hour of each quarter of the day. If the day has none of the ``hours``, it is planned evenly.
    """
    weight_S = _open(hours)[list(hour_S)]
    return Plan.of(weight_S if weight_S.any() else np.ones(len(hour_S)))


def front_loaded(hours: Collection[int] = (), hour_S: Sequence[int] = USUAL_DAY) -> Plan:
    """At twice the mean rate when the day begins, falling to 0 at its end, within the campaign's hours; as `even`."""
    weight_S = _open(hours)[list(hour_S)] * (len(hour_S) - np.arange(len(hour_S)) - 0.5)
    return Plan.of(weight_S) if weight_S.any() else even(hours, hour_S)


def by_traffic(
    auctions_H: Sequence[float] | Floats, hours: Collection[int] = (), hour_S: Sequence[int] = USUAL_DAY
) -> Plan:
    """In proportion to the auctions of each hour; evenly if none is expected within the campaign's hours."""
    weight_S = (_open(hours) * np.asarray(auctions_H, float))[list(hour_S)]
    return Plan.of(weight_S) if weight_S.any() else even(hours, hour_S)


def auctions_of(forecast_H: Sequence[float], hour_S: Sequence[int]) -> float:
    """Auctions that a forecast expects of a day."""
    return sum(forecast_H[hour] for hour in hour_S) / QUARTERS


def by_hour(eligible_H: Sequence[int], hour_S: Sequence[int]) -> Sequence[float]:
    """[H] auctions of a day in an hour of real time; NaN for an hour that the day skipped.

    ``eligible_H``: auctions by the hour of the clock.
    """
    if hour_S == USUAL_DAY:
        return eligible_H
    quarters_H = np.bincount(hour_S, minlength=HOURS)
    rate_H = np.asarray(eligible_H) * QUARTERS / np.where(quarters_H > 0, quarters_H, np.nan)
    return [float(rate) for rate in rate_H]


def forecast(auctions_DH: Sequence[Sequence[float]], hours: Collection[int] = ()) -> Floats | None:
    """[H] eligible auctions to expect of each hour, by up to `FORECAST_DAYS` whole days before this one.

    None until one day with auctions has been seen; 0 outside of ``hours``, () = all. The hours before the first
    auction are unknown, as NaN is: a campaign that begins at noon learns nothing of mornings. The mean of each hour
    is that of a gamma law whose prior, the mean of all hours, counts as one auction: an hour that had none by chance
    is not expected to have none.

    Anyone can send requests, and one flooded hour would keep the budget back. From three days on the highest count of
    each hour is left out; of fewer days no count is above `MAX_PEAK` times the median hour of its day.
    """
    days_DH = np.array([day_H for day_H in auctions_DH[-FORECAST_DAYS:] if np.nansum(day_H) > 0], float)
    if not len(days_DH):
        return None
    days_DH[0, : np.argmax(days_DH[0] > 0)] = np.nan
    is_trimmed = len(days_DH) >= TRIMMED_DAYS
    if not is_trimmed:
        medians_D = [np.median(day_H[day_H > 0]) for day_H in days_DH]
        days_DH = np.minimum(days_DH, MAX_PEAK * np.array(medians_D)[:, None])
    count_H = np.isfinite(days_DH).sum(0)
    sum_H = np.nansum(days_DH, 0)
    if is_trimmed:
        sum_H -= np.where(count_H > 1, np.nan_to_num(days_DH).max(0), 0.0)
        count_H = np.maximum(count_H - 1, np.minimum(count_H, 1))
    open_H = _open(hours)
    usual = (open_H * sum_H).sum() / max((open_H * count_H).sum(), 1)
    if not usual:
        return np.zeros(HOURS)
    forecast_H = open_H * (1 + sum_H) / (1 / usual + count_H)
    return np.where(forecast_H < EMPTY * usual, 0.0, forecast_H)


def _open(hours: Collection[int]) -> Floats:
    if not hours:
        return np.ones(HOURS)
    open_H = np.zeros(HOURS)
    open_H[list(hours)] = 1.0
    return open_H
