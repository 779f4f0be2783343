"""Expected value of one impression of an ad to its advertiser: the campaign's bid x the rate of the event it pays for.

`leadre.data.bids` has the smoothing of rates. Scores of the generator rank ads; they are no probabilities of an event
and have no part in it. Letters: A ads, C campaigns, E kinds of event.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leadre.data import bids
from leadre.serve.catalogue.eligibility import CatalogueSnapshot

Counts = Mapping[str, tuple[int, int, int]]  # ad -> impressions, clicks, conversions


def expected_nanos(catalogue: CatalogueSnapshot, counts: Counts) -> NDArray[np.int64]:
    """[A] nanos of one impression of each ad; for CPM the bid itself."""
    counts_AE = np.zeros((len(catalogue.ads), len(bids.ACTIONS)))
    for ad_id, counts_E in counts.items():  # mostly of few ads
        row = catalogue.row_of_ad.get(ad_id)
        if row is not None:
            counts_AE[row] = counts_E
    bid_type_C = np.array([campaign.bid_type for campaign in catalogue.campaigns])
    bid_C = np.array([campaign.bid_nanos for campaign in catalogue.campaigns], np.int64)
    return bids.expected_nanos(bid_type_C[catalogue.campaign_A], bid_C[catalogue.campaign_A], counts_AE)
