"""HSTU in ranking form: attention without softmax keeps the count of events (Zhai et al., ICML 2024, arXiv 2402.17152).

A block computes U, V, Q, K = SiLU(LN(X) W), weighs the event j at i by A = SiLU(Q K + p[i - j] + t[bucket of the time
between them]) / n, and adds W_o (U * LN(A V)) to X. No softmax makes the weights sum to 1: many matching events give a
larger sum than one. n is the length limit of the sequence, a constant, so padding changes no score and a sum is the
same in training and in serving.

An event attends to itself and to those before it. A candidate attends to all events and to itself, not to other
candidates (M-FALCON), so the keys and values of the events are computed once per user, and all candidates are queries
of one pass. Deviations from the paper:

- The events are those of the first sequence of the spec, the newest ads. The paper has all actions in one sequence, and
  puts the action between the objects.
- The time between two events comes from the buckets of their times before the request; it is exact for a candidate.
- LN has no parameters, as in the official code; there is no dropout. The last layers read the candidate beside X.

LN after the sum keeps the ratio of its parts and drops its size: a count shows beside what the candidate itself adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from leadre.rank import layers
from leadre.rank.inputs import GAP_ROWS, US_PER_HOUR, Batch, gap_rows
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec

ROLES = 4  # of a token: gate U, value V, query Q, key K


@dataclass(frozen=True, kw_only=True)
class Hstu:
    """``blocks`` of ``heads`` with ``width`` E columns each.

    ``is_pointwise`` False divides the weights of a token by their sum: softmax(Q K / sqrt(E) + p + t) in place of SiLU
    and 1 / n. ``has_times`` False leaves out t.
    """

    blocks: int = 2
    heads: int = 2
    width: int = 16
    is_pointwise: bool = True
    has_times: bool = True

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        width = shared.width(spec)
        inner = self.heads * self.width
        initial = shared.init_inputs(spec, rng)
        for block in range(self.blocks):
            layers.init_dense(initial, rng, f"block.{block}.roles", width, ROLES * inner)
            layers.init_dense(initial, rng, f"block.{block}.out", inner, width)
            # Large weights at the start let the events, all alike, drown the candidate, whose table starts small.
            initial[f"block.{block}.roles.weight"] *= np.float32(0.3)
            initial[f"block.{block}.out.weight"] *= np.float32(0.1)
            initial[f"block.{block}.distance"] = np.zeros(spec.sequences[0].length + 1, np.float32)
            if self.has_times:
                initial[f"block.{block}.time"] = np.zeros(GAP_ROWS, np.float32)
        shared.init_head(initial, rng, spec, 2 * width)
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Keys and values of the events in each block, [R, heads, T, E]."""
        sequence = batch.sequences[spec.sequences[0].name]
        state = {"user": shared.user_vector(params, spec, batch)}
        x_RTD = shared.embed(params, spec, sequence.field_RTK)
        place_T = np.arange(x_RTD.shape[1])
        distance_TT = place_T[:, None] - place_T
        sees_R1TT = (np.asarray(sequence.mask_RT)[:, None] & (distance_TT >= 0))[:, None]
        gap_RT = np.asarray(sequence.gap_RT)
        between_RTT = _rows_between()[gap_RT[:, :, None], gap_RT[:, None]]
        for block in range(self.blocks):
            gate, value, query, key = self._roles(params, block, x_RTD)
            state[f"{block}.key"] = key
            state[f"{block}.value"] = value
            if block + 1 < self.blocks:
                bias_RTT = self._bias(params, block, distance_TT.clip(0)[None], between_RTT)
                weight = self._weights(spec, query @ layers.transposed(key), bias_RTT[:, None], sees_R1TT)
                x_RTD = self._updated(params, block, x_RTD, gate, weight @ value)
        return state

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        sequence = batch.sequences[spec.sequences[0].name]
        mask_RT = np.asarray(sequence.mask_RT)
        length = mask_RT.shape[1]
        # The last place of N = T + 1 is the candidate itself, at distance 0 and at its own time, row 0.
        sees_R11N = np.concatenate([mask_RT, np.ones_like(mask_RT[:, :1])], axis=1)[:, None, None]
        distance_RN = (mask_RT.sum(1, keepdims=True) - np.arange(length + 1)).clip(0)
        distance_RN[:, length] = 0
        gap_RN = np.pad(np.asarray(sequence.gap_RT), ((0, 0), (0, 1)))
        v_RCD = shared.embed(params, spec, batch.field_RCK)
        x_RCD = v_RCD
        for block in range(self.blocks):
            gate, value, query, key = self._roles(params, block, x_RCD)
            fits = [query @ layers.transposed(state[f"{block}.key"]), (query * key).sum(-1)[..., None]]
            bias_RN = self._bias(params, block, distance_RN, gap_RN)
            weight = self._weights(spec, layers.concat(fits), bias_RN[:, None, None], sees_R11N)
            mixed = weight[..., :length] @ state[f"{block}.value"] + weight[..., length:] * value
            x_RCD = self._updated(params, block, x_RCD, gate, mixed)
        return shared.head(params, state, batch, [v_RCD, x_RCD])

    def _roles(self, params: Params, block: int, x: Array) -> list[Array]:
        """Gate [R, N, heads x E]; value, query and key [R, heads, N, E], of tokens [R, N, D]."""
        roles = layers.silu(layers.dense(params, f"block.{block}.roles", layers.normalised(x)))
        inner = self.heads * self.width
        gate, *others = (roles[..., start : start + inner] for start in range(0, ROLES * inner, inner))
        return [gate, *(layers.by_head(part, self.heads) for part in others)]

    def _bias(self, params: Params, block: int, distance: Array, gap: Array) -> Array:
        """The part of a weight that depends on places and times alone; all heads share it."""
        bias = params[f"block.{block}.distance"][distance]
        return bias + params[f"block.{block}.time"][gap] if self.has_times else bias

    def _weights(self, spec: FeatureSpec, fit: Array, bias: Array, sees: Array) -> Array:
        """Weights of the tokens of ``sees``; zeros for all others."""
        if not self.is_pointwise:
            return layers.softmax(fit / self.width**0.5 + bias, sees)
        return layers.silu(fit + bias) * layers.as_floats(sees, fit) / spec.sequences[0].length

    def _updated(self, params: Params, block: int, x: Array, gate: Array, mixed: Array) -> Array:
        """Tokens with the result of a block added."""
        return x + layers.dense(params, f"block.{block}.out", gate * layers.normalised(layers.of_heads(mixed)))


@cache
def _rows_between() -> NDArray[np.int64]:
    """The bucket of the time between two events, by their buckets of the time before the request."""
    hours = 2 ** ((np.arange(GAP_ROWS).clip(1) - 1) / 4) - 1
    return gap_rows(((hours - hours[:, None]) * US_PER_HOUR).astype(np.int64)).astype(np.int64)
