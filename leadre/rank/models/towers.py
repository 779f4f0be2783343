"""Towers: user and candidate as vectors, whose dot product is the score.

A vector of a candidate depends on the object and the count tables alone, so a catalogue computes it once for all
requests, and a request costs one vector of the user, or a few, and a product of matrices. A tower sees nothing of the
other side: no count of the user's events on the candidate is among its inputs, and a short vector cannot hold which of
thousands of objects a user had. `repeats` adds this as a sparse dot product: the candidate's part is its object as a
one-hot vector, the user's part has a learnt weight at each object of the history.

Letters: R requests, C candidates, T positions, D width of a vector, G vectors of a user, H labels.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from leadre.data import counts
from leadre.rank import layers
from leadre.rank.inputs import GAP_ROWS, Batch, SequenceBatch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.models.shared import State
from leadre.rank.spec import FeatureSpec


@runtime_checkable
class Coarse(Protocol):
    """A `Ranker` whose `score` is that of this module: its user's state with vectors that no user changes."""

    def vectors(self, params: Params, spec: FeatureSpec, batch: Batch) -> Array:
        """Vectors of the candidates [R, C, D], from their fields and the numbers `counts.OF_OBJECT` alone."""
        ...


def score(spec: FeatureSpec, state: State, vector_RCD: Array, object_RC: Array) -> Array:
    """Log-odds [R, C, H]: `largest_dot`, and `repeats` if the state has them; ``object_RC``: rows of the objects."""
    logit_RCH = largest_dot(state, vector_RCD)
    for part in spec.sequences:
        if f"{part.name}.weights" in state:
            is_same_RCT = object_RC[..., None] == state[f"{part.name}.objects"][:, None]
            logit_RCH = logit_RCH + layers.as_floats(is_same_RCT, logit_RCH) @ state[f"{part.name}.weights"]
    return logit_RCH


def largest_dot(state: State, vector_RCD: Array) -> Array:
    """The largest dot product over the user's vectors, and the level of the user, [R, C, H].

    ``state``: ``vectors`` [R, D, G, H], and ``level`` [R, H], which is the same for all candidates.
    """
    requests, width, vectors, labels = state["vectors"].shape
    product = vector_RCD @ state["vectors"].reshape(requests, width, vectors * labels)
    dot_RCGH = product.reshape(*product.shape[:2], vectors, labels)
    return layers.largest(dot_RCGH, 2) + state["level"][:, None]


def init_tower(
    initial: Initial, rng: np.random.Generator, name: str, inputs: int, hidden: int, outputs: tuple[int, ...]
) -> None:
    """A tower: a layer of ``hidden`` units, and a last one that reads the inputs beside them and starts small.

    By the linear path of both towers an object matches itself.
    """
    layers.init_dense(initial, rng, f"{name}.hidden", inputs, hidden)
    weight = rng.normal(0, 0.3 * (inputs + hidden) ** -0.5, (inputs + hidden, *outputs))
    initial[f"{name}.out.weight"] = weight.astype(np.float32)
    initial[f"{name}.out.bias"] = np.zeros(outputs, np.float32)


def tower(params: Params, name: str, x: Array) -> Array:
    """Outputs of the tower ``name``, [..., *outputs]."""
    hidden = layers.relu(layers.dense(params, f"{name}.hidden", x))
    weight = params[f"{name}.out.weight"]
    output = layers.concat([x, hidden]) @ weight.reshape(len(weight), -1)
    return output.reshape(*x.shape[:-1], *weight.shape[1:]) + params[f"{name}.out.bias"]


def init_candidate(initial: Initial, rng: np.random.Generator, spec: FeatureSpec, hidden: int, width: int) -> None:
    """The tower of `candidate`."""
    init_tower(initial, rng, "candidate", candidate_width(spec), hidden, (width,))


