"""A product of fields decides: the label depends on the signs of a few fields together, and little on each alone.

Each value of a field has a sign. The log-odds of a row are ``LOGIT`` times (.8 x the product of the signs of the first
``order`` fields + .2 x their mean); all other fields are noise. The second term lies in the single fields: without it
no gradient leads to the product. Fields of even number belong to the user, and all candidates of a request share them;
those of odd number belong to the candidate. A product of two fields is thus one of user and candidate.

Letters: R requests, C candidates, P user fields, K candidate fields, V values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws

LOGIT = 2.0
LOWER = 0.2  # share of the log-odds in single fields


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Values of the fields, from 1 on (row 0 of a table is for unseen values), labels, and their log-odds."""

    user_RP: NDArray[np.int32]
    candidate_RCK: NDArray[np.int32]
    label_RC: NDArray[np.bool_]
    logit_RC: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """The law: signs [P + K, V] of the values of all fields, user and candidate fields in turn."""

    order: int
    sign_FV: NDArray[np.int8]

    def rows(self, requests: int, candidates: int, seed: int) -> Rows:
        """Requests with their candidates, drawn independently by ``seed``."""
        rng = np.random.default_rng([seed, 1])
        fields, values = self.sign_FV.shape
        value_RCF = draws.fields(requests, candidates, fields, values, rng)
        user_RP, candidate_RCK = draws.of_user_and_candidate(value_RCF)
        sign_RCF = self.sign_FV[np.arange(fields), value_RCF][..., : self.order].astype(np.float64)
        logit_RC = LOGIT * ((1 - LOWER) * sign_RCF.prod(-1) + LOWER * sign_RCF.mean(-1))
        return Rows(
            user_RP=user_RP,
            candidate_RCK=candidate_RCK,
            label_RC=draws.events(logit_RC, rng),
            logit_RC=logit_RC,
        )


def draw(order: int, seed: int, *, fields: int = 20, values: int = 20) -> Interaction:
    """A law of an order, a function of ``seed``; each field has as many values of sign 1 as of sign -1."""
    assert 1 <= order <= fields and fields >= 2 and values % 2 == 0, (order, fields, values)
    signs_V = np.repeat(np.array([-1, 1], np.int8), values // 2)
    rng = np.random.default_rng([seed, 0])
    return Interaction(order=order, sign_FV=np.stack([rng.permutation(signs_V) for _ in range(fields)]))
