"""Generation engine: one thread runs the model for the requests of many clients and returns beam results.

A client submits a prompt and gets a future. Each iteration of the loop schedules a batch of waiting requests that share
a policy, prefills their prompts and decodes one code per step. Between steps the loop checks deadlines: a request that
cannot wait for the next step gets the best rows of its beams so far; the prior alone completes them along the trie, and
the result is marked as not complete. The engine predicts the duration of a step from earlier steps.

    with Engine(BeamSearcher(backbone, prefix_cache=PrefixCache(capacity_mb=512))) as engine:
        futures = [engine.submit(ids, BeamRequest(end, trie, objects), policy, deadline_ms=50) for ids in prompts]
        for future in concurrent.futures.as_completed(futures):
            show(future.result())
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from leadre.errors import BusyError, ClosedError, InputError
from leadre.lm.beam import BeamPolicy, BeamRequest, BeamResult
from leadre.lm.decode import BeamSearch, BeamSearcher
from leadre.lm.layout import Ids
from leadre.lm.prefix import BlockHash

FADE = 0.9  # factor on the weight of a measured step with each further step


@dataclass(eq=False)
class _EngineRequest:
    """A submitted request; ``hashes`` are its prompt's in the prefix cache, ``until_s`` its deadline (monotonic)."""

    ids: Ids
    hashes: list[BlockHash]
    beam_request: BeamRequest
    policy: BeamPolicy
    until_s: float
    future: Future[BeamResult] = field(default_factory=Future)

    def deliver(self, result: BeamResult) -> None:
        """Set the future's result, unless the client has cancelled it."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(result)


class LatencyModel:
    """Seconds of a step as a linear function of its rows; least squares with exponentially fading weights."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, rows, rows^2, seconds, rows x seconds

    def observe(self, rows: int, seconds: float) -> None:
        """Add a measured step."""
        self._sums = FADE * self._sums + (1, rows, rows**2, seconds, rows * seconds)

    def predict_s(self, rows: int) -> float:
        """Expected seconds of a step of ``rows``; zero before the first measurement."""
        count, x, xx, y, xy = self._sums.tolist()
        if not count:
            return 0.0
        spread = xx - x * x / count
        if spread < 1e-3 * xx:  # all steps have about the same size: assume proportionality
            return y / max(x, 1.0) * rows
        slope = max(0.0, (xy - x * y / count) / spread)
        return max(0.0, (y - slope * x) / count) + slope * rows


class TimedSearcher:
    """Prefill and decode steps of a searcher, each with a latency model that predicts the next one's seconds."""

    def __init__(self, searcher: BeamSearcher) -> None:
        self.searcher = searcher
        self.prefill_latency = LatencyModel()  # by prompt positions that are not cached
        self.decode_latency = LatencyModel()  # by open beams

    def prefill(self, batch: list[_EngineRequest]) -> BeamSearch:
        """A search over the batch after its first code; requests of equal prompts share a thread."""
        groups = [list(group) for _, group in itertools.groupby(batch, lambda request: request.ids.tobytes())]
        positions = sum(self.uncached(group[0]) for group in groups)
        start_s = time.monotonic()
        threads = [(group[0].ids, [request.beam_request for request in group]) for group in groups]
        search = BeamSearch(self.searcher, threads, batch[0].policy, [group[0].hashes for group in groups])
        search.prefill()
        self.prefill_latency.observe(positions, time.monotonic() - start_s)
        return search

    def decode(self, search: BeamSearch) -> None:
        """One step of all open beams."""
        rows = int(search.open_QW.sum())
        start_s = time.monotonic()
        search.step()
        self.decode_latency.observe(rows, time.monotonic() - start_s)

    def uncached(self, request: _EngineRequest) -> int:
        """Positions of a request's prompt that are not in the prefix cache."""
        prefix_cache = self.searcher.prefix_cache
        return len(request.ids) - (prefix_cache.num_cached(request.hashes) if prefix_cache else 0)

    def prefill_s(self, request: _EngineRequest) -> float:
        """Expected seconds of a request's prefill; 0 without a deadline."""
        return self.prefill_latency.predict_s(self.uncached(request)) if request.until_s < np.inf else 0.0

    def decode_s(self, search: BeamSearch) -> float:
        """Expected seconds of the next step."""
        return self.decode_latency.predict_s(int(search.open_QW.sum()))


