"""The contract of retrieval channels, and the counts that most of them are fitted on.

Shapes: U users, O objects, E events, B Moments of one batch, I live ads of one Moment. A channel is fitted on training
time only and scores a user by the history of the Moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from leadre.data.histories import train_end_us
from leadre.data.moment import as_of
from leadre.data.user_counts import count_pairs
from leadre.lm import fits

if TYPE_CHECKING:
    from leadre.data.histories import Logs
    from leadre.data.moment import History, Moment

Scores = NDArray[np.float32]
BATCH = 512
CSR = ("data", "indices", "indptr")


class Channel(Protocol):
    """A fitted retrieval channel."""

    def score(self, moments: Iterable[Moment]) -> Iterator[Scores]:
        """Scores [I] of the live ads of each Moment, aligned with ``moment.inventory.ads``."""
        ...

    def save(self, folder: Path) -> None:
        """Write the fitted arrays into an existing folder, as safetensors."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method(fits.Method[Channel]):
    """How to create a channel, with its title in reports."""

    title: str


def history_counts(moments_B: Sequence[Moment], objects: int) -> sparse.csr_matrix:
    """How often each Moment's history holds each object, [B, O] float32."""
    histories = [moment.history.object_E for moment in moments_B]
    object_N = np.concatenate(histories) if histories else np.zeros(0, dtype=np.int32)
    row_N = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return count_pairs(row_N, object_N, rows=len(histories), objects=objects)


def basket_ages(history: History) -> NDArray[np.int64]:
    """How many baskets of the history follow that of each event, [E]; a basket is all events of one instant."""
    events_V = np.diff(history.visits.event_offsets)
    return np.repeat(np.arange(len(events_V))[::-1], events_V)


def weighted_histories(
    histories: Sequence[History], weigh: Callable[[NDArray[np.int64]], NDArray[np.float64]], objects: int
) -> sparse.csr_matrix:
    """Sums of the weights of each history's baskets that hold an object, [B, O] float32.

    ``weigh`` maps the `basket_ages` of a history, [E], to weights. An object counts once in a basket.
    """
    rows = []
    for row, history in enumerate(histories):
        age_E = basket_ages(history)
        once = np.unique(age_E * objects + history.object_E)
        rows.append((np.full(len(once), row), once % objects, weigh(once // objects)))
    row_N, object_N, weight_N = map(np.concatenate, zip(*rows, strict=True))
    shape = (len(histories), objects)
    return sparse.coo_matrix((weight_N.astype(np.float32), (row_N, object_N)), shape=shape).tocsr()


def training_histories(logs: Logs) -> list[History]:
    """The history of each user as of the end of training, [U]."""
    users = np.arange(len(logs.users))
    return [moment.history for moment in as_of(logs, train_end_us(logs), users, np.zeros(0, np.int32))]


def csr_parts(matrix: sparse.csr_matrix, prefix: str = "") -> dict[str, NDArray[Any]]:
    """The arrays of a matrix, to be written as safetensors; its shape is not among them."""
    return {f"{prefix}{name}": getattr(matrix, name) for name in CSR}


def csr_of(parts: Mapping[str, NDArray[Any]], columns: int, prefix: str = "") -> sparse.csr_matrix:
    """The matrix whose arrays `csr_parts` returned."""
    arrays = tuple(parts[f"{prefix}{name}"] for name in CSR)
    return sparse.csr_matrix(arrays, shape=(len(arrays[-1]) - 1, columns))


def over_inventory(
    moments: Iterable[Moment], objects: Callable[[Sequence[Moment]], Scores], *, batch: int = BATCH
) -> Iterator[Scores]:
    """Turn object scores [B, O] of batches of Moments into the contract's scores of the live ads."""
    remaining = iter(moments)
    while moments_B := list(islice(remaining, batch)):
        for moment, score_O in zip(moments_B, objects(moments_B), strict=True):
            yield score_O[moment.inventory.ad_object]
