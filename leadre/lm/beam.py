"""What is asked of a beam search and what it answers, with the choices that need no model.

Letters: Q requests, T positions, N rows of a trie (states, or results from the best down), C codes of a level, K
results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.lm.layout import Layout
from leadre.semid.trie import Mask

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BeamRequest:
    """One request: answered at position ``end`` of its thread, from what is live in ``trie``.

    ``objects`` are the indices of the objects that the rows of the trie stand for; ``groups`` is a label of each row
    (its advertiser), for `BeamPolicy.per_group`. Both may be longer than what is live: they are only looked up.
    ``log_worth_T`` is what the pointer counts each position of the thread for, as a logarithm; None = all alike.
    """

    end: int
    trie: Mask
    objects: Ints
    groups: Ints | None = None
    log_worth_T: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class BeamResult:
    """Rows of the trie, best first, and their log-probabilities within the live set; empty where nothing is live.

    ``unmasked`` are those within `BeamPolicy.catalogue`. An answer that is not ``complete`` was cut short: its rows are
    live, but their order is partly a guess.
    """

    rows: Ints
    log_p: NDArray[np.float32]
    unmasked: NDArray[np.float32] | None = None
    complete: bool = True


@dataclass(frozen=True)
class BeamPolicy:
    """How to search.

    width      beams, one number for all levels or one for each
    top        results wanted, 0 = as many as there are beams. A request is done as soon as no open beam can enter them:
               log-probabilities only fall, so the results are those of going on.
    per_code   at most so many results that share their first code, 0 = any number
    per_group  the same for `BeamRequest.groups`
    catalogue  trie of every object there is, which gives `BeamResult.unmasked`; costs a second pass over the results

    With limits, results are taken from the best down, leaving out those whose code or group is full. That is what the
    same rule makes of the ranking of all live rows, down to the first row that the beams missed; a beam that is too
    narrow for its limits may hold fewer than ``top``.

    Log-probabilities are normalised over what is live, so those of two requests with other inventories cannot be
    compared. The unmasked ones can: the same sum over levels, with the prior of the catalogue's trie in the place of
    the live one and a pointer that may repeat every object of the prompt. What is live has no part in them.
    """

    width: int | tuple[int, ...] = 24
    top: int = 0
    per_code: int = 0
    per_group: int = 0
    catalogue: Mask | None = None

    def widths(self, levels: int) -> list[int]:
        """Beams at each level."""
        widths = [self.width] * levels if isinstance(self.width, int) else list(self.width)
        assert len(widths) == levels and min(widths) > 0, f"widths {widths} for {levels} levels"
        return widths


def repeatable(layout: Layout, ids_QT: Ints, end_Q: Ints, objects: Sequence[Ints] | None = None) -> NDArray[np.bool_]:
    """bool [Q, T]: positions up to ``end_Q`` that hold an object, one of the live ``objects[q]`` if they are given."""
    at_QT = layout.objects(ids_QT)
    held = at_QT >= 0
    if objects is not None:
        live = [np.isin(at_T, some) for at_T, some in zip(at_QT, objects, strict=True)]
        held = np.array(live, np.bool_).reshape(at_QT.shape)
    result: NDArray[np.bool_] = held & (np.arange(ids_QT.shape[1]) <= end_Q[:, None])
    return result


def are_live(trie: Mask, codes_NL: Ints) -> NDArray[np.bool_]:
    """Which of these paths lead to a live row, bool [N]; the size of the inventory does not matter."""
    states_N = trie.roots(len(codes_NL))
    for level in range(trie.depth):
        states_N = trie.step(states_N, codes_NL[:, level], level)
    return np.asarray(states_N >= 0)


def descend(trie: Mask, states_N: Ints, level: int) -> tuple[Ints, NDArray[np.float32]]:
    """(leaves, log-probabilities) where live states of depth ``level`` end, each code the likeliest by the prior alone.

    Where one row only lies below a state, that is the row, with log-probability zero. DEAD where all has been paused.
    """
    log_p_N = np.zeros(len(states_N), np.float32)
    for depth in range(level, trie.depth):
        prior_NC = trie.log_prior(states_N, depth)
        best_N = prior_NC.max(axis=1)
        with np.errstate(invalid="ignore"):  # nothing is left below: not a number, and nobody reads it
            log_p_N -= np.log(np.exp(prior_NC - best_N[:, None]).sum(axis=1))
        states_N = trie.step(states_N, prior_NC.argmax(axis=1), depth)
    return states_N, log_p_N


def diverse(limits: Sequence[tuple[Ints, int]], count: int) -> list[int]:
    """Places of the first ``count`` results that fit; a limit is (labels of the N results, how many of one label)."""
    kept: list[int] = []
    seen: Counter[tuple[int, int]] = Counter()
    for n in range(len(limits[0][0]) if limits else 0):
        labels = [(kind, int(labels_N[n])) for kind, (labels_N, _) in enumerate(limits)]
        if len(kept) < count and all(seen[label] < limits[label[0]][1] for label in labels):
            kept.append(n)
            seen.update(labels)
    return kept
