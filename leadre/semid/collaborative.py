"""Collaborative vectors of objects: positive pointwise mutual information of pairs, then truncated SVD.

Text alone gives two cheeses of different makers nearly the same vector; only the log shows that different people buy
them. Adding such a signal to the quantiser follows LETTER (arXiv 2405.07314) and DAS; the factorisation is the one of
Levy and Goldberg (2014). Only events before the first validation request are read.

A new object has no events. `predict` gives it the mean columns of the objects that are nearest by text.

Letters: U users, O objects, E events, D columns; of the prediction: N new objects, T text and W collaborative columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import svds

from leadre.data.user_counts import event_users
from leadre.errors import InputError
from leadre.semid.quantiser import Floats

if TYPE_CHECKING:
    from leadre.data.histories import Logs

NEIGHBOURS = 3  # of 1, 3 and 10; one finds hidden ads as well, but its codes agree less with those of later events
CHUNK = 2**25  # similarities at a time: 128 MiB
LATEST = 1000  # objects per user: pairs grow with the square, and one bot must not exhaust the memory


def predict(text_NT: Floats, known_text_OT: Floats, known_columns_OW: Floats) -> Floats:
    """Columns of objects without events, float32 [N, W]: means of the `NEIGHBOURS` objects with events nearest by text.

    Text vectors have unit length. Zeros if no object has events.
    """
    has_events = np.flatnonzero(known_columns_OW.any(axis=1))
    count = min(NEIGHBOURS, len(has_events))
    predicted_NW = np.zeros((len(text_NT), known_columns_OW.shape[1]), dtype=np.float32)
    if not count:
        return predicted_NW
    text_KT = known_text_OT[has_events]
    step = max(1, CHUNK // len(has_events))
    for start in range(0, len(text_NT), step):
        # rounded: a text must get the same neighbours alone as in a batch, in which sums may come in another order
        similarity = np.round(text_NT[start : start + step] @ text_KT.T, 4)
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        predicted_NW[start : start + step] = known_columns_OW[has_events[np.sort(nearest, axis=1)]].mean(axis=1)
    return predicted_NW


def vectors(logs: Logs, width: int, seed: int) -> Floats:
    """Unit-length vectors float32 [O, width] of the objects of `logs`; zero for an object without training events.

    InputError if `width` is not below the number of objects with training events.
    """
    users_E = event_users(logs)
    known_E = logs.at_us_E < training_end_us(logs)
    return factorise(users_E[known_E], logs.object_E[known_E], len(logs.objects), width, seed)


def training_end_us(logs: Logs) -> int:
    """Time of the first request that is not for training; the largest int64 if all are."""
    held_out = logs.request_at_us_R[logs.request_split_R != 0]
    return int(held_out.min()) if len(held_out) else int(np.iinfo(np.int64).max)


def factorise(
    users_E: np.ndarray[tuple[int], np.dtype[np.integer]],
    objects_E: np.ndarray[tuple[int], np.dtype[np.integer]],
    objects: int,
    width: int,
    seed: int,
) -> Floats:
    """Vectors float32 [objects, width] from events given as (user, object), each user's events in time order."""
    known = np.unique(objects_E)
    if not 0 < width < len(known):
        raise InputError(
            f"--collaborative-dim {width}: wants 1 to {len(known) - 1}, "
            f"below the {len(known)} objects with training events"
        )
    users, columns = _latest_pairs(users_E, np.searchsorted(known, objects_E))
    seen_UO = sparse.csr_array((np.ones(len(users)), (users, columns)), shape=(int(users.max()) + 1, len(known)))
    pairs = (seen_UO.T @ seen_UO).tolil()
    pairs.setdiag(0)
    pairs_OO = pairs.tocoo()
    pairs_OO.eliminate_zeros()
    if not pairs_OO.nnz:
        raise InputError("--collaborative: no user has two objects in the training weeks; leave it at 0")
    total_O = np.asarray(pairs_OO.sum(axis=0)).reshape(-1)
    row, column = pairs_OO.coords
    information = np.log(pairs_OO.data * total_O.sum() / (total_O[row] * total_O[column]))
    ppmi_OO = sparse.csr_array((np.maximum(information, 0), (row, column)), shape=pairs_OO.shape)
    result = np.zeros((objects, width), dtype=np.float32)
    result[known] = reduce(ppmi_OO, width, seed)
    return result


def reduce(matrix_NM: sparse.csr_array, width: int, seed: int) -> Floats:
    """Rows of unit length [N, width] from the strongest singular vectors, scaled by the roots of their values.

    A row of zeros stays one. ``width`` is below both sizes of the matrix.
    """
    start = np.random.default_rng(seed).normal(size=min(matrix_NM.shape))
    left_ND, strength_D, _ = svds(matrix_NM, k=width, v0=start)
    factors_ND = (left_ND * np.sqrt(strength_D))[:, ::-1]  # svds returns the weakest first
    # the sign of a singular vector is free: make the entry of largest magnitude positive
    factors_ND = factors_ND * np.where(factors_ND[np.abs(factors_ND).argmax(axis=0), np.arange(width)] < 0, -1, 1)
    length_N = np.linalg.norm(factors_ND, axis=1, keepdims=True)
    unit_ND: Floats = np.divide(factors_ND, length_N, out=np.zeros_like(factors_ND), where=length_N > 1e-9)
    return unit_ND.astype(np.float32)


def _latest_pairs(
    users_E: np.ndarray[tuple[int], np.dtype[np.integer]], columns_E: np.ndarray[tuple[int], np.dtype[np.integer]]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.integer]], np.ndarray[tuple[int], np.dtype[np.integer]]]:
    """Distinct (user, object) pairs, of each user the LATEST ones by their last event."""
    reverse = np.stack([users_E[::-1], columns_E[::-1]], axis=1)
    pairs, first = np.unique(reverse, axis=0, return_index=True)
    order = np.lexsort((first, pairs[:, 0]))  # inside a user: latest first
    users, columns = pairs[order].T
    rank = np.arange(len(users)) - np.searchsorted(users, users)
    return users[rank < LATEST], columns[rank < LATEST]
