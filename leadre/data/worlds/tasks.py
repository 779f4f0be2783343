"""Two tasks read different fields: a click follows the category of an object, a conversion after it the brand.

An object is a pair of a category and a brand. A user has ``INTERESTS`` categories and as many brands, and an event is
an object of both. A user also has a field for each task. Half of its values have the sign 1, half -1, and so have
categories and brands. The log-odds of a click are ``CLICK``, ``MATCH`` more if the candidate's category is in the
history, and ``SIGN`` times the signs of category and first user field. Those of a conversion after a click are
``CONVERSION`` and the same for the brand and the second field. Half of the candidates have a category of the user, and
half a brand, independently.

Letters: R requests, C candidates, T events, V values, K tasks: click and conversion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws

VALUES = 12  # of category and brand
USER_VALUES = 10  # of a user field
INTERESTS = 3
CLICK, CONVERSION = -1.5, -1.0
MATCH, SIGN = 2.0, 1.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Objects of the history, oldest first, and of the candidates, values of the user fields, labels, their log-odds.

    Objects and values count from 1 on, as row 0 of a table is for unseen values. A label of a conversion is that of a
    click and the conversion after it.
    """

    history_RT: NDArray[np.int32]
    candidate_RC: NDArray[np.int32]
    user_RK: NDArray[np.int32]
    label_RCK: NDArray[np.bool_]
    logit_RCK: Floats


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """The law: signs [K, V] of categories and brands, and of the values of the user fields."""

    object_KV: Ints
    user_KV: Ints

    def rows(self, requests: int, events: int, candidates: int, seed: int) -> Rows:
        """Requests drawn independently by ``seed``."""
        rng = np.random.default_rng([seed, 1])
        user_RK = rng.integers(0, USER_VALUES, (requests, 2))
        event_KRT, candidate_KRC = (np.zeros((2, requests, size), np.int64) for size in (events, candidates))
        logit_KRC = np.zeros((2, requests, candidates))
        for task, base in enumerate((CLICK, CONVERSION)):
            order_RV = rng.permuted(np.repeat(np.arange(VALUES)[None], requests, axis=0), axis=1)
            place_RC = rng.integers(INTERESTS, VALUES, (requests, candidates))
            is_own_RC = rng.random((requests, candidates)) < 0.5
            place_RC[is_own_RC] = rng.integers(0, INTERESTS, is_own_RC.sum())
            event_KRT[task] = np.take_along_axis(order_RV, rng.integers(0, INTERESTS, (requests, events)), axis=1)
            candidate_KRC[task] = np.take_along_axis(order_RV, place_RC, axis=1)
            is_seen_RC = (event_KRT[task][:, None] == candidate_KRC[task][..., None]).any(2)
            sign_RC = self.object_KV[task, candidate_KRC[task]] * self.user_KV[task, user_RK[:, task, None]]
            logit_KRC[task] = base + MATCH * is_seen_RC + SIGN * sign_RC
        click_RC, converts_RC = (draws.events(logit_RC, rng) for logit_RC in logit_KRC)
        both_RC = -np.logaddexp(np.logaddexp(-logit_KRC[0], -logit_KRC[1]), -logit_KRC.sum(0))
        return Rows(
            history_RT=_objects(event_KRT),
            candidate_RC=_objects(candidate_KRC),
            user_RK=(user_RK + 1).astype(np.int32),
            label_RCK=np.stack([click_RC, click_RC & converts_RC], axis=2),
            logit_RCK=np.stack([logit_KRC[0], both_RC], axis=2),
        )


def groups() -> dict[str, NDArray[np.int32]]:
    """Category and brand of each object; row 0 is no object."""
    category_O, brand_O = np.indices((VALUES, VALUES)).reshape(2, -1) + 1
    return {
        name: np.concatenate([[0], value_O]).astype(np.int32)
        for name, value_O in (("category", category_O), ("brand", brand_O))
    }


def draw(seed: int) -> Tasks:
    """A law, a function of ``seed``."""
    rng = np.random.default_rng([seed, 0])
    return Tasks(object_KV=_signs(VALUES, rng), user_KV=_signs(USER_VALUES, rng))


def _objects(value_KRN: Ints) -> NDArray[np.int32]:
    """The objects with these categories and brands, from 1 on."""
    objects: NDArray[np.int32] = (1 + VALUES * value_KRN[0] + value_KRN[1]).astype(np.int32)
    return objects


def _signs(values: int, rng: np.random.Generator) -> Ints:
    """Signs [K, V], as many of 1 as of -1 in each task."""
    return np.stack([rng.permutation(np.repeat([-1, 1], values // 2)) for _ in range(2)])
