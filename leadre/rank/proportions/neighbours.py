"""Nearest neighbours of rows by cosine: of the features before a training, and of a network's last hidden layer after.

Letters: N rows, D columns of a row, E edges, P rows of a part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from leadre.errors import InputError
from leadre.rank.inputs import collate
from leadre.rank.layers import MAX_DEVIATION
from leadre.rank.models.shared import Ranker, fit_numbers
from leadre.rank.rows import Example
from leadre.rank.spec import FeatureSpec

F32 = NDArray[np.float32]

PART = 2048  # rows among which neighbours are searched: all pairs of a log are too many
SEARCHED = 512  # rows that are searched at once
REQUESTS = 64  # of a batch
# The networks whose outputs a ranker adds up to its log-odds, by name.
OUTPUTS = ("head", "out", "deep", "cross.out", "user.out", "candidate.out")
BILINEAR = "fusion"  # weights [heads, W, W, labels]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Pairs of neighbours, each once: two rows, and the kernel exp(-(1 - cosine)) of the pair."""

    first_E: NDArray[np.int64]
    second_E: NDArray[np.int64]
    kernel_E: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Rows as vectors: numbers [N, D], and categories as 1 in their column."""

    number_ND: F32
    category_NV: sparse.csr_matrix | None = None

    def search(self, neighbours: int, seed: int) -> Graph:
        """The nearest ``neighbours`` of each row among up to `PART` rows, which the seed draws."""
        order_N = np.random.default_rng(seed).permutation(len(self.number_ND))
        edges = []
        for part_P in np.array_split(order_N, -(-len(order_N) // PART)):
            cosine_PK, place_PK = self._nearest(part_P, min(neighbours, len(part_P) - 1))
            first_PK = np.repeat(part_P, place_PK.shape[1])
            edges.append(np.stack([first_PK, part_P[place_PK.ravel()], cosine_PK.ravel()], axis=1))
        first_E, second_E, cosine_E = np.concatenate(edges).T
        pair_E2 = np.sort(np.stack([first_E, second_E], axis=1).astype(np.int64), axis=1)
        pair_E2, chosen_E = np.unique(pair_E2, axis=0, return_index=True)
        return Graph(first_E=pair_E2[:, 0], second_E=pair_E2[:, 1], kernel_E=np.exp(cosine_E[chosen_E] - 1))

    def _nearest(self, part_P: NDArray[np.int64], neighbours: int) -> tuple[F32, NDArray[np.int64]]:
        """(cosine, place in the part) of the nearest rows of each row of a part, [P, neighbours]."""
        number_PD = self.number_ND[part_P]
        square_P = (number_PD**2).sum(1)
        category_PV = None if self.category_NV is None else self.category_NV[part_P]
        if category_PV is not None:
            square_P = square_P + np.diff(category_PV.indptr)
            column_VP = category_PV.toarray().T.copy()
        norm_P = np.sqrt(np.maximum(square_P, 1e-12)).astype(np.float32)
        cosines = []
        places = []
        for start in range(0, len(part_P), SEARCHED):
            rows = slice(start, start + SEARCHED)
            cosine_SP = number_PD[rows] @ number_PD.T
            if category_PV is not None:
                cosine_SP += category_PV[rows] @ column_VP
            cosine_SP /= norm_P[rows, None] * norm_P
            np.fill_diagonal(cosine_SP[:, start:], -np.inf)
            place_SK = np.argpartition(cosine_SP, -neighbours, axis=1)[:, -neighbours:] if neighbours else None
            place_SK = np.zeros((len(cosine_SP), 0), np.int64) if place_SK is None else place_SK
            places.append(place_SK)
            cosines.append(np.take_along_axis(cosine_SP, place_SK, axis=1))
        return np.concatenate(cosines), np.concatenate(places)


def features(spec: FeatureSpec, examples: Sequence[Example]) -> Vectors:
    """Rows by their features: numbers in standard deviations, and categories of candidate, user and context.

    Two rows that differ in a category are as far apart as two that differ by 1.4 standard deviations of a number.
    """
    number_NF = np.concatenate([row.inputs.number_CF for row in examples])
    fixed = fit_numbers(number_NF)
    standard_NF = (number_NF - fixed["fixed.centre"]) / fixed["fixed.scale"]
    field_NK = np.concatenate([row.inputs.field_CK for row in examples])
    user_NP = np.repeat([row.inputs.user_P for row in examples], [len(row.ads) for row in examples], axis=0)
    value_NQ = np.concatenate([field_NK, user_NP], axis=1).astype(np.int64)
    sizes = [spec.tables[name] for name in (*spec.fields, *spec.user_tables)]
    value_NQ = value_NQ * (value_NQ < sizes) + np.cumsum([0, *sizes[:-1]])
    indptr = np.arange(len(value_NQ) + 1) * value_NQ.shape[1]
    ones = np.ones(value_NQ.size, np.float32)
    shape = (len(value_NQ), sum(sizes))
    return Vectors(
        number_ND=standard_NF.clip(-MAX_DEVIATION, MAX_DEVIATION).astype(np.float32),
        category_NV=sparse.csr_matrix((ones, value_NQ.ravel(), indptr), shape=shape),
    )


def hidden(ranker: Ranker, spec: FeatureSpec, params: Mapping[str, F32], examples: Sequence[Example]) -> Vectors:
    """Rows by the units before the log-odds, side by side for a ranker that adds up the outputs of several networks.

    An identity in place of the last layers makes the score these units, so no ranker needs a second forward pass.
    InputError for a ranker that ends in none of `OUTPUTS`.
    """
    lasts = [_last(params, name) for name in OUTPUTS if f"{name}.0.weight" in params]
    if not lasts:
        raise InputError("--labels bags --bag-method bp: the ranker has no last hidden layer; choose another --model")
    widths = [len(params[f"{last}.weight"]) for last in lasts]
    changed = dict(params)
    for last, before, width in zip(lasts, np.cumsum([0, *widths[:-1]]), widths, strict=True):
        changed[f"{last}.weight"] = np.eye(width, sum(widths), before, dtype=np.float32)
        changed[f"{last}.bias"] = np.zeros(sum(widths), np.float32)
    if BILINEAR in params:
        changed[BILINEAR] = np.zeros((*params[BILINEAR].shape[:-1], sum(widths)), np.float32)
    parts = []
    for start in range(0, len(examples), REQUESTS):
        batch = collate([row.inputs for row in examples[start : start + REQUESTS]])
        unit_RCD = ranker.score(changed, spec, ranker.user(changed, spec, batch), batch)
        parts.append(unit_RCD[batch.mask_RC])
    return Vectors(number_ND=np.concatenate(parts))


def _last(params: Mapping[str, F32], name: str) -> str:
    """The name of the last layer of a network."""
    layers = [int(match[1]) for key in params if (match := re.fullmatch(rf"{re.escape(name)}\.(\d+)\.weight", key))]
    return f"{name}.{max(layers)}"
