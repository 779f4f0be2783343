"""Draws that the laws of planted worlds share.

Letters: R requests, C candidates, P user fields, K candidate fields, F = P + K.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fields(requests: int, candidates: int, fields: int, values: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Values from 0 on, [R, C, F]. Fields of even number belong to the user: a request's candidates share them."""
    value_RCF = rng.integers(0, values, (requests, candidates, fields))
    value_RCF[..., ::2] = value_RCF[:, :1, ::2]
    return value_RCF


def of_user_and_candidate(value_RCF: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`fields` as values of the user [R, P] and of the candidate [R, C, K], from 1 on: row 0 of a table is unseen."""
    return (value_RCF[:, 0, ::2] + 1).astype(np.int32), (value_RCF[..., 1::2] + 1).astype(np.int32)


def events(logit: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether each happens, drawn by its log-odds."""
    happens: NDArray[np.bool_] = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    return happens
