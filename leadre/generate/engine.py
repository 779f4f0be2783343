"""Requests of many clients -> answers, by one thread that runs the model: batches, deadlines, cancellation.

A client submits a prompt and gets a future. The loop takes what is waiting, as many requests of one policy as fit into
a batch, reads their prompts and writes code after code. Between these steps it looks at the clock: a request that could
not wait for the next one gets what its beams have found so far, finished along the trie by the prior alone, and is
marked as not complete. How long a step will take is learnt from those before it.

    with Engine(Searcher(backbone, prefixes=Prefixes(capacity_mb=512))) as engine:
        futures = [engine.submit(ids, Ask(end, trie, objects), policy, deadline_ms=50) for ids in prompts]
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

FADE = 0.9  # what a measured step still counts for after the next one


@dataclass(eq=False)
class _Request:
    """What a client waits for; ``until_s`` is a time of the monotonic clock."""

    ids: Ids
    ask: BeamRequest
    policy: BeamPolicy
    until_s: float
    future: Future[BeamResult] = field(default_factory=Future)

    def settle(self, answer: BeamResult) -> None:
        """Deliver, unless the client has gone."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(answer)


class Pace:
    """How many seconds so many rows take: a line through the steps that were measured, of which older ones fade."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, rows, rows^2, seconds, rows x seconds

    def add(self, rows: int, seconds: float) -> None:
        self._sums = FADE * self._sums + (1, rows, rows**2, seconds, rows * seconds)

    def seconds(self, rows: int) -> float:
        """Expected seconds of ``rows``; zero before the first measurement."""
        count, x, xx, y, xy = self._sums.tolist()
        if not count:
            return 0.0
        spread = xx - x * x / count
        if spread < 1e-3 * xx:  # all of about one size: in proportion
            return y / max(x, 1.0) * rows
        slope = max(0.0, (xy - x * y / count) / spread)
        return max(0.0, (y - slope * x) / count) + slope * rows


class Engine:
    """Answers requests until it is closed; at most ``queue`` wait, at most ``batch`` are answered together.

    Close it, best by ``with``: the process does not end before its thread does.
    """

    def __init__(self, searcher: BeamSearcher, *, queue: int = 256, batch: int = 16) -> None:
        self.searcher, self.queue, self.batch = searcher, queue, batch
        self.reading, self.writing = Pace(), Pace()  # positions of prompts, open beams
        self._waiting: list[_Request] = []
        self._running: dict[int, _Request] = {}  # those that `BeamSearch` still works on, by their place in it
        self._closed = False
        self._changed = threading.Condition()  # guards the three above
        executor = ThreadPoolExecutor(1, thread_name_prefix="leadre-engine")
        self._loop = executor.submit(self._run)
        executor.shutdown(wait=False)  # it has its one task

    def submit(
        self, ids: Ids, ask: BeamRequest, policy: BeamPolicy, *, deadline_ms: float | None = None
    ) -> Future[BeamResult]:
        """The answer to come. ``deadline_ms`` runs from now; cancelling the future frees what the request holds.

        BusyError where the queue is full, ClosedError after `close`, InputError where the prompt cannot be read.
        """
        backbone = self.searcher.backbone
        known = backbone.layout.words + backbone.layout.codes + len(backbone.objects_OL)
        if not (len(ids) and ids.min() >= 0 and ids.max() < known):
            raise InputError(f"a prompt of {len(ids)} IDs: wants at least one, all of them from 0 to {known - 1}")
        if not 0 <= ask.end < len(ids):
            raise InputError(f"a request at position {ask.end}: its prompt has the positions 0 to {len(ids) - 1}")
        policy.widths(len(backbone.layout.sizes))  # refuses widths for another number of levels
        if policy.per_group and ask.groups is None:
            raise InputError("a limit for each group wants Ask.groups, a label for each row")
        until_s = np.inf if deadline_ms is None else time.monotonic() + deadline_ms / 1000
        request = _Request(ids, ask, policy, until_s)
        with self._changed:
            if self._closed:
                raise ClosedError("the engine is closed; make a new one")
            if len(self._waiting) >= self.queue:
                raise BusyError(f"{self.queue} requests are waiting already; try later or raise the queue's length")
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    def close(self, *, drain: bool = True) -> None:
        """Take no more; answer what is there, or cancel it with ``drain`` off. Raises what stopped the loop, if any."""
        with self._changed:
            self._closed = True
            left = [] if drain else [*self._waiting, *self._running.values()]
            self._changed.notify()
        for request in left:
            request.future.cancel()
        self._loop.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)

    def _run(self) -> None:
        """A batch, its prompts, then code after code; until the engine is closed and nobody waits."""
        try:
            while batch := self._take():
                by_prompt = [list(same) for _, same in itertools.groupby(batch, lambda request: request.ids.tobytes())]
                positions, start_s = sum(self._unread(same[0].ids) for same in by_prompt), time.monotonic()
                threads = [(same[0].ids, [request.ask for request in same]) for same in by_prompt]
                search = BeamSearch(self.searcher, threads, batch[0].policy)
                self.reading.add(positions, time.monotonic() - start_s)
                while self._deliver(search):
                    rows, start_s = int(search.open_QW.sum()), time.monotonic()
                    search.step()
                    self.writing.add(rows, time.monotonic() - start_s)
                    self._turn_away()
        finally:  # nobody is left, unless the model has failed
            with self._changed:
                self._closed = True
                left = [*self._waiting, *self._running.values()]
            for request in left:
                if not request.future.done() and request.future.set_running_or_notify_cancel():
                    request.future.set_exception(ClosedError("the engine has stopped; Engine.close says why"))

    def _take(self) -> list[_Request]:
        """The next batch, equal prompts side by side; empty when the engine is closed and nobody waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
            self._turn_away()
            with self._changed:
                if not self._waiting and self._closed:
                    return []
                batch = self._fitting()
                self._waiting = [request for request in self._waiting if request not in batch]
                self._running = dict(enumerate(batch))
            if batch:
                return batch

    def _fitting(self) -> list[_Request]:
        """Requests of the first one's policy, as many as a batch holds and none of their deadlines forbids."""
        batch: list[_Request] = []
        positions, until_s = 0, np.inf
        for request in self._waiting:
            more, until = positions + self._unread(request.ids), min(until_s, request.until_s)
            is_alike = not batch or request.policy == batch[0].policy
            if is_alike and (not batch or time.monotonic() + self.reading.seconds(more) < until):
                batch, positions, until_s = [*batch, request], more, until
            if len(batch) == self.batch:
                break
        return sorted(batch, key=lambda request: request.ids.tobytes())

    def _turn_away(self) -> None:
        """Give up what waits in vain: its client has gone, or its prompt cannot be read in time any more."""
        with self._changed:
            now_s = time.monotonic()
            # hashing a prompt for the cache takes a while: only for those that are in a hurry
            late = [each for each in self._waiting if now_s + self._reading_s(each) > each.until_s]
            self._waiting = [each for each in self._waiting if each not in late and not each.future.cancelled()]
        for request in late:
            request.settle(BeamResult(np.zeros(0, np.int64), np.zeros(0, np.float32), complete=False))

    def _deliver(self, search: BeamSearch) -> bool:
        """Answer those that are done or cannot wait for the next step; False where no beam goes on."""
        then_s = time.monotonic() + self.writing.seconds(int(search.open_QW.sum()))
        goes_on = set(np.nonzero(search.open_QW)[0].tolist())
        gone = [q for q, request in self._running.items() if request.future.cancelled()]
        ready = [q for q, request in self._running.items() if q not in goes_on or then_s > request.until_s]
        ready = [q for q in ready if q not in gone]
        for q, answer in zip(ready, search.answers(ready), strict=True):
            self._running[q].settle(answer)
        for q in (*gone, *ready):
            search.close(q)
        with self._changed:
            self._running = {q: each for q, each in self._running.items() if q not in gone and q not in ready}
        return bool(self._running)

    def _unread(self, ids: Ids) -> int:
        """Positions of a prompt that the cache does not know."""
        prefixes = self.searcher.prefixes
        return len(ids) - (prefixes.cached(ids) if prefixes else 0)

    def _reading_s(self, request: _Request) -> float:
        """Seconds that the prompt of a request in a hurry will take."""
        return self.reading.seconds(self._unread(request.ids)) if request.until_s < np.inf else 0.0
