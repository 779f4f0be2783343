"""Both quantisers under the one contract, and what each promises beyond it."""

import functools
import importlib.util
from pathlib import Path

import faiss
import numpy as np
import torch

from leadre.semid import rkmeans, rqvae

# pytest imports by file here, so the suite next door has no package to come from
_spec = importlib.util.spec_from_file_location("contract_quantiser", Path(__file__).with_name("contract_quantiser.py"))
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

SMALL = {"hidden": 32, "latent": 12, "steps": 400, "learning_rate": 3e-3}


class TestResidualKMeans(contract.QuantiserContract):
    fit = staticmethod(rkmeans.fit)

    def test_equal_vectors_count_once(self):
        vectors = contract.planted(0, rows=100)
        crowded = np.concatenate([vectors, np.repeat(vectors[:1], 500, axis=0)])
        assert rkmeans.fit(crowded, (8, 8), 0).version == rkmeans.fit(vectors, (8, 8), 0).version

    def test_leaves_the_threads_of_faiss_as_they_were(self):
        before = faiss.omp_get_max_threads()
        rkmeans.fit(contract.planted(0, rows=50), (4,), 0)
        assert faiss.omp_get_max_threads() == before


class TestRqVae(contract.QuantiserContract):
    fit = staticmethod(functools.partial(rqvae.fit, **SMALL))

    def test_encode_without_torch_is_the_network(self):
        vectors = contract.planted(0, rows=64)
        quantiser = type(self).fit(vectors, (8, 4), 1)
        (first, first_bias), (last, last_bias) = quantiser.encoder
        latent = np.maximum(vectors @ first + first_bias, 0) @ last + last_bias
        assert np.allclose(quantiser.residuals(vectors, np.zeros((64, 0), np.int32)), latent, atol=1e-5)
        codes = quantiser.encode(vectors)
        total = quantiser.centroids[0][codes[:, 0]] + quantiser.centroids[1][codes[:, 1]]
        (first, first_bias), (last, last_bias) = quantiser.decoder
        rebuilt = np.maximum(total @ first + first_bias, 0) @ last + last_bias
        assert np.allclose(quantiser.reconstruct(codes), rebuilt, atol=1e-5)

    def test_a_dead_code_is_moved_to_a_residual_and_a_living_one_stays(self):
        residuals = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        centroids = torch.full((3, 4), 9.0)
        used = torch.tensor([True, False, True])
        rqvae._revive([centroids], [used], [residuals], torch.Generator().manual_seed(0))
        assert (residuals == centroids[1]).all(dim=1).any()
        assert torch.equal(centroids[[0, 2]], torch.full((2, 4), 9.0))
        assert not used.any()

    def test_leaves_the_random_state_of_torch_alone(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        type(self).fit(contract.planted(0, rows=30), (4,), 0)
        assert torch.equal(torch.rand(3), expected)
