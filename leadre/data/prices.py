"""Prices of ads and objects as known when training ends, and the price that a user usually pays for an object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import Logs, train_end_us
from leadre.data.moment import History
from leadre.units import NANOS_PER_UNIT

PSEUDO_PAYMENTS = 0.5  # weight of the usual price among a user's own payments; best of three on the validation weeks


def training_prices(logs: Logs, now_us: int | None = None) -> NDArray[np.float64]:
    """Price of each ad, in units of the currency: float64 [A], all > 0.

    The price is the mean money over the training events of the ad's object that have money; without such an event, the
    ad's price in the catalogue; without either, the median of the known prices, or 1 if none is known. ``now_us`` ends
    training time earlier (`train_end_us`).
    """
    has_money_E = (logs.at_us_E < train_end_us(logs, now_us)) & (logs.value_nanos_E > 0)
    objects = logs.object_E[has_money_E]
    count = len(logs.objects)
    money_O = np.bincount(objects, weights=logs.value_nanos_E[has_money_E] / NANOS_PER_UNIT, minlength=count)
    events_O = np.bincount(objects, minlength=count)
    price_O = np.divide(money_O, events_O, out=np.zeros(count), where=events_O > 0)
    price_A = price_O[logs.ad_object_A]
    if "price_nanos" in logs.ads.columns:
        listed_A = logs.ads["price_nanos"].fill_null(0).to_numpy() / NANOS_PER_UNIT
        price_A = np.where(price_A > 0, price_A, listed_A)
    known_A = price_A > 0
    median = float(np.median(price_A[known_A])) if known_A.any() else 1.0
    return np.where(known_A, price_A, median)


def object_prices(logs: Logs, now_us: int | None = None) -> NDArray[np.float64]:
    """Mean of `training_prices` over the ads of each object, float64 [O]; the median for an object without ads."""
    price_A = training_prices(logs, now_us)
    ads_O = np.bincount(logs.ad_object_A, minlength=len(logs.objects))
    sum_O = np.bincount(logs.ad_object_A, weights=price_A, minlength=len(logs.objects))
    median = float(np.median(price_A)) if len(price_A) else 1.0
    return np.where(ads_O > 0, sum_O / np.maximum(ads_O, 1), median)


def own_log_prices(history: History, log_price_O: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(objects that the user paid for, ascending; logarithm of the price that the user usually pays for each).

    The latter is the mean logarithm of the user's payments, shrunk by `PSEUDO_PAYMENTS` towards ``log_price_O``, the
    logarithm of `object_prices`.
    """
    paid_E = history.value_nanos_E > 0
    objects, row_E, count = np.unique(history.object_E[paid_E], return_inverse=True, return_counts=True)
    log_paid_E = np.log(history.value_nanos_E[paid_E] / NANOS_PER_UNIT)
    total = np.bincount(row_E, weights=log_paid_E, minlength=len(objects))
    own = (total + PSEUDO_PAYMENTS * log_price_O[objects]) / (count + PSEUDO_PAYMENTS)
    return objects.astype(np.int64), own
