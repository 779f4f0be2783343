"""The tensors answer as the arrays do, level by level, dead beams and paused rows included."""

import numpy as np
import pytest
import torch

from leadre.semid.device import DeviceMask
from leadre.semid.inventory import Inventory
from leadre.semid.trie import DEAD, build

SIZES = (4, 300, 3, 5)  # codes beyond a byte
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]


def inventory_of(seed, weighted, added):
    rng = np.random.default_rng(seed)
    codes = np.unique(np.stack([rng.integers(0, size, 400) for size in SIZES], axis=1), axis=0)
    codes = rng.permutation(codes)
    weights = 10.0 ** rng.uniform(-6, 6, len(codes)) if weighted else None
    base = len(codes) - added
    inventory = Inventory(codes[:base], SIZES, weights[:base] if weighted else None)
    if added:
        inventory.add(codes[base:], weights[base:] if weighted else None)
    return inventory, codes


def compare(mask, there, device):
    """Along every live prefix, and from DEAD."""
    states = mask.roots(1)
    for level, size in enumerate(SIZES):
        states_B = np.append(states, DEAD)
        on_device = torch.from_numpy(states_B).to(device)
        prior = there.log_prior(on_device, level)
        assert prior.dtype == torch.float32
        np.testing.assert_allclose(prior.cpu().numpy(), mask.log_prior(states_B, level), rtol=1e-6)
        assert there.rows_below(on_device).tolist() == mask.rows_below(states_B).tolist()
        from_each = np.repeat(states_B, size)
        codes = np.tile(np.arange(size), len(states_B))
        expected = mask.step(from_each, codes, level)
        result = there.step(*(torch.from_numpy(array).to(device) for array in (from_each, codes)), level)
        assert result.tolist() == expected.tolist()
        states = expected[expected != DEAD]
    return states


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("added", [0, 60])
def test_tensors_equal_arrays(device, weighted, added):
    inventory, codes = inventory_of(added, weighted, added)
    there = DeviceMask(inventory.live, device)
    assert len(compare(inventory.live, there, device)) == len(codes)
    paused = np.append(np.arange(0, 300, 2), np.arange(len(codes) - 30, len(codes)))
    inventory.pause(paused)
    before = there.rows_below(torch.zeros(1, dtype=torch.int64, device=device))
    assert before.tolist() == [len(codes)]
    there.refresh(codes[paused])
    assert len(compare(inventory.live, there, device)) == len(codes) - len(paused)


@pytest.mark.parametrize("device", DEVICES)
def test_an_empty_trie_has_only_dead_ends(device):
    empty = build(np.zeros((0, len(SIZES)), np.int64), SIZES)
    assert len(compare(empty, DeviceMask(empty, device), device)) == 0


def test_nothing_is_read_back():
    # tensors of the meta device have shapes and no values: any dependence on a value raises
    inventory, _ = inventory_of(1, True, 60)
    there = DeviceMask(inventory.live, "meta")
    states = torch.zeros(7, dtype=torch.int64, device="meta")
    for level, size in enumerate(SIZES):
        assert there.log_prior(states, level).shape == (7, size)
        states = there.step(states, states, level)
        assert there.rows_below(states).shape == states.shape == (7,)
