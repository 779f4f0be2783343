"""Two towers: the user as one vector, the candidate as another, their dot product as score (Yi et al., RecSys 2019).

The user's tower reads user, context and the events of each sequence, weighed by the time since them; the candidate's
reads the fields of the object and its popularity and price. `leadre rank coarse` trains them by a softmax over the ads
that were live in the request (`rank/losses.py`). The paper takes the other rows of a batch as negatives and corrects
the scores by the logarithm of the probability that an item is in the batch; all live ads of a request are in it with
the same probability, so this correction is a constant and drops out. An ad that was not live is no negative.

Deviations: a candidate with an object of the history gets a learnt weight more (`towers.repeats`); vectors have any
length, where the paper divides by their norms and by a temperature, so that a popular ad may have a long one; the last
layer of a tower reads the inputs beside the hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import towers
from leadre.rank.models.shared import State, init_inputs
from leadre.rank.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class TwoTower:
    """``width`` D of a vector, ``hidden`` units of a tower. ``repeats`` False leaves out `towers.repeats`."""

    width: int = 32
    hidden: int = 128
    repeats: bool = True

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = init_inputs(spec, rng)
        towers.init_user(initial, rng, spec)
        if self.repeats:
            towers.init_repeats(initial, rng, spec)
        towers.init_candidate(initial, rng, spec, self.hidden, self.width)
        towers.init_tower(
            initial, rng, "user", towers.user_width(spec), self.hidden, (self.width + 1, len(spec.labels))
        )
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """A vector of the user for each label, [R, D, 1, H], and the level of the scores, [R, H]."""
        output_RDH = towers.tower(params, "user", towers.user(params, spec, batch))
        state = {"vectors": output_RDH[:, : self.width, None], "level": output_RDH[:, self.width]}
        return state | towers.repeats(params, spec, batch) if self.repeats else state

    def vectors(self, params: Params, spec: FeatureSpec, batch: Batch) -> Array:
        """Vectors of the candidates, [R, C, D]."""
        return towers.candidate(params, spec, batch)

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        return towers.score(spec, state, self.vectors(params, spec, batch), batch.field_RCK[..., 0])
