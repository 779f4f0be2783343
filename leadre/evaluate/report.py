"""The report: one self-contained HTML page with comparison, codebook, training loss and six example requests.

The page loads no other file: plots are inline SVG, styles are inline. All text from the logs is escaped.
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

from leadre import artifact, metrics, readings
from leadre.data.histories import Logs
from leadre.errors import ArtifactError
from leadre.evaluate import plots
from leadre.evaluate.retrieval import slices
from leadre.evaluate.retrieval.measure import Ads, View
from leadre.generate.channels.registry import CHANNELS
from leadre.readings import Reading
from leadre.semid import codebook
from leadre.units import NANOS_PER_UNIT

OURS, FUSED, RERANKED = "leadre", "leadre+counts", "sft+price"
CASES = 6
ADS_PER_CASE = 10
HEADLINE = "recall@10"
LABELS = {"recall": "Recall", "ndcg": "nDCG", "gmv": "GMV", "value": "Value", "coverage": "Coverage"}
DESCRIPTIONS = {
    "all": "every conversion counts",
    "new": "only first-ever conversions count; lists leave out objects in the user's history",
    "cold": "only conversions of ads that were hidden until training ended",
    "few": f"only conversions of ads with fewer than {slices.FEW} conversions in training",
    "cold-new": "the same without the user's repeats since the launch: the slice of the view new",
    "few-new": f"first-ever conversions of ads with fewer than {slices.FEW} conversions in training",
}

Table = Mapping[str, Mapping[str, Mapping[str, Any]]]  # method -> metric -> mean, lo, hi, diff


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Input of the page: `tables` by view and slice, and `lists` [V, K] by view and method."""

    logs: Logs
    views: Sequence[View]
    slices: Sequence[View]
    tables: Mapping[str, Table]
    lists: Mapping[str, Mapping[str, Ads]]
    tuned: Path  # the last model; the page shows the curves of its preference tuning, if there are any
    root: Path  # work/<run>; the page shows its codebook, loss curve, prompts and calibration, if they exist
    readings: Sequence[Reading]  # all of this test set, these included; empty for another split
    split: str
    seed: int


def write(folder: Path, inputs: ReportInputs) -> None:
    """Write report.html, comparison.png and, if the model's training wrote a loss curve, loss.png."""
    panels = {f"{v.name} conversions: {len(v.requests_V):,} visits": bars(inputs.tables[v.name]) for v in inputs.views}
    axis_label = f"{label(HEADLINE)}, mean and 95 % interval over users; hollow = tie with LEADRE"
    plots.png(plots.comparison(panels, label=axis_label), folder / "comparison.png")
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
        live=round(float(np.mean(inputs.logs.inventories.sizes_R[inputs.views[0].requests_V]))),
        views=[_view_table(v, inputs.tables[v.name]) | {"plot": _plot(v, inputs.tables[v.name])} for v in inputs.views],
        slices=[_view_table(v, inputs.tables[v.name]) for v in inputs.slices],
        loss=loss_svg,
        alignment=_alignment(inputs.root / "tune-sft" / "alignment.json"),
        preferences=_image_base64(inputs.tuned / "pairs.png"),
        calibration=_image_base64(inputs.root / "rank-score" / "calibration.png"),
        codebook=_codebook(inputs.root / "semid"),
        readings=[
            {"title": title(row), "count": n, "dates": sorted({r.date[:10] for r in inputs.readings if r.row == row})}
            for row, n in readings.count(inputs.readings).items()
        ],
        cases=cases(inputs),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def title(method: str) -> str:
    """Return the row title of a method."""
    if method in CHANNELS:
        return CHANNELS[method].title
    return {OURS: "LEADRE", FUSED: "LEADRE + own counts", RERANKED: "LEADRE x price"}.get(method, method)


def label(metric: str) -> str:
    """Return the column title of a metric: `recall@10` -> `Recall@10`."""
    name, _, k = metric.partition("@")
    return f"{LABELS[name]}@{k}"


def bars(table: Table) -> list[plots.Bar]:
    """Return the headline metric of every method, for the plot."""
    result = []
    for method, row in table.items():
        cell = row[HEADLINE]
        kind = "ours" if method == OURS else "rival" if method in CHANNELS else "kin"
        tie = "diff" in cell and metrics.is_tie(cell["diff"])
        bar = plots.Bar(title=title(method), mean=cell["mean"], lo=cell["lo"], hi=cell["hi"], kind=kind, tie=tie)
        result.append(bar)
    return result


def verdict(cell: Mapping[str, Any]) -> str:
    """Compare a cell with ours: `tie`, `above` or `below`; empty for our own row and for coverage."""
    if "diff" not in cell:
        return ""
    if metrics.is_tie(cell["diff"]):
        return "tie"
    return "above" if cell["diff"]["mean"] > 0 else "below"


