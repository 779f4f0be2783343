"""The multiplier that turns the value of an impression into a bid, one rule an aim.

A value is the money that an action is worth x its rate (`leadre.data.bids`). Targets are transforms of the value: an
action is worth the target cost, or its expected amount over the target return (`leadre.types.Goal.worth_nanos`). So
both targets are one constraint: sum of values won >= sum of prices paid.

A multiplier depends on the aim and on its *duals*: the value of one more unit of money in the budget (``budget_dual``)
and of one more unit of slack in the return constraint (``return_dual``). An advertiser who pays p for value v gains
``v - p`` as a surplus maximiser and ``v`` as a value maximiser; with duals m and l it wins exactly the auctions whose
gain less ``m p`` plus ``l (v - p)`` is positive (Balseiro and Gur 2019; Feng, Padmanabhan and Wang, arXiv 2208.13713).
The rules hold for truthful auctions.
"""

from __future__ import annotations

MAX_MULTIPLIER = 100.0  # a dual near 0 would bid without bound, and the first price would be paid without need


def surplus_under_budget(budget_dual: float) -> float:
    """Multiplier of a surplus maximiser with a budget: 1 / (1 + m), at most 1."""
    return 1.0 / (1.0 + budget_dual)


def value_under_budget(budget_dual: float) -> float:
    """Multiplier of a value maximiser with a budget: 1 / m, above 1 while the budget is loose."""
    return _bounded(1.0, budget_dual)


def value_at_return(return_dual: float) -> float:
    """Multiplier of a value maximiser with a target return: (1 + l) / l."""
    return value_at_return_under_budget(return_dual, 0.0)


def value_at_return_under_budget(return_dual: float, budget_dual: float) -> float:
    """Multiplier of a value maximiser with a target return and a budget: (1 + l) / (m + l)."""
    return _bounded(1.0 + return_dual, budget_dual + return_dual)


def _bounded(numerator: float, denominator: float) -> float:
    return MAX_MULTIPLIER if numerator > MAX_MULTIPLIER * denominator else numerator / denominator
