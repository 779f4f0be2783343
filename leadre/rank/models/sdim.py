"""SDIM: a long history hashed into buckets, a candidate reads those it falls into (Cao et al., CIKM 2022, 2205.10249).

Random planes through zero give each object a signature of ``bits`` signs. Objects with equal signs are in one bucket,
which happens with probability (1 - arccos(cosine) / pi)^bits, so buckets do the work of target attention: the interest
of a candidate is the mean over signatures of its bucket, the sum of the events in it divided by its norm. Buckets are
built once for a user, and a candidate costs the same for a history of any length. Without the norm, which some public
codes leave out, a bucket of common objects drowns all others.

Planes are drawn once and kept with the weights; no gradient passes a sign, it reaches the sums alone. Deviations:

- Embeddings are rounded to a grid before they are hashed, so that a sum of products is exact, and its sign the same in
  any batch and library.
- An empty bucket is a learnt vector, not zeros.
- An event carries the time since it. A position that represents n events counts 1 + log(1 + n) times.
- All sequences of the spec are hashed; the paper has another model for the short ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch, SequenceBatch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec

GRID = 4096  # steps of an embedding from 0 to 1
PLANE_GRID = 32
PLANES = "fixed.planes"


@dataclass(frozen=True, kw_only=True)
class Sdim:
    """``signatures`` S of ``bits`` signs each; B = 2^bits buckets a signature."""

    signatures: int = 16
    bits: int = 3

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        width = shared.width(spec)
        initial = shared.init_inputs(spec, rng)
        shared.init_gaps(initial, rng, width)
        planes = rng.normal(0, PLANE_GRID, (width, self.signatures * self.bits))
        initial[PLANES] = planes.round().astype(np.float32)
        for part in spec.sequences:
            initial[f"{part.name}.nothing"] = np.zeros(width, np.float32)
        shared.init_head(initial, rng, spec, width * (1 + 2 * len(spec.sequences)))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Buckets of all signatures, [R, S x B, D], by sequence."""
        state = {"user": shared.user_vector(params, spec, batch)}
        for part in spec.sequences:
            state[part.name] = self._buckets(params, spec, part.name, batch.sequences[part.name])
        return state

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        v_RCD = shared.embed(params, spec, batch.field_RCK)
        is_in_RCB = self.signed(params[PLANES], v_RCD)
        parts = [v_RCD]
        for part in spec.sequences:
            interest_RCD = (is_in_RCB @ state[part.name]) / self.signatures
            parts += [interest_RCD, interest_RCD * v_RCD]
        return shared.head(params, state, batch, parts)

    def signed(self, planes_DP: Array, x: Array) -> Array:
        """1 at the bucket of a vector in each signature, 0 at all others: [..., D] -> [..., S x B]."""
        sign = layers.as_floats((x * GRID).round() @ planes_DP >= 0, x).reshape(*x.shape[:-1], -1, self.bits)
        bucket = sum(2**bit * sign[..., bit] for bit in range(self.bits))
        buckets = [layers.as_floats(bucket == number, x)[..., None] for number in range(2**self.bits)]
        return layers.concat(buckets).reshape(*x.shape[:-1], -1)

    def _buckets(self, params: Params, spec: FeatureSpec, name: str, sequence: SequenceBatch) -> Array:
        """The sum of the events of each bucket, with norm 1, [R, S x B, D]."""
        event_RTD = shared.embed(params, spec, sequence.field_RTK)
        is_in_RTB = self.signed(params[PLANES], event_RTD)
        is_in_RTB = is_in_RTB * layers.as_floats(sequence.mask_RT, event_RTD)[..., None]
        weighed_RTB = is_in_RTB * (1 + sequence.count_RT)[..., None]
        timed_RTD = event_RTD + layers.lookup(params, "gap", sequence.gap_RT)
        sum_RBD = layers.transposed(weighed_RTB) @ timed_RTD
        norm_RB = ((sum_RBD * sum_RBD).sum(-1) + 1e-12) ** 0.5
        is_empty_RB = layers.as_floats(is_in_RTB.sum(1) == 0, event_RTD)
        return sum_RBD / norm_RB[..., None] + is_empty_RB[..., None] * params[f"{name}.nothing"]
