"""The contract of retrieval channels, and the counts that most of them are fitted on.

Shapes: U users, O objects, E events, B Moments of one batch, I live ads of one Moment. A channel is fitted on training
time only and scores a user by the history of the Moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from leadre.data.histories import train_end_us

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import Moment

Scores = NDArray[np.float32]
BATCH = 512


class Channel(Protocol):
    """A fitted retrieval channel."""

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """Scores [I] of the live ads of each Moment, aligned with ``moment.inventory.ads``."""
        ...

    def save(self, folder: Path) -> None:
        """Write the fitted arrays into an existing folder, as safetensors."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to create a channel: its title, its settings, `fit(logs, seed, threads)` and `load(folder)`.

    A fitted channel on disk is current while `settings` stay the same, so they hold every number that shapes the fit.
    """

    title: str
    settings: Mapping[str, object]
    fit: Callable[[Logs, int, int], Channel]
    load: Callable[[Path], Channel]


def event_users(logs: Logs) -> NDArray[np.int64]:
    """The user of each event, [E]."""
    return np.repeat(np.arange(len(logs.event_offsets) - 1), np.diff(logs.event_offsets))


def baskets(logs: Logs) -> NDArray[np.int64]:
    """The basket of each event, [E]: a number that rises by one when the user or the time changes."""
    user_E = event_users(logs)
    change_E = np.ones(len(user_E), dtype=bool)
    change_E[1:] = (np.diff(user_E) != 0) | (np.diff(logs.at_us_E) != 0)
    return np.asarray(np.cumsum(change_E) - 1, dtype=np.int64)


def train_counts(logs: Logs) -> sparse.csr_matrix:
    """How often each user acted on each object in training time, [U, O] float32, over both domains."""
    in_time_E = logs.at_us_E < train_end_us(logs)
    user_N = event_users(logs)[in_time_E]
    object_N = logs.object_E[in_time_E]
    return _counts(user_N, object_N, users=len(logs.event_offsets) - 1, objects=len(logs.objects))


def history_counts(moments_B: Sequence[Moment], objects: int) -> sparse.csr_matrix:
    """How often each Moment's history holds each object, [B, O] float32."""
    histories = [moment.history.object_E for moment in moments_B]
    object_N = np.concatenate(histories) if histories else np.zeros(0, dtype=np.int32)
    row_N = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return _counts(row_N, object_N, users=len(histories), objects=objects)


def over_inventory(
    moments: Iterable[Moment], objects: Callable[[Sequence[Moment]], Scores], *, batch: int = BATCH
) -> Iterator[Scores]:
    """Turn object scores [B, O] of batches of Moments into the contract's scores of the live ads."""
    remaining = iter(moments)
    while moments_B := list(islice(remaining, batch)):
        for moment, score_O in zip(moments_B, objects(moments_B), strict=True):
            yield score_O[moment.inventory.ad_object]


def _counts(row_N: NDArray[np.int64], object_N: NDArray[np.int32], *, users: int, objects: int) -> sparse.csr_matrix:
    ones_N = np.ones(len(row_N), dtype=np.float32)
    counts = sparse.coo_matrix((ones_N, (row_N, object_N)), shape=(users, objects)).tocsr()
    counts.sum_duplicates()
    return counts
