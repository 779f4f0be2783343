"""How often each user acted on each object, as sparse matrices. Letters: U users, O objects, E events, N pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from leadre.data.histories import train_end_us

if TYPE_CHECKING:
    from leadre.data.histories import Logs


def damped(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """log(1 + count): a repeated purchase adds less than the first."""
    return counts.log1p().tocsr()


def train_counts(logs: Logs, before_us: int | None = None) -> sparse.csr_matrix:
    """How often each user acted on each object in training time, [U, O] float32, over both domains.

    ``before_us`` ends training time earlier.
    """
    in_time_E = logs.at_us_E < train_end_us(logs, before_us)
    user_N = event_users(logs)[in_time_E]
    object_N = logs.object_E[in_time_E]
    return count_pairs(user_N, object_N, rows=len(logs.event_offsets) - 1, objects=len(logs.objects))


def event_users(logs: Logs) -> NDArray[np.int64]:
    """The user of each event, [E]."""
    return np.repeat(np.arange(len(logs.event_offsets) - 1), np.diff(logs.event_offsets))


def count_pairs(row_N: NDArray[np.int64], object_N: NDArray[np.int32], *, rows: int, objects: int) -> sparse.csr_matrix:
    """How often each pair of row and object occurs, [rows, objects] float32."""
    ones_N = np.ones(len(row_N), dtype=np.float32)
    counts = sparse.coo_matrix((ones_N, (row_N, object_N)), shape=(rows, objects)).tocsr()
    counts.sum_duplicates()
    return counts
