"""Tables of the result page on labels as sums of bags."""

from __future__ import annotations

from typing import Any

from tests.docs.rank_tables import compared
from tests.docs.tables import figure, table

MODELS = {"dllp": "DLLP", "easyllp": "EasyLLP", "bp": "belief propagation"}
KINDS = {"iid": "random", "cluster": "by groups", "key": "by a key that leans to the label"}


def bags(claim: Any) -> str:
    """AUC of rankers from sums of random bags by the size of a bag, with marks against DLLP."""
    cells = sorted(claim["kinds"]["iid"].items(), key=lambda item: int(item[0]))
    rows = [[title, *(compared(cell[name]["auc"]) for _, cell in cells)] for name, title in MODELS.items()]
    return table(["AUC by rows of a bag", *(f"{int(size):,}" for size, _ in cells)], rows)


def bag_seeds(claim: Any) -> str:
    """The same of each seed."""
    cells = sorted(claim["kinds"]["iid"].items(), key=lambda item: int(item[0]))
    rows = [
        [title, *(" ".join(figure(auc, 2) for auc in cell[name]["auc"]["seeds"]) for _, cell in cells)]
        for name, title in MODELS.items()
    ]
    return table(["AUC of each seed", *(f"{int(size):,}" for size, _ in cells)], rows)


def bag_kinds(claim: Any, size: str) -> str:
    """AUC in bags of one size by the key that puts rows into bags."""
    cells = {kind: sizes[size] for kind, sizes in claim["kinds"].items()}
    rows = [[title, *(compared(cell[name]["auc"]) for cell in cells.values())] for name, title in MODELS.items()]
    return table([f"AUC in bags of {size}", *(KINDS[kind] for kind in cells)], rows)


def bag_limits(claim: Any) -> str:
    """AUC of the same network with labels of rows, and of the true log-odds."""
    titles = {"auc": "the same network with labels of rows", "auc_possible": "the true log-odds"}
    values = {name: claim["rows"][name]["value"] for name in titles}
    rows = [
        [title, f"{figure(values[name]['mean'])} ± {figure(values[name]['hi'] - values[name]['mean'])}"]
        for name, title in titles.items()
    ]
    return table(["limit", "AUC"], rows)


def bag_seconds(claim: Any, size: str) -> str:
    """Processor time of a training in random bags of one size."""
    cell = claim["kinds"]["iid"][size]
    rows = [[title, f"{cell[name]['train_s']['value']['mean']:.0f}"] for name, title in MODELS.items()]
    return table(["ranker", "seconds"], rows)


TABLES = (bags, bag_seeds, bag_kinds, bag_limits, bag_seconds)
