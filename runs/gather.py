"""Gather docs/results/retrieval.json from the metrics.json files of finished runs of `leadre evaluate`.

    python runs/gather.py                              # again, from the files that retrieval.json names
    python runs/gather.py journey=FILE beauty/test=FILE,FILE,FILE

SET=FILE takes both views of a file. SET/VIEW=FILE takes the view `all` alone, under another name: for logs in which
both views are equal, and for a set of several runs. SET/VIEW:NAME=FILE takes another view or a slice, as `cold-new`.
Several files are seeds of one run, on the same requests. A file may also be one of `bench/channels.py`, which has
rivals alone, by seed and without money.

retrieval.json: set -> view -> row -> metric -> mean, lo, hi (95 % bootstrap interval over users) and, except for the
row `leadre`, diff: the paired difference row - leadre. `rival` is true for rows without LEADRE's lists. With several
seeds, each figure is the mean over seeds; the mean of their intervals is about as wide as the interval of the mean, or
wider. The key `about` has, by SET or SET/VIEW, the files, numbers of requests and users, and how often each row of the
test set has been read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leadre.evaluate.retrieval.slices import SLICES
from leadre.generate.channels.registry import CHANNELS

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "results" / "retrieval.json"
METRICS = ("recall@10", "recall@50", "ndcg@10", "gmv@10")
KIND_OF = dict.fromkeys(SLICES, "slices")  # of the figures in a metrics.json


def gather(sources: Mapping[str, Sequence[str]], root: Path) -> dict[str, Any]:
    """The content of retrieval.json. ``sources``: SET or SET/VIEW -> files below ``root``, one a seed."""
    result: dict[str, Any] = {"about": {}}
    for source, files in sources.items():
        name, _, view = source.partition("/")
        view, _, measured_as = view.partition(":")
        runs = [run for file in files for run in runs_of(json.loads((root / file).read_text(encoding="utf-8")))]
        first = runs[0]
        assert all(run["requests"] == first["requests"] for run in runs), f"{source}: seeds of different requests"
        # name here -> name in the files
        views = {view: measured_as or "all"} if view else {shown: shown for shown in first["views"]}
        result.setdefault(name, {}).update(
            {
                shown: table([run[KIND_OF.get(measured, "views")][measured] for run in runs])
                for shown, measured in views.items()
            }
        )
        result["about"][source] = {
            "files": list(files),
            "split": first["split"],
            "requests": {shown: first["requests"].get(measured) for shown, measured in views.items()},
            "users": {shown: first["users"].get(measured) for shown, measured in views.items()},
            "readings": first["readings"],
        }
    return result


def runs_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of a file: a metrics.json is one, a file of `bench/channels.py` holds one for each seed."""
    if "views" in content:
        return [dict(content)]
    rows = content["rows"]
    seeds = dict.fromkeys(seed for by_seed in rows.values() for seed in by_seed if seed != "mean")
    unknown: dict[str, Any] = {"split": content["split"], "requests": {}, "users": {}, "readings": {}}
    return [
        {"views": by_view({row: by_seed[seed] for row, by_seed in rows.items() if seed in by_seed}), **unknown}
        for seed in seeds
    ]


def by_view(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Row -> view -> cells as view -> row -> cells."""
    views = dict.fromkeys(view for row in rows.values() for view in row)
    return {view: {name: row[view] for name, row in rows.items() if view in row} for view in views}


def table(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Row -> rival, number of seeds, and the mean over seeds of each cell of METRICS; the highest recall first."""
    rows: dict[str, Any] = {}
    for row in dict.fromkeys(row for seed in seeds for row in seed):
        cells = [seed[row] for seed in seeds if row in seed]
        metrics = {metric: average([cell[metric] for cell in cells]) for metric in METRICS if metric in cells[0]}
        rows[row] = {"rival": row in CHANNELS, "seeds": len(cells), **metrics}
    return dict(sorted(rows.items(), key=lambda item: -item[1]["recall@10"]["mean"]))


def average(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each number of cells of equal shape."""
    return {
        key: average([cell[key] for cell in cells])
        if isinstance(value, Mapping)
        else float(np.mean([cell[key] for cell in cells]))
        for key, value in cells[0].items()
    }


def sources_of(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """The sources from which a retrieval.json was gathered."""
    return {source: about["files"] for source, about in content["about"].items()}


def main(arguments: Sequence[str]) -> None:
    """Write retrieval.json; sets without an argument stay."""
    sources = sources_of(json.loads(OUTPUT.read_text(encoding="utf-8"))) if OUTPUT.is_file() else {}
    for argument in arguments:
        name, _, files = argument.partition("=")
        paths = [Path(file).resolve().relative_to(ROOT).as_posix() for file in files.split(",")]
        sources[name] = paths
    OUTPUT.write_text(json.dumps(gather(sources, ROOT), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
