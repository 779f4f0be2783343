"""Requests -> ranked live ads, by the tuned model: for validation while tuning, and for generation after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre import metrics
from leadre.data.histories import first_seen
from leadre.lm.backbone import Backbone
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.prior import InventoryPrior
from leadre.tune.threads import ThreadBuilder, Window

View = Literal["all", "new"]
VIEWS: tuple[View, ...] = ("all", "new")
THREADS_AT_ONCE = 8


class Ranked(NamedTuple):
    """Objects, best first, and their log-probabilities within the live set of request ``r``."""

    r: int
    view: View
    objects: NDArray[np.int64]
    log_p: NDArray[np.float32]


def answer(
    searcher: BeamSearcher,
    threads: ThreadBuilder,
    live: InventoryPrior,
    windows: Sequence[Window],
    views: Sequence[View],
    width: int,
) -> Iterator[Ranked]:
    """Beam-search every request of the windows in each view; "new" leaves out what the user had before the request."""
    live_in, layout = {"all": live.all, "new": live.new}, searcher.backbone.layout
    # every thread of a batch is padded to the most requests any of them has, which costs more than padded text
    written = sorted(map(threads.write, windows), key=lambda thread: (len(thread.ends), len(thread.ids)))
    for start in range(0, len(written), THREADS_AT_ONCE):
        batch = written[start : start + THREADS_AT_ONCE]
        asked = [
            [
                (int(r), view, int(end), *live_in[view](int(r)))
                for r, end in zip(t.requests, t.ends, strict=True)
                for view in views
            ]
            for t in batch
        ]
        threads_in = []
        for t, asks in zip(batch, asked, strict=True):
            objects_T = layout.objects(t.ids)
            worth_of = {r: live.pointer_bias(r, objects_T) for r in t.requests.tolist()}
            threads_in.append(
                (t.ids, [BeamRequest(e, trie, o, pointer_bias_T=worth_of[r]) for r, _, e, trie, o in asks])
            )
        for asks, found in zip(asked, searcher(threads_in, BeamPolicy(width)), strict=True):
            for (r, view, _, _, objects), one in zip(asks, found, strict=True):
                yield Ranked(r, view, objects[one.rows], one.log_p)


def recall(
    backbone: Backbone, threads: ThreadBuilder, live: InventoryPrior, windows: Sequence[Window], width: int
) -> dict[str, NDArray[np.float64]]:
    """Recall@10 of objects in each view, of every request of the windows with something to find there, ascending."""
    logs = threads.logs
    values: dict[str, dict[int, float]] = {view: {} for view in VIEWS}
    backbone.eval()
    for ranked in answer(BeamSearcher(backbone), threads, live, windows, VIEWS, width):
        wanted = logs.relevant(ranked.r)[0]
        if ranked.view == "new":
            wanted = wanted[first_seen(logs, ranked.r)]
        objects = np.unique(logs.ad_object_A[wanted])
        if len(objects):
            hits = np.isin(ranked.objects[None, :10], objects)
            values[ranked.view][ranked.r] = float(metrics.recall_at(hits, np.array([len(objects)]), 10)[0])
    backbone.train()
    return {f"recall@10 {view}": np.array([found[r] for r in sorted(found)]) for view, found in values.items()}
