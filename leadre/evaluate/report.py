"""One self-contained HTML page: the comparison, the codebook, the training loss and six cases to read.

Nothing is loaded from elsewhere: plots are inline SVG, styles are inline, all text from the logs is escaped.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from leadre import artifact, metrics
from leadre.data.histories import Logs
from leadre.errors import ArtifactError
from leadre.evaluate import plots
from leadre.evaluate.retrieval import slices
from leadre.evaluate.retrieval.measure import METRICS, Ads, View
from leadre.generate.channels import CHANNELS
from leadre.semid import codebook
from leadre.units import NANOS_PER_UNIT

OURS, FUSED, RERANKED = "leadre", "leadre+counts", "sft+price"
CASES, SHOWN = 6, 10
HEADLINE = "recall@10"
LABELS = {"recall": "Recall", "ndcg": "nDCG", "gmv": "GMV", "value": "Value", "coverage": "Coverage"}
ABOUT = {
    "all": "every conversion counts",
    "new": "only first-ever conversions count; lists leave out what the user had before",
    "cold": "only conversions of ads that were unknown until training ended",
    "few": f"only conversions of ads with fewer than {slices.FEW} conversions in training",
}

Table = Mapping[str, Mapping[str, Mapping[str, Any]]]  # method -> metric -> mean, lo, hi, diff


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What the page shows: `tables` by view and slice, and the `lists` [V, K] of each view and method."""

    logs: Logs
    views: Sequence[View]
    slices: Sequence[View]
    tables: Mapping[str, Table]
    lists: Mapping[str, Mapping[str, Ads]]
    tuned: Path  # the last model: the curves of its preferences are shown, if it learnt any
    root: Path  # work/<run>: the codebook, the loss curve and the prompts are shown where they exist
    split: str
    seed: int


