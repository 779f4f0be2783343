"""Rows of the ads of a list: those of the catalogue, however many lists were read before."""

from __future__ import annotations

from leadre.serve.catalogue.ad_rows import MAX_LISTS, AdRows

from ..conftest import make_ad


def test_rows_of_a_list_are_those_of_its_ads_and_minus_one_for_unknown_ones():
    rows = AdRows([make_ad("a"), make_ad("b"), make_ad("c")])
    assert rows == {"a": 0, "b": 1, "c": 2}
    for _ in range(2):
        for ad_ids, expected in ((("c", "x", "a"), [2, -1, 0]), (("c", "b"), [2, 1]), ((), [])):
            rows_K, are_known = rows.of(ad_ids)
            assert (rows_K.tolist(), are_known) == (expected, "x" not in ad_ids)


def test_lists_that_are_kept_are_bounded():
    rows = AdRows([make_ad("a")])
    for number in range(3 * MAX_LISTS):
        assert rows.of((str(number), "a"))[0].tolist() == [-1, 0]
        assert len(rows._lists) <= MAX_LISTS
