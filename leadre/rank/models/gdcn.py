"""GDCN: cross layers that gate each new product (Wang et al., CIKM 2023, arXiv 2311.04635).

x_{l+1} = x_0 * (W x_l + b) * sigmoid(G x_l) + x_l, beside a plain network; both outputs are joined at the end (the
parallel form, GDCN-P). The gate decides which products of order l + 2 are kept, so that depth adds less noise. x_0 is
that of `dcnv2`, and without the gate the model is that one. Deviations from the paper: W and G are of low rank, as in
`dcnv2`; b starts at zero, where the official code draws it from (0, 1); no dropout and no batch normalisation.

The paper's narrow tables (FDO) are `rank/dimensions.py`.
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
class Gdcn:
    """``depth`` gated layers with matrices of ``rank``. ``deep``: hidden units of the plain network; () has none."""

    depth: int = 3
    rank: int = 32
    deep: tuple[int, ...] = shared.HEAD

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training; gates start at one half."""
        initial = shared.init_inputs(spec, rng)
        width = shared.side_by_side_width(spec)
        for layer in range(self.depth):
            for part in ("cross", "gate"):
                down = rng.normal(0, width**-0.5, (width, self.rank))
                up = rng.normal(0, 0.1 * (2 / self.rank) ** 0.5, (self.rank, width))
                initial[f"{part}.{layer}.down"] = down.astype(np.float32)
                initial[f"{part}.{layer}.up.weight"] = up.astype(np.float32)
            initial[f"cross.{layer}.up.bias"] = np.zeros(width, np.float32)
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
            gate = layers.sigmoid(x @ params[f"gate.{layer}.down"] @ params[f"gate.{layer}.up.weight"])
            x = x0 * layers.dense(params, f"cross.{layer}.up", x @ params[f"cross.{layer}.down"]) * gate + x
        logit_RCH = layers.mlp(params, "cross.out", x)
        return logit_RCH + layers.mlp(params, "deep", x0) if self.deep else logit_RCH
