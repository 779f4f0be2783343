"""Retrieval channels beside the language model: baselines of evaluation, fallbacks of serving.

One contract (``contract.py``): fitted on training time only, a channel scores every live ad of a Moment.
"""

from __future__ import annotations

from collections.abc import Mapping

from leadre.generate.channels import als, itemknn, popularity, repeats, sasrec
from leadre.generate.channels.contract import Channel, Method

CHANNELS: Mapping[str, Method] = {
    "popularity": popularity.CONVERSIONS,
    "popularity_buyers": popularity.BUYERS,
    "own_frequency": repeats.PLAIN,
    "own_frequency_decayed": repeats.DECAYED,
    "item_knn": itemknn.ITEM_KNN,
    "als": als.ALS,
    "sasrec": sasrec.SASREC,
}

__all__ = ["CHANNELS", "Channel", "Method"]
