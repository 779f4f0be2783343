"""Cold start: retrieval metrics for ads with few or no conversions in training.

A slice is the view `all` in which fewer ads count as relevant; the lists still rank the whole live inventory. In `cold`
these are ads of objects that were hidden until training ended (``leadre data --hide``). In `few` they are ads of other
objects with fewer than FEW conversions in the ad domain before training ended.

Letters: O objects, A ads, E events of the log, V requests of a view, K list ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import AD, Logs, train_end_us
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.retrieval.measure import Ads, View

FEW = 5
SLICES = ("cold", "few")
METRICS = ("recall@10", "ndcg@10", "gmv@10")


def object_masks(logs: Logs) -> dict[str, NDArray[np.bool_]]:
    """Return slice -> mask [O] of its objects. No object is in two slices."""
    counts_E = (logs.domain_E == AD) & (logs.at_us_E < train_end_us(logs))
    conversions_O = np.bincount(logs.object_E[counts_E], minlength=len(logs.objects))
    return {"cold": logs.hidden_O, "few": (conversions_O < FEW) & ~logs.hidden_O}


def slice_views(logs: Logs, everything: View) -> list[View]:
    """Return the slices of the view `all` that have at least one conversion."""
    masks = object_masks(logs)
    views = [retrieval.restrict(everything, mask_O[logs.ad_object_A], name) for name, mask_O in masks.items()]
    return [view for view in views if len(view.requests_V)]


def slice_lists(everything: View, part: View, methods: Mapping[str, Ads]) -> dict[str, Ads]:
    """Return each method's lists [V, K] of the view `all`, restricted to the requests of the slice `part`."""
    kept_V = np.isin(everything.requests_V, part.requests_V)
    return {name: ads_VK[kept_V] for name, ads_VK in methods.items()}
