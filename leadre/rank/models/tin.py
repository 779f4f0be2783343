"""TIN: meaning and time of behaviour and target, as a four-way product (Zhou et al., WWW 2024, arXiv 2308.08487).

Behaviour and candidate carry an embedding of time: e' = e + p(gap), v' = v + p(now). The weight is softmax(e' v' /
sqrt(D)) and the value e' * v', so u = (sum of a e') * v': one product of matrices. Deviations from the paper: the time
is the bucket of the real gap, not the rank from the end; no normalisation between pooling and product, and none in the
last layers; four sequences. The number of events of a position adds to its weight, as it represents all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Tin:
    """Temporal interest network; its sizes are those of `shared`."""

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        width = shared.width(spec)
        initial = shared.init_inputs(spec, rng)
        shared.init_gaps(initial, rng, width)
        for part in spec.sequences:
            initial[f"{part.name}.sharpness"] = np.ones(1, np.float32)
        shared.init_head(initial, rng, spec, width * (1 + 2 * len(spec.sequences)))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Behaviours with their times, [R, T, D], by sequence."""
        state = {"user": shared.user_vector(params, spec, batch)}
        for part in spec.sequences:
            sequence = batch.sequences[part.name]
            event_RTD = shared.embed(params, spec, sequence.field_RTK)
            state[part.name] = event_RTD + layers.lookup(params, "gap", sequence.gap_RT)
        return state

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        v_RCD = shared.embed(params, spec, batch.field_RCK)
        timed_RCD = v_RCD + params["table.gap"][0]
        parts = [v_RCD]
        for part in spec.sequences:
            sequence = batch.sequences[part.name]
            event_RTD = state[part.name]
            fit_RCT = (timed_RCD @ layers.transposed(event_RTD)) * params[f"{part.name}.sharpness"]
            weight_RCT = layers.softmax(fit_RCT + sequence.count_RT[:, None], sequence.mask_RT[:, None])
            interest_RCD = weight_RCT @ event_RTD
            parts += [interest_RCD, interest_RCD * timed_RCD]
        return shared.head(params, state, batch, parts)
