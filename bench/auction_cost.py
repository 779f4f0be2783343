"""Claim: pacing, shading and a mechanism's charge cost a request of 20 candidates little.

    python bench/auction_cost.py

Times the functions that a bid decision calls, without the rest of the request: the rates of 20 paced campaigns and the
product with their values, the shaded bids of 20 values by a win curve in eight groups, and the charge of each of five
slots by GSP and by VCG. Microseconds of processor time, the median of `TURNS` turns, in which the parts alternate.

Ends with one line of JSON: ``paced_us``, ``shaded_us``, ``gsp_us``, ``vcg_us``, and ``both_us`` of the first two, which
is to be under 100.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from leadre.auction.pacing.contract import rate_of, start
from leadre.auction.pacing.registry import PACERS
from leadre.auction.shading import Feedback, fit_by_value, fit_histogram, grid
from leadre.serve.bidding.charge import charge

CANDIDATES = 20
SLOTS = 5
TURNS = 200
CALLS = 20  # of one turn


def parts() -> dict[str, Callable[[], object]]:
    """The calls by name."""
    generator = np.random.default_rng(0)
    value_N = np.exp(generator.normal(4.0, 0.5, 5_000))
    feedback = Feedback.of_prices(value_N, np.exp(generator.normal(3.0, 1.0, 5_000)))
    curves = fit_by_value(fit_histogram, feedback, value_N, grid(1.0, 400.0), groups=8)
    pacer = PACERS["mirror"]
    states = [start(pacer) for _ in range(CANDIDATES)]
    value_K = value_N[:CANDIDATES]
    nanos_K = np.sort((value_K * 1_000_000).astype(np.int64))[::-1]
    log_score_K = np.zeros(CANDIDATES)
    effects = (1.0, 0.8, 0.6, 0.5, 0.4)

    def paced() -> object:
        return value_K * np.array([rate_of(pacer, state).multiplier for state in states])

    def charged(mechanism: str) -> Callable[[], object]:
        return lambda: [
            charge(mechanism, effects[slot:], nanos_K[slot:], nanos_K[slot:], log_score_K[slot:], 1)
            for slot in range(SLOTS)
        ]

    return {
        "paced": paced,
        "shaded": lambda: curves.shade(value_K),
        "gsp": charged("gsp"),
        "vcg": charged("vcg"),
    }


def main() -> None:
    calls = parts()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            began_s = time.process_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.process_time() - began_s) / CALLS * 1e6)
    result = {f"{name}_us": round(statistics.median(row), 1) for name, row in times.items()}
    result["both_us"] = round(result["paced_us"] + result["shaded_us"], 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
