"""DIN as in its paper: an attention of two hidden layers over one sequence (Zhou et al., KDD 2018, arXiv 1706.06978).

A behaviour e and a candidate v get the weight a = MLP([v, e, v - e, v * e]) by layers of 80 and 40 units, and the user
is the sum of a e, without softmax. The head reads it beside v and their product. Each pair costs both layers, so this
is a yardstick: `din` has the factored form, four sequences and the counts of positions.

Activations are Dice: p s + (1 - p) alpha s, p = sigmoid((s - mean) / deviation). The official code takes mean and
deviation from the batch, at inference too, so that a score depends on its company. Here both are parameters, which
training fits and inference reads. Further deviations: the behaviours are those of the first sequence of the spec, the
newest ads; the head has the sizes of the other rankers; the sum is divided by the root of the length limit.
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
class DinPaper:
    """``units``: hidden units of the attention, layer after layer."""

    units: tuple[int, ...] = (80, 40)

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        width = shared.width(spec)
        initial = shared.init_inputs(spec, rng)
        layers.init_mlp(initial, rng, "attention", (4 * width, *self.units, 1))
        for layer, units in enumerate(self.units):
            initial[f"dice.{layer}.mean"] = np.zeros(units, np.float32)
            initial[f"dice.{layer}.log_deviation"] = np.zeros(units, np.float32)
            initial[f"dice.{layer}.alpha"] = np.zeros(units, np.float32)
        shared.init_head(initial, rng, spec, 3 * width)
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Embedded behaviours [R, T, D]; padding is zero."""
        sequence = batch.sequences[spec.sequences[0].name]
        event_RTD = shared.embed(params, spec, sequence.field_RTK)
        event_RTD = event_RTD * layers.as_floats(sequence.mask_RT, event_RTD)[..., None]
        return {"user": shared.user_vector(params, spec, batch), "event": event_RTD}

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        v_RCD = shared.embed(params, spec, batch.field_RCK)
        event_RTD = state["event"]
        v_RC1D = v_RCD[:, :, None]
        event_R1TD = event_RTD[:, None]
        x = layers.concat([v_RC1D, event_R1TD, v_RC1D - event_R1TD, v_RC1D * event_R1TD])
        for layer in range(len(self.units)):
            x = _dice(params, f"dice.{layer}", layers.dense(params, f"attention.{layer}", x))
        weight_RCT = layers.dense(params, f"attention.{len(self.units)}", x)[..., 0]
        interest_RCD = (weight_RCT @ event_RTD) / spec.sequences[0].length ** 0.5
        return shared.head(params, state, batch, [v_RCD, interest_RCD, interest_RCD * v_RCD])


def _dice(params: Params, name: str, s: Array) -> Array:
    """Dice with a mean and a deviation that training has fitted."""
    p = layers.sigmoid((s - params[f"{name}.mean"]) * layers.exp(-params[f"{name}.log_deviation"]))
    return s * (p + (1 - p) * params[f"{name}.alpha"])
