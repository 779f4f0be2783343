"""Layers as functions of parameters and arrays: tensors of torch in training, arrays of numpy in serving.

One forward pass serves both, so a worker scores without torch, and the two cannot drift apart. No layer reads batch
statistics or random numbers, so a score depends on its own row alone. Parameters are a flat mapping of names to arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any  # NDArray[np.float32] or torch.Tensor
Params = Mapping[str, Array]
Initial = dict[str, NDArray[np.float32]]

TABLE_STD = 0.05
MAX_DEVIATION = 8.0  # standard deviations of a number; beyond them it is clipped


def init_dense(initial: Initial, rng: np.random.Generator, name: str, inputs: int, outputs: int) -> None:
    """Weights with the variance of He et al. (arXiv 1502.01852), biases of zero."""
    scale = math.sqrt(2.0 / max(inputs, 1))
    initial[f"{name}.weight"] = rng.normal(0.0, scale, (inputs, outputs)).astype(np.float32)
    initial[f"{name}.bias"] = np.zeros(outputs, np.float32)


def init_table(initial: Initial, rng: np.random.Generator, name: str, rows: int, width: int) -> None:
    """An embedding table."""
    initial[f"table.{name}"] = rng.normal(0.0, TABLE_STD, (rows, width)).astype(np.float32)


def init_mlp(initial: Initial, rng: np.random.Generator, name: str, sizes: Sequence[int]) -> None:
    """Dense layers from ``sizes[0]`` inputs to ``sizes[-1]`` outputs; the last one starts small, near log-odds of 0."""
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        init_dense(initial, rng, f"{name}.{layer}", inputs, outputs)
    initial[f"{name}.{len(sizes) - 2}.weight"] *= np.float32(0.1)


def dense(params: Params, name: str, x: Array) -> Array:
    """x W + b over the last axis."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def mlp(params: Params, name: str, x: Array) -> Array:
    """Dense layers with ReLU between them."""
    layer = 0
    while f"{name}.{layer + 1}.weight" in params:
        x = relu(dense(params, f"{name}.{layer}", x))
        layer += 1
    return dense(params, f"{name}.{layer}", x)


def per_slot(x: Array, weight: Array) -> Array:
    """Each slot times a matrix of its own: [..., S, I] with ``weight`` [S, I, O] -> [..., S, O]."""
    slots, inputs, _ = weight.shape
    return (x.reshape(-1, slots, inputs).swapaxes(0, 1) @ weight).swapaxes(0, 1).reshape(*x.shape[:-1], -1)


def lookup(params: Params, name: str, row: Array) -> Array:
    """Rows of a table, one for each entry of ``row``; rows past its end have row 0."""
    table = params[f"table.{name}"]
    return table[row * (row < len(table))]


def fixed_lookup(params: Params, name: str, row: Array) -> Array:
    """`lookup` in a table that training does not change."""
    table = params[f"fixed.{name}"]
    return table[row * (row < len(table))]


def kth_largest(x: Array, k: int) -> Array:
    """The k-th largest value over the last axis, kept as an axis of 1; the smallest if there are fewer than k."""
    k = min(k, x.shape[-1])
    if isinstance(x, np.ndarray):
        return np.partition(x, x.shape[-1] - k, axis=-1)[..., x.shape[-1] - k : x.shape[-1] - k + 1]
    return x.topk(k, dim=-1).values[..., -1:]


def log1p(x: Array) -> Array:
    """log(1 + x)."""
    return np.log1p(x) if isinstance(x, np.ndarray) else x.log1p()


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0) if isinstance(x, np.ndarray) else x.relu()


def relu_in_place(x: Array) -> Array:
    """`relu` that overwrites x: an array of all pairs of events and candidates is too large to copy."""
    return np.maximum(x, 0, out=x) if isinstance(x, np.ndarray) else x.relu_()


def exp(x: Array) -> Array:
    """e to the power x."""
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x)) if isinstance(x, np.ndarray) else x.sigmoid()


def silu(x: Array) -> Array:
    """x times its sigmoid."""
    return x * sigmoid(x)


def logit_of_both(first: Array, second: Array) -> Array:
    """Log-odds of the product of two probabilities, from their log-odds; finite for all that are."""
    if isinstance(first, np.ndarray):
        return -np.logaddexp(np.logaddexp(-first, -second), -first - second)
    return -(-first).logaddexp(-second).logaddexp(-first - second)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    return np.tanh(x) if isinstance(x, np.ndarray) else x.tanh()


def softplus(x: Array) -> Array:
    """log(1 + e^x), without overflow."""
    return relu(x) + log1p(exp(-abs(x)))


def stack(rows: Sequence[Array]) -> Array:
    """T arrays [R, D] as [R, T, D]."""
    return concat(rows).reshape(rows[0].shape[0], len(rows), -1)


def softmax(x: Array, mask: Array | None = None) -> Array:
    """Softmax over the last axis among the entries of ``mask``, all without one; zeros where none is."""
    if mask is None and not isinstance(x, np.ndarray):
        return x.softmax(-1)
    if mask is None:
        weight = exp(x - x.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)
    is_in = as_floats(mask, x)
    masked = x * is_in - 1e30 * (1 - is_in)
    weight = exp(masked - largest(masked, -1)[..., None]) * is_in
    total = weight.sum(-1)[..., None]
    return weight / (total + as_floats(total == 0, total))


def normalised(x: Array) -> Array:
    """Mean 0 and variance 1 over the last axis: layer normalisation without parameters."""
    centred = x - x.mean(-1)[..., None]
    return centred / ((centred * centred).mean(-1)[..., None] + 1e-6) ** 0.5


def by_head(x: Array, heads: int) -> Array:
    """Tokens [..., M, W] as those of each head, [..., heads, M, W / heads]."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-3, -2)


def of_heads(x: Array) -> Array:
    """The inverse of `by_head`."""
    side_by_side = x.swapaxes(-3, -2)
    return side_by_side.reshape(*side_by_side.shape[:-2], -1)


def largest(x: Array, axis: int) -> Array:
    """The largest value over an axis."""
    return x.max(axis) if isinstance(x, np.ndarray) else x.amax(axis)


def as_floats(mask: Array, like: Array) -> Array:
    """A boolean array as numbers of the type of ``like``; ``mask`` may be of numpy where that is a tensor."""
    if isinstance(like, np.ndarray):
        return mask.astype(like.dtype)
    return like.new_tensor(mask) if isinstance(mask, np.ndarray) else mask.to(like.dtype)


def concat(parts: Sequence[Array]) -> Array:
    """Arrays side by side over the last axis; their other axes are broadcast against each other."""
    return joined(parts[0], parts, np.broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts)))


@singledispatch
def joined(first: Array, parts: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """``parts`` broadcast to ``shape``, side by side. `rank/train.py` adds tensors, so that serving needs no torch."""
    return np.concatenate([np.broadcast_to(part, (*shape, part.shape[-1])) for part in parts], axis=-1)


def transposed(x: Array) -> Array:
    """The last two axes swapped."""
    return x.swapaxes(-1, -2) if isinstance(x, np.ndarray) else x.transpose(-1, -2)


def clipped(x: Array, limit: float) -> Array:
    """Values within -limit and limit."""
    return x.clip(-limit, limit)


def unit(x: Array) -> Array:
    """Values within 0 and 1."""
    return x.clip(0, 1)
