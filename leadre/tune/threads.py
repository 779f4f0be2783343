"""The main task as examples: threads of requests, each answered by what the user then acted on.

Training threads cut a user's visits into consecutive windows, so every visit is learnt once an epoch and read as
context by the later ones of its window. Serving threads overlap: a window begins on a grid, one grid step behind the
request's, so that a request has between one and two steps of visits behind it, and requests of one window share all
they have in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import TRAIN, Logs
from leadre.lm.layout import Ids
from leadre.tune.prompts import PromptWriter


@dataclass(frozen=True)
class Window:
    """Visits ``start .. stop`` (exclusive) of a user, and the requests answered among them, ascending by time."""

    user: int
    start: int
    stop: int
    requests: NDArray[np.int64]


@dataclass(frozen=True)
class Thread:
    """A window's prompt, and for each of its requests the position whose next token is the answer's first code."""

    ids: Ids
    ends: NDArray[np.int64]
    requests: NDArray[np.int64]


class ThreadBuilder:
    """Cuts windows and writes their threads.

    ``burn_in`` is the share of training time whose requests are read but not learnt from.
    """

    def __init__(self, prompter: PromptWriter, burn_in: float = 0.0) -> None:
        self.prompter, self.logs, self.visits = prompter, prompter.logs, prompter.visits
        first_R = self.visits.user_offsets[self.logs.request_user_R]
        before_R = [
            self.visits.before(int(user), int(at_us))
            for user, at_us in zip(self.logs.request_user_R, self.logs.request_at_us_R, strict=True)
        ]
        self.visit_R = np.array(before_R, np.int64)  # the visit of each request, or the one it would have been
        assert bool(np.all(self.visit_R >= first_R)), "a request points before its user's first visit"
        # a visit that answered a request had its placement; -1 where nobody asked
        self.placement_V = np.full(len(self.visits.at_us_V) + 1, -1, np.int64)
        at_us_V = np.append(self.visits.at_us_V, -1)
        asked_R = at_us_V[self.visit_R] == self.logs.request_at_us_R
        self.placement_V[self.visit_R[asked_R]] = self.logs.request_placement_R[asked_R]
        objects_V = np.diff(self.visits.event_offsets)
        # about how many positions the visits before each take; one entry more: a request may follow the last visit
        ends_V = np.cumsum(objects_V + self._overhead())
        self.tokens_V = np.concatenate([[0], ends_V, ends_V[-1:]])
        has_answer_R = np.diff(self.logs.relevant_offsets) > 0  # the others teach nothing
        self.train_R = np.flatnonzero((self.logs.request_split_R == TRAIN) & has_answer_R)
        if len(self.train_R) and burn_in:
            at_us_R = self.logs.request_at_us_R[self.train_R]
            first_us, last_us = int(at_us_R.min()), int(at_us_R.max())
            self.train_R = self.train_R[at_us_R >= first_us + burn_in * (last_us - first_us)]

    def _overhead(self) -> int:
        """Positions of a visit besides its objects: its context and the two names of the domains."""
        return len(self.prompter.context(0, 0)) + len(self.prompter.text(" ads")) + len(self.prompter.text(" also"))

    def training(self, seed: int, requests_R: NDArray[np.int64] | None = None) -> list[Window]:
        """Windows over all visits of training time, in user order; ``seed`` shifts where they are cut.

        They answer ``requests_R``, ascending; without, all that have an answer.
        """
        rng = np.random.default_rng(seed)
        budget = 2 * self.prompter.blocks.short_tokens
        windows = []
        for user, requests in _by_user(self.train_R if requests_R is None else requests_R, self.logs):
            first, last = int(self.visits.user_offsets[user]), int(self.visit_R[requests[-1]]) + 1
            start, limit = first, int(budget * rng.uniform(0.3, 1.0))
            while start < last:
                stop = self._stop(start, last, limit)
                inside = requests[(self.visit_R[requests] >= start) & (self.visit_R[requests] < stop)]
                if len(inside):
                    windows.append(Window(user, start, stop, inside))
                start, limit = stop, budget
        return windows

    def serving(self, requests_R: NDArray[np.int64]) -> list[Window]:
        """Windows for these requests; each request's start depends on what lies before it alone."""
        step = self.prompter.blocks.short_tokens
        windows: list[Window] = []
        for user, requests in _by_user(np.sort(requests_R), self.logs):
            first = int(self.visits.user_offsets[user])
            read = self.tokens_V[self.visit_R[requests]] - self.tokens_V[first]
            from_tokens = np.maximum(read // step - 1, 0) * step + self.tokens_V[first]
            starts = np.searchsorted(self.tokens_V, from_tokens, side="left")
            for start in np.unique(starts):
                inside = requests[starts == start]
                windows.append(Window(user, int(start), int(self.visit_R[inside[-1]]) + 1, inside))
        return windows

    def write(self, window: Window) -> Thread:
        """The thread of a window. A request sees nothing of its own visit but the context."""
        prompter = self.prompter
        parts = [prompter.prefix(window.user, window.start)]
        length, ends, at = len(parts[0]), np.zeros(len(window.requests), np.int64), 0
        visit_of = self.visit_R[window.requests]
        for visit in range(window.start, window.stop):
            here = np.flatnonzero(visit_of == visit)
            moment_of = self._moments(window.requests[here])
            moments = sorted(set(moment_of))
            own = (
                (int(self.visits.at_us_V[visit]), int(self.placement_V[visit]))
                if visit < len(self.visits.at_us_V)
                else None
            )
            for moment in moments:
                parts.append(prompter.context(*moment))
                length += len(parts[-1])
                ends[here[[each == moment for each in moment_of]]] = length - 1
            at += len(here)
            if at == len(window.requests):  # what happens after the last answer is no business of this thread
                break
            assert own is not None, f"request {window.requests[at]} lies after visit {visit}, which does not exist"
            parts += [prompter.context(*own)] * (own not in moments) + [prompter.happened(visit)]
            length = sum(map(len, parts))
        return Thread(np.concatenate(parts), ends, window.requests)

    def _moments(self, requests: NDArray[np.int64]) -> list[tuple[int, int]]:
        """(time, placement) of each request."""
        at_us, placement = self.logs.request_at_us_R[requests], self.logs.request_placement_R[requests]
        return list(zip(at_us.tolist(), placement.tolist(), strict=True))

    def _stop(self, start: int, last: int, limit: int) -> int:
        stop = int(np.searchsorted(self.tokens_V, self.tokens_V[start] + limit, side="right")) - 1
        return min(max(stop, start + 1), last)


def _by_user(requests: NDArray[np.int64], logs: Logs) -> list[tuple[int, NDArray[np.int64]]]:
    """Requests, which ascend by user and time, one group a user."""
    users = logs.request_user_R[requests]
    cuts = np.flatnonzero(np.diff(users)) + 1
    return [(int(logs.request_user_R[group[0]]), group) for group in np.split(requests, cuts) if len(group)]
