"""A conversion follows a click, and the rows that are clicked are not like the others.

Each value of a field has an effect on the click and one on the conversion of a row that is clicked; both log-odds are
sums of effects. ``selection`` is the correlation of the two effects: above 0 clicked rows convert better than others,
below 0 worse, at 0 as well as others. Whether a row would convert if it were clicked is drawn for all rows, so a model
of clicked rows can be measured on rows without a click. Fields of even number belong to the user, and all candidates of
a request share them; those of odd number belong to the candidate.

Letters: R requests, C candidates, P user fields, K candidate fields, F = P + K, V values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.worlds import draws

CLICK_LOGIT = -2.2  # of a row without effects
CONVERSION_LOGIT = -1.0
SPREAD = 1.2  # standard deviation of either log-odds over rows


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Values of the fields from 1 on, as in `interaction`, what happened, and the log-odds of it.

    ``converts_RC``: whether a row converts if it is clicked, drawn for all rows; a conversion is a click that does.
    """

    user_RP: NDArray[np.int32]
    candidate_RCK: NDArray[np.int32]
    click_RC: NDArray[np.bool_]
    converts_RC: NDArray[np.bool_]
    click_logit_RC: NDArray[np.float64]
    converts_logit_RC: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The law: effects [F, V] of the values of all fields on the click, and on the conversion after it."""

    click_FV: NDArray[np.float64]
    converts_FV: NDArray[np.float64]

    def rows(self, requests: int, candidates: int, seed: int) -> Rows:
        """Requests with their candidates, drawn independently by ``seed``."""
        rng = np.random.default_rng([seed, 1])
        fields, values = self.click_FV.shape
        value_RCF = draws.fields(requests, candidates, fields, values, rng)
        user_RP, candidate_RCK = draws.of_user_and_candidate(value_RCF)
        click_logit_RC = CLICK_LOGIT + self.click_FV[np.arange(fields), value_RCF].sum(-1)
        converts_logit_RC = CONVERSION_LOGIT + self.converts_FV[np.arange(fields), value_RCF].sum(-1)
        return Rows(
            user_RP=user_RP,
            candidate_RCK=candidate_RCK,
            click_RC=draws.events(click_logit_RC, rng),
            converts_RC=draws.events(converts_logit_RC, rng),
            click_logit_RC=click_logit_RC,
            converts_logit_RC=converts_logit_RC,
        )


def draw(selection: float, seed: int, *, fields: int = 8, values: int = 20) -> Chain:
    """A law with a correlation of effects, a function of ``seed``."""
    assert -1 <= selection <= 1 and fields >= 2, (selection, fields)
    rng = np.random.default_rng([seed, 0])
    click_FV = rng.normal(0, SPREAD / fields**0.5, (fields, values))
    own_FV = rng.normal(0, SPREAD / fields**0.5, (fields, values))
    return Chain(click_FV=click_FV, converts_FV=selection * click_FV + (1 - selection**2) ** 0.5 * own_FV)
