"""The part of a budget that bids may reserve at expected values, when each click or conversion owes its whole price.

A bid for clicks reserves the expected value of its impression, a small part of a click, and owes a click or nothing.
The number of clicks that pending bids owe is about Poisson distributed around the sum of their expected values. So
reservations end below the money that is left, by a headroom with which more clicks than the budget pays are rare.
"""

from __future__ import annotations

import math

OVERRUN_Z = -1.645  # standard normal quantile of the probability that pending bids owe more than is left: 5 %


def reservable_nanos(left_nanos: int, event_nanos: int) -> int:
    """Nanos that bids may reserve of ``left_nanos`` that are not charged; 0 if less than one event is left.

    The largest mean of a Poisson variable that exceeds the number of whole events left with the probability of
    `OVERRUN_Z`, by the approximation of Wilson and Hilferty (1931), which is .345 instead of .355 for one event.
    """
    events = left_nanos // event_nanos
    if events <= 0:
        return 0
    shape = events + 1
    root = 1 - 1 / (9 * shape) + OVERRUN_Z / (3 * math.sqrt(shape))
    return min(round(shape * root**3 * event_nanos), events * event_nanos)
