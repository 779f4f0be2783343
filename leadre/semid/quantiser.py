"""Fitted residual quantiser: centroids per level, with encode and reconstruct in plain NumPy.

Level 0 is the nearest centroid of the vector, level 1 the nearest centroid of its residual, and so on. A quantiser may
encode the vectors with a small network first (RQ-VAE) or quantise them directly (residual k-means). Both are this one
dataclass, so that a new ad gets its codes without faiss, torch or any training.

Letters: N vectors, L levels, C codes, D width of the vectors, Z width of the space that is quantised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int32]
Layers = tuple[tuple[Floats, Floats], ...]  # (weight [in, out], bias [out]) per layer, ReLU in between

CHUNK = 8192  # vectors at a time: distances to 256 centroids in float64 then stay within 16 MiB


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantiser:
    """A fitted residual quantiser.

    centroids   one array [C_l, Z] float32 per level
    encoder     layers D -> Z, none if the vectors are quantised directly (then Z = D)
    decoder     layers Z -> D, or none
    """

    centroids: tuple[Floats, ...]
    encoder: Layers = ()
    decoder: Layers = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes per level."""
        return tuple(len(centroids) for centroids in self.centroids)

    @property
    def version(self) -> str:
        """Hash of the arrays: equal versions give equal codes to equal vectors."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def encode(self, vectors_ND: Floats) -> Codes:
        """Codes of the nearest centroids, level by level: int32 [N, L]. Ties go to the lower code.

        Distances are float64: a vector must get the same codes alone as in a large batch, in which the matrix product
        may sum in another order.
        """
        codes_NL = np.empty((len(vectors_ND), len(self.centroids)), dtype=np.int32)
        for start in range(0, len(vectors_ND), CHUNK):
            residual_NZ = _forward(self.encoder, np.asarray(vectors_ND[start : start + CHUNK], dtype=np.float64))
            for level, centroids in enumerate(self.centroids):
                codes_NL[start : start + CHUNK, level] = distances(residual_NZ, centroids).argmin(axis=1)
                residual_NZ = residual_NZ - centroids[codes_NL[start : start + CHUNK, level]]
        return codes_NL

    def residuals(self, vectors_ND: Floats, codes_NL: Codes) -> NDArray[np.float64]:
        """Residuals after the centroids of `codes_NL` (the first levels, any number of them): float64 [N, Z]."""
        residual_NZ = _forward(self.encoder, np.asarray(vectors_ND, dtype=np.float64))
        for level, codes_N in enumerate(codes_NL.T):
            residual_NZ = residual_NZ - self.centroids[level][codes_N]
        return residual_NZ

    def reconstruct(self, codes_NL: Codes) -> Floats:
        """Vectors of the codes, float32 [N, D]; fewer levels than L give a coarser vector."""
        total = np.zeros((len(codes_NL), self.centroids[0].shape[1]), dtype=np.float64)
        for level, codes_N in enumerate(codes_NL.T):
            total += self.centroids[level][codes_N]
        return _forward(self.decoder, total).astype(np.float32)

    def arrays(self) -> dict[str, Floats]:
        """All arrays by name, for safetensors; `from_arrays` restores the quantiser."""
        named = {f"centroids.{level}": centroids for level, centroids in enumerate(self.centroids)}
        for part, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for layer, (weight, bias) in enumerate(layers):
                named |= {f"{part}.{layer}.weight": weight, f"{part}.{layer}.bias": bias}
        return named


def from_arrays(named: Mapping[str, Floats]) -> Quantiser:
    """The quantiser of these `arrays()`; ignores other names."""

    def layers(part: str) -> Layers:
        count = sum(name.startswith(f"{part}.") and name.endswith(".weight") for name in named)
        return tuple((named[f"{part}.{layer}.weight"], named[f"{part}.{layer}.bias"]) for layer in range(count))

    levels = sum(name.startswith("centroids.") for name in named)
    centroids = tuple(named[f"centroids.{level}"] for level in range(levels))
    return Quantiser(centroids=centroids, encoder=layers("encoder"), decoder=layers("decoder"))


def distances(vectors_NZ: NDArray[np.float64], centroids_CZ: Floats) -> NDArray[np.float64]:
    """Squared distance of every vector to every centroid, less the vector's own square: float64 [N, C]."""
    centroids = centroids_CZ.astype(np.float64)
    distances_NC: NDArray[np.float64] = (centroids**2).sum(axis=1) - 2 * vectors_NZ @ centroids.T
    return distances_NC


def _forward(layers: Layers, values: NDArray[np.float64]) -> NDArray[np.float64]:
    for layer, (weight, bias) in enumerate(layers):
        values = (np.maximum(values, 0) if layer else values) @ weight.astype(np.float64) + bias
    return values
