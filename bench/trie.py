"""Claim: a live catalogue of 10 million ads costs little to hold, to change and to ask.

    python bench/trie.py

Random distinct paths over four levels of 256 codes, every ad live, no weights unless the name has them. Figures:

- ``trie_seconds``, ``trie_bytes_per_ad``: building the trie, and all its arrays; ``trie_peak_bytes_per_ad`` is what is
  allocated at most while it is built, arrays included; ``inventory_bytes_per_ad`` adds the table of ads;
- ``mask_ms_100k``: `Inventory.restrict` to 100,000 allowed ads; ``mask_cpu_ms_100k`` is processor time, which counts
  where other processes share the cores; ``deny_ms_100``: to all but 100;
- ``constraint_ms_step``: all the trie does in one step of a search with 50 beams (`log_prior`, `step`, `rows_below`), a
  mean over the levels; ``_added``: with 10,000 ads added since the last merge; ``_masked``: within 100,000 allowed;
- ``pause_us``, ``add_us``: one ad at a time, the additions on top of 10,000; ``merge_seconds``;
- ``constraint_ms_step_cuda``: the same step by `DeviceMask`, where there is a GPU.

Medians; ``_1m`` and ``_10m`` are the number of ads, 10 million without a suffix. Ends with one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, repeat

import numpy as np
import torch
from numpy.typing import NDArray

from leadre.semid.device import DeviceMask
from leadre.semid.inventory import Inventory, UnionMask
from leadre.semid.trie import Mask, Trie, build

SIZES = (256, 256, 256, 256)
BEAMS = 50
ALLOWED = 100_000
ADDED = 10_000

Ints = NDArray[np.int64]


def distinct_paths(ads: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random paths without repetition, uint8 [ads, 4], in random order."""
    rng = np.random.default_rng(seed)
    paths = np.unique(rng.integers(0, 2**32, ads + ads // 100 + 100))
    paths = rng.permutation(paths)[:ads]
    assert len(paths) == ads
    return paths.astype(">u4").view(np.uint8).reshape(ads, 4)


def seconds(
    calls: Iterator[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of ``rounds`` calls after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        call = next(calls)
        start_s = clock()
        call()
        times.append(clock() - start_s)
    return statistics.median(times[1:])


def mask_ms(inventory: Inventory, requests: list[Ints], clock: Callable[[], float] = time.perf_counter) -> float:
    """Milliseconds to restrict an inventory to the rows of a request."""
    return 1e3 * seconds((partial(inventory.restrict, request) for request in cycle(requests)), 60, clock)


def constraint_ms(mask: Mask, *, beams: int = BEAMS, rounds: int = 200, seed: int = 0) -> float:
    """Milliseconds of trie work in one step of a beam search whose scores are random, a mean over the levels."""
    rng = np.random.default_rng(seed)
    totals = []
    for _ in range(rounds):
        states = mask.roots(1)
        took_s = 0.0
        for level, size in enumerate(mask.sizes):
            start_s = time.perf_counter()
            prior = mask.log_prior(states, level)
            took_s += time.perf_counter() - start_s
            best = np.argsort(-(prior + rng.random(prior.shape)), axis=None)[
                : min(beams, int(np.isfinite(prior).sum()))
            ]
            start_s = time.perf_counter()
            states = mask.step(states[best // size], best % size, level)
            mask.rows_below(states)
            took_s += time.perf_counter() - start_s
        totals.append(took_s)
    return statistics.median(totals) / mask.depth * 1e3


def device_constraint_ms(mask: Trie | UnionMask, device: str, *, beams: int = BEAMS, rounds: int = 200) -> float:
    """The same for `DeviceMask`: the whole search is queued, its choice of beams included, and waited for once."""
    there = DeviceMask(mask, device)
    times = []
    for _ in range(rounds):
        states = torch.zeros(1, dtype=torch.int64, device=device)
        start_s = time.perf_counter()
        for level, size in enumerate(mask.sizes):
            prior = there.log_prior(states, level)
            best = (prior + torch.rand_like(prior)).flatten().topk(min(beams, prior.numel())).indices
            states = there.step(states[best // size], best % size, level)
            there.rows_below(states)
        states.tolist()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times) / mask.depth * 1e3


def measure(ads: int) -> dict[str, float]:
    """All figures for a catalogue of ``ads``."""
    codes = distinct_paths(ads + 2 * ADDED)
    rng = np.random.default_rng(1)
    more = codes[ads:]
    codes = codes[:ads]
    figures = {"trie_seconds": seconds(repeat(partial(build, codes, SIZES)), 3)}
    tracemalloc.start()
    trie = build(codes, SIZES)
    figures["trie_peak_bytes_per_ad"] = tracemalloc.get_traced_memory()[1] / ads
    tracemalloc.stop()
    figures["trie_bytes_per_ad"] = trie.bytes / ads
    del trie
    requests = [rng.choice(ads, ALLOWED, replace=False) for _ in range(20)]
    inventory = Inventory(codes, SIZES, rng.random(ads) + 0.1)
    figures["inventory_bytes_per_ad_weighted"] = inventory.bytes / ads
    figures["mask_ms_100k_weighted"] = mask_ms(inventory, requests)
    inventory = Inventory(codes, SIZES)
    figures["inventory_bytes_per_ad"] = inventory.bytes / ads
    figures["mask_ms_100k"] = mask_ms(inventory, requests)
    figures["mask_cpu_ms_100k"] = mask_ms(inventory, requests, time.process_time)
    few = cycle([request[:100] for request in requests])
    figures["deny_ms_100"] = 1e3 * seconds((partial(inventory.restrict, denied=request) for request in few), 60)
    figures["constraint_ms_step"] = constraint_ms(inventory.live)
    figures["constraint_ms_step_masked"] = constraint_ms(inventory.restrict(requests[0]))
    if torch.cuda.is_available() and isinstance(inventory.live, Trie):
        figures["constraint_ms_step_cuda"] = device_constraint_ms(inventory.live, "cuda")
    ones = rng.permutation(ads)[:, None]
    figures["pause_us"] = 1e6 * seconds((partial(inventory.pause, row_1) for row_1 in ones), 500)
    inventory.add(more[:ADDED])
    figures["constraint_ms_step_added"] = constraint_ms(inventory.live)
    figures["add_us"] = 1e6 * seconds((partial(inventory.add, path[None]) for path in more[ADDED:]), 200)
    start_s = time.perf_counter()
    inventory.merge()
    figures["merge_seconds"] = time.perf_counter() - start_s
    return figures


def main() -> None:
    result: dict[str, object] = {"bench": "trie"}
    for name, ads in (("1m", 1_000_000), ("10m", 10_000_000)):
        figures = measure(ads)
        for key, value in figures.items():
            print(f"{name:4} {key:28} {value:10.4g}", flush=True)
            result[f"{key}_{name}"] = float(f"{value:.4g}")
            if name == "10m" and not key.startswith(("trie_seconds", "constraint_ms_step")):
                result[key] = result.pop(f"{key}_{name}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
