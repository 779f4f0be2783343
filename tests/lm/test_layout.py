"""The ID layout: words, codes, objects."""

import numpy as np

from leadre.lm.layout import Layout

LAYOUT = Layout(100, (4, 3, 2))


def test_offsets_and_rows_by_hand():
    assert LAYOUT.codes == 9
    assert LAYOUT.offsets == (0, 4, 7, 9)
    codes = np.array([[0, 0, 0], [3, 2, 1]], np.int32)
    assert LAYOUT.rows(codes).tolist() == [[0, 4, 7], [3, 6, 8]]
    assert LAYOUT.rows(codes[:, :2]).tolist() == [[0, 4], [3, 6]]  # a beam after two levels
    assert LAYOUT.rows(codes[None]).shape == (1, 2, 3)
    assert LAYOUT.rows(codes).dtype == np.int64


def test_id_ranges_are_adjacent_and_disjoint():
    codes = LAYOUT.code(np.arange(LAYOUT.codes))
    objects = LAYOUT.object(np.arange(5))
    assert codes.tolist() == list(range(100, 109))
    assert objects.tolist() == list(range(109, 114))
    assert codes.dtype == objects.dtype == np.int32


def test_every_code_of_every_level_has_a_row_of_its_own():
    grid = np.stack(np.meshgrid(*map(np.arange, LAYOUT.sizes), indexing="ij"), -1).reshape(-1, 3)
    rows = LAYOUT.rows(grid)
    for level, (start, end) in enumerate(zip(LAYOUT.offsets, LAYOUT.offsets[1:], strict=False)):
        assert set(rows[:, level]) == set(range(start, end))
