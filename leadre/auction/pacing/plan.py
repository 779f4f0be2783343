"""Plans: the share of a day's budget that is to be spent by each moment, and the forecast of traffic for such a plan.

A position is the elapsed part of the campaign's day, 0 to 1. A plan is in real time: on a day on which clocks change,
an hour that is skipped has no money, and one that is passed twice has money twice.

Letters: S equal parts of the day, quarters of an hour for most plans; D days, H hours and Q quarters of an hour of the
clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HOURS = 24
QUARTERS_OF_HOUR = 4
QUARTERS = HOURS * QUARTERS_OF_HOUR
USUAL_DAY: tuple[int, ...] = tuple(range(QUARTERS))  # the quarter of the clock in each part of a day
FORECAST_DAYS = 7
TRIMMED_DAYS = 3  # from so many days on the day with the highest count of an hour is left out of it
MAX_PEAK = 3.0  # of fewer days: the most that a quarter counts, in median quarters of its day
EMPTY = 1e-3  # of the mean quarter: fewer auctions are none


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


def even(hours: Collection[int] = (), quarter_S: Sequence[int] = USUAL_DAY) -> Plan:
    """Evenly by the clock, within the hours in which the campaign bids; () = all.

    ``quarter_S``: the quarter of the clock in each part of the day. If the day has none of the ``hours``, it is planned
    evenly.
    """
    weight_S = _open(hours)[list(quarter_S)]
    return Plan.of(weight_S if weight_S.any() else np.ones(len(quarter_S)))


def front_loaded(hours: Collection[int] = (), quarter_S: Sequence[int] = USUAL_DAY) -> Plan:
    """At twice the mean rate when the day begins, falling to 0 at its end, within the campaign's hours; as `even`."""
    weight_S = _open(hours)[list(quarter_S)] * (len(quarter_S) - np.arange(len(quarter_S)) - 0.5)
    return Plan.of(weight_S) if weight_S.any() else even(hours, quarter_S)


def by_hours(share_H: Sequence[float], hours: Collection[int] = (), quarter_S: Sequence[int] = USUAL_DAY) -> Plan:
    """In proportion to shares of the hours of the clock; evenly if the campaign's hours have none."""
    return by_traffic(np.repeat(np.asarray(share_H, float), QUARTERS_OF_HOUR), hours, quarter_S)


def by_traffic(
    auctions_Q: Sequence[float] | Floats, hours: Collection[int] = (), quarter_S: Sequence[int] = USUAL_DAY
) -> Plan:
    """In proportion to the auctions of each quarter; evenly if none is expected within the campaign's hours."""
    weight_S = (_open(hours) * np.asarray(auctions_Q, float))[list(quarter_S)]
    return Plan.of(weight_S) if weight_S.any() else even(hours, quarter_S)


def auctions_of(forecast_Q: Sequence[float], quarter_S: Sequence[int]) -> float:
    """Auctions that a forecast expects of a day."""
    return sum(forecast_Q[quarter] for quarter in quarter_S)


def by_quarter(eligible_Q: Sequence[int], quarter_S: Sequence[int]) -> Sequence[float]:
    """[Q] auctions of a day in a quarter of an hour of real time; NaN for a quarter that the day skipped.

    ``eligible_Q``: auctions by the quarter of the clock.
    """
    if quarter_S == USUAL_DAY:
        return eligible_Q
    times_Q = np.bincount(quarter_S, minlength=QUARTERS)
    rate_Q = np.asarray(eligible_Q) / np.where(times_Q > 0, times_Q, np.nan)
    return [float(rate) for rate in rate_Q]


def forecast(auctions_DQ: Sequence[Sequence[float]], hours: Collection[int] = ()) -> Floats | None:
    """[Q] eligible auctions to expect of each quarter of an hour, by up to `FORECAST_DAYS` whole days before this one.

    None until one day with auctions has been seen; 0 outside of ``hours``, () = all. The quarters before the first
    auction are unknown, as NaN is: a campaign that begins at noon learns nothing of mornings. The mean of each hour
    is that of a gamma law whose prior, the mean of all hours, counts as one auction: an hour that had none by chance
    is not expected to have none. The mean of its quarters has that of the hour as a prior, which counts as one too.

    Anyone can send requests, and one flooded hour would keep the budget back. From three days on the day with the
    highest count is left out of each hour; of fewer days no count is above `MAX_PEAK` times the median quarter of its
    day.
    """
    days_DQ = np.array([day_Q for day_Q in auctions_DQ[-FORECAST_DAYS:] if np.nansum(day_Q) > 0], float)
    if not len(days_DQ):
        return None
    days_DQ[0, : np.argmax(days_DQ[0] > 0)] = np.nan
    if len(days_DQ) < TRIMMED_DAYS:
        medians_D = [np.median(day_Q[day_Q > 0]) for day_Q in days_DQ]
        days_DQ = np.minimum(days_DQ, MAX_PEAK * np.array(medians_D)[:, None])
    else:
        _leave_out_highest(days_DQ)
    count_Q = np.isfinite(days_DQ).sum(0)
    sum_Q = np.nansum(days_DQ, 0)
    open_Q = _open(hours)
    usual = (open_Q * sum_Q).sum() / max((open_Q * count_Q).sum(), 1)
    if not usual:
        return np.zeros(QUARTERS)
    hour_Q = _gamma_mean(_of_hour(sum_Q), _of_hour(count_Q), usual)
    forecast_Q = open_Q * _gamma_mean(sum_Q, count_Q, hour_Q)
    return np.where(forecast_Q < EMPTY * usual, 0.0, forecast_Q)


def _leave_out_highest(days_DQ: Floats) -> None:
    """Set each hour to NaN on the day with most auctions in it, unless no other day has the hour."""
    days_DHQ = days_DQ.reshape(len(days_DQ), HOURS, QUARTERS_OF_HOUR)
    several_H = np.flatnonzero(np.isfinite(days_DHQ).any(2).sum(0) > 1)
    days_DHQ[np.nansum(days_DHQ, 2).argmax(0)[several_H], several_H] = np.nan


def _gamma_mean(sum_Q: Floats, count_Q: Floats, prior_Q: Floats | float) -> Floats:
    """[Q] mean count of so many counts of a sum, drawn to a prior mean that counts as one auction."""
    mean_Q: Floats = (1 + sum_Q) / (1 / prior_Q + count_Q)
    return mean_Q


def _of_hour(x_Q: Floats) -> Floats:
    """[Q] the sum over the hour of each quarter."""
    return np.repeat(x_Q.reshape(HOURS, QUARTERS_OF_HOUR).sum(1), QUARTERS_OF_HOUR)


def _open(hours: Collection[int]) -> Floats:
    """[Q] 1 within the hours, 0 outside; () = all."""
    if not hours:
        return np.ones(QUARTERS)
    open_H = np.zeros(HOURS)
    open_H[list(hours)] = 1.0
    return np.repeat(open_H, QUARTERS_OF_HOUR)
