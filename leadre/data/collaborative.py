"""Collaborative filtering as features: scores of live objects for a history, by ALS and item-kNN.

Letters: O objects, I live objects of one Moment, D factors, N neighbours of a history's objects, C columns of scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from leadre.data.histories import I32
from leadre.data.moment import History

Floats = NDArray[np.float32]

MIN_SPREAD = 1e-9  # standard deviation of scores below which they are constant


@dataclass(frozen=True, eq=False, kw_only=True)
class CollaborativeUser:
    """A history in the fits of `Collaborative`: ALS factors [D]; neighbours of its objects with their weights [N]."""

    factors_D: Floats
    near_N: I32
    weight_N: Floats


@dataclass(frozen=True, eq=False, kw_only=True)
class Spread:
    """Mean and covariance of the ALS factors of an inventory: they standardise the scores of any user."""

    mean_D: NDArray[np.float64]
    covariance_DD: NDArray[np.float64]

    def of(self, factors_D: Floats) -> float:
        """Standard deviation of a user's scores over the inventory."""
        return math.sqrt(max(0.0, float(factors_D @ self.covariance_DD @ factors_D)))


@dataclass(frozen=True, kw_only=True)
class Collaborative:
    """Fits of collaborative filtering. An object without events has zero rows, and scores of zero.

    ``factors_OD``: object factors of ALS (Hu, Koren and Volinsky, ICDM 2008), fitted with ``regularisation`` and the
    confidence ``alpha`` x log(1 + count) of an action. ``similarity_OO``: similarities to the nearest objects.
    """

    factors_OD: Floats
    regularisation: float
    alpha: float
    similarity_OO: sparse.csr_matrix

    @cached_property
    def gram_DD(self) -> Floats:
        """Normal matrix of a user without a history."""
        width = self.factors_OD.shape[1]
        return self.factors_OD.T @ self.factors_OD + np.float32(self.regularisation) * np.eye(width, dtype=np.float32)

    def user(self, history: History) -> CollaborativeUser:
        """The part of `scores` that depends on the history alone."""
        acted, count = np.unique(history.object_E, return_counts=True)
        weight = np.log1p(count).astype(np.float32)
        own = self.factors_OD[acted]
        confidence = np.float32(self.alpha) * weight
        normal_DD = self.gram_DD + (own * (confidence - 1)[:, None]).T @ own
        neighbours = self.similarity_OO[acted]
        return CollaborativeUser(
            factors_D=_solve(normal_DD, own.T @ confidence),
            near_N=neighbours.indices,
            weight_N=np.repeat(weight, np.diff(neighbours.indptr)) * neighbours.data,
        )

    def scores(self, user: CollaborativeUser, objects: NDArray[np.int64]) -> Floats:
        """Scores [I, 2] of ``objects`` by ALS and by item-kNN."""
        near_O = np.bincount(user.near_N, weights=user.weight_N, minlength=len(self.factors_OD))
        return np.stack([self.factors_OD[objects] @ user.factors_D, near_O[objects].astype(np.float32)], axis=1)

    def relative(
        self, user: CollaborativeUser, objects: NDArray[np.int64], live: NDArray[np.int64], spread: Spread
    ) -> Floats:
        """`standardised` scores of some live objects less the mean over all of them, in standard deviations: [I, 2].

        ``spread``: that of the ``live`` objects. The cost does not grow with their number times D.
        """
        near_O = np.bincount(user.near_N, weights=user.weight_N, minlength=len(self.factors_OD))
        near_live = near_O[live]
        als = (self.factors_OD[objects] @ user.factors_D - spread.mean_D @ user.factors_D, spread.of(user.factors_D))
        near = (near_O[objects] - near_live.mean(), float(near_live.std()))
        columns = [values / deviation if deviation > MIN_SPREAD else 0.0 * values for values, deviation in (als, near)]
        return np.stack(columns, axis=1).astype(np.float32)


def spread_of(factors_OD: Floats, live: NDArray[np.int64]) -> Spread:
    """The `Spread` of live objects; zeros without any."""
    width = factors_OD.shape[1]
    if not len(live):
        return Spread(mean_D=np.zeros(width), covariance_DD=np.zeros((width, width)))
    factors_ID = factors_OD[live].astype(np.float64)
    mean_D = factors_ID.mean(axis=0)
    centred_ID = factors_ID - mean_D
    return Spread(mean_D=mean_D, covariance_DD=centred_ID.T @ centred_ID / len(live))


def standardised(scores_IC: Floats) -> Floats:
    """Each column with mean 0 and standard deviation 1 over the live objects; zeros if it is constant."""
    if not len(scores_IC):
        return scores_IC
    spread_C = scores_IC.std(axis=0)
    centred_IC = scores_IC - scores_IC.mean(axis=0)
    scaled_IC: Floats = np.divide(centred_IC, spread_C, out=np.zeros_like(centred_IC), where=spread_C > MIN_SPREAD)
    return scaled_IC


def _solve(normal_DD: NDArray[np.floating[Any]], right_D: NDArray[np.floating[Any]]) -> Floats:
    """The solution of a system whose matrix is positive definite.

    The general solver of LAPACK starts threads for a matrix of this size, which wait actively: on busy cores a solution
    took 137 ms in place of .4. Cholesky's does not, and takes a third of the time.
    """
    _, solution_D, info = lapack.sposv(normal_DD, right_D)
    assert info == 0, f"a normal matrix that is not positive definite: {info}"
    return np.asarray(solution_D, dtype=np.float32)
