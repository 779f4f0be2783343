"""Claim: retrieval channels on every request of a split, by seed; evaluation reads only the requests that have lists.

    python bench/channels.py --run work/beauty --split test --channels popularity,als,sasrec --seeds 0,1,2

Fits each channel on training time (kept in RUN/channels-SEED, so a killed run resumes) and ranks all live ads of each
request. Ends with one line of JSON: channel -> seed -> view -> metric -> mean and 95 % interval over users; "mean" in
the place of a seed is the average over the seeds. ``--out`` writes the same into a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from leadre import artifact, readings
from leadre.data import histories
from leadre.evaluate.retrieval import measure as retrieval
from leadre.generate.channels import fitted
from leadre.generate.channels.registry import CHANNELS

METRICS = ("recall@10", "ndcg@10")

Figures = dict[str, dict[str, Any]]  # view -> metric -> cell


def figures(run: Path, split: str, channel: str, seed: int) -> Figures:
    """The channel's metrics in every view that has requests."""
    data = artifact.read(run / "data", artifact.TABLES)
    logs = histories.load(data)
    requests_R = logs.requests_of(histories.SPLITS.index(split))
    views = [view for name in retrieval.VIEWS if len((view := retrieval.build_view(logs, requests_R, name)).requests_V)]
    if split == "test":
        settings = {"channel": channel, "seed": seed, **CHANNELS[channel].settings}
        readings.record(run.parent, data, [channel], run=run.name, requests=len(requests_R), config=settings)
    fit = fitted.load(run / f"channels-{seed}" / channel, channel, logs, data, seed=seed, threads=1)
    ranked = retrieval.rank(logs, fit, views, key_A=retrieval.tie_key(logs, seed))
    lists = retrieval.tabulate(ranked, views)
    return {
        view.name: retrieval.compare(
            view, {channel: lists[view.name]}, ours=channel, resamples=1000, seed=seed, columns=METRICS
        )[channel]
        for view in views
    }


def averaged(by_seed: dict[str, Figures]) -> Figures:
    """The mean over seeds of each metric's mean."""
    first = next(iter(by_seed.values()))
    return {
        view: {
            metric: {"mean": sum(cells[view][metric]["mean"] for cells in by_seed.values()) / len(by_seed)}
            for metric in row
        }
        for view, row in first.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, such as work/beauty")
    parser.add_argument("--split", choices=histories.SPLITS[1:], default="valid")
    parser.add_argument("--channels", default="popularity,item_knn,als,sasrec")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table: dict[str, dict[str, Figures]] = {}
    for channel in options.channels.split(","):
        seeds = options.seeds.split(",")
        table[channel] = {seed: figures(options.run, options.split, channel, int(seed)) for seed in seeds}
        table[channel]["mean"] = averaged(table[channel])
        for view, row in table[channel]["mean"].items():
            means = ", ".join(f"{metric} {cell['mean']:.4f}" for metric, cell in row.items())
            print(f"{channel}, view {view}: {means}", flush=True)
    text = json.dumps({"split": options.split, "rows": table})
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
