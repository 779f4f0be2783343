"""What an ad's object usually brings, as known when training ends: what lists are weighed by, and re-ranked by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import Logs, train_end_us
from leadre.units import NANOS_PER_UNIT

PSEUDO_PAYMENTS = 0.5  # for how many of a user's own payments the usual price counts; best of three on validation weeks


def training_prices(logs: Logs) -> NDArray[np.float64]:
    """Mean money of an object's training events that brought any, in units of the currency: float64 [A], all > 0.

    An object without one has the price of its ad in the catalogue, or else the median of those that have one; 1 where
    no money is known at all.
    """
    counts_E = (logs.at_us_E < train_end_us(logs)) & (logs.value_nanos_E > 0)
    objects, count = logs.object_E[counts_E], len(logs.objects)
    money_O = np.bincount(objects, weights=logs.value_nanos_E[counts_E] / NANOS_PER_UNIT, minlength=count)
    events_O = np.bincount(objects, minlength=count)
    price_O = np.divide(money_O, events_O, out=np.zeros(count), where=events_O > 0)
    price_A = price_O[logs.ad_object_A]
    if "price_nanos" in logs.ads.columns:
        listed_A = logs.ads["price_nanos"].fill_null(0).to_numpy() / NANOS_PER_UNIT
        price_A = np.where(price_A > 0, price_A, listed_A)
    known_A = price_A > 0
    typical = float(np.median(price_A[known_A])) if known_A.any() else 1.0
    return np.where(known_A, price_A, typical)


def object_prices(logs: Logs) -> NDArray[np.float64]:
    """The mean of `training_prices` over the ads of each object: float64 [O]; the typical one for contents."""
    price_A = training_prices(logs)
    ads_O = np.bincount(logs.ad_object_A, minlength=len(logs.objects))
    sum_O = np.bincount(logs.ad_object_A, weights=price_A, minlength=len(logs.objects))
    typical = float(np.median(price_A)) if len(price_A) else 1.0
    return np.where(ads_O > 0, sum_O / np.maximum(ads_O, 1), typical)


def own_log_prices(
    logs: Logs, history: slice, log_price_O: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(objects that the user paid for in these events, ascending; logarithm of what they usually pay for each).

    That is the mean over their payments, drawn to ``log_price_O`` (of `object_prices`) where they are few.
    """
    paid_E = logs.value_nanos_E[history] > 0
    objects, place_E, count = np.unique(logs.object_E[history][paid_E], return_inverse=True, return_counts=True)
    log_paid_E = np.log(logs.value_nanos_E[history][paid_E] / NANOS_PER_UNIT)
    total = np.bincount(place_E, weights=log_paid_E, minlength=len(objects))
    own = (total + PSEUDO_PAYMENTS * log_price_O[objects]) / (count + PSEUDO_PAYMENTS)
    return objects.astype(np.int64), own
