"""Requests -> ranked live ads, by the tuned model: for validation while tuning, and for generation after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre import metrics
from leadre.data.histories import first_seen
from leadre.lm.backbone import Backbone
from leadre.lm.decode import Ask, beam_search
from leadre.lm.live import Live
from leadre.tune.tasks import Threads, Window

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
    backbone: Backbone, threads: Threads, live: Live, windows: Sequence[Window], view: View, width: int | Sequence[int]
) -> Iterator[Ranked]:
    """Beam-search every request of the windows; ``view`` "new" leaves out what the user had before the request."""
    live_in = live.all if view == "all" else live.new
    written = sorted(map(threads.write, windows), key=lambda thread: len(thread.ids))
    for start in range(0, len(written), THREADS_AT_ONCE):
        batch = written[start : start + THREADS_AT_ONCE]
        sets = [[live_in(int(r)) for r in thread.requests] for thread in batch]
        asks = [
            [Ask(int(end), trie) for end, (trie, _) in zip(thread.ends, tries, strict=True)]
            for thread, tries in zip(batch, sets, strict=True)
        ]
        answers = beam_search(backbone, [(t.ids, a) for t, a in zip(batch, asks, strict=True)], width)
        for thread, tries, found in zip(batch, sets, answers, strict=True):
            for r, (_, objects), one in zip(thread.requests.tolist(), tries, found, strict=True):
                yield Ranked(r, view, objects[one.rows], one.log_p)


def recall(backbone: Backbone, threads: Threads, live: Live, windows: Sequence[Window], view: View, width: int) -> float:
    """Mean Recall@10 of objects over the requests of the windows that have something to find in this view."""
    logs, values = threads.logs, []
    backbone.eval()
    for ranked in answer(backbone, threads, live, windows, view, width):
        wanted = logs.relevant(ranked.r)[0]
        if view == "new":
            wanted = wanted[first_seen(logs, ranked.r)]
        objects = np.unique(logs.ad_object_A[wanted])
        if len(objects):
            hits = np.isin(ranked.objects[None, :10], objects)
            values.append(float(metrics.recall_at(hits, np.array([len(objects)]), 10)[0]))
    backbone.train()
    return float(np.mean(values)) if values else 0.0
