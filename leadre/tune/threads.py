"""Threads: prompts of one user over consecutive requests, each request answered at the end of its context.

Training threads cut a user's visits into consecutive windows, so every visit is a target once an epoch and context of
the later visits of its window. Serving threads overlap: a window begins on a grid, one grid step behind the request's,
so that a request has between one and two steps of visits before it, and requests of one window share their prefix.

Letters: M moments (for a log: its requests), V visits, Q requests of one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import TRAIN, Logs, last_of_users
from leadre.data.moment import Moment, Moments
from leadre.lm.layout import Ids
from leadre.tune.prompts import PromptWriter


@dataclass(frozen=True)
class Window:
    """Visits ``start .. stop`` (exclusive) of a user, and the moments answered among them, ascending by time.

    ``first`` is the visit that their histories begin with: the earliest that the prompt may hold. ``first``,
    ``start`` and ``stop`` index the visits of all users; ``requests`` index the Moments of the `ThreadBuilder`.
    """

    user: int
    first: int
    start: int
    stop: int
    requests: NDArray[np.int64]


@dataclass(frozen=True)
class Thread:
    """A window's prompt, and for each of its requests the position whose next token is the answer's first code.

    ``moments``: those of the requests, with the histories behind the prompt.
    """

    ids: Ids
    ends: NDArray[np.int64]
    requests: NDArray[np.int64]
    moments: Sequence[Moment]


class ThreadBuilder:
    """Cuts the visits of ``moments`` into windows and writes their threads.

    ``burn_in`` is the share of training time whose requests are context only, never targets; so are those before
    ``from_us``, and all but the last ``visits`` of a user (0 = no bound). ``short_share`` of the training windows are
    short and hold nothing before them, so that a model also learns to answer users of whom little is known.
    """

    def __init__(
        self,
        prompter: PromptWriter,
        moments: Moments,
        burn_in: float = 0.0,
        from_us: int = 0,
        visits: int = 0,
        short_share: float = 0.0,
    ) -> None:
        self.prompter = prompter
        self.short_share = short_share
        self.moments = moments
        self.logs = moments.logs
        self.visits = moments.visits
        self.visit_R = moments.visits_before()  # the visit that each request answers or precedes
        self.first_R = moments.first_visits()
        assert bool(np.all(self.visit_R >= self.first_R)), "a request points before its user's first visit"
        ends_V = prompter.positions_before(self.visits, self.logs.object_E)
        # about how many positions precede each visit; one entry more: a request may follow the last visit
        self.tokens_V = np.append(ends_V, ends_V[-1])
        self.train_R = (
            learnable(self.logs, burn_in, from_us, visits)
            if bool(moments.is_training_M.any())
            else np.zeros(0, np.int64)
        )

    def training(self, seed: int, requests_R: NDArray[np.int64] | None = None) -> list[Window]:
        """Windows over all visits of training time, in user order; ``seed`` shifts the cuts.

        They answer ``requests_R``, ascending; by default all of ``train_R``.
        """
        rng = np.random.default_rng(seed)
        budget = 2 * self.prompter.blocks.short_tokens
        windows = []
        for user, requests in self._by_user(self.train_R if requests_R is None else requests_R):
            visit_Q = self.visit_R[requests]
            start = int(self.visits.user_offsets[user])
            last = int(visit_Q[-1]) + 1
            limit = int(budget * rng.uniform(0.3, 1.0))
            while start < last:
                is_short = self.short_share > 0 and rng.random() < self.short_share
                if is_short:
                    limit = int(budget ** rng.random())  # from one visit to a whole window, in equal ratios
                stop = self._stop(start, last, limit)
                inside = requests[slice(*np.searchsorted(visit_Q, (start, stop)))]
                if len(inside):
                    first = start if is_short else min(start, int(self.first_R[inside[0]]))
                    windows.append(Window(user, first, start, stop, inside))
                start = stop
                limit = budget
        return windows

    def serving(self, requests_R: NDArray[np.int64]) -> list[Window]:
        """Windows for these requests; the start of each depends on its own history only."""
        windows: list[Window] = []
        for user, requests in self._by_user(np.sort(requests_R)):
            first_Q = self.first_R[requests]
            starts_Q = serving_starts(self.tokens_V, first_Q, self.visit_R[requests], self.prompter.blocks.short_tokens)
            cuts = np.flatnonzero((np.diff(first_Q) != 0) | (np.diff(starts_Q) != 0)) + 1  # both ascend with time
            for rows in np.split(np.arange(len(requests)), cuts):
                stop = int(self.visit_R[requests[rows[-1]]]) + 1
                windows.append(Window(user, int(first_Q[rows[0]]), int(starts_Q[rows[0]]), stop, requests[rows]))
        return windows

    def write(self, window: Window) -> Thread:
        """The thread of a window. A request sees nothing of its own visit but the context."""
        moments = list(self.moments.at(window.requests, window.first))
        ids, ends = write_thread(self.prompter, moments, window.start - window.first)
        return Thread(ids, ends, window.requests, moments)

    def prefix(self, window: Window) -> Ids:
        """The prefix of a window's thread."""
        (moment,) = self.moments.at(window.requests[-1:], window.first)
        return self.prompter.prefix(moment, window.start - window.first)

    def length(self, window: Window) -> int:
        """About how many positions the visits of a window take."""
        return int(self.tokens_V[window.stop] - self.tokens_V[window.start])

    def _stop(self, start: int, last: int, limit: int) -> int:
        stop = int(np.searchsorted(self.tokens_V, self.tokens_V[start] + limit, side="right")) - 1
        return min(max(stop, start + 1), last)

    def _by_user(self, requests_R: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """(user, requests) of requests that ascend by user and time."""
        user_M = self.moments.user_M
        cuts = np.flatnonzero(np.diff(user_M[requests_R])) + 1
        return [(int(user_M[group[0]]), group) for group in np.split(requests_R, cuts) if len(group)]


def learnable(logs: Logs, burn_in: float, from_us: int = 0, visits: int = 0) -> NDArray[np.int64]:
    """Training requests with an outcome from ``from_us`` on, after the first ``burn_in`` of the time that all span.

    Of each user the last ``visits``; 0 = all.
    """
    has_outcome_R = np.diff(logs.relevant_offsets) > 0
    train_R = np.flatnonzero((logs.request_split_R == TRAIN) & has_outcome_R)
    at_us_R = logs.request_at_us_R[train_R]
    if len(train_R) and burn_in:
        first_us = int(at_us_R.min())
        from_us = max(from_us, int(first_us + burn_in * (int(at_us_R.max()) - first_us)))
    return last_of_users(logs, train_R[at_us_R >= from_us], visits)


def serving_starts(
    tokens_V: NDArray[np.int64], first_Q: int | NDArray[np.int64], visits_Q: NDArray[np.int64], step: int
) -> NDArray[np.int64]:
    """The first visit of the threads of requests at ``visits_Q``, whose histories begin at the visits ``first_Q``.

    ``tokens_V`` are the positions before each visit, ``step`` those of a step of the grid.
    """
    tokens_Q = tokens_V[visits_Q] - tokens_V[first_Q]
    from_Q = np.maximum(tokens_Q // step - 1, 0) * step + tokens_V[first_Q]
    return np.asarray(np.searchsorted(tokens_V, from_Q, side="left"), np.int64)


def write_thread(prompter: PromptWriter, moments: Sequence[Moment], start: int) -> tuple[Ids, NDArray[np.int64]]:
    """(ids, position of the end of each moment's context) of a thread that begins at visit ``start`` of the history.

    The moments are those of one user, ascending by time; the last one's history contains all others.
    """
    history = moments[-1].history
    visits = history.visits
    visit_Q = np.searchsorted(visits.at_us_V, [moment.at_us for moment in moments], side="left")
    contexts_Q = [(moment.at_us, moment.placement) for moment in moments]
    parts = [prompter.prefix(moments[-1], start)]
    length = len(parts[0])
    ends_Q = np.zeros(len(moments), np.int64)
    last = int(visit_Q[-1])
    for visit in range(start, last + 1):
        rows = np.flatnonzero(visit_Q == visit)
        contexts = sorted({contexts_Q[row] for row in rows})
        for context in contexts:
            parts.append(prompter.context(*context))
            length += len(parts[-1])
            ends_Q[[row for row in rows if contexts_Q[row] == context]] = length - 1
        if visit < last:
            placement = int(history.placement_E[visits.events(visit).start])
            own_context = int(visits.at_us_V[visit]), placement
            if own_context not in contexts:
                parts.append(prompter.context(*own_context))
                length += len(parts[-1])
            parts.append(prompter.acted_on(history, visit))
            length += len(parts[-1])
    return np.concatenate(parts), ends_Q


def serving_prompt(prompter: PromptWriter, moment: Moment) -> Ids:
    """The serving thread of one moment, which is answered at its last position."""
    tokens_V = prompter.positions_before(moment.history.visits, moment.history.object_E)
    visits = np.array([len(tokens_V) - 1])
    (start,) = serving_starts(tokens_V, 0, visits, prompter.blocks.short_tokens)
    ids, _ = write_thread(prompter, [moment], int(start))
    return ids
