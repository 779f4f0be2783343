"""Value of the objects of a request, from which the margins and weights of preference pairs follow.

By price, a conversion has its GMV: its money in the request, as the logs record it. An object not acted on has no
value of its own and counts as a typical conversion. By eCPM, every object has the value of an impression to its
advertiser: that of its best ad live in the request (`leadre.data.bids`).

Letters: A ads, O objects, N objects acted on in a request, E kinds of event (`bids.ACTIONS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.artifact import Artifact
from leadre.data import bids
from leadre.data.histories import TRAIN, Logs, train_end_us
from leadre.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ObjectValues:
    """Values in billionths; 0 = unknown. ``impression_nanos_A``: the value of an impression of each ad, or None."""

    logs: Logs
    impression_nanos_A: Ints | None = None

    def acted_on(self, r: int) -> tuple[Ints, Floats]:
        """(objects acted on in request ``r``, ascending; their values)."""
        ads, nanos = self.logs.relevant(r)
        objects, row_of_ad = np.unique(self.logs.ad_object_A[ads].astype(np.int64), return_inverse=True)
        if self.impression_nanos_A is not None:
            return objects, self._best_live(r)[objects]
        return objects, np.bincount(row_of_ad, weights=nanos.astype(np.float64)).astype(np.float64)

    def not_acted_on(self, r: int, objects: Ints) -> Floats:
        """The values of live objects that were not acted on in request ``r``."""
        if self.impression_nanos_A is not None:
            return self._best_live(r)[objects]
        return np.full(len(objects), self.typical)

    @cached_property
    def typical(self) -> float:
        """Median value of the training conversions of known value; 0 if none is known."""
        split = np.repeat(self.logs.request_split_R, np.diff(self.logs.relevant_offsets))
        nanos = self.logs.relevant_value_nanos
        if self.impression_nanos_A is not None:
            nanos = self.impression_nanos_A[self.logs.relevant_ads]
        known = nanos[(split == TRAIN) & (nanos > 0)]
        return float(np.median(known)) if len(known) else 0.0

    def _best_live(self, r: int) -> Floats:
        """The highest value among the live ads of each object [O]; 0 for an object without a live ad."""
        assert self.impression_nanos_A is not None
        ads = self.logs.inventory(r)
        best_O = np.zeros(len(self.logs.objects))
        np.maximum.at(best_O, self.logs.ad_object_A[ads], self.impression_nanos_A[ads])
        return best_O


def training_values(tables: Artifact, logs: Logs) -> NDArray[np.int64]:
    """`bids.expected_nanos` of the ads of ``logs`` [A], with events before the end of training; 0 = the bid is unknown.

    InputError if no ad has a bid, or if ads pay for clicks or conversions and no impression is in the training events.
    """
    missing = [name for name in ("bid_nanos", "bid_type") if name not in logs.ads.columns]
    if missing:
        raise InputError(
            f"{tables.path}: the ads table has no column {' and no column '.join(missing)}, so the value of an "
            "impression is unknown; add bids to the logs, or set --value price"
        )
    has_bid_A = (logs.ads["bid_nanos"].fill_null(0) > 0).to_numpy() & logs.ads["bid_type"].is_not_null().to_numpy()
    if not has_bid_A.any():
        raise InputError(
            f"{tables.path}: none of {len(logs.ads):,} ads has both bid_nanos above 0 and bid_type; "
            "add bids to the logs, or set --value price"
        )
    bid_type_A = np.where(has_bid_A, logs.ads["bid_type"].fill_null("").to_numpy(), "").astype(str)
    counts_AE = _counts(tables, logs)
    pays_later_A = np.isin(bid_type_A, list(bids.EVENT_INDEX))
    if pays_later_A.any() and not counts_AE[:, 0].any():
        raise InputError(
            f"{tables.path}: {int(pays_later_A.sum()):,} ads pay for clicks or conversions, and the training "
            "events hold no impression, so the rates are unknown; add impressions to the logs, or set --value price"
        )
    return bids.expected_nanos(bid_type_A, logs.ads["bid_nanos"].fill_null(0).to_numpy().astype(np.int64), counts_AE)


def _counts(tables: Artifact, logs: Logs) -> NDArray[np.float64]:
    """Impressions, clicks and conversions of each ad before the end of training: float64 [A, E]."""
    events = (
        pl.scan_parquet(tables.path / "events.parquet")
        .filter(pl.col("domain") == "ad", pl.col("at").dt.epoch("us") < train_end_us(logs))
        .group_by("item_id", "action")
        .len()
        .collect()
    )
    row_of_ad = {ad_id: row for row, ad_id in enumerate(logs.ads["ad_id"].to_list())}
    counts_AE = np.zeros((len(logs.ads), len(bids.ACTIONS)))
    for ad_id, action, count in events.iter_rows():
        if action in bids.ACTIONS:
            counts_AE[row_of_ad[ad_id], bids.ACTIONS.index(action)] = count
    return counts_AE
