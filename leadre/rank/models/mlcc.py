"""MLCC: all fields are squeezed into the weights of a small network, which is applied to each field (Bilibili, 2026).

Tokens X [S, E] of S slots, x all of them side by side. Theta = x W_1 holds the matrices of a network of a few columns,
A_1 [E, p_1], A_2 [p_1, p_2], ..., one network for each of several heads. Its levels are H_1 = X A_1, H_2 = H_1 A_2, and
so on, with no function between them: H_l is a sum of products of l + 1 fields, so each level adds one order. The levels
of all heads beside X are mapped by a matrix for each slot, slots are weighed by a gate that reads their means (SENet,
Hu et al., CVPR 2018, arXiv 1709.01507), and a plain network ends in the log-odds. In the form of several channels
(MC-MLCC) a token is cut into parts, and each part has a W_1 of its own that reads this part of all slots.

x W_1 is the sum of a part of the user's slots, computed once in `user`, and one of the candidate's. All that follows
changes with the candidate. There is no paper: the description is that of the authors' repository (shishishu/MLCC).
Deviations from it:

- Slots are the tokens of `tokens.py`, so that tables of any width become of one width; sequences are slots by mean.
- The gate is 2 sigmoid, which starts near 1 and leaves the slots as they are; no dropout.
- The last network has the layers of `shared.HEAD`, as those of the other rankers; theirs has 256-128-64-32.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared, tokens
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Mlcc:
    """``channels`` of a token with ``width`` columns each; ``heads`` networks a channel, with columns ``levels``.

    ``columns``: of a slot behind its matrix. ``gated``: whether slots have a gate. ``deep``: hidden units of the last
    network; with () the log-odds are linear in the slots.
    """

    width: int = 16
    channels: int = 1
    heads: int = 4
    levels: tuple[int, ...] = (4, 1)
    columns: int = 8
    gated: bool = True
    deep: tuple[int, ...] = shared.HEAD

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = shared.init_inputs(spec, rng)
        tokens.init_tokens(initial, rng, spec, self.channels * self.width)
        slots = {"candidate": tokens.candidate_count(spec), "user": tokens.pooled_count(spec)}
        count = sum(slots.values())
        theta = self.heads * sum(inputs * outputs for inputs, outputs in self._sizes())
        for channel in range(self.channels):
            for side, side_slots in slots.items():
                weight = rng.normal(0, (count * self.width) ** -0.5, (side_slots * self.width, theta))
                initial[f"theta.{channel}.{side}"] = weight.astype(np.float32)
        inputs = self.channels * (self.width + self.heads * sum(self.levels))
        initial["slots"] = rng.normal(0, inputs**-0.5, (count, inputs, self.columns)).astype(np.float32)
        if self.gated:
            layers.init_mlp(initial, rng, "gate", (count, max(count // 2, 1), count))
        layers.init_mlp(initial, rng, "deep", (count * self.columns, *self.deep, len(spec.labels)))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Tokens of the user's slots [R, P x channels x E], and their part of Theta by channel, [R, ...]."""
        flat = tokens.pooled_tokens(params, spec, batch)
        by_channel = flat.reshape(len(flat), -1, self.channels, self.width)
        theta = {
            f"theta.{channel}": by_channel[:, :, channel].reshape(len(flat), -1) @ params[f"theta.{channel}.user"]
            for channel in range(self.channels)
        }
        return {"tokens": flat} | theta

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        flat = layers.concat([tokens.candidate_tokens(params, spec, batch), state["tokens"][:, None]])
        shape = flat.shape[:-1]
        x = flat.reshape(*shape, -1, self.channels, self.width)
        candidate_slots = tokens.candidate_count(spec)
        parts = []
        for channel in range(self.channels):
            x_RCSE = x[..., channel, :]
            theta = x_RCSE[..., :candidate_slots, :].reshape(*shape, -1) @ params[f"theta.{channel}.candidate"]
            parts += [x_RCSE, *self._levels(x_RCSE, theta + state[f"theta.{channel}"][:, None])]
        slots = layers.per_slot(layers.concat(parts), params["slots"])
        if self.gated:
            slots = slots * (2 * layers.sigmoid(layers.mlp(params, "gate", slots.mean(-1))))[..., None]
        return layers.mlp(params, "deep", slots.reshape(*shape, -1))

    def _sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of the matrices of a head."""
        return list(pairwise((self.width, *self.levels)))

    def _levels(self, x_RCSE: Array, theta: Array) -> list[Array]:
        """The levels of all heads, each [R, C, S, heads x columns], of matrices ``theta`` [R, C, ...]."""
        level = x_RCSE[:, :, None]
        start = 0
        outputs = []
        for inputs, columns in self._sizes():
            end = start + self.heads * inputs * columns
            matrix = theta[..., start:end].reshape(*theta.shape[:-1], self.heads, inputs, columns)
            level = level @ matrix
            outputs.append(level.swapaxes(-3, -2).reshape(*x_RCSE.shape[:-1], -1))
            start = end
        return outputs
