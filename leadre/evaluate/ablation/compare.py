"""Comparison of the ablation's rows: metrics on the same requests, and paired differences to a reference row.

Letters: R requests of the log, U users, B bootstrap resamples, M measures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from leadre import metrics
from leadre.artifact import Artifact
from leadre.data.histories import Logs
from leadre.evaluate import plots, report
from leadre.evaluate.ablation.variants import Variant
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.retrieval import slices
from leadre.evaluate.retrieval.measure import Ints, View
from leadre.metrics import Ratio

COVERAGE = "all/coverage@10"
COLUMNS = (
    *(f"{view}/{metric}" for metric in ("recall@10", "gmv@10", "ndcg@10") for view in retrieval.VIEWS),
    *(f"{part}/recall@10" for part in slices.SLICES),
    "all/value@10",
    COVERAGE,
)
PLOTTED = ("all/recall@10", "new/recall@10", "all/gmv@10", "new/gmv@10")


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One row of ablation.json.

    columns    view/metric -> cell. A cell has the mean over seeds, its interval over users (lo, hi) and the means
               by_seed. If `against` names another row, diff is the paired difference to it, over the seeds that both
               have. Coverage has no interval and no diff: it is a property of all lists together.
    """

    name: str
    title: str
    left_out: bool
    seeds: tuple[int, ...]
    against: str | None
    columns: Mapping[str, Mapping[str, Any]]


def compare(
    logs: Logs,
    requests_R: Ints,
    rows: Sequence[Variant],
    artifacts: Mapping[str, Mapping[int, Artifact]],
    *,
    resamples: int,
    seed: int,
) -> list[AblationRow]:
    """Return the rows in the order of `rows`. `artifacts`: row name -> seed -> its lists artifact.

    A slice without a conversion gets no column.
    """
    views = [retrieval.build_view(logs, requests_R, name) for name in retrieval.VIEWS]
    parts = slices.slice_views(logs, views)
    measured = {
        row.name: {s: _measure(logs, views, parts, lists) for s, lists in artifacts[row.name].items()} for row in rows
    }
    columns = {row.name: dict[str, dict[str, Any]]() for row in rows}
    names = {view.name for view in (*views, *(part for _, part in parts))}
    for column in (column for column in COLUMNS if column.partition("/")[0] in names):
        measures = {
            name: {s: by_column[column] for s, by_column in by_seed.items()} for name, by_seed in measured.items()
        }
        for name, cell in _cells(rows, measures, resamples, seed).items():
            columns[name][column] = cell
    return [
        AblationRow(
            name=row.name,
            title=row.title,
            left_out=row.left_out,
            seeds=tuple(artifacts[row.name]),
            against=row.against,
            columns=columns[row.name],
        )
        for row in rows
    ]


def _measure(
    logs: Logs, views: Sequence[View], parts: Sequence[tuple[View, View]], lists: Artifact
) -> dict[str, Ratio | float]:
    """Return column -> measure of one lists artifact: a `Ratio`, or a plain number for coverage."""
    frame = pl.read_parquet(lists.path / "lists.parquet", columns=["request", "view", "ads"])
    checked = retrieval.checked_lists(frame, logs, views, source=str(lists.path))
    tables = retrieval.tabulate(retrieval.iterate_lists(checked), views)
    for view, part in parts:
        tables[part.name] = slices.slice_lists(view, part, {"": tables[view.name]})[""]
    measures: dict[str, Ratio | float] = {
        f"{v.name}/{metric}": measure
        for v in (*views, *(part for _, part in parts))
        for metric, measure in retrieval.measure(v, tables[v.name]).items()
    }
    measures[COVERAGE] = metrics.coverage_at(tables[views[0].name], views[0].live_ads, 10)
    return measures


