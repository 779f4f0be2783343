"""Tables of the result pages on rankers and planted laws."""

from __future__ import annotations

from typing import Any

from tests.docs.tables import MARKS, Cell, figure, table

RANKERS = {
    "trees": "LightGBM, fields as categories",
    "mlp": "plain network",
    "dcnv2": "DCNv2",
    "gdcn": "GDCN",
    "autoint1": "AutoInt, one block",
    "autoint2": "AutoInt, two blocks",
    "autoint+": "AutoInt+: two blocks beside a network",
    "streams": "two networks",
    "streams+bilinear": "+ bilinear form",
    "finalmlp": "+ gates: FinalMLP",
    "mlcc": "MLCC, two levels",
    "mlcc3": "MLCC, three levels",
    "mc-mlcc": "MC-MLCC, two channels of two levels",
    "levels1": "one level alone",
    "levels2": "two levels alone",
    "levels3": "three levels alone",
}


def planted(claim: Any, *names: str) -> str:
    """Rankers on the planted law of products: the share of the possible by order, parameters, time of a score."""
    rows = []
    for name in names:
        orders = {key: cell for key, cell in claim["models"][name].items() if key.startswith("order")}
        size = next(iter(orders.values()))
        cells = [text for cell in orders.values() for text in (_share(cell), _seeds(cell))]
        rows.append([RANKERS[name], *cells, f"{size['parameters']:,.0f}", f"{size['ms_1000']:.1f}"])
    head = [text for key in orders for text in (f"product of {key.removeprefix('order')} fields", "each seed")]
    return table(["ranker", *head, "parameters", "ms per 1,000"], rows)


def depths(claim: Any) -> str:
    """Cross layers with and without gates by their number, the share of the possible."""
    models = claim["models"]
    layers = sorted(int(name.removeprefix("cross")) for name in models if name.startswith("cross"))
    rows = [
        [title, *(f"{_share(cell)} ({_seeds(cell)})" for n in layers if (cell := models[f"{name}{n}"]["order4"]))]
        for name, title in (("cross", "CN-V2: no gates"), ("gated", "GCN: gates"))
    ]
    return table(["cross network alone", *(f"{depth} layers" if depth > 1 else "1 layer" for depth in layers)], rows)


def losses(claim: Any, *names: str) -> str:
    """AUC and log loss of the test rows by order, as scored and after a calibration on the validation rows."""
    orders = ("order3", "order4")
    rows = [
        [RANKERS[name], *(figure(claim["models"][name][order][key], 4) for order in orders for key in LOSSES)]
        for name in names
    ]
    head = [f"{title}, {order.removeprefix('order')} fields" for order in orders for title in LOSSES.values()]
    return table(["ranker", *head], rows)


LOSSES = {"auc": "AUC", "loss": "log loss", "loss_calibrated": "calibrated"}


def narrow(claim: Any) -> str:
    """GDCN with narrow tables."""
    rows = [
        [name, _share(cell), _seeds(cell), f"{cell['parameters']:,.0f}", *(figure(cell[key], 1) for key in COLUMNS)]
        for name, cell in claim["tables"].items()
    ]
    return table(["tables", "share of the possible", "each seed", "parameters", *COLUMNS.values()], rows)


COLUMNS = {"columns_law": "columns, fields of the law", "columns_noise": "columns, noise"}


HISTORIES = {
    "trees": "LightGBM on counts",
    "mean": "mean of the events",
    "din": "DIN",
    "tin": "TIN",
    "sdim": "SDIM",
    "gru": "GRU",
    "gru+aux": "GRU + auxiliary loss",
    "augru": "GRU + AUGRU",
    "dien": "DIEN: GRU + auxiliary loss + AUGRU",
    "hstu": "HSTU",
    "hstu softmax": "HSTU, softmax in place of SiLU / n",
    "hstu no time": "HSTU without the time bias",
}


def histories(claim: Any, law: str, control: str, *names: str) -> str:
    """Rankers on a planted law of histories and on its control: the share of the possible, parameters, time."""
    rows = []
    for name in names:
        cell = claim["laws"][law][name]
        other = claim["laws"][control].get(name)
        rows.append(
            [
                HISTORIES[name],
                _share(cell),
                _seeds(cell),
                _share(other) if other else "",
                f"{cell['parameters']:,.0f}",
                f"{cell['ms_1000']:.1f}",
            ]
        )
    return table(["ranker", law, "each seed", control, "parameters", "ms per 1,000"], rows)


