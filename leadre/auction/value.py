"""Value of an impression from bid and calibrated rates, and the multiplier that turns it into a bid, one rule an aim.

Rates are probabilities per impression, calibrated for the candidates at hand: a rate that is a tenth too high is a
price that is a tenth too high. Targets are transforms of the value. With the target folded into the value, a target
cost per action and a target return are one constraint: sum of values won >= sum of prices paid.

A multiplier depends on the aim and on its *duals*: the value of one more unit of money in the budget (``budget_dual``)
and of one more unit of slack in the return constraint (``return_dual``). An advertiser who pays p for value v gains
``v - p`` as a surplus maximiser and ``v`` as a value maximiser; with duals m and l it wins exactly the auctions whose
gain less ``m p`` plus ``l (v - p)`` is positive (Balseiro and Gur 2019; Feng, Padmanabhan and Wang, arXiv 2208.13713).
The rules hold for truthful auctions. Letters: K candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_MULTIPLIER = 100.0  # a dual near 0 would bid without bound, and the first price would be paid without need


def bid_value_nanos(bid_nanos_K: Ints, rate_K: Floats) -> Floats:
    """[K] nanos of one impression: the bid for an event times the rate of that event; the rate is 1 for CPM."""
    return bid_nanos_K.astype(np.float64) * np.minimum(rate_K, 1.0)


def target_cpa_value_nanos(target_nanos_K: Ints, p_conversion_K: Floats) -> Floats:
    """[K] value under a target cost per action: sum of prices <= target x conversions. With slack it bids above it."""
    return target_nanos_K.astype(np.float64) * p_conversion_K


def target_roas_value_nanos(amount_nanos_K: Floats, p_conversion_K: Floats, target_return: float) -> Floats:
    """[K] value under a target return on ad spend: ``amount_nanos_K`` is the expected amount of a conversion.

    ``target_return``: amount converted per money spent, above 0.
    """
    assert target_return > 0, target_return
    return amount_nanos_K * p_conversion_K / target_return


def surplus_under_budget(budget_dual: float) -> float:
    """Multiplier of a surplus maximiser with a budget: 1 / (1 + m), at most 1."""
    return 1.0 / (1.0 + budget_dual)


def value_under_budget(budget_dual: float) -> float:
    """Multiplier of a value maximiser with a budget: 1 / m, above 1 while the budget is loose."""
    return _bounded(1.0, budget_dual)


def value_at_return(return_dual: float) -> float:
    """Multiplier of a value maximiser with a target return: (1 + l) / l."""
    return _bounded(1.0 + return_dual, return_dual)


def value_at_return_under_budget(return_dual: float, budget_dual: float) -> float:
    """Multiplier of a value maximiser with a target return and a budget: (1 + l) / (m + l)."""
    return _bounded(1.0 + return_dual, budget_dual + return_dual)


def _bounded(numerator: float, denominator: float) -> float:
    return MAX_MULTIPLIER if numerator > MAX_MULTIPLIER * denominator else numerator / denominator