def _view_table(v: View, table: Table) -> dict[str, Any]:
    columns = list(table[OURS])
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
        "about": DESCRIPTIONS[v.name],
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
    """Return six requests of different users, with all that the page shows of them.

    Requests whose prompt the generate stage has written come first; the seed draws the others. No result is considered.
    """
    written = _read_cases(inputs.root / "generate" / "cases.jsonl")
    v = inputs.views[0]
    row_of = {int(r): row for row, r in enumerate(v.requests_V)}
    chosen = [r for r in written if r in row_of][:CASES]
    rng = np.random.default_rng(inputs.seed)
    users = {int(inputs.logs.request_user_R[r]) for r in chosen}
    for r in rng.permutation(v.requests_V).tolist():
        if len(chosen) == CASES:
            break
        user = int(inputs.logs.request_user_R[r])
        if user not in users:
            users.add(user)
            chosen.append(r)
    return [_case(inputs, r, written.get(r), inputs.lists[v.name][OURS][row_of[r]]) for r in chosen]


def _case(inputs: ReportInputs, r: int, case: Mapping[str, Any] | None, ads_K: NDArray[np.int32]) -> dict[str, Any]:
    """One request for the page; `case` holds its prompt and generated ads, `ads_K` is its list."""
    logs = inputs.logs
    relevant, value_nanos = logs.relevant(r)
    ids = logs.ads["ad_id"]
    titles = logs.ads["title"]
    if case is None:
        generated = [{"ad_id": ids[int(a)], "title": titles[int(a)], "logprob": None} for a in ads_K if a >= 0]
    else:
        generated = list(case["generated"])
    converted_ids = {ids[int(a)] for a in relevant}
    shown = [{**ad, "hit": ad["ad_id"] in converted_ids} for ad in generated[:ADS_PER_CASE]]
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
        "live": int(logs.inventories.sizes_R[r]),
        **_history(logs, r),
        "prompt": None if case is None else case["prompt"],
        "generated": shown,
        "converted": [
            {"title": titles[int(a)], "money": int(nanos) / NANOS_PER_UNIT, "hit": ids[int(a)] in shown_ids}
            for a, nanos in zip(relevant, value_nanos, strict=True)
        ],
    }


def _history(logs: Logs, r: int) -> dict[str, Any]:
    """Summarise the user's history: number of events, most frequent objects, objects of the last visit."""
    span = logs.history(r)
    objects = logs.object_E[span]
    titles = logs.objects["title"]
    unique, count = np.unique(objects, return_counts=True)
    most_frequent = np.lexsort((unique, -count))[:8]
    last = objects[logs.at_us_E[span] == logs.at_us_E[span.stop - 1]] if len(objects) else objects
    return {
        "events": len(objects),
        "frequent": [(titles[int(unique[i])], int(count[i])) for i in most_frequent],
        "last": [titles[int(o)] for o in last[:10]],
        "last_more": max(len(last) - 10, 0),
    }


def _read_cases(path: Path) -> dict[int, dict[str, Any]]:
    """Read the prompts and generated ads that the generate stage wrote for this page: request -> case."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line]
    return {int(row["request"]): row for row in rows}


def _codebook(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    try:
        ids = codebook.load(artifact.read(folder, artifact.CODEBOOK))
    except ArtifactError:  # an older format: the page leaves the section out
        return None
    prefixes = len(np.unique(ids.codes_OL[:, :-1], axis=0))
    objects = len(ids.codes_OL)
    return {
        "plot": plots.svg(plots.codebook(ids.codes_OL, ids.sizes)),
        "objects": objects,
        "sizes": " x ".join(str(size) for size in ids.sizes[:-1]),
        "collided": 1 - prefixes / objects,
    }


def _alignment(path: Path) -> dict[str, Any] | None:
    """Read the scores of the alignment tasks (`tune.alignment`); None if the model was tuned without them."""
    if not path.is_file():
        return None
    figures = json.loads(path.read_text(encoding="utf-8"))
    seen = figures["seen"]
    new = figures["new"]
    answers = (
        ("category", "ID to category, by the model"),
        ("lookup_1", "the same by a table: most common category of the first code"),
        ("lookup_2", "the same by a table: most common category of the first two codes"),
        ("majority", "always the most common category"),
    )
    rows = [
        (f"{title}, level {depth}", seen[name][depth], new[name][depth])
        for depth in ("1", "2")
        for name, title in answers
        if name in new  # models of earlier releases have no lookup
    ]
    rows += [
        ("ID to title, F1 of words", seen["title_f1"], new["title_f1"]),
        ("title to ID, recall@10 among all ads", seen["recall@10"], new["recall@10"]),
    ]
    return {"seen": seen["objects"], "new": new["objects"], "rows": rows}


def _image_base64(path: Path) -> str | None:
    """Return an image file in base64, to embed in the page; None if it does not exist."""
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


def _read_csv(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read a small CSV of numbers as column -> array; empty if the file is missing or has no rows."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def template(package: str, name: str) -> Any:
    """Return the page template ``name`` of a package; it escapes all text, and a missing variable is an error."""
    source = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = lambda value: f"{value:.3f}".removeprefix("0")
    return environment.from_string(source)