def candidate(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """Vectors of the candidates, [R, C, D]."""
    return tower(params, "candidate", candidate_inputs(params, spec, batch))


def candidate_width(spec: FeatureSpec) -> int:
    """Columns of `candidate_inputs`."""
    return shared.width(spec) + len(_columns(spec, counts.OF_OBJECT)) * (1 + shared.BINS)


def candidate_inputs(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """Fields of the candidates and their numbers `counts.OF_OBJECT` side by side, [R, C, `candidate_width`]."""
    numbers = shared.numbers(params, batch, _columns(spec, counts.OF_OBJECT))
    return layers.concat([shared.embed(params, spec, batch.field_RCK), numbers])


def init_user(initial: Initial, rng: np.random.Generator, spec: FeatureSpec) -> None:
    """The tables of `user`."""
    if spec.sequences:
        shared.init_gaps(initial, rng, len(spec.sequences))


def user_width(spec: FeatureSpec) -> int:
    """Columns of `user`."""
    numbers = len(_columns(spec, counts.CONTEXT)) * (1 + shared.BINS)
    return numbers + shared.pooled_user_width(spec)


def user(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """User, context, the numbers `counts.CONTEXT`, `recent_pool` of each sequence side by side, [R, `user_width`]."""
    numbers = shared.numbers(params, batch, _columns(spec, counts.CONTEXT))
    parts = [shared.user_vector(params, spec, batch), numbers[:, 0]]  # all candidates have the same
    for number, part in enumerate(spec.sequences):
        sequence = batch.sequences[part.name]
        event_RTD = shared.embed(params, spec, sequence.field_RTK)
        parts.append(recent_pool(params, number, event_RTD, sequence))
    return layers.concat(parts)


def recent_pool(params: Params, number: int, x_RTD: Array, sequence: SequenceBatch) -> Array:
    """Mean of the positions of sequence ``number``, [R, D]; zeros for an empty one.

    A position that represents n events counts 1 + n times, multiplied by a learnt weight of the time since the last.
    """
    weight_RT = layers.softmax(event_weights(params, number, sequence), sequence.mask_RT)
    return (x_RTD * weight_RT[..., None]).sum(1)


def event_weights(params: Params, number: int, sequence: SequenceBatch) -> Array:
    """Logarithms of the weights of `recent_pool`, [R, T]."""
    return layers.lookup(params, "gap", sequence.gap_RT)[..., number] + sequence.count_RT


def init_repeats(initial: Initial, rng: np.random.Generator, spec: FeatureSpec) -> None:
    """The table of `repeats`: by the time since the last event, a weight and one of the logarithm of the count."""
    if spec.sequences:
        shape = (GAP_ROWS, len(spec.sequences), 2, len(spec.labels))
        initial["table.repeat"] = rng.normal(0, layers.TABLE_STD, shape).astype(np.float32)


def repeats(params: Params, spec: FeatureSpec, batch: Batch) -> dict[str, Array]:
    """For each sequence the rows of its objects [R, T], and what a candidate with the same object gets [R, T, H].

    An object that training has not seen, of row 0, matches none.
    """
    state: dict[str, Array] = {}
    for number, part in enumerate(spec.sequences):
        sequence = batch.sequences[part.name]
        object_RT = sequence.field_RTK[..., 0]
        weight_RT2H = layers.lookup(params, "repeat", sequence.gap_RT)[:, :, number]
        weight_RTH = weight_RT2H[:, :, 0] + weight_RT2H[:, :, 1] * sequence.count_RT[..., None]
        is_known_RT = layers.as_floats(sequence.mask_RT & (object_RT > 0), weight_RTH)
        state[f"{part.name}.objects"] = object_RT
        state[f"{part.name}.weights"] = weight_RTH * is_known_RT[..., None]
    return state


def _columns(spec: FeatureSpec, names: tuple[str, ...]) -> list[int]:
    """The columns of the numbers with these names, of those that the spec has."""
    return [column for column, name in enumerate(spec.numbers) if name in names]
