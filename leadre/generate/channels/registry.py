"""The channels by name. A module that needs only some of them imports these, and not the packages of the others."""

from __future__ import annotations

from collections.abc import Mapping

from leadre.generate.channels import als, itemknn, popularity, repeats, sasrec
from leadre.generate.channels.contract import Method

CHANNELS: Mapping[str, Method] = {
    "popularity": popularity.CONVERSIONS,
    "popularity_buyers": popularity.BUYERS,
    "own_frequency": repeats.PLAIN,
    "own_frequency_decayed": repeats.DECAYED,
    "item_knn": itemknn.ITEM_KNN,
    "als": als.ALS,
    "sasrec": sasrec.SASREC,
}
