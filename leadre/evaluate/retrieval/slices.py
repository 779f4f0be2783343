"""Cold start: how well methods find the ads that training knew little or nothing of.

A slice is the view `all` with fewer relevant ads; the lists are the same rankings of the whole live inventory. `cold`
counts conversions of objects that were hidden until training ended (``leadre data --hide``), `few` those of other
objects with fewer than FEW conversions in the ad domain before it ended.

Letters: O objects, A ads, V requests of a view.
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


def objects(logs: Logs) -> dict[str, NDArray[np.bool_]]:
    """slice -> mask [O] of its objects; no object is in both."""
    counts_E = (logs.domain_E == AD) & (logs.at_us_E < train_end_us(logs))
    conversions_O = np.bincount(logs.object_E[counts_E], minlength=len(logs.objects))
    return {"cold": logs.hidden_O, "few": (conversions_O < FEW) & ~logs.hidden_O}


def cut(logs: Logs, everything: View) -> list[View]:
    """The slices of the view `all` in which anything was converted."""
    views = [retrieval.restrict(everything, mask_O[logs.ad_object_A], name) for name, mask_O in objects(logs).items()]
    return [view for view in views if len(view.requests_V)]


def lists(everything: View, part: View, methods: Mapping[str, Ads]) -> dict[str, Ads]:
    """The rows of the lists of `everything` that belong to the requests of `part`."""
    kept_V = np.isin(everything.requests_V, part.requests_V)
    return {name: ads_VK[kept_V] for name, ads_VK in methods.items()}
