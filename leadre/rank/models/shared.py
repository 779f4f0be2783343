"""The contract of rankers, and the parts that most of them have: embeddings of fields, numbers, the last layers.

A ranker is two functions of parameters and arrays. `user` computes once per request all that no candidate changes;
`score` adds the candidates. Both run on torch in training and on numpy in serving (`rank/layers.py`).

Letters: R requests, C candidates, T positions, F numbers, K fields of an object, P features of user and context, D
width of an object, H labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from leadre.rank import layers
from leadre.rank.inputs import GAP_ROWS, Batch, SequenceBatch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.spec import FeatureSpec

State = Mapping[str, Array]

OBJECT_WIDTH = 16  # of the table of objects
FIELD_WIDTH = 8  # of the other tables of an object
USER_WIDTH = 4  # of the tables of user and context
HEAD = (128, 64)
BINS = 10  # of a number
MIN_WIDTH = 1e-6  # of a bin; a narrow one is a step
MAX_BIN_ROWS = 200_000  # rows that decide the bounds of the bins
CONTENT = "fixed.content"  # content vectors [1 + O, W] of norm 1, for rankers that read them; row 0 is zero


class Ranker(Protocol):
    """A model: initial parameters, the user's part, and log-odds of candidates."""

    def init(self, spec: FeatureSpec, rng: np.random.Generator) -> Initial:
        """Parameters before training."""
        ...

    def user(self, params: Params, spec: FeatureSpec, batch: Batch) -> State:
        """All that depends on user and context alone, each array with R first."""
        ...

    def score(self, params: Params, spec: FeatureSpec, state: State, batch: Batch) -> Array:
        """Log-odds [R, C, H] of the labels."""
        ...


@runtime_checkable
class Assisted(Protocol):
    """A `Ranker` whose training adds a loss of its own to the log loss; scores and validation have none of it."""

    def auxiliary(
        self, params: Params, spec: FeatureSpec, state: State, batch: Batch, rng: np.random.Generator
    ) -> Array:
        """Sum over the requests of the batch, on tensors. All chance is from ``rng``, so that training resumes."""
        ...


def table_width(spec: FeatureSpec, name: str) -> int:
    """Columns of the table of a field, or of a feature of user or context."""
    if name in spec.widths:
        return spec.widths[name]
    if name in spec.user_tables:
        return USER_WIDTH
    return OBJECT_WIDTH if name == spec.fields[0] else FIELD_WIDTH


def width(spec: FeatureSpec) -> int:
    """Width D of an embedded object."""
    return sum(table_width(spec, name) for name in spec.fields)


def user_width(spec: FeatureSpec) -> int:
    """Columns of `user_vector`."""
    return sum(table_width(spec, name) for name in spec.user_tables)


def init_inputs(spec: FeatureSpec, rng: np.random.Generator) -> Initial:
    """Parameters with which every ranker begins: tables, and mean and standard deviation of each number.

    Candidates and sequences share the tables of the fields. Training sets the two arrays of the numbers.
    """
    initial: Initial = {}
    for name in (*spec.fields, *spec.user_tables):
        layers.init_table(initial, rng, name, spec.tables[name], table_width(spec, name))
    initial |= fit_numbers(np.zeros((1, len(spec.numbers)), np.float32))
    return initial


