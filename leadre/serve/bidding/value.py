"""What one impression of an ad is worth to its advertiser: the bid times how often it comes to what is paid for.

The rate is the ad's own as observed, drawn towards that of all ads that pay for the same, as if it had been shown
`PRIOR_IMPRESSIONS` times more: never what the generator thinks, whose scores rank ads and are no probability of
anything that is paid. Letters: A ads, C campaigns, E kinds of event.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leadre.serve.catalogue.eligibility import CatalogueSnapshot

PRIOR_IMPRESSIONS = 200.0
PRIOR_RATES = {"cpm": 1.0, "cpc": 0.005, "cpa": 0.0005}  # of all ads, before anything is observed
PAID_FOR = {"cpc": 1, "cpa": 2}  # place in the counts

Counts = Mapping[str, tuple[int, int, int]]  # ad -> impressions, clicks, conversions


def expected_nanos(book: CatalogueSnapshot, counts: Counts) -> NDArray[np.int64]:
    """Nanos of one impression of each ad, [A]; for CPM the bid itself."""
    counts_AE = np.array([counts.get(ad.ad_id, (0, 0, 0)) for ad in book.ads], np.float64).reshape(-1, 3)
    result_A = np.zeros(len(book.ads), np.int64)
    kind_C = np.array([campaign.bid_type for campaign in book.campaigns])
    bid_A = np.array([campaign.bid_nanos for campaign in book.campaigns], np.int64)[book.campaign_A]
    for kind, prior in PRIOR_RATES.items():
        mine = kind_C[book.campaign_A] == kind
        if kind == "cpm":
            result_A[mine] = bid_A[mine]
            continue
        paid, seen_E = PAID_FOR[kind], counts_AE[mine].sum(0)
        overall = (seen_E[paid] + PRIOR_IMPRESSIONS * prior) / (seen_E[0] + PRIOR_IMPRESSIONS)
        rate = (counts_AE[mine, paid] + PRIOR_IMPRESSIONS * overall) / (counts_AE[mine, 0] + PRIOR_IMPRESSIONS)
        result_A[mine] = np.floor(bid_A[mine] * np.minimum(rate, 1.0)).astype(np.int64)
    return result_A