def _cells(
    rows: Sequence[Variant], measures: Mapping[str, Mapping[int, Ratio | float]], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return the cells of one column, by row name. `measures`: row name -> seed -> measure."""
    cells: dict[str, dict[str, Any]] = {}
    compared: list[tuple[str, str, Ratio]] = []  # (row name, "mean" or "diff", measure)
    for row in rows:
        by_seed = measures[row.name]
        means = {str(s): m if isinstance(m, float) else m.mean for s, m in by_seed.items()}
        cells[row.name] = {"mean": float(np.mean(list(means.values()))), "by_seed": means}
        if any(isinstance(m, float) for m in by_seed.values()):
            continue
        compared.append((row.name, "mean", _average(by_seed, by_seed)))
        if row.against is not None:
            seeds = by_seed.keys() & measures[row.against].keys()
            ours = _average(by_seed, seeds)
            theirs = _average(measures[row.against], seeds)
            compared.append(
                (
                    row.name,
                    "diff",
                    Ratio(numerator_U=ours.numerator_U - theirs.numerator_U, denominator_U=ours.denominator_U),
                )
            )
    if compared:
        values_BM = metrics.bootstrap([ratio for *_, ratio in compared], resamples=resamples, seed=seed)
        for (name, kind, ratio), values_B in zip(compared, values_BM.T, strict=True):
            interval = metrics.interval(ratio.mean, values_B)
            cells[name] |= {"diff": interval} if kind == "diff" else interval
    return cells


def _average(by_seed: Mapping[int, Ratio | float], seeds: Any) -> Ratio:
    """Return the mean over these seeds, user by user. The denominators are equal, as all seeds share the requests."""
    ratios = [ratio for s, ratio in by_seed.items() if s in seeds and isinstance(ratio, Ratio)]
    return Ratio(
        numerator_U=np.mean([ratio.numerator_U for ratio in ratios], axis=0), denominator_U=ratios[0].denominator_U
    )


def write(folder: Path, rows: Sequence[AblationRow], *, run: str, split: str) -> None:
    """Write ablation.json, report.html with a plot of all rows, and ablation.png with the cumulative rows."""
    content = {"rows": [dataclasses.asdict(row) for row in rows]}
    (folder / "ablation.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    plots.png(figure([row for row in rows if not row.left_out]), folder / "ablation.png")
    columns = list(rows[0].columns)
    page = report.template("leadre.evaluate.ablation", "ablation.html.j2").render(
        run=run,
        split=split,
        headings=[heading(column) for column in columns],
        plot=plots.svg(figure(rows)),
        rows=[
            {
                "title": _title(row),
                "seeds": len(row.seeds),
                "left_out": row.left_out,
                "cells": [
                    {**row.columns[column], "verdict": report.verdict(row.columns[column])} for column in columns
                ],
            }
            for row in rows
        ],
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def figure(rows: Sequence[AblationRow]) -> Figure:
    """Return a plot of the PLOTTED columns, a panel each, with the first row on top."""
    return plots.comparison(
        {heading(column): _bars(rows, column) for column in PLOTTED},
        label="mean over seeds and 95 % interval over users; hollow = tie with the row it is compared with",
        ranked=False,
    )


def heading(column: str) -> str:
    """Return the column title: `all/recall@10` -> `Recall@10, all`."""
    view, _, metric = column.partition("/")
    return f"{report.label(metric)}, {view}"


def _bars(rows: Sequence[AblationRow], column: str) -> list[plots.Bar]:
    """Return the bars of one column, the first row on top."""
    bars = []
    for row in reversed(rows):
        cell = row.columns[column]
        tie = "diff" in cell and metrics.is_tie(cell["diff"])
        kind = "rival" if row.left_out else "kin"
        bars.append(plots.Bar(title=_title(row), mean=cell["mean"], lo=cell["lo"], hi=cell["hi"], kind=kind, tie=tie))
    return bars


def _title(row: AblationRow) -> str:
    return f"{row.title} ({len(row.seeds)} seed{'s' * (len(row.seeds) > 1)})" if row.left_out else row.title