class Engine:
    """Serves requests until it is closed; at most ``queue`` wait, at most ``batch`` run together.

    Close it, best by ``with``: the process does not exit before the engine's thread does.
    """

    def __init__(self, searcher: BeamSearcher, *, queue: int = 256, batch: int = 16) -> None:
        self.steps = TimedSearcher(searcher)
        self.queue = queue
        self.batch = batch
        self._waiting: list[_EngineRequest] = []
        self._running: dict[int, _EngineRequest] = {}  # by index of the request in its `BeamSearch`
        self._closed = False
        self._changed = threading.Condition()  # guards _waiting, _running and _closed
        executor = ThreadPoolExecutor(1, thread_name_prefix="leadre-engine")
        self._loop = executor.submit(self._run)
        executor.shutdown(wait=False)  # takes no further task

    def submit(
        self, ids: Ids, request: BeamRequest, policy: BeamPolicy, *, deadline_ms: float | None = None
    ) -> Future[BeamResult]:
        """Queue a request; returns its future result. ``deadline_ms`` counts from now; a cancel frees the beams.

        Raises BusyError if the queue is full, ClosedError after `close`, InputError if prompt or request are invalid.
        """
        backbone = self.steps.searcher.backbone
        known_ids = backbone.layout.words + backbone.layout.codes + len(backbone.objects_OL)
        if not (len(ids) and ids.min() >= 0 and ids.max() < known_ids):
            raise InputError(f"a prompt of {len(ids)} IDs: give at least one, all of them from 0 to {known_ids - 1}")
        if not 0 <= request.end < len(ids):
            raise InputError(f"a request at position {request.end}: its prompt has the positions 0 to {len(ids) - 1}")
        levels = len(backbone.layout.sizes)
        backbone.check_length(len(ids) + levels - 1)  # the last code is no input
        policy.widths(levels)  # InputError for widths of another number of levels
        if policy.per_group and request.groups is None:
            raise InputError("a limit for each group needs BeamRequest.groups, a label for each row")
        until_s = np.inf if deadline_ms is None else time.monotonic() + deadline_ms / 1000
        prefix_cache = self.steps.searcher.prefix_cache
        hashes = prefix_cache.hashes(ids) if prefix_cache else []  # once, in the client's thread
        engine_request = _EngineRequest(ids, hashes, request, policy, until_s)
        with self._changed:
            if self._closed:
                raise ClosedError("the engine is closed; make a new one")
            if len(self._waiting) >= self.queue:
                raise BusyError(f"{self.queue} requests are waiting already; try later or raise the queue's length")
            self._waiting.append(engine_request)
            self._changed.notify()
        return engine_request.future

    def close(self, *, drain: bool = True) -> None:
        """Stop accepting; finish the submitted requests, or cancel them with ``drain`` off.

        Raises the error that stopped the loop, if any.
        """
        with self._changed:
            self._closed = True
            cancelled = [] if drain else [*self._waiting, *self._running.values()]
            self._changed.notify()
        for request in cancelled:
            request.future.cancel()
        self._loop.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)

    def _run(self) -> None:
        """Schedule, prefill, then decode step after step, until the engine is closed and no request waits."""
        try:
            while batch := self._schedule():
                search = self.steps.prefill(batch)
                while self._postprocess(search):
                    self.steps.decode(search)
                    self._reject_late()
        finally:  # no request is left, unless the model has failed
            with self._changed:
                self._closed = True
                left = [*self._waiting, *self._running.values()]
            for request in left:
                if not request.future.done() and request.future.set_running_or_notify_cancel():
                    request.future.set_exception(
                        ClosedError("the engine has stopped; Engine.close raises the error that stopped it")
                    )

    def _schedule(self) -> list[_EngineRequest]:
        """The next batch, equal prompts side by side; empty once the engine is closed and no request waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
            self._reject_late()
            with self._changed:
                if not self._waiting and self._closed:
                    return []
                batch = self._next_batch()
                self._waiting = [request for request in self._waiting if request not in batch]
                self._running = dict(enumerate(batch))
            if batch:
                return batch

    def _next_batch(self) -> list[_EngineRequest]:
        """The first waiting request and later ones of its policy, while a prefill keeps all their deadlines."""
        batch: list[_EngineRequest] = []
        positions = 0
        until_s = np.inf
        for request in self._waiting:
            new_positions = positions + self.steps.uncached(request)
            new_until_s = min(until_s, request.until_s)
            has_same_policy = not batch or request.policy == batch[0].policy
            prefill_s = self.steps.prefill_latency.predict_s(new_positions)
            is_in_time = not batch or time.monotonic() + prefill_s < new_until_s
            if has_same_policy and is_in_time:
                batch.append(request)
                positions = new_positions
                until_s = new_until_s
            if len(batch) == self.batch:
                break
        return sorted(batch, key=lambda request: request.ids.tobytes())

    def _postprocess(self, search: BeamSearch) -> bool:
        """Deliver results that are final or cannot wait for the next step; returns False once no request runs."""
        next_s = time.monotonic() + self.steps.decode_s(search)
        has_open_beams = set(np.nonzero(search.open_QW)[0].tolist())
        cancelled = [q for q, request in self._running.items() if request.future.cancelled()]
        ready = [q for q, request in self._running.items() if q not in has_open_beams or next_s > request.until_s]
        ready = [q for q in ready if q not in cancelled]
        for q, result in zip(ready, search.results(ready), strict=True):
            self._running[q].deliver(result)
        for q in (*cancelled, *ready):
            search.close(q)
        with self._changed:
            ended = {*cancelled, *ready}
            self._running = {q: request for q, request in self._running.items() if q not in ended}
        return bool(self._running)

    def _reject_late(self) -> None:
        """Drop waiting requests that are cancelled; deliver no rows to those that cannot be prefilled in time."""
        with self._changed:
            now_s = time.monotonic()
            late = [request for request in self._waiting if now_s + self.steps.prefill_s(request) > request.until_s]
            self._waiting = [
                request for request in self._waiting if request not in late and not request.future.cancelled()
            ]
        for request in late:
            request.deliver(BeamResult(np.zeros(0, np.int64), np.zeros(0, np.float32), complete=False))
