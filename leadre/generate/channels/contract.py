"""What every retrieval channel has in common: its contract, and the counts that most of them are fitted on.

Shapes: U users, O objects, R requests of the log, B requests of one batch, I ads of one inventory. A channel learns
from training time only, but when it scores a request it may read all that the user did strictly before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from leadre.data.histories import train_end_us

if TYPE_CHECKING:
    from leadre.data.histories import Logs

Scores = NDArray[np.float32]
BATCH = 512


class Channel(Protocol):
    """A fitted retrieval channel."""

    def score(self, logs: Logs, requests_R: NDArray[np.int64]) -> Iterator[tuple[int, Scores]]:
        """For each request index, in order: (request, scores [I] aligned with `logs.inventory(request)`)."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was fitted into an existing folder, as safetensors."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to make a channel: its name for readers, what it is fitted with, `fit(logs, seed, threads)`, `load(folder)`.

    A fitted channel on disk is current while `settings` stay the same, so every number that shapes the fit is in them.
    """

    title: str
    settings: Mapping[str, object]
    fit: Callable[[Logs, int, int], Channel]
    load: Callable[[Path], Channel]


def event_users(logs: Logs) -> NDArray[np.int64]:
    """The user of each event, [E]."""
    return np.repeat(np.arange(len(logs.event_offsets) - 1), np.diff(logs.event_offsets))


def baskets(logs: Logs) -> NDArray[np.int64]:
    """A number for each event, [E], that rises by one where the user or the time changes: events of one moment."""
    user_E = event_users(logs)
    change_E = np.ones(len(user_E), dtype=bool)
    change_E[1:] = (np.diff(user_E) != 0) | (np.diff(logs.at_us_E) != 0)
    return np.asarray(np.cumsum(change_E) - 1, dtype=np.int64)


def train_counts(logs: Logs) -> sparse.csr_matrix:
    """How often each user acted on each object in training time, [U, O] float32, both domains together."""
    in_time_E = logs.at_us_E < train_end_us(logs)
    user_N, object_N = event_users(logs)[in_time_E], logs.object_E[in_time_E]
    return _counts(user_N, object_N, users=len(logs.event_offsets) - 1, objects=len(logs.objects))


def history_counts(logs: Logs, requests_B: NDArray[np.int64]) -> sparse.csr_matrix:
    """How often each request's user acted on each object strictly before the request, [B, O] float32."""
    spans = [logs.history(int(r)) for r in requests_B]
    object_N = np.concatenate([logs.object_E[s] for s in spans]) if spans else np.zeros(0, dtype=np.int32)
    row_N = np.repeat(np.arange(len(spans)), [s.stop - s.start for s in spans])
    return _counts(row_N, object_N, users=len(spans), objects=len(logs.objects))


def over_inventory(
    logs: Logs, requests_R: NDArray[np.int64], objects: Callable[[NDArray[np.int64]], Scores], *, batch: int = BATCH
) -> Iterator[tuple[int, Scores]]:
    """Turn object scores [B, O] of batches of requests into the contract's scores over each request's live ads."""
    for start in range(0, len(requests_R), batch):
        requests_B = requests_R[start : start + batch]
        scores_BO = objects(requests_B)
        for r, scores_O in zip(requests_B.tolist(), scores_BO, strict=True):
            yield r, scores_O[logs.ad_object_A[logs.inventory(r)]]


def _counts(row_N: NDArray[np.int64], object_N: NDArray[np.int32], *, users: int, objects: int) -> sparse.csr_matrix:
    ones_N = np.ones(len(row_N), dtype=np.float32)
    counts = sparse.coo_matrix((ones_N, (row_N, object_N)), shape=(users, objects)).tocsr()
    counts.sum_duplicates()
    return counts
