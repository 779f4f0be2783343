"""Rank live ads for requests with a tuned model: for validation while tuning, and for generation after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre import metrics, progress
from leadre.data.histories import first_seen
from leadre.data.moment import Moment
from leadre.lm.backbone import Backbone
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.layout import Ids
from leadre.lm.prior import InventoryPrior
from leadre.semid.trie import Mask
from leadre.tune.prompts import PromptWriter
from leadre.tune.threads import Thread, ThreadBuilder, Window, serving_prompt

View = Literal["all", "new"]
VIEWS: tuple[View, ...] = ("all", "new")
THREADS_AT_ONCE = 8
MAX_REQUESTS_OF_A_THREAD = 64  # its searches run at once, and memory grows with them; the rest is a thread of its own


class Ranked(NamedTuple):
    """Objects, best first, and their log-probabilities among the live objects of moment ``r``."""

    r: int
    view: View
    objects: NDArray[np.int64]
    log_p: NDArray[np.float32]


class _Request(NamedTuple):
    """One beam search of a thread: moment ``r`` in a view; row ``n`` of its trie is object ``objects[n]``."""

    r: int
    view: View
    objects: NDArray[np.int64]
    beam: BeamRequest


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the V requests of a view that have a relevant object, by request ascending.

    Recall@10 of objects; money of the conversions among the first ten and of all conversions, in billionths.
    """

    recall_V: NDArray[np.float64]
    caught_nanos_V: NDArray[np.float64]
    total_nanos_V: NDArray[np.float64]

    @property
    def recall(self) -> float:
        """Mean recall@10; 0 without requests."""
        return float(self.recall_V.mean()) if len(self.recall_V) else 0.0

    @property
    def gmv(self) -> float:
        """GMV@10: the share of the money that the first ten catch; 0 without money."""
        return float(self.caught_nanos_V.sum() / max(self.total_nanos_V.sum(), 1.0))


@dataclass(frozen=True)
class TunedSearcher:
    """A tuned model that no longer learns: beam search over its weights, prompts and prior for the moments of a log."""

    searcher: BeamSearcher
    threads: ThreadBuilder
    live: InventoryPrior

    def answer(self, windows: Sequence[Window], views: Sequence[View], width: int) -> Iterator[Ranked]:
        """Beam-search every request of the windows in each view, with ``width`` beams.

        The view "new" leaves out the objects of the user's history.
        """
        # a thread of a batch is padded to the largest number of requests, which costs more than padded text
        parts = chain.from_iterable(_parts(self.threads.write(window)) for window in windows)
        threads = sorted(parts, key=lambda thread: (len(thread.ends), len(thread.ids)))
        for start in range(0, len(threads), THREADS_AT_ONCE):
            batch = threads[start : start + THREADS_AT_ONCE]
            requests_of = [list(self._requests(thread, views)) for thread in batch]
            searches = [
                (thread.ids, [request.beam for request in requests])
                for thread, requests in zip(batch, requests_of, strict=True)
            ]
            for requests, results in zip(requests_of, self.searcher(searches, BeamPolicy(width)), strict=True):
                for request, result in zip(requests, results, strict=True):
                    yield Ranked(request.r, request.view, request.objects[result.rows], result.log_p)

    def answer_one(self, moment: Moment, view: View, width: int) -> Ranked:
        """Beam-search a moment that need not be one of the log; ``Ranked.r`` is 0."""
        trie, objects = self.live.new(moment) if view == "new" else self.live.all(moment)
        search = search_of(self.threads.prompter, self.live, moment, trie, objects)
        ((result,),) = self.searcher([search], BeamPolicy(width))
        return Ranked(0, view, objects[result.rows], result.log_p)

    def _requests(self, thread: Thread, views: Sequence[View]) -> Iterator[_Request]:
        objects_T = self.searcher.backbone.layout.objects(thread.ids)
        for r, end, moment in zip(thread.requests.tolist(), thread.ends.tolist(), thread.moments, strict=True):
            pointer_bias_T = self.live.pointer_bias(moment, objects_T)
            for view in views:
                trie, objects = self.live.new(moment) if view == "new" else self.live.all(moment)
                yield _Request(r, view, objects, BeamRequest(end, trie, objects, pointer_bias_T=pointer_bias_T))


def _parts(thread: Thread) -> Iterator[Thread]:
    """The thread, or several with the same beginning and at most `MAX_REQUESTS_OF_A_THREAD` of its requests each."""
    for start in range(0, len(thread.ends), MAX_REQUESTS_OF_A_THREAD):
        part = slice(start, start + MAX_REQUESTS_OF_A_THREAD)
        yield Thread(
            thread.ids[: thread.ends[part][-1] + 1], thread.ends[part], thread.requests[part], thread.moments[part]
        )


def search_of(
    prompter: PromptWriter, live: InventoryPrior, moment: Moment, mask: Mask, objects: NDArray[np.int64]
) -> tuple[Ids, list[BeamRequest]]:
    """The serving prompt of one moment and its beam search; row ``n`` of ``mask`` is object ``objects[n]``."""
    ids = serving_prompt(prompter, moment)
    pointer_bias_T = live.pointer_bias(moment, prompter.layout.objects(ids))
    return ids, [BeamRequest(len(ids) - 1, mask, objects, pointer_bias_T=pointer_bias_T)]


def measure(
    backbone: Backbone, threads: ThreadBuilder, live: InventoryPrior, windows: Sequence[Window], width: int
) -> dict[str, Outcomes]:
    """The outcomes of the requests of ``windows`` in each view, by beam search of ``width``."""
    logs = threads.logs
    rows: dict[str, dict[int, tuple[float, float, float]]] = {view: {} for view in VIEWS}
    backbone.eval()
    answers = TunedSearcher(BeamSearcher(backbone), threads, live).answer(windows, VIEWS, width)
    count = len(VIEWS) * sum(len(window.requests) for window in windows)
    for ranked in progress.bar(answers, total=count, label="tune: rank validation requests, in both views"):
        relevant, nanos = logs.relevant(ranked.r)
        if ranked.view == "new":
            is_first = first_seen(logs, ranked.r)
            relevant = relevant[is_first]
            nanos = nanos[is_first]
        objects = np.unique(logs.ad_object_A[relevant])
        if len(objects):
            hits = np.isin(ranked.objects[None, :10], objects)
            recall = float(metrics.recall_at(hits, np.array([len(objects)]), 10)[0])
            is_caught = np.isin(logs.ad_object_A[relevant], ranked.objects[:10])
            rows[ranked.view][ranked.r] = (recall, float(nanos[is_caught].sum()), float(nanos.sum()))
    backbone.train()
    return {view: _outcomes([row_of[r] for r in sorted(row_of)]) for view, row_of in rows.items()}


def _outcomes(rows: Sequence[tuple[float, float, float]]) -> Outcomes:
    recall_V, caught_nanos_V, total_nanos_V = np.array(rows, np.float64).reshape(-1, 3).T
    return Outcomes(recall_V, caught_nanos_V, total_nanos_V)


def figures(outcomes: Mapping[str, Outcomes]) -> dict[str, float]:
    """Recall@10 of each view, and GMV@10 of each view whose conversions have money: a row of valid.csv."""
    recalls = {f"recall@10 {view}": outcome.recall for view, outcome in outcomes.items()}
    return recalls | {
        f"gmv@10 {view}": outcome.gmv for view, outcome in outcomes.items() if outcome.total_nanos_V.any()
    }
