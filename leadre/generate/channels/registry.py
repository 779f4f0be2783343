"""The channels by name. A module that needs only some of them imports these, and not the packages of the others."""

from __future__ import annotations

from collections.abc import Mapping

from leadre.generate.channels import als, counts, itemknn, popularity, repeats, sasrec, tifu_knn, up_cf
from leadre.generate.channels.contract import Method

CHANNELS: Mapping[str, Method] = {
    "popularity": popularity.CONVERSIONS,
    "popularity_buyers": popularity.BUYERS,
    "rate_when_live": popularity.RATE,
    "own_frequency": repeats.PLAIN,
    "own_frequency_decayed": repeats.DECAYED,
    "item_knn": itemknn.ITEM_KNN,
    "als": als.ALS,
    "tifu_knn": tifu_knn.TIFU_KNN,
    "up_cf": up_cf.UP_CF,
    "sasrec": sasrec.SASREC,
    "counts_network": counts.COUNTS_NETWORK,
}
