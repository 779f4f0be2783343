"""Claim: the prior of a request over 100,000 live objects costs at most 10 ms a view.

    OMP_NUM_THREADS=1 python bench/prior.py

Random distinct IDs of 200,000 objects over levels of 256, 256, 256 and 16 codes, of which 100,000 are live; histories
of 300 objects. Figures, medians of processor time in milliseconds:

- ``all_ms``, ``new_ms``: `InventoryPrior.all` and `new` of a moment whose inventory was seen before;
- ``all_ms_fresh``, ``new_ms_fresh``: of a moment with an inventory of its own, as when ads start and stop all the time,
  one view after the other, as a request needs them;
- ``_affinity``: with an affinity of 64 factors, whose prior differs by user;
- ``_built``: the same tries, sorted and built from scratch for each view;
- ``kept_mb``: memory after 200 moments with inventories of their own, less that before.

Ends with one line of JSON.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from leadre.data.moment import LiveInventory, Moment, history_of
from leadre.lm.affinity import Affinity
from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import build

OBJECTS = 200_000
LIVE = 100_000
HISTORY = 300
SIZES = (256, 256, 256, 16)
ROUNDS = 40


@dataclass
class Catalogue:
    """Random codes and weights of `OBJECTS` objects, and moments of users."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        numbers = self.rng.choice(int(np.prod(SIZES)), OBJECTS, replace=False)
        self.codes_OL = np.stack(np.unravel_index(numbers, SIZES), axis=1).astype(np.int32)
        self.rates_O = self.rng.gamma(1.0, size=OBJECTS) + 1e-3
        self.affinity = Affinity(*self.rng.normal(size=(2, OBJECTS, 64)).astype(np.float32) / 8)

    def prior(self, affinity: Affinity | None) -> InventoryPrior:
        """A prior over this catalogue."""
        logs = SimpleNamespace(objects={"object_id": SimpleNamespace(to_list=list)})
        book = SimpleNamespace(rows=lambda _: np.arange(OBJECTS), codes_OL=self.codes_OL, sizes=SIZES)
        live = InventoryPrior(cast(Any, logs), cast(Any, book), prior=False, affinity=affinity)
        live.rates_O = self.rates_O
        return live

    def inventory(self) -> LiveInventory:
        none = np.zeros(0, np.int32)
        objects = np.sort(self.rng.choice(OBJECTS, LIVE, replace=False))
        return LiveInventory(objects=objects, ads=none, ad_object=none)

    def moment(self, inventory: LiveInventory) -> Moment:
        history = history_of([(int(o), 1, 0, 0, -1) for o in self.rng.integers(0, OBJECTS, HISTORY)], 2)
        return Moment(user=0, profile={}, at_us=2, placement=0, history=history, inventory=inventory)


def cpu_ms(calls: list[Callable[[Moment], object]], moments: list[Moment]) -> list[float]:
    """Median processor time of each call, one after the other on each moment; the first moment does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for moment in moments:
        for call, times_of in zip(calls, times, strict=True):
            start_s = time.process_time()
            call(moment)
            times_of.append(time.process_time() - start_s)
    return [1e3 * statistics.median(times_of[1:]) for times_of in times]


def built_all(live: InventoryPrior, moment: Moment) -> object:
    objects = moment.inventory.objects
    return build(live.codes_OL[objects], SIZES, live.weights(moment, objects))


def built_new(live: InventoryPrior, moment: Moment) -> object:
    objects: NDArray[np.int64] = np.setdiff1d(moment.inventory.objects, moment.history.object_E)
    return build(live.codes_OL[objects], SIZES, live.weights(moment, objects))


def main() -> None:
    catalogue = Catalogue()
    figures: dict[str, float] = {}
    same = [catalogue.moment(catalogue.inventory())] * 2
    same += [replace(catalogue.moment(same[0].inventory)) for _ in range(ROUNDS)]
    fresh = [catalogue.moment(catalogue.inventory()) for _ in range(ROUNDS)]
    for suffix, affinity in (("", None), ("_affinity", catalogue.affinity)):
        live = catalogue.prior(affinity)
        views = [live.all, live.new]
        figures[f"all_ms{suffix}"], figures[f"new_ms{suffix}"] = cpu_ms(views, same)
        figures[f"all_ms_fresh{suffix}"], figures[f"new_ms_fresh{suffix}"] = cpu_ms(views, fresh)
        built = [partial(built_all, live), partial(built_new, live)]
        figures[f"all_ms_built{suffix}"], figures[f"new_ms_built{suffix}"] = cpu_ms(built, fresh)
        del live, views, built
    del fresh
    live = catalogue.prior(None)
    gc.collect()
    tracemalloc.start()
    for _ in range(200):
        live.new(catalogue.moment(catalogue.inventory()))
    gc.collect()
    figures["kept_mb"] = tracemalloc.get_traced_memory()[0] / 1e6
    for name, value in figures.items():
        print(f"{name:24} {value:8.2f}")
    print(json.dumps({"bench": "prior", "live": LIVE} | {name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
