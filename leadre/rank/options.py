"""Options of the rows of a ranker, in a module without torch, so that `leadre rank train --help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leadre.config import option

STOP_SHARE = 0.5  # of the validation time, its begin: for the early stop; the rest is for calibration

STOP_PART = 4  # requests of the early stop are at most one for so many of training, if these are limited


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Which requests and ads are rows, and what their features may know."""

    popularity: Literal["frozen", "fresh"] = option(
        "frozen", "popularity stops at the end of training, or at the last whole week before a request"
    )
    rows: Literal["live", "shown"] = option(
        "live", "rows of a request: all its live ads, or those with an impression (for logs that have impressions)"
    )
    row_share: float = option(
        0.35, "share of training time whose requests are rows; the time before is history", above=0, below=1
    )
    visits: int = option(
        5_000, "the last requests of a user that are rows, the others are history only; 0 = all", at_least=0
    )
    requests: int = option(
        0,
        "at most this many requests as rows, and a quarter of it for the early stop, drawn by the seed; 0 = all",
        at_least=0,
    )
    negatives: float = option(
        0.1, "share of the rows without an action that training keeps; scores are corrected", above=0, at_most=1
    )
    empty: bool = option(True, "rows of requests without an action too, so that p is one of any request")
    ids: bool = option(False, "read the semantic IDs: their prefixes as fields, text vectors for muse")
    clicks: bool = option(False, "learn clicks beside conversions, as a second label of a network; esmm needs them")


@dataclass(frozen=True, kw_only=True)
class BagOptions:
    """Labels that are known as sums of bags alone, as an aggregated report of conversions has them."""

    labels: Literal["rows", "bags"] = option("rows", "labels of rows, or only the sum of each bag of rows")
    bag_rows: Literal["report", "random"] = option(
        "report", "rows of a bag: those of a placement, week and object, or any, drawn by the seed"
    )
    bag_size: int = option(64, "rows of a random bag", at_least=1)
    bag_method: Literal["dllp", "easyllp", "bp"] = option(
        "dllp", "loss of the mean of a bag, unbiased soft labels, or labels inferred by belief propagation"
    )
    pseudo_labels: Literal["soft", "hard"] = option("hard", "labels of bp: probabilities, or 0 and 1")
    bag_agreement: float = option(0.3, "how much near rows of bp agree", at_least=0)
