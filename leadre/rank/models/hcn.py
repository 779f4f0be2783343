"""After HCN: several centres of interest as vectors of a user (2022). Its abstract alone was read: our construction.

The abstract has centres that are updated level by level so that they are less alike, long and short behaviours apart,
and a co-interest network that joins both. Here the events of the long sequences, and those of the short ones, have G
centres each, which start as learnt queries Z. At each level A = softmax over the centres of `SHARPNESS` x the cosine of
E and Z, Z = norm(A' E), and E loses ``residual`` x A Z, so that the next level finds something else; the centres are
the norm of the sum over levels. Centres of long and short attend to each other, and a gate mixes both. The score is the
largest dot product of the candidate with a centre plus a vector of user and context. ``penalty`` x the mean squared
cosine of two centres is a part of the loss.

``residual`` 0 and ``penalty`` 0 leave a plain routing of events to several interests, as in MIND (1904.08030).

Letters: R requests, T positions of several sequences, G centres, D width of a vector, H labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared, towers
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec, SequenceSpec

SHARPNESS = 8.0


@dataclass(frozen=True, kw_only=True)
class Hcn:
    """``width`` D of a vector, ``hidden`` units of a tower; the others as above."""

    centres: int = 4
    width: int = 32
    hidden: int = 128
    levels: int = 3
    residual: float = 0.5
    penalty: float = 0.1

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        initial = shared.init_inputs(spec, rng)
        labels = len(spec.labels)
        towers.init_user(initial, rng, spec)
        towers.init_repeats(initial, rng, spec)
        towers.init_candidate(initial, rng, spec, self.hidden, self.width)
        towers.init_tower(initial, rng, "user", towers.user_width(spec), self.hidden, (self.width + 1, labels))
        groups = _groups(spec)
        for name in groups:
            layers.init_dense(initial, rng, f"{name}.event", shared.width(spec), self.width)
            initial[f"{name}.queries"] = rng.normal(0, 1, (self.centres, self.width)).astype(np.float32)
        if len(groups) > 1:
            layers.init_mlp(initial, rng, "gate", (2 * self.width, self.width))
        initial["label"] = np.ones((self.width, labels), np.float32)
        return initial

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """Vectors of the user [R, D, G, H], the level [R, H], the centres [R, G, D], and `towers.repeats`."""
        centres = [self._centres(params, spec, batch, name, parts) for name, parts in _groups(spec).items()]
        centre_RGD = centres[0]
        if len(centres) > 1:
            first, second = (own + _attended(own, other) for own, other in (centres, centres[::-1]))
            gate_RGD = layers.sigmoid(layers.mlp(params, "gate", layers.concat([first, second])))
            centre_RGD = gate_RGD * first + (1 - gate_RGD) * second
        output_RDH = towers.tower(params, "user", towers.user(params, spec, batch))
        vector_RDGH = layers.transposed(centre_RGD)[..., None] * params["label"][:, None]
        vector_RDGH = vector_RDGH + output_RDH[:, : self.width, None]
        state = {"vectors": vector_RDGH, "level": output_RDH[:, self.width], "centres": centre_RGD}
        return state | towers.repeats(params, spec, batch)

    def vectors(self, params: Params, spec: FeatureSpec, batch: Batch) -> Array:
        """Vectors of the candidates, [R, C, D]."""
        return towers.candidate(params, spec, batch)

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H]."""
        return towers.score(spec, state, self.vectors(params, spec, batch), batch.field_RCK[..., 0])

    def auxiliary(
        self, params: Params, spec: FeatureSpec, state: State, batch: Batch, rng: np.random.Generator
    ) -> Array:
        """``penalty`` x the mean squared cosine of two centres of a user, summed over the requests."""
        return self.penalty * (cosines(state["centres"]) ** 2).mean(-1).sum()

    def _centres(
        self, params: Params, spec: FeatureSpec, batch: Batch, name: str, parts: Sequence[tuple[int, SequenceSpec]]
    ) -> Array:
        """The centres of the events of some sequences, of norm 1, [R, G, D]; zeros without an event."""
        events = []
        weights = []
        masks = []
        for number, part in parts:
            sequence = batch.sequences[part.name]
            event_RTD = layers.dense(params, f"{name}.event", shared.embed(params, spec, sequence.field_RTK))
            weight_RT = towers.event_weights(params, number, sequence)
            events.append(layers.transposed(event_RTD))
            weights.append(weight_RT)
            masks.append(layers.as_floats(sequence.mask_RT, weight_RT))
        event_RTD = _unit(layers.transposed(layers.concat(events)))
        weight_RT1 = layers.softmax(layers.concat(weights), layers.concat(masks) > 0)[..., None]
        centre_RGD = _unit(params[f"{name}.queries"])
        sum_RGD = 0.0
        for _ in range(self.levels):
            fit_RTG = layers.softmax(SHARPNESS * event_RTD @ layers.transposed(centre_RGD))
            centre_RGD = _unit(layers.transposed(fit_RTG * weight_RT1) @ event_RTD)
            event_RTD = event_RTD - self.residual * (fit_RTG @ centre_RGD)
            sum_RGD = sum_RGD + centre_RGD
        return _unit(sum_RGD)


def cosines(centre_RGD: Array) -> Array:
    """The cosine of each two centres of a user, [R, G x (G - 1)]."""
    unit_RGD = _unit(centre_RGD)
    cosine_RGG = unit_RGD @ layers.transposed(unit_RGD)
    centres = cosine_RGG.shape[-1]
    first, second = np.nonzero(~np.eye(centres, dtype=np.bool_))
    return cosine_RGG[:, first, second]


def _attended(query_RGD: Array, other_RGD: Array) -> Array:
    """A mean of the other centres for each centre, weighed by their fit."""
    return layers.softmax(SHARPNESS * query_RGD @ layers.transposed(other_RGD)) @ other_RGD


def _unit(x: Array) -> Array:
    """Vectors of norm 1; zeros stay zeros."""
    return x / ((x * x).sum(-1) + 1e-12)[..., None] ** 0.5


def _groups(spec: FeatureSpec) -> dict[str, list[tuple[int, SequenceSpec]]]:
    """The sequences of distinct objects as ``long``, those of single events as ``short``, with their numbers."""
    groups: dict[str, list[tuple[int, SequenceSpec]]] = {}
    for number, part in enumerate(spec.sequences):
        groups.setdefault("long" if part.is_distinct else "short", []).append((number, part))
    return groups
