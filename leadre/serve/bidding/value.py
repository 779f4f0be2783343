"""Expected value of one impression of an ad to its advertiser: the campaign's bid x the rate of the event it pays for.

The rate is the ad's observed rate, smoothed by `PRIOR_IMPRESSIONS` impressions at the rate of all ads that pay for the
same event. Scores of the generator rank ads; they are no probabilities of an event and have no part in it.
Letters: A ads, C campaigns, E kinds of event.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leadre.serve.catalogue.eligibility import CatalogueSnapshot

PRIOR_IMPRESSIONS = 200.0
PRIOR_RATES = {"cpm": 1.0, "cpc": 0.005, "cpa": 0.0005}  # of all ads, before any event is observed
EVENT_INDEX = {"cpc": 1, "cpa": 2}  # in the counts of an ad

Counts = Mapping[str, tuple[int, int, int]]  # ad -> impressions, clicks, conversions


def expected_nanos(catalogue: CatalogueSnapshot, counts: Counts) -> NDArray[np.int64]:
    """[A] nanos of one impression of each ad; for CPM the bid itself."""
    counts_AE = np.array([counts.get(ad.ad_id, (0, 0, 0)) for ad in catalogue.ads], np.float64).reshape(-1, 3)
    result_A = np.zeros(len(catalogue.ads), np.int64)
    bid_type_C = np.array([campaign.bid_type for campaign in catalogue.campaigns])
    bid_C = np.array([campaign.bid_nanos for campaign in catalogue.campaigns], np.int64)
    bid_type_A = bid_type_C[catalogue.campaign_A]
    bid_A = bid_C[catalogue.campaign_A]
    for bid_type, prior in PRIOR_RATES.items():
        has_type_A = bid_type_A == bid_type
        if bid_type == "cpm":
            result_A[has_type_A] = bid_A[has_type_A]
            continue
        event = EVENT_INDEX[bid_type]
        total_E = counts_AE[has_type_A].sum(0)
        overall = (total_E[event] + PRIOR_IMPRESSIONS * prior) / (total_E[0] + PRIOR_IMPRESSIONS)
        events = counts_AE[has_type_A, event] + PRIOR_IMPRESSIONS * overall
        rate = events / (counts_AE[has_type_A, 0] + PRIOR_IMPRESSIONS)
        result_A[has_type_A] = np.floor(bid_A[has_type_A] * np.minimum(rate, 1.0)).astype(np.int64)
    return result_A
