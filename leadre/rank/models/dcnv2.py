"""DCNv2: explicit products of features, one order a layer (Wang et al., WWW 2021, arXiv 2008.13535).

x_{l+1} = x_0 * (W x_l + b) + x_l, W of low rank, beside a plain network; both outputs are joined at the end (the
parallel form). x_0 holds the candidate's fields, numbers, user and context, and the mean of each sequence. Deviation
from the paper: one low-rank matrix a layer, without the mixture of experts.
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
class DcnV2:
    """``depth`` cross layers with matrices of ``rank``. ``deep``: hidden units of the plain network; () has none."""

    depth: int = 3
    rank: int = 32
    deep: tuple[int, ...] = shared.HEAD

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = shared.init_inputs(spec, rng)
        width = shared.side_by_side_width(spec)
        for layer in range(self.depth):
            initial[f"cross.{layer}.down"] = rng.normal(0, width**-0.5, (width, self.rank)).astype(np.float32)
            layers.init_dense(initial, rng, f"cross.{layer}.up", self.rank, width)
            initial[f"cross.{layer}.up.weight"] *= np.float32(0.1)
        layers.init_mlp(initial, rng, "cross.out", (width, len(spec.labels)))
        if self.deep:
            layers.init_mlp(initial, rng, "deep", (width, *self.deep, len(spec.labels)))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """User, context and the mean of each sequence, side by side, [R, ...]."""
        return {"user": shared.pooled_user(params, spec, batch)}

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        x0 = shared.side_by_side(shared.candidate(params, spec, batch), state)
        x = x0
        for layer in range(self.depth):
            x = x0 * layers.dense(params, f"cross.{layer}.up", x @ params[f"cross.{layer}.down"]) + x
        logit_RCH = layers.mlp(params, "cross.out", x)
        return logit_RCH + layers.mlp(params, "deep", x0) if self.deep else logit_RCH
