"""DIN: each candidate weighs the user's behaviours before they are summed (Zhou et al., KDD 2018, arXiv 1706.06978).

A behaviour e and a candidate v get the weight a = MLP([v, e, v - e, v * e]), and the user is the sum of a e. There is
no softmax, so a hundred matching behaviours say more than one. Deviations from the paper:

- One hidden layer in the attention, so that it can be factored: W [v, e, v - e, v * e] = (W1 + W3) v + (W2 - W3) e +
  W4 (v * e). The part of e is computed once per user, and v meets one matrix, W1 + W3 + W4 diag(e), for each e. The
  paper's two layers are `din_paper`.
- ReLU in place of Dice, which reads batch statistics. A behaviour is an object with its gap and count as well.
- Four sequences, long and short in both domains, each with an attention of its own; sums are divided by the square
  root of the length limit, for a stable start.
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
class Din:
    """``units``: hidden units U of the attention."""

    units: int = 16

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        width = shared.width(spec)
        initial = shared.init_inputs(spec, rng)
        shared.init_gaps(initial, rng, self.units)
        for part in spec.sequences:
            for name in ("candidate", "event"):
                layers.init_dense(initial, rng, f"{part.name}.{name}", width, self.units)
            product_UD = rng.normal(0.0, (2 / width) ** 0.5, (self.units, width))
            initial[f"{part.name}.product"] = product_UD.astype(np.float32)
            layers.init_dense(initial, rng, f"{part.name}.count", 1, self.units)
            layers.init_dense(initial, rng, f"{part.name}.weight", self.units, 1)
        shared.init_head(initial, rng, spec, width * (1 + 2 * len(spec.sequences)))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Embedded behaviours [R, T, D], and their part in the hidden units [R, T, U]."""
        state = {"user": shared.user_vector(params, spec, batch)}
        for part in spec.sequences:
            sequence = batch.sequences[part.name]
            event_RTD = shared.embed(params, spec, sequence.field_RTK)
            hidden_RTU = layers.dense(params, f"{part.name}.event", event_RTD)
            hidden_RTU = hidden_RTU + layers.dense(params, f"{part.name}.count", sequence.count_RT[..., None])
            state[f"{part.name}.hidden"] = hidden_RTU + layers.lookup(params, "gap", sequence.gap_RT)
            state[f"{part.name}.event"] = event_RTD * layers.as_floats(sequence.mask_RT, event_RTD)[..., None]
        return state

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        v_RCD = shared.embed(params, spec, batch.field_RCK)
        parts = [v_RCD]
        for part in spec.sequences:
            interest_RCD = self._attend(params, part.name, state, v_RCD) / part.length**0.5
            parts += [interest_RCD, interest_RCD * v_RCD]
        return shared.head(params, state, batch, parts)

    def _attend(self, params: Params, name: str, state: State, v_RCD: Array) -> Array:
        """Behaviours weighed by each candidate and summed, [R, C, D]."""
        event_RTD = state[f"{name}.event"]
        requests, length, width = event_RTD.shape
        keyed = event_RTD[:, :, None, :] * params[f"{name}.product"] + layers.transposed(
            params[f"{name}.candidate.weight"]
        )
        keyed = keyed.reshape(requests, length * self.units, width)
        hidden = (v_RCD @ layers.transposed(keyed)).reshape(requests, v_RCD.shape[1], length, self.units)
        hidden += (state[f"{name}.hidden"] + params[f"{name}.candidate.bias"])[:, None]
        weight_RCT = layers.dense(params, f"{name}.weight", layers.relu_in_place(hidden))[..., 0]
        return weight_RCT @ event_RTD
