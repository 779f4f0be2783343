"""The pure steps of a bid decision: rank, filter, consider, explore. Arrays hold the candidates of one imp.

Letters: K candidates in the order of their source, R candidates that pass the filter, ranked, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
_PACED = np.uint8(Verdict.PACED.code)
_NOT_SELECTED = np.uint8(Verdict.NOT_SELECTED.code)
_FLOOR_CURRENCY = np.uint8(Verdict.FLOOR_CURRENCY.code)
_RESPONSE_CURRENCY = np.uint8(Verdict.RESPONSE_CURRENCY.code)
_DUPLICATE = np.uint8(Verdict.DUPLICATE.code)
_INELIGIBLE = np.uint8(Verdict.INELIGIBLE.code)
UNKNOWN_FLOOR = -1  # the floor is in a currency that cannot be converted


def log_values(score_K: NDArray[np.float64], price_nanos_K: Ints) -> NDArray[np.float64]:
    """[K] logarithm of exp(score) x price."""
    values_K: NDArray[np.float64] = score_K + np.log(np.maximum(price_nanos_K, 1))
    return values_K


def rank(log_value_K: NDArray[np.float64], tie_keys: Callable[[Ints], NDArray[np.uint64]] | None = None) -> Ints:
    """Positions [K] in descending order of `log_values`.

    ``tie_keys``: positions [N] -> [N] the ascending order of equal values; called only if there are any. With None they
    keep the order of the source.
    """
    order_K = (-log_value_K).argsort(kind="stable")
    sorted_K = log_value_K[order_K]
    equals_next_K = sorted_K[1:] == sorted_K[:-1]
    if tie_keys is None or not equals_next_K.any():
        return order_K
    is_tied_K = np.append(equals_next_K, False) | np.append(False, equals_next_K)
    tied_N = order_K[is_tied_K]
    order_K[is_tied_K] = tied_N[np.lexsort((tie_keys(tied_N), -sorted_K[is_tied_K]))]
    return order_K


def by_currency(order_K: Ints, is_api_ad_K: Bools, place_K: Ints) -> Ints:
    """A ranking [K] with the currencies in the order of their places, and ads made at the API behind all others."""
    return order_K[np.lexsort((place_K[order_K], is_api_ad_K[order_K]))]


def filter_candidates(
    price_nanos_K: Ints,
    floor_nanos_K: Ints | int,
    is_eligible_K: Bools,
    *,
    worth_nanos_K: Ints | None = None,
    has_currency_K: Bools | None = None,
    are_duplicates: Sequence[Bools] = (),
) -> Codes:
    """[K] the code of the first rule that drops a candidate (eligibility, duplicate, currency, floor, pacing), or
    NOT_SELECTED.

    ``floor_nanos_K``: one number if all candidates have one currency. ``worth_nanos_K``: the prices before pacing; None
    if they are the same. ``has_currency_K``: whether the campaign has the
    currency of the earlier bids; None if all have it. ``are_duplicates``: for each earlier bid of the response [K]
    whether it has the ad.
    """
    code_K = np.where(price_nanos_K < floor_nanos_K, _BELOW_FLOOR, _NOT_SELECTED)
    if worth_nanos_K is not None:
        code_K[(code_K == _BELOW_FLOOR) & (worth_nanos_K >= floor_nanos_K)] = _PACED
    if isinstance(floor_nanos_K, int):
        if floor_nanos_K == UNKNOWN_FLOOR:
            code_K[:] = _FLOOR_CURRENCY
    else:
        code_K[floor_nanos_K == UNKNOWN_FLOOR] = _FLOOR_CURRENCY
    if has_currency_K is not None:
        code_K[~has_currency_K] = _RESPONSE_CURRENCY
    for is_duplicate_K in are_duplicates:
        code_K[is_duplicate_K] = _DUPLICATE
    code_K[~is_eligible_K] = _INELIGIBLE
    return code_K


class Considered(NamedTuple):
    """Positions of the candidates whose limits were checked, best first, and the verdicts of those not ``payable``."""

    all: list[int]
    payable: list[int]
    verdicts: dict[int, Verdict]


def consider(
    ranked: Iterable[int],
    limited: Sequence[bool],
    limit: Callable[[int], Verdict | None],
    first_api_ad: int | None = None,
) -> Considered:
    """Check the limit of each candidate, best first, until `MAX_CONSIDERED` can be paid.

    Those from the position ``first_api_ad`` on, ads made at the API, are checked in any case.
    ``limit`` returns why a candidate cannot be bid now, or None; it is called for those that are ``limited`` [K].
    """
    considered = Considered([], [], {})
    every, payable, verdicts = considered
    for k in ranked:
        if len(payable) >= MAX_CONSIDERED:
            if first_api_ad is None:
                break
            if k < first_api_ad:
                continue
        every.append(k)
        if not limited[k] or (verdict := limit(k)) is None:
            payable.append(k)
        else:
            verdicts[k] = verdict
    return considered


def epsilon_greedy(
    count: int, epsilon: float, explore_draw: float, choice_draw: float, *, has_best: bool = True
) -> tuple[int, float]:
    """Select one of ``count`` >= 1 ranked candidates: (its rank from 0, its propensity).

    With probability ``epsilon`` the selection is uniform, else it is the best. Both draws are uniform in [0, 1).
    Without ``has_best`` no candidate is selected but by exploration.
    """
    selected = int(choice_draw * count) if explore_draw < epsilon else 0
    return selected, epsilon / count + (1 - epsilon) * (has_best and selected == 0)


def verdicts_of(code_K: Codes) -> tuple[Verdict, ...]:
    """The verdicts of an array of codes."""
    return tuple(map(VERDICTS.__getitem__, code_K.tolist()))
