"""Expected value of one impression of an ad to its advertiser: its bid x the rate of the event that the bid pays for.

A thousand times this is the eCPM. The rate is the ad's observed rate, smoothed by `PRIOR_IMPRESSIONS` impressions at
the rate of all ads that pay for the same event. Serving and preference training share it.

Letters: A ads, E kinds of event: impression, click, conversion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIOR_IMPRESSIONS = 200.0
PRIOR_RATES = {"cpm": 1.0, "cpc": 0.005, "cpa": 0.0005}  # of all ads, before any event is observed
ACTIONS = ("impression", "click", "conversion")  # E
EVENT_INDEX = {"cpc": 1, "cpa": 2}


def expected_nanos(
    bid_type_A: NDArray[np.str_], bid_nanos_A: NDArray[np.int64], counts_AE: NDArray[np.float64]
) -> NDArray[np.int64]:
    """[A] billionths for one impression of each ad; for CPM the bid itself, 0 for an ad of unknown bid type."""
    result_A = np.zeros(len(bid_nanos_A), np.int64)
    for bid_type, prior in PRIOR_RATES.items():
        has_type_A = bid_type_A == bid_type
        if bid_type == "cpm":
            result_A[has_type_A] = bid_nanos_A[has_type_A]
            continue
        event = EVENT_INDEX[bid_type]
        total_E = counts_AE[has_type_A].sum(0)
        overall = (total_E[event] + PRIOR_IMPRESSIONS * prior) / (total_E[0] + PRIOR_IMPRESSIONS)
        events = counts_AE[has_type_A, event] + PRIOR_IMPRESSIONS * overall
        rate = events / (counts_AE[has_type_A, 0] + PRIOR_IMPRESSIONS)
        result_A[has_type_A] = nanos(bid_nanos_A[has_type_A], rate)
    return result_A


def nanos(bid_nanos_N: NDArray[np.int64], rate_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N] billionths for one impression, from bids and the rates of the events that they pay for."""
    return np.floor(bid_nanos_N * np.minimum(rate_N, 1.0)).astype(np.int64)
