"""Tables of the result page on coarse rankers."""

from __future__ import annotations

from typing import Any

from tests.docs.rank_tables import compared
from tests.docs.tables import figure, table

COARSE = {
    "popularity": "popularity",
    "own": "own events, then popularity",
    "log": "two towers, log loss",
    "two_tower": "two towers, softmax",
    "two_tower+teacher": "two towers, softmax, distilled",
    "repeats": "two towers and repeats",
    "repeats+teacher": "two towers and repeats, distilled",
    "wide+teacher": "the same, one vector of 128",
    "finalmlp_split+teacher": "split FinalMLP and repeats, distilled",
    "routing+teacher": "plain routing, 4 vectors of 32, repeats, distilled",
    "hcn": "after HCN, 4 vectors of 32, repeats",
    "hcn+teacher": "after HCN, distilled",
}


def cuts(claim: Any, data: str, measure: str, title: str) -> str:
    """Coarse rankers on a set: recall of the final ranker's ten best by the size of the cut."""
    models = claim[data]
    sizes = [key for key in next(iter(models.values())) if key.startswith(f"{measure}_")]
    rows = [[COARSE[name], *(compared(cell[size]) for size in sizes)] for name, cell in models.items()]
    return table([f"{title}, in a cut to", *(size.removeprefix(f"{measure}_") for size in sizes)], rows)


def clicks_in_cuts(claim: Any, data: str) -> str:
    """Recall of actions of the final ranker's ten best in a cut; the last column is without a cut."""
    models = claim[data]
    sizes = [key for key in next(iter(models.values())) if key.startswith("labels_")]
    rows = [[COARSE[name], *(figure(cell[size]) for size in (*sizes, "labels"))] for name, cell in models.items()]
    return table(["R@10 after a cut to", *(size.removeprefix("labels_") for size in sizes), "all"], rows)


def coarse_sizes(claim: Any, data: str) -> str:
    """Parameters of coarse rankers, and the mean cosine of two vectors of a user."""
    rows = [
        [COARSE[name], f"{cell['parameters']:,.0f}", figure(cell["cosine"]) if "cosine" in cell else ""]
        for name, cell in claim[data].items()
        if cell["parameters"]
    ]
    return table(["ranker", "parameters", "cosine of two interests"], rows)


def coarse_serving(claim: Any) -> str:
    """Time of a score of coarse rankers, with vectors of the candidates computed in the call, and cached."""
    rows = [[f"`{name}`", f"{ms:.1f}", f"{claim['cached'][name]:.1f}"] for name, ms in claim["serving"].items()]
    return table(["ranker", "ms per 1,000 candidates", "with cached vectors"], rows)


TABLES = (cuts, clicks_in_cuts, coarse_sizes, coarse_serving)
