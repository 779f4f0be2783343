"""Input, policy and result of a beam search, and the parts of it that need no model.

Letters: Q requests, T positions of a thread, N rows of a mask (states, or results, best first), L levels, C codes of a
level, K results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.errors import InputError
from leadre.lm.layout import Layout
from leadre.semid.trie import Mask

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BeamRequest:
    """One request: codes are generated after position ``end`` of its thread, for the live rows of ``mask``.

    By row of the mask: ``objects`` are object indices, ``groups`` are labels (advertisers) for `BeamPolicy.per_group`;
    both may have entries for rows that are not live. ``pointer_bias_T`` is added to the pointer's score of each
    position of the thread; None = 0 everywhere.
    """

    end: int
    mask: Mask
    objects: Ints
    groups: Ints | None = None
    pointer_bias_T: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class BeamResult:
    """Rows of the mask, best first, and their log-probabilities within the live set; empty if nothing is live.

    ``unmasked`` are the log-probabilities within `BeamPolicy.catalogue`. A result that is not ``complete`` was cut
    short: its rows are live, but the prior alone decided part of their order.
    """

    rows: Ints
    log_p: NDArray[np.float32]
    unmasked: NDArray[np.float32] | None = None
    complete: bool = True


@dataclass(frozen=True)
class BeamPolicy:
    """Width, length and limits of a search.

    width      beams, one number for all levels or one for each
    top        results to return, 0 = as many as there are beams. A request ends as soon as no open beam can enter its
               top: log-probabilities only fall, so further steps would not change it.
    per_code   at most this many results share their first code, 0 = no limit
    per_group  the same for `BeamRequest.groups`
    catalogue  mask of all objects, which gives `BeamResult.unmasked`; costs a second pass over the results

    With limits, the search takes results from the best down and skips a result whose code or group is full. The same
    rule on the ranking of all live rows gives the same results, down to the first row that the beams missed. If there
    are too few beams for the limits, there may be fewer than ``top`` results.

    Log-probabilities are normalised over the live set, so those of two requests with different inventories are not
    comparable. The unmasked ones are comparable, as they do not depend on the live set: they sum over the same levels,
    with the prior of the catalogue and a pointer that may copy every object of the prompt.
    """

    width: int | tuple[int, ...] = 24
    top: int = 0
    per_code: int = 0
    per_group: int = 0
    catalogue: Mask | None = None

    def widths(self, levels: int) -> list[int]:
        """Beams at each level. InputError for widths that are not above zero, or are of another number of levels."""
        widths = [self.width] * levels if isinstance(self.width, int) else list(self.width)
        if len(widths) != levels or min(widths) <= 0:
            raise InputError(f"widths {widths} for {levels} levels: give one number above zero, or one for each level")
        return widths


def repeatable(layout: Layout, ids_QT: Ints, end_Q: Ints, objects: Sequence[Ints] | None = None) -> NDArray[np.bool_]:
    """Positions that the pointer may copy, bool [Q, T]: objects at ``end_Q`` or before.

    With ``objects``, only those in ``objects[q]``, the live objects of request q.
    """
    objects_QT = layout.objects(ids_QT)
    is_source_QT = objects_QT >= 0
    if objects is not None:
        rows = [np.isin(objects_T, live) for objects_T, live in zip(objects_QT, objects, strict=True)]
        is_source_QT = np.array(rows, np.bool_).reshape(objects_QT.shape)
    result: NDArray[np.bool_] = is_source_QT & (np.arange(ids_QT.shape[1]) <= end_Q[:, None])
    return result


def are_live(mask: Mask, codes_NL: Ints) -> NDArray[np.bool_]:
    """Which of these paths lead to a live row, bool [N]; the cost does not depend on the size of the inventory."""
    states_N = mask.roots(len(codes_NL))
    for level in range(mask.depth):
        states_N = mask.step(states_N, codes_NL[:, level], level)
    return np.asarray(states_N >= 0)


def descend(mask: Mask, states_N: Ints, level: int) -> tuple[Ints, NDArray[np.float32]]:
    """Complete live states of depth ``level`` by the likeliest codes of the prior: (leaves, log-probabilities).

    If only one row is below a state, the leaf is that row, with log-probability zero. DEAD if all rows below have been
    paused.
    """
    log_p_N = np.zeros(len(states_N), np.float32)
    for depth in range(level, mask.depth):
        prior_NC = mask.log_prior(states_N, depth)
        best_N = prior_NC.max(axis=1)
        with np.errstate(invalid="ignore"):  # without a row below: nan, which callers drop with the dead leaf
            log_p_N -= np.log(np.exp(prior_NC - best_N[:, None]).sum(axis=1))
        states_N = mask.step(states_N, prior_NC.argmax(axis=1), depth)
    return states_N, log_p_N


def ranked(
    request: BeamRequest,
    policy: BeamPolicy,
    codes_OL: Ints,
    states_N: Ints,
    score_N: NDArray[np.float32],
    level: int,
    width: int | None,
) -> tuple[Ints, NDArray[np.float32]]:
    """(rows [K], log-probabilities [K]) of beams of depth ``level``, best first, within the policy's limits.

    At most ``width`` beams are considered; None = all. ``codes_OL`` are the codes of every object.
    """
    leaves_N, rest_N = descend(request.mask, states_N, level)
    is_live_N = request.mask.rows_below(leaves_N) > 0  # rows may have been paused since the last step
    rows_N = request.mask.rows(leaves_N)[is_live_N]
    log_p_N = (score_N + rest_N)[is_live_N]
    order = np.argsort(-log_p_N, kind="stable")[:width]
    limits = []
    if policy.per_code:
        limits.append((codes_OL[request.objects[rows_N[order]], 0], policy.per_code))
    if policy.per_group:
        assert request.groups is not None, "a limit for each group needs BeamRequest.groups"
        limits.append((request.groups[rows_N[order]], policy.per_group))
    kept = order[diverse(limits, policy.top or len(order))] if limits else order[: policy.top or None]
    return rows_N[kept], log_p_N[kept]


def diverse(limits: Sequence[tuple[Ints, int]], count: int) -> list[int]:
    """Indices of the first ``count`` results within all limits; a limit is (label of each result, maximum of one)."""
    kept: list[int] = []
    seen: Counter[tuple[int, int]] = Counter()
    for n in range(len(limits[0][0]) if limits else 0):
        labels = [(limit, int(labels_N[n])) for limit, (labels_N, _) in enumerate(limits)]
        if len(kept) < count and all(seen[label] < limits[label[0]][1] for label in labels):
            kept.append(n)
            seen.update(labels)
    return kept
