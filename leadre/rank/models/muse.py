"""MUSE: a long history searched by content, which is there also where IDs are too rare to match (arXiv 2512.07216).

The cosine r of frozen content vectors selects the `top` positions for a candidate. Their histogram over bins of the
cosine is a feature (SimTier), and the cosine takes part in the attention over them: softmax of g1 a + g2 r + g3 a r, a
the dot product of embeddings (SA-TA). Deviations from the paper: a is scaled by 1 / sqrt(D); padding is masked, where
the official code counts it in a bin; no SiLU on queries and keys; all sequences are searched, short ones pass whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch, SequenceBatch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.models.shared import CONTENT, State
from leadre.rank.spec import FeatureSpec

TIERS = 20  # bins of the cosine, from -1 to 1


@dataclass(frozen=True, kw_only=True)
class Muse:
    """``top``: positions of a sequence that a candidate attends to, besides ties with the last of them."""

    top: int = 50

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training; `CONTENT` is zero until the caller sets it."""
        width = shared.width(spec)
        initial = shared.init_inputs(spec, rng)
        initial[CONTENT] = np.zeros((1, 1), np.float32)
        for part in spec.sequences:
            for name in ("key", "value"):
                layers.init_dense(initial, rng, f"{part.name}.{name}", width, width)
            initial[f"{part.name}.gate"] = np.ones(3, np.float32)
            initial[f"{part.name}.tiers"] = np.full(TIERS, 0.1, np.float32)
        shared.init_head(initial, rng, spec, width + (width + TIERS) * len(spec.sequences))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Keys and values [R, T, D] and content vectors [R, T, W], by sequence."""
        state = {"user": shared.user_vector(params, spec, batch)}
        for part in spec.sequences:
            sequence = batch.sequences[part.name]
            event_RTD = shared.embed(params, spec, sequence.field_RTK)
            for name in ("key", "value"):
                state[f"{part.name}.{name}"] = layers.dense(params, f"{part.name}.{name}", event_RTD)
            state[f"{part.name}.content"] = layers.fixed_lookup(params, "content", sequence.content_RT)
        return state

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        v_RCD = shared.embed(params, spec, batch.field_RCK)
        content_RCW = layers.fixed_lookup(params, "content", batch.content_RC)
        parts = [v_RCD]
        for part in spec.sequences:
            cosine_RCT = content_RCW @ layers.transposed(state[f"{part.name}.content"])
            parts += self._search(params, part.name, state, v_RCD, cosine_RCT, batch.sequences[part.name])
        return shared.head(params, state, batch, parts)

    def _search(
        self, params: Params, name: str, state: State, v_RCD: Array, cosine_RCT: Array, sequence: SequenceBatch
    ) -> list[Array]:
        """(interest [R, C, D], log-counts by tier of the cosine [R, C, TIERS]) over the nearest positions."""
        is_event_R1T = layers.as_floats(sequence.mask_RT, v_RCD)[:, None]
        masked_RCT = cosine_RCT * is_event_R1T - 2 * (1 - is_event_R1T)  # below any cosine
        near_RCT = (masked_RCT >= layers.kth_largest(masked_RCT, self.top)) & (masked_RCT > -1.5)
        dot_RCT = (v_RCD @ layers.transposed(state[f"{name}.key"])) / v_RCD.shape[-1] ** 0.5
        gate = params[f"{name}.gate"]
        fit_RCT = gate[0] * dot_RCT + gate[1] * cosine_RCT + gate[2] * dot_RCT * cosine_RCT
        interest_RCD = layers.softmax(fit_RCT, near_RCT) @ state[f"{name}.value"]
        tier_RCT = layers.clipped(layers.relu(cosine_RCT + 1) * (TIERS / 2), TIERS - 0.5)
        near = layers.as_floats(near_RCT, v_RCD)
        counts = [
            (near * layers.as_floats((tier_RCT >= tier) & (tier_RCT < tier + 1), v_RCD)).sum(-1)[..., None]
            for tier in range(TIERS)
        ]
        return [interest_RCD, layers.log1p(layers.concat(counts)) * params[f"{name}.tiers"]]
