"""Contract of quantisers with the codebook; test_quantisers.py runs it for each quantiser."""

from collections.abc import Callable

import numpy as np
import pytest

from leadre.errors import InputError
from leadre.semid import quantiser as quantisers

SIZES = (12, 10, 8)


def planted(seed: int, rows: int = 600, width: int = 24) -> np.ndarray:
    """Unit vectors in 8 groups of 6 subgroups each."""
    rng = np.random.default_rng(7)
    groups = rng.normal(size=(8, 1, width)) + 0.5 * rng.normal(size=(8, 6, width))
    rng = np.random.default_rng(seed)
    flat = groups.reshape(48, width)[rng.integers(0, 48, rows)] + 0.2 * rng.normal(size=(rows, width))
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)


class QuantiserContract:
    """Subclasses give `fit(vectors, sizes, seed)`."""

    fit: Callable[..., quantisers.Quantiser]

    @pytest.fixture(scope="class")
    @classmethod
    def vectors(cls):
        return planted(0)

    @pytest.fixture(scope="class")
    @classmethod
    def quantiser(cls, vectors):
        return cls.fit(vectors, SIZES, 3)

    def test_same_seed_same_bytes(self, vectors, quantiser):
        again = type(self).fit(vectors, SIZES, 3)
        assert again.version == quantiser.version
        assert type(self).fit(vectors, SIZES, 4).version != quantiser.version

    def test_shapes_and_types(self, vectors, quantiser):
        codes = quantiser.encode(vectors)
        assert (codes.shape, codes.dtype) == ((len(vectors), 3), np.int32)
        assert quantiser.sizes == SIZES
        assert all(centroids.dtype == np.float32 for centroids in quantiser.centroids)
        assert quantiser.reconstruct(codes).shape == vectors.shape

    def test_a_vector_gets_the_same_codes_alone_and_in_a_batch(self, vectors, quantiser):
        codes = quantiser.encode(vectors)
        assert np.array_equal(np.concatenate([quantiser.encode(vector[None]) for vector in vectors[:100]]), codes[:100])
        assert np.array_equal(quantiser.encode(vectors[::-1]), codes[::-1])

    def test_each_code_names_the_nearest_centroid_of_what_is_left(self, vectors, quantiser):
        codes = quantiser.encode(vectors)
        for level, centroids in enumerate(quantiser.centroids):
            left = quantiser.residuals(vectors, codes[:, :level])
            distance = ((left[:, None] - centroids[None]) ** 2).sum(axis=2)
            chosen = distance[np.arange(len(left)), codes[:, level]]
            assert np.allclose(chosen, distance.min(axis=1), atol=1e-9)

    def test_error_falls_with_every_level(self, vectors, quantiser):
        codes = quantiser.encode(vectors)
        errors = [
            float(((vectors - quantiser.reconstruct(codes[:, :levels])) ** 2).sum(axis=1).mean())
            for levels in (1, 2, 3)
        ]
        mean_error = float(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean())
        assert mean_error > errors[0] > errors[1] > errors[2]
        assert errors[2] < 0.4 * mean_error

    def test_codes_are_in_use(self, vectors, quantiser):
        codes = quantiser.encode(vectors)
        for level, size in enumerate(SIZES):
            assert len(np.unique(codes[:, level])) >= 0.9 * size

    def test_new_vectors_get_valid_codes_of_their_group(self, vectors, quantiser):
        fresh = planted(1, rows=200)
        codes = quantiser.encode(fresh)
        assert codes.min() >= 0 and np.all(codes.max(axis=0) < SIZES)
        nearest = (fresh @ vectors.T).argmax(axis=1)
        agree = (codes[:, 0] == quantiser.encode(vectors)[nearest, 0]).mean()
        assert agree > 0.8

    def test_arrays_round_trip(self, vectors, quantiser):
        again = quantisers.from_arrays(quantiser.arrays() | {"embeddings_OD": vectors})
        assert again.version == quantiser.version
        assert np.array_equal(again.encode(vectors), quantiser.encode(vectors))

    def test_small_catalogue_gets_fewer_codes_and_a_message(self, vectors, capsys):
        few = np.repeat(vectors[:5], 3, axis=0)
        small = type(self).fit(few, (8, 4), 0)
        assert small.sizes[0] == 5
        assert len(np.unique(small.encode(few), axis=0)) == 5
        assert "level 1 gets 5 codes instead of 8" in capsys.readouterr().err

    def test_refuses_no_levels(self, vectors):
        with pytest.raises(InputError, match="at least one level"):
            type(self).fit(vectors, (), 0)
        with pytest.raises(InputError, match="--levels 8,0"):
            type(self).fit(vectors, (8, 0), 0)
