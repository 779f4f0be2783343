"""Cold start: retrieval metrics for ads with few or no conversions in training.

A slice is a view in which fewer ads count as relevant; the lists are those of the whole view. In `cold` these are ads
of objects that were hidden until training ended (``leadre data --hide``). In `few` they are ads of other objects with
fewer than FEW conversions in the ad domain before training ended. Both are slices of the view `all`, in which a user's
repeats since the launch count too, so that the user's own counts know something of a cold object. `cold-new` and
`few-new` are the same slices of the view `new`, without repeats.

Letters: O objects, A ads, E events of the log, V requests of a view, K list ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import AD, Logs, train_end_us
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.retrieval.measure import Ads, View

FEW = 5
SLICES = ("cold", "few", "cold-new", "few-new")
METRICS = ("recall@10", "ndcg@10", "gmv@10")


def object_masks(logs: Logs) -> dict[str, NDArray[np.bool_]]:
    """Return slice -> mask [O] of its objects. No object is in two slices."""
    counts_E = (logs.domain_E == AD) & (logs.at_us_E < train_end_us(logs))
    conversions_O = np.bincount(logs.object_E[counts_E], minlength=len(logs.objects))
    return {"cold": logs.hidden_O, "few": (conversions_O < FEW) & ~logs.hidden_O}


def slice_views(logs: Logs, views: Sequence[View]) -> list[tuple[View, View]]:
    """Return (view, slice of it) for each slice with at least one conversion, those of the first view first."""
    masks = object_masks(logs)
    pairs = []
    for view in views:
        suffix = "" if view.name == "all" else f"-{view.name}"
        for name, mask_O in masks.items():
            part = retrieval.restrict(view, mask_O[logs.ad_object_A], name + suffix)
            if len(part.requests_V):
                pairs.append((view, part))
    return pairs


def slice_lists(view: View, part: View, methods: Mapping[str, Ads]) -> dict[str, Ads]:
    """Return each method's lists [V, K] of a view, restricted to the requests of its slice `part`."""
    kept_V = np.isin(view.requests_V, part.requests_V)
    return {name: ads_VK[kept_V] for name, ads_VK in methods.items()}
