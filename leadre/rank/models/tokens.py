"""Inputs as tokens of one width, for rankers that read tables of different widths alike.

A field, a number, and a feature of user or context is a token each, and so is a sequence. A row of a table is mapped
linearly. A number is x times a learnt vector, for x in standard deviations and by bins: a raw number of a thousand
would drown all other tokens.

Letters: R requests, C candidates, F numbers, W width of a token. Tokens of one side lie side by side on the last axis.
"""

from __future__ import annotations

import numpy as np

from leadre.rank import layers
from leadre.rank.inputs import Batch
from leadre.rank.layers import Array, Initial, Params
from leadre.rank.models import shared
from leadre.rank.spec import FeatureSpec


def init_tokens(initial: Initial, rng: np.random.Generator, spec: FeatureSpec, width: int) -> None:
    """Parameters of all tokens of W = ``width`` columns."""
    for name in (*spec.fields, *spec.user_tables):
        layers.init_dense(initial, rng, f"token.{name}", shared.table_width(spec, name), width)
    for part in spec.sequences:
        layers.init_dense(initial, rng, f"token.sequence.{part.name}", shared.width(spec), width)
    numbers_FBW = rng.normal(0, 0.1, (len(spec.numbers), 1 + shared.BINS, width))
    initial["token.numbers"] = numbers_FBW.astype(np.float32)


def candidate_count(spec: FeatureSpec) -> int:
    """Tokens of `candidate_tokens`."""
    return len(spec.fields) + len(spec.numbers)


def candidate_tokens(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """Fields, then numbers, [R, C, `candidate_count` x W]."""
    tokens = [
        layers.dense(params, f"token.{name}", layers.lookup(params, name, batch.field_RCK[..., k]))
        for k, name in enumerate(spec.fields)
    ]
    return layers.concat([*tokens, _number_tokens(params, batch)])


def user_tokens(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """User and context, [R, P x W]."""
    tokens = [
        layers.dense(params, f"token.{name}", layers.lookup(params, name, batch.user_RP[:, p]))
        for p, name in enumerate(spec.user_tables)
    ]
    return layers.concat([shared.no_columns(batch), *tokens])


def pooled_tokens(params: Params, spec: FeatureSpec, batch: Batch) -> Array:
    """`user_tokens`, then the mean of each sequence, [R, `pooled_count` x W]."""
    tokens = [user_tokens(params, spec, batch)]
    for part in spec.sequences:
        sequence = batch.sequences[part.name]
        mean_RD = shared.mean_pool(shared.embed(params, spec, sequence.field_RTK), sequence)
        tokens.append(layers.dense(params, f"token.sequence.{part.name}", mean_RD))
    return layers.concat(tokens)


def pooled_count(spec: FeatureSpec) -> int:
    """Tokens of `pooled_tokens`."""
    return len(spec.user_tables) + len(spec.sequences)


def _number_tokens(params: Params, batch: Batch) -> Array:
    """The token of each number, [R, C, F x W]."""
    standard, share_RCFB = shared.number_forms(params, batch)
    number_RCFB = layers.concat([standard[..., None], share_RCFB])
    requests, candidates, _, _ = number_RCFB.shape
    return layers.per_slot(number_RCFB, params["token.numbers"]).reshape(requests, candidates, -1)
