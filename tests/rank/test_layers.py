"""Layers on arrays and on tensors: the edges that a model alone does not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leadre.rank import layers, train  # noqa: F401 (it adds tensors to `layers.joined`)

BOTH = pytest.mark.parametrize("of", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


@BOTH
def test_softmax_is_over_the_mask_alone_and_zero_without_any(of):
    scores = of(np.array([[1.0, 2.0, 50.0], [3.0, 4.0, 5.0]], np.float32))
    weights = np.asarray(layers.softmax(scores, of(np.array([[True, True, False], [False, False, False]]))))
    np.testing.assert_allclose(weights[0, :2], np.exp([1, 2]) / np.exp([1, 2]).sum(), rtol=1e-6)
    assert weights[0, 2] == 0 and not weights[1].any()


@BOTH
def test_rows_past_the_end_of_a_table_are_row_0(of):
    table = of(np.arange(6, dtype=np.float32).reshape(3, 2))
    rows = layers.lookup({"table.x": table}, "x", of(np.array([2, 3, 10**6])))
    assert np.asarray(rows).tolist() == [[4, 5], [0, 1], [0, 1]]


@BOTH
def test_kth_largest_of_fewer_values_is_the_smallest(of):
    x = of(np.array([[3.0, 1.0, 2.0]], np.float32))
    assert [np.asarray(layers.kth_largest(x, k)).tolist() for k in (1, 2, 3, 9)] == [[[3]], [[2]], [[1]], [[1]]]


@BOTH
def test_parts_are_broadcast_before_they_are_joined(of):
    wide = of(np.ones((2, 3, 1), np.float32))
    narrow = of(np.full((2, 1, 2), 5, np.float32))
    assert np.asarray(layers.concat([wide, narrow])).tolist() == [[[1, 5, 5]] * 3] * 2