def write(folder: Path, inputs: ReportInputs) -> None:
    """Write report.html, comparison.png and, where the model's training left a curve, loss.png."""
    panels = {f"{v.name} conversions: {len(v.requests_V):,} visits": bars(inputs.tables[v.name]) for v in inputs.views}
    explained = f"{label(HEADLINE)}, mean and 95 % interval over users; hollow = tie with LEADRE"
    plots.png(plots.comparison(panels, label=explained), folder / "comparison.png")
    loss_svg = None
    if (curve := _read_csv(inputs.root / "tune-sft" / "loss.csv")) and {"step", "loss"} <= curve.keys():
        figure = plots.loss(curve, _read_csv(inputs.root / "tune-sft" / "valid.csv"))
        plots.png(figure, folder / "loss.png")
        loss_svg = plots.svg(figure)
    page = template("leadre.evaluate", "report.html.j2").render(
        run=inputs.root.name,
        split=inputs.split,
        requests=len(inputs.views[0].requests_V),
        users=inputs.views[0].users,
        ads=len(inputs.logs.ads),
        live=round(float(np.mean([len(inputs.logs.inventory(int(r))) for r in inputs.views[0].requests_V]))),
        views=[_view(v, inputs.tables[v.name]) | {"plot": _plot(v, inputs.tables[v.name])} for v in inputs.views],
        slices=[_view(v, inputs.tables[v.name], slices.METRICS) for v in inputs.slices],
        loss=loss_svg,
        meaning=_meaning(inputs.root / "tune-sft" / "alignment.json"),
        preferences=_encoded(inputs.tuned / "pairs.png"),
        codebook=_codebook(inputs.root / "semid"),
        cases=cases(inputs),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def title(method: str) -> str:
    """The name of a row for readers."""
    if method in CHANNELS:
        return CHANNELS[method].title
    return {OURS: "LEADRE", FUSED: "LEADRE + own counts", RERANKED: "LEADRE x price"}.get(method, method)


def label(metric: str) -> str:
    """`recall@10` as readers know it."""
    name, _, k = metric.partition("@")
    return f"{LABELS[name]}@{k}"


def bars(table: Table) -> list[plots.Bar]:
    """The headline metric of every method, for the plot."""
    made = []
    for method, row in table.items():
        cell = row[HEADLINE]
        kind = "ours" if method == OURS else "rival" if method in CHANNELS else "kin"
        tie = "diff" in cell and metrics.is_tie(cell["diff"])
        made.append(plots.Bar(title=title(method), mean=cell["mean"], lo=cell["lo"], hi=cell["hi"], kind=kind, tie=tie))
    return made


def verdict(cell: Mapping[str, Any]) -> str:
    """How a rival's cell stands to ours: `tie`, `above`, `below`, or empty for our own row and for coverage."""
    if "diff" not in cell:
        return ""
    if metrics.is_tie(cell["diff"]):
        return "tie"
    return "above" if cell["diff"]["mean"] > 0 else "below"


def _view(v: View, table: Table, columns: Sequence[str] = METRICS) -> dict[str, Any]:
    ordered = sorted(table.items(), key=lambda item: -item[1][HEADLINE]["mean"])
    rows = [
        {
            "title": title(method),
            "ours": method == OURS,
            "cells": [{**row[metric], "verdict": verdict(row[metric])} for metric in columns],
        }
        for method, row in ordered
    ]
    rivals = [(method, row[HEADLINE]) for method, row in ordered if method in CHANNELS]
    best = {"title": title(rivals[0][0]), **rivals[0][1], "verdict": verdict(rivals[0][1])} if rivals else None
    return {
        "name": v.name,
        "about": ABOUT[v.name],
        "requests": len(v.requests_V),
        "users": v.users,
        "columns": [label(metric) for metric in columns],
        "rows": rows,
        "ours": table[OURS][HEADLINE],
        "best": best,
    }


def _plot(v: View, table: Table) -> str:
    panel = {f"{label(HEADLINE)}, {v.name}": bars(table)}
    return plots.svg(plots.comparison(panel, label="mean and 95 % interval over users"))


def cases(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Six requests of different users, drawn by the seed and not by how they came out, told so that one can judge."""
    told = _told(inputs.root / "generate" / "cases.jsonl")
    v = inputs.views[0]
    place = {int(r): row for row, r in enumerate(v.requests_V)}
    chosen = [r for r in told if r in place][:CASES]
    rng = np.random.default_rng(inputs.seed)
    users = {int(inputs.logs.request_user_R[r]) for r in chosen}
    for r in rng.permutation(v.requests_V).tolist():
        if len(chosen) == CASES:
            break
        user = int(inputs.logs.request_user_R[r])
        if user not in users:
            users.add(user)
            chosen.append(r)
    return [_case(inputs, r, told.get(r), inputs.lists[v.name][OURS][place[r]]) for r in chosen]


def _case(inputs: ReportInputs, r: int, told: Mapping[str, Any] | None, listed: NDArray[np.int32]) -> dict[str, Any]:
    logs = inputs.logs
    relevant, value_nanos = logs.relevant(r)
    ids, titles = logs.ads["ad_id"], logs.ads["title"]
    if told is None:
        generated = [{"ad_id": ids[int(a)], "title": titles[int(a)], "logprob": None} for a in listed if a >= 0]
    else:
        generated = list(told["generated"])
    bought_ids = {ids[int(a)] for a in relevant}
    shown = [{**ad, "hit": ad["ad_id"] in bought_ids} for ad in generated[:SHOWN]]
    shown_ids = {ad["ad_id"] for ad in shown}
    at = np.datetime64(int(logs.request_at_us_R[r]), "us")
    profile = dict(logs.users.row(int(logs.request_user_R[r]), named=True))
    user_id = profile.pop("user_id")
    return {
        "user": user_id,
        "profile": [
            (name.replace("_", " "), value) for name, value in profile.items() if value not in (None, "unknown")
        ],
        "at": np.datetime_as_string(at, unit="m").replace("T", " "),
        "placement": logs.placements[int(logs.request_placement_R[r])],
        "live": len(logs.inventory(r)),
        **_history(logs, r),
        "prompt": None if told is None else told["prompt"],
        "generated": shown,
        "bought": [
            {"title": titles[int(a)], "money": int(nanos) / NANOS_PER_UNIT, "hit": ids[int(a)] in shown_ids}
            for a, nanos in zip(relevant, value_nanos, strict=True)
        ],
    }


def _history(logs: Logs, r: int) -> dict[str, Any]:
    """What the user did before: how many events, the most frequent objects, those of the last visit."""
    span = logs.history(r)
    objects, titles = logs.object_E[span], logs.objects["title"]
    unique, count = np.unique(objects, return_counts=True)
    often = np.lexsort((unique, -count))[:8]
    last = objects[logs.at_us_E[span] == logs.at_us_E[span.stop - 1]] if len(objects) else objects
    return {
        "events": len(objects),
        "often": [(titles[int(unique[i])], int(count[i])) for i in often],
        "last": [titles[int(o)] for o in last[:10]],
        "last_more": max(len(last) - 10, 0),
    }


def _told(path: Path) -> dict[int, dict[str, Any]]:
    """The prompts and generated ads that the generate stage left for readers, by request."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line]
    return {int(row["request"]): row for row in rows}


def _codebook(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    try:
        book = codebook.load(artifact.read(folder, artifact.CODEBOOK))
    except ArtifactError:  # of an older format: the page does without it
        return None
    prefixes = len(np.unique(book.codes_OL[:, :-1], axis=0))
    objects = len(book.codes_OL)
    return {
        "plot": plots.svg(plots.codebook(book.codes_OL, book.sizes)),
        "objects": objects,
        "sizes": " x ".join(str(size) for size in book.sizes[:-1]),
        "collided": 1 - prefixes / objects,
    }


def _meaning(path: Path) -> dict[str, Any] | None:
    """What the alignment tasks have taught (`tune.alignment`); None where there were none."""
    if not path.is_file():
        return None
    figures = json.loads(path.read_text(encoding="utf-8"))
    seen, new = figures["seen"], figures["new"]
    rows = [
        ("ID to category, first level", seen["category"]["1"], new["category"]["1"]),
        ("the commonest category", seen["majority"]["1"], new["majority"]["1"]),
        ("ID to title, F1 of words", seen["title_f1"], new["title_f1"]),
        ("title to ID, recall@10 among all ads", seen["recall@10"], new["recall@10"]),
    ]
    return {"seen": seen["objects"], "new": new["objects"], "rows": rows}


def _encoded(path: Path) -> str | None:
    """A picture's bytes as text for the page; None where there is none."""
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


def _read_csv(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a small CSV of numbers; an empty mapping where there is no such file or no rows."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def template(package: str, name: str) -> Any:
    """The page template ``name`` of a package: all text is escaped, a missing variable is an error."""
    source = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda value: f"{value:.3f}".removeprefix("0")
    return environment.from_string(source)
