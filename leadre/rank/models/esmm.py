"""ESMM: a conversion is a click and a conversion after it, learnt on all impressions (Ma et al., SIGIR 2018).

p(click and conversion) = p(click) x p(conversion | click) (arXiv 1804.07931). Each action of a chain has a network of
its own on the same inputs and shared tables. The log-odds of an action are those of the product along the chain, and
the loss is that of the products: no loss is on p(conversion | click) itself, which is known for clicked rows alone. The
label of an action is thus "this action and all before it". Deviations from the paper:

- The product is taken on log-odds: log-odds(p q) = -log(e^-a + e^-b + e^-(a + b)), where a and b are those of p and q.
  No probability is rounded to 0 or 1, and the log loss of products needs no other form than that of any ranker.
- The order of the chain is by name, so it does not depend on the order of the labels. A label outside the chain has
  its network alone. Towers are of `shared.HEAD`; the paper's have four layers of PReLU.

In rows that are rarely clicked, p(conversion | click) is hardly determined: calibrate the products, not their factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Esmm:
    """``chain``: actions of which each happens only after the one before. ``hidden``: units of a network."""

    chain: tuple[str, ...] = ("click", "conversion")
    hidden: tuple[int, ...] = shared.HEAD

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = shared.init_inputs(spec, rng)
        for label in spec.labels:
            layers.init_mlp(initial, rng, f"tower.{label}", (shared.side_by_side_width(spec), *self.hidden, 1))
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """User, context and the mean of each sequence, side by side, [R, ...]."""
        return {"user": shared.pooled_user(params, spec, batch)}

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H] of each action together with those before it in the chain."""
        inputs = shared.side_by_side(shared.candidate(params, spec, batch), state)
        logit = {label: layers.mlp(params, f"tower.{label}", inputs) for label in spec.labels}
        for before, after in pairwise(label for label in self.chain if label in spec.labels):
            logit[after] = layers.logit_of_both(logit[before], logit[after])
        return layers.concat([logit[label] for label in spec.labels])
