"""AutoInt: self-attention over fields builds their combinations (Song et al., CIKM 2019, arXiv 1810.11921).

A block gives each token relu(sum over heads and tokens of softmax(q k) v + W e); a block more is a higher order, and
the product with W keeps the lower ones. The log-odds are linear in all tokens of the last block, beside a plain network
of the inputs (AutoInt+). Tokens are the candidate's fields and numbers, user and context, and the mean of each
sequence (`tokens.py`). Deviations from the paper:

- Products are divided by the root of a head's width, as in the official code. That code also has ReLU on queries, keys
  and values and a normalisation at the end; this file follows the paper's formulas.
- Tables of different widths are mapped to one width. No dropout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared, tokens
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec

ROLES = ("query", "key", "value", "residual")


@dataclass(frozen=True, kw_only=True)
class AutoInt:
    """``blocks`` of ``heads`` over tokens of ``width``. ``deep``: hidden units of the plain network; () has none."""

    blocks: int = 3
    heads: int = 2
    width: int = 32
    deep: tuple[int, ...] = shared.HEAD

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = shared.init_inputs(spec, rng)
        tokens.init_tokens(initial, rng, spec, self.width)
        for block in range(self.blocks):
            for role in ROLES:
                weight = rng.normal(0, self.width**-0.5, (self.width, self.width))
                initial[f"block.{block}.{role}"] = weight.astype(np.float32)
        count = tokens.candidate_count(spec) + tokens.pooled_count(spec)
        layers.init_mlp(initial, rng, "out", (count * self.width, len(spec.labels)))
        if self.deep:
            inputs = shared.side_by_side_width(spec)
            layers.init_mlp(initial, rng, "deep", (inputs, *self.deep, len(spec.labels)))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """User, context and the mean of each sequence: side by side [R, ...], and as tokens [R, M x W]."""
        return {
            "user": shared.pooled_user(params, spec, batch),
            "tokens": tokens.pooled_tokens(params, spec, batch),
        }

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        x = layers.concat([tokens.candidate_tokens(params, spec, batch), state["tokens"][:, None]])
        x = x.reshape(*x.shape[:-1], -1, self.width)
        for block in range(self.blocks):
            x = self._attend(x, *(params[f"block.{block}.{role}"] for role in ROLES))
        logit_RCH = layers.mlp(params, "out", x.reshape(*x.shape[:-2], -1))
        if not self.deep:
            return logit_RCH
        inputs = shared.side_by_side(shared.candidate(params, spec, batch), state)
        return logit_RCH + layers.mlp(params, "deep", inputs)

    def _attend(self, x: Array, *weights: Array) -> Array:
        """One block on tokens [R, C, M, W], with its matrices of `ROLES`."""
        query, key, value, residual = (x @ weight for weight in weights)
        query, key, value = (layers.by_head(part, self.heads) for part in (query, key, value))
        fit = query @ layers.transposed(key) / (self.width / self.heads) ** 0.5
        return layers.relu(layers.of_heads(layers.softmax(fit) @ value) + residual)
