"""The pure steps of a bid decision, on arrays of the candidates of one imp: rank, filter, consider, explore.

Letters: K candidates in the order of their source, R candidates that pass the filter, ranked, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.types import Verdict

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Codes = NDArray[np.uint8]  # `Verdict.code`

VERDICTS = tuple(Verdict)  # by `Verdict.code`
MAX_CONSIDERED = 20  # payable candidates of an imp, among which exploration draws
_BELOW_FLOOR = np.uint8(Verdict.BELOW_FLOOR.code)
_NOT_SELECTED = np.uint8(Verdict.NOT_SELECTED.code)
_FLOOR_CURRENCY = np.uint8(Verdict.FLOOR_CURRENCY.code)
_RESPONSE_CURRENCY = np.uint8(Verdict.RESPONSE_CURRENCY.code)
_DUPLICATE = np.uint8(Verdict.DUPLICATE.code)
_INELIGIBLE = np.uint8(Verdict.INELIGIBLE.code)
UNKNOWN_FLOOR = -1  # the floor is in a currency that cannot be converted


def rank(score_K: NDArray[np.float64], value_nanos_K: Ints) -> Ints:
    """Positions [K] in descending order of exp(score) x value; ties keep the order of the source."""
    return np.argsort(-(score_K + np.log(np.maximum(value_nanos_K, 1))), kind="stable")


def filter_candidates(
    price_nanos_K: Ints,
    floor_nanos_K: Ints,
    is_eligible_K: Bools,
    *,
    is_duplicate_K: Bools | None = None,
    has_currency_K: Bools | None = None,
) -> Codes:
    """[K] the first reason that drops a candidate: ineligible, duplicate, currency, floor; else NOT_SELECTED.

    ``is_duplicate_K``: another imp of the request has the ad; None: no ad. ``has_currency_K``: the candidate pays in
    the currency that earlier bids gave the response; None: no bid gave it one.
    """
    code_K = np.where(price_nanos_K < floor_nanos_K, _BELOW_FLOOR, _NOT_SELECTED)
    code_K[floor_nanos_K == UNKNOWN_FLOOR] = _FLOOR_CURRENCY
    if has_currency_K is not None:
        code_K[~has_currency_K] = _RESPONSE_CURRENCY
    if is_duplicate_K is not None:
        code_K[is_duplicate_K] = _DUPLICATE
    code_K[~is_eligible_K] = _INELIGIBLE
    return code_K


class Considered(NamedTuple):
    """Candidates whose limits were checked, in rank order: all, those that can be paid, and the verdicts of others."""

    all: list[int]
    payable: list[int]
    verdicts: dict[int, Verdict]


def consider(ranked: Iterable[int], limit: Callable[[int], Verdict | None]) -> Considered:
    """Check limits (budget, cap) in rank order, until `MAX_CONSIDERED` candidates can be paid.

    ``limit`` returns why a candidate cannot be bid now, or None.
    """
    considered = Considered([], [], {})
    for k in ranked:
        if len(considered.payable) == MAX_CONSIDERED:
            break
        considered.all.append(k)
        if (verdict := limit(k)) is None:
            considered.payable.append(k)
        else:
            considered.verdicts[k] = verdict
    return considered


def epsilon_greedy(choices: int, epsilon: float, explore_draw: float, choice_draw: float) -> tuple[int, float]:
    """(position of the selected choice, its propensity) among ``choices`` >= 1 ranked ones.

    With probability ``epsilon`` the choice is uniform over all, else it is the best. Draws are uniform in [0, 1).
    """
    selected = int(choice_draw * choices) if explore_draw < epsilon else 0
    return selected, epsilon / choices + (1 - epsilon) * (selected == 0)


def verdicts_of(code_K: Codes) -> tuple[Verdict, ...]:
    """The verdicts of an array of codes."""
    return tuple(VERDICTS[code] for code in code_K.tolist())
