"""Calibrated rates of candidate ads: the result of a ranker for one request, as plain arrays.

Letters: K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rates:
    """The probability that the user of a request acts on each candidate. NaN: the ranker has not scored it.

    ``event``: the action. ``is_price``: the probability is one of an impression, so it prices the bids that pay for the
    event; else it is one of a live ad, shown or not, and orders the ads alone. ``log_odds_K`` is before calibration,
    ``p_K`` after it. ``is_new_K``: the object is not in the user's history, the slice of the calibration.
    ``history``: (events of the profile that were read, time of the last one, 0 without any).
    """

    version: str
    event: str
    is_price: bool
    p_K: Floats
    log_odds_K: Floats
    is_new_K: Bools
    history: tuple[int, int] = (0, 0)
