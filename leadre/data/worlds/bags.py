"""Labels are known as sums of bags alone; how rows come into bags decides how much the sums say.

A user belongs to one of `GROUPS` groups, and so does a candidate. A field has the value that its group prefers with
probability ``TYPICAL``, and otherwise any. The log-odds of a row are ``BASE`` plus an effect of each value, so groups
differ in their rate, and rows alike in their fields have like log-odds. Fields of even number belong to the user, and
all candidates of a request share them; those of odd number belong to the candidate.

Rows come into bags of one size in the order of a key, which no feature has: chance (iid), the pair of groups of user
and candidate (cluster), or a number that is ``SHIFT`` standard deviations higher for rows with a label (key).

Letters: R requests, C candidates, P user fields, K candidate fields, F = P + K, V values, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws, interaction

Kind = Literal["iid", "cluster", "key"]

GROUPS = 8  # of users, and of candidates
TYPICAL = 0.6
BASE = -1.5
SPREAD = 1.5  # standard deviation of the log-odds over rows of even values
SHIFT = 1.0


@dataclass(frozen=True, kw_only=True)
class Rows(interaction.Rows):
    """Rows with the pair of groups of each, 0 to ``GROUPS`` squared - 1."""

    groups_RC: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BagLaw:
    """The law: effects [F, V] of the values of all fields, and the value [F, G] that a group prefers in each."""

    effect_FV: NDArray[np.float64]
    preferred_FG: NDArray[np.int64]

    def rows(self, requests: int, candidates: int, seed: int) -> Rows:
        """Requests with their candidates, drawn independently by ``seed``."""
        rng = np.random.default_rng([seed, 1])
        fields, values = self.effect_FV.shape
        user_RC = np.repeat(rng.integers(0, GROUPS, (requests, 1)), candidates, axis=1)
        candidate_RC = rng.integers(0, GROUPS, (requests, candidates))
        group_RCF = np.stack([candidate_RC if field % 2 else user_RC for field in range(fields)], axis=2)
        is_typical_RCF = draws.fields(requests, candidates, fields, 1000, rng) < 1000 * TYPICAL
        any_RCF = draws.fields(requests, candidates, fields, values, rng)
        value_RCF = np.where(is_typical_RCF, self.preferred_FG[np.arange(fields), group_RCF], any_RCF)
        logit_RC = BASE + self.effect_FV[np.arange(fields), value_RCF].sum(-1)
        user_RP, candidate_RCK = draws.of_user_and_candidate(value_RCF)
        return Rows(
            user_RP=user_RP,
            candidate_RCK=candidate_RCK,
            label_RC=draws.events(logit_RC, rng),
            logit_RC=logit_RC,
            groups_RC=user_RC * GROUPS + candidate_RC,
        )


def draw(seed: int, *, fields: int = 8, values: int = 20) -> BagLaw:
    """A law, a function of ``seed``."""
    rng = np.random.default_rng([seed, 0])
    return BagLaw(
        effect_FV=rng.normal(0, SPREAD / fields**0.5, (fields, values)),
        preferred_FG=rng.integers(0, values, (fields, GROUPS)),
    )


def bags(rows: Rows, kind: Kind, size: int, seed: int) -> NDArray[np.int64]:
    """The bag of each row, flat [R x C], from 0 on; the last one is smaller if ``size`` does not divide the rows."""
    rng = np.random.default_rng([seed, 2])
    label_N = rows.label_RC.ravel()
    key_N = {
        "iid": np.zeros(len(label_N)),
        "cluster": rows.groups_RC.ravel(),
        "key": SHIFT * label_N + rng.normal(size=len(label_N)),
    }[kind]
    bag_N = np.empty(len(label_N), np.int64)
    bag_N[np.lexsort((rng.random(len(label_N)), key_N))] = np.arange(len(label_N)) // size
    return bag_N