def fit_numbers(number_NF: NDArray[np.float32]) -> Initial:
    """Mean, standard deviation and bounds of bins of each number in the training rows, which `numbers` reads."""
    scale_F = number_NF.std(axis=0)
    bound_FB = np.stack([_bounds(values_N) for values_N in number_NF[:: 1 + len(number_NF) // MAX_BIN_ROWS].T])
    return {
        "fixed.centre": number_NF.mean(axis=0),
        "fixed.scale": np.where(scale_F < 1e-6, 1.0, scale_F).astype(np.float32),
        "fixed.low": bound_FB[:, :-1].copy(),
        "fixed.width": np.maximum(np.diff(bound_FB, axis=1), MIN_WIDTH),
    }


def _bounds(values_N: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest value, then quantiles of all but the most common one, [BINS + 1]: most counts are 0."""
    distinct, count = np.unique(values_N, return_counts=True)
    others_N = values_N[values_N != distinct[count.argmax()]]
    quantiles = np.quantile(others_N if len(others_N) else distinct, np.linspace(0, 1, BINS))
    return np.concatenate([distinct[:1], quantiles]).astype(np.float32)


def number_width(spec: FeatureSpec) -> int:
    """Columns of `numbers`."""
    return len(spec.numbers) * (1 + BINS)


def embed(params: Params, spec: FeatureSpec, field_K: Array) -> Array:
    """Objects as the concatenated rows of their fields: [..., K] -> [..., D]."""
    return layers.concat([layers.lookup(params, name, field_K[..., k]) for k, name in enumerate(spec.fields)])


def no_columns(batch: Batch) -> Array:
    """[R, 0], the first part of a concatenation that may have no other: a spec can have neither user nor context."""
    return batch.number_RCF[:, 0, :0]


def user_vector(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """User and context as concatenated rows, [R, `user_width`]."""
    rows = [layers.lookup(params, name, batch.user_RP[:, p]) for p, name in enumerate(spec.user_tables)]
    return layers.concat([no_columns(batch), *rows])


def number_forms(params: Params, batch: Batch, columns: Sequence[int] | None = None) -> tuple[Array, Array]:
    """Numbers, or some ``columns``, in two forms: in standard deviations [R, C, F], and piecewise linear [..., BINS].

    The first is less the training mean and clipped. The second is the share of each bin that lies below the number: 1
    for bins below, 0 for bins above (Gorishniy et al., NeurIPS 2022, arXiv 2203.05556). It lets one layer bend at each
    bound, as a tree splits.
    """
    number_RCF = batch.number_RCF
    fixed = {name: params[f"fixed.{name}"] for name in ("centre", "scale", "low", "width")}
    if columns is not None:
        number_RCF = number_RCF[..., columns]
        fixed = {name: values[columns] for name, values in fixed.items()}
    standard = layers.clipped((number_RCF - fixed["centre"]) / fixed["scale"], layers.MAX_DEVIATION)
    share_RCFB = layers.unit((number_RCF[..., None] - fixed["low"]) / fixed["width"])
    return standard, share_RCFB


def numbers(params: Params, batch: Batch, columns: Sequence[int] | None = None) -> Array:
    """Both of `number_forms` side by side, [R, C, F x (1 + BINS)]."""
    standard, share_RCFB = number_forms(params, batch, columns)
    return layers.concat([standard, share_RCFB.reshape(*standard.shape[:-1], standard.shape[-1] * BINS)])


def init_gaps(initial: Initial, rng: np.random.Generator, columns: int) -> None:
    """The table of the buckets of the time since an event."""
    layers.init_table(initial, rng, "gap", GAP_ROWS, columns)


def mean_pool(x_RTD: Array, sequence: SequenceBatch) -> Array:
    """Mean over the events of a sequence, [R, D]; zeros for an empty one."""
    weight_RT = layers.as_floats(sequence.mask_RT, x_RTD)
    total_R = weight_RT.sum(-1)
    return (x_RTD * weight_RT[..., None]).sum(1) / (total_R + layers.as_floats(total_R == 0, total_R))[:, None]


def pooled_user(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """User, context and the mean of each sequence side by side, [R, `pooled_user_width`]."""
    parts = [user_vector(params, spec, batch)]
    for part in spec.sequences:
        sequence = batch.sequences[part.name]
        parts.append(mean_pool(embed(params, spec, sequence.field_RTK), sequence))
    return layers.concat(parts)


def pooled_user_width(spec: FeatureSpec) -> int:
    """Columns of `pooled_user`."""
    return user_width(spec) + width(spec) * len(spec.sequences)


def candidate(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """Fields and numbers of the candidates side by side, [R, C, `candidate_width`]."""
    return layers.concat([embed(params, spec, batch.field_RCK), numbers(params, batch)])


def candidate_width(spec: FeatureSpec) -> int:
    """Columns of `candidate`."""
    return width(spec) + number_width(spec)


def side_by_side(candidate_RCD: Array, state: State) -> Array:
    """`candidate` beside the `pooled_user` in ``state["user"]``, [R, C, `side_by_side_width`]."""
    return layers.concat([candidate_RCD, state["user"][:, None]])


def side_by_side_width(spec: FeatureSpec) -> int:
    """Columns of `side_by_side`."""
    return candidate_width(spec) + pooled_user_width(spec)


def init_head(initial: Initial, rng: np.random.Generator, spec: FeatureSpec, inputs: int) -> None:
    """The last layers, on ``inputs`` of the model beside numbers, user and context."""
    inputs += number_width(spec) + user_width(spec)
    layers.init_mlp(initial, rng, "head", (inputs, *HEAD, len(spec.labels)))


def head(params: Params, state: State, batch: Batch, parts: list[Array]) -> Array:
    """Log-odds [R, C, H] of ``parts`` [R, C, ...] beside numbers, user and context."""
    return layers.mlp(params, "head", layers.concat([*parts, numbers(params, batch), state["user"][:, None]]))
