"""Claim: the learnt prior adds at most 15 % to a request at 430 live ads, and at most 10 ms at 100,000 live objects.

    OMP_NUM_THREADS=1 python bench/learnt_prior.py

The run of `make demo` is read. The model of the demo answers test requests in the view `all`, with its learnt prior and
with response rates, one after the other. Then the prior alone is timed at `LIVE` of `OBJECTS` random objects, with
the demo's weights, counts of a history of `HISTORY` events, and an inventory that was seen before.

Figures in milliseconds of processor time: ``rates_ms`` and ``learnt_ms``, medians of requests; ``ratio``, the median of
their quotients; ``large_rates_ms`` and ``large_learnt_ms``, of the prior alone. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse

from leadre import artifact
from leadre.data import histories
from leadre.data.collaborative import Collaborative
from leadre.data.counts import POPULARITY, CountTables
from leadre.data.moment import LiveInventory, Moment, history_of
from leadre.lm import counts_networks
from leadre.lm.counts_networks import CountsNetworks
from leadre.lm.prior import InventoryPrior
from leadre.semid import codebook as codebooks
from leadre.tune import model as tuned
from leadre.tune.answers import TunedSearcher
from leadre.units import US_PER_DAY

REQUESTS = 60
OBJECTS, LIVE, HISTORY = 200_000, 100_000, 300
SIZES = (256, 256, 256, 16)
GROUPS = (2_000, 200, 500, 3_000)  # values of each grouping of `data.counts`
NEIGHBOURS = 50
ROUNDS = 20


def cpu_ms(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start_s = time.process_time()
    call()
    return 1e3 * (time.process_time() - start_s)


def requests_of_demo(run: Path) -> dict[str, float]:
    """Requests of the demo's model, with both priors in turn."""
    tables = artifact.read(run / "data", artifact.TABLES)
    book = codebooks.load(artifact.read(run / "semid", artifact.CODEBOOK))
    model = tuned.load(tables, book, artifact.read(run / "tune-sft", artifact.MODEL), training=False)
    learnt = model.searcher()
    logs = model.threads.logs
    rates = TunedSearcher(learnt.searcher, model.threads, InventoryPrior(logs, book))
    test = logs.requests_of(histories.TEST)
    some = np.random.default_rng(0).choice(test, REQUESTS + 3, replace=False)
    times = []
    for r in some.tolist():
        moment = model.threads.moments[r]
        times.append([cpu_ms(lambda s=searcher, m=moment: s.answer_one(m, "all", 50)) for searcher in (rates, learnt)])  # type: ignore[misc]
    pairs = np.array(times[3:])  # the first requests load code
    return {
        "rates_ms": float(np.median(pairs[:, 0])),
        "learnt_ms": float(np.median(pairs[:, 1])),
        "ratio": float(np.median(pairs[:, 1] / pairs[:, 0])),
    }


def large(run: Path) -> dict[str, float]:
    """The prior alone over a random catalogue, with the demo's weights."""
    rng = np.random.default_rng(0)
    model = artifact.read(run / "tune-sft", artifact.MODEL)
    network = counts_networks.load(model.path / counts_networks.FOLDER).full
    width = network.tables.collaborative.factors_OD.shape[1]
    near = rng.integers(0, OBJECTS, OBJECTS * NEIGHBOURS).astype(np.int32)
    offsets = np.arange(OBJECTS + 1) * NEIGHBOURS
    similarity = sparse.csr_matrix((rng.random(len(near), dtype=np.float32), near, offsets), shape=(OBJECTS, OBJECTS))
    fits = replace(
        network.tables.collaborative,
        factors_OD=rng.normal(size=(OBJECTS, width)).astype(np.float32),
        similarity_OO=similarity,
    )
    assert isinstance(fits, Collaborative)
    counts = CountTables(
        before_us=0,
        group_GO=np.stack([rng.integers(1, count, OBJECTS) for count in GROUPS]).astype(np.int32),
        popularity_OP=rng.normal(size=(OBJECTS, len(POPULARITY))).astype(np.float32),
        log_price_O=rng.normal(size=OBJECTS),
        typical_log_price=0.0,
        collaborative=fits,
    )
    numbers = rng.choice(int(np.prod(SIZES)), OBJECTS, replace=False)
    codes_OL = np.stack(np.unravel_index(numbers, SIZES), axis=1).astype(np.int32)
    logs = cast(Any, SimpleNamespace(objects={"object_id": SimpleNamespace(to_list=list)}))
    book = cast(Any, SimpleNamespace(rows=lambda _: np.arange(OBJECTS), codes_OL=codes_OL, sizes=SIZES))
    learnt = InventoryPrior(
        logs, book, prior=False, learnt=CountsNetworks(full=replace(network, tables=counts), held_out=(network,))
    )
    rates = InventoryPrior(logs, book, prior=False)
    rates.rates_O = rng.gamma(1.0, size=OBJECTS) + 1e-3
    none = np.zeros(0, np.int32)
    inventory = LiveInventory(objects=np.sort(rng.choice(OBJECTS, LIVE, replace=False)), ads=none, ad_object=none)
    times: dict[str, list[float]] = {"large_rates_ms": [], "large_learnt_ms": []}
    for _ in range(ROUNDS + 1):
        events = [
            (int(o), int(at), 0, 0, -1)
            for o, at in zip(
                rng.integers(0, OBJECTS, HISTORY), np.sort(rng.integers(0, 300 * US_PER_DAY, HISTORY)), strict=True
            )
        ]
        now_us = 301 * US_PER_DAY
        moment = Moment(
            user=0, profile={}, at_us=now_us, placement=0, history=history_of(events, now_us), inventory=inventory
        )
        for name, live in (("large_rates_ms", rates), ("large_learnt_ms", learnt)):
            times[name].append(cpu_ms(lambda live=live, moment=moment: live.all(moment)))  # type: ignore[misc]
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("work/demo"), help="the run of `make demo`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = requests_of_demo(arguments.run) | large(arguments.run)
    for name, value in figures.items():
        print(f"{name:16} {value:8.2f}")
    print(
        json.dumps({"bench": "learnt_prior", "live": LIVE} | {name: round(value, 2) for name, value in figures.items()})
    )


if __name__ == "__main__":
    main()