def lengths(claim: Any) -> str:
    """Time of a score by the number of events."""
    rows = [[HISTORIES[name], *(f"{ms:.1f}" for ms in times.values())] for name, times in claim["lengths"].items()]
    head = next(iter(claim["lengths"].values()))
    return table(["ms per 1,000 by events", *(f"{int(length):,}" for length in head)], rows)


def serving(claim: Any) -> str:
    """Time of a score of rankers with their defaults and the features of a log; may each serve what a bidder scores?"""
    few = claim.get("serving_few", {})
    head = ["ranker", "ms per 1,000 candidates", *(["ms per 200", "may serve"] if few else [])]
    rows = [
        [f"`{name}`", f"{ms:.0f}", *([f"{few[name]:.1f}", "yes" if few[name] <= BUDGET_MS else "no"] if few else [])]
        for name, ms in sorted(claim["serving"].items(), key=lambda row: row[1])
    ]
    return table(head, rows)


BUDGET_MS = 10.0  # of a ranking in a bidder


CHAIN = {
    "clicked": "a network for each action, the conversion's on clicked rows",
    "clicked+ipw": "+ weights 1 / p(click)",
    "shared": "shared tables, the conversion's loss on clicked rows",
    "division": "shared network, p(conversion) / p(click)",
    "esmm": "ESMM",
}


def chain(claim: Any, *measures: str) -> str:
    """Figures of models of click and conversion by the correlation of both effects, with marks against the first."""
    models = claim["models"]
    columns = [(measure, selection) for measure in measures for selection in models["esmm"]]
    rows = [
        [CHAIN[name], *(compared(cells[selection][measure]) for measure, selection in columns)]
        for name, cells in models.items()
    ]
    head = [f"{MEASURES[measure]}, selection {figure(float(selection), 1)}" for measure, selection in columns]
    return table(["ranker", *head], rows)


def chain_size(claim: Any) -> str:
    """Parameters of the same models, and time of a score."""
    rows = [
        [CHAIN[name], f"{cell['parameters']['value']['mean']:,.0f}", figure(cell["ms_1000"]["value"]["mean"], 1)]
        for name, cells in claim["models"].items()
        if (cell := next(iter(cells.values())))
    ]
    return table(["ranker", "parameters", "ms per 1,000"], rows)


TASKS = {
    "trees": "LightGBM on counts, trees for each action",
    "shared": "one network on means of the events",
    "esmm": "ESMM on means of the events",
    "din": "DIN",
    "infnet-tasks": "INFNet without tokens of tasks",
    "infnet": "INFNet",
}


def tasks(claim: Any, *names: str) -> str:
    """Models of two tasks: the share of the possible of each label, parameters, time of a score."""
    labels = {"click": "click", "conversion": "click and conversion"}
    rows = []
    for name in names:
        cells = claim["models"][name]
        shares = [cells[f"{label}_share"] for label in labels]
        texts = [text for cell in shares for text in (compared(cell), _seeds({"shares": cell["seeds"]}))]
        parameters, ms = (cells[key]["value"]["mean"] for key in ("parameters", "ms_1000"))
        rows.append([TASKS[name], *texts, f"{parameters:,.0f}", f"{ms:.1f}"])
    head = [text for title in labels.values() for text in (title, "each seed")]
    return table(["ranker", *head, "parameters", "ms per 1,000"], rows)


MEASURES = {
    "share": "share of the possible",
    "clicked_auc": "AUC of clicked rows",
    "product_share": "share of the possible",
    "rare_ratio": "p / truth",
}


def compared(cell: Cell) -> str:
    """A figure with its interval, and a mark against the row that others are compared with."""
    value = cell["value"]
    less = cell["less"]
    mark = MARKS["above" if less["lo"] > 0 else "below" if less["hi"] < 0 else "tie"]
    return f"{figure(value['mean'])} ± {figure(value['hi'] - value['mean'])} {mark}"


def _share(cell: Cell) -> str:
    share = cell["share"]
    mark = MARKS["above" if cell["less"]["lo"] > 0 else "below" if cell["less"]["hi"] < 0 else "tie"]
    return f"{figure(share['mean'])} ± {figure(share['hi'] - share['mean'])} {mark}"


def _seeds(cell: Cell) -> str:
    return " ".join(figure(round(share, 2) + 0.0, 2) for share in cell["shares"])  # + 0.0: no sign before zero


TABLES = (planted, depths, losses, narrow, histories, lengths, serving, chain, chain_size, tasks)
