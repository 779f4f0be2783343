"""Later requests are never in an earlier split; unusable splits are rejected."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.data.split import SplitTimes, by_time
from leadre.errors import InputError


def days(*numbers: int) -> pl.Series:
    return pl.Series("at", [datetime(2026, 3, n, tzinfo=UTC) for n in numbers])


def test_by_dates() -> None:
    cut = SplitTimes(valid_from="2026-03-03", test_from="2026-03-05")
    assert by_time(days(1, 2, 3, 4, 5, 6), cut).to_list() == ["train", "train", "valid", "valid", "test", "test"]


@given(st.lists(st.integers(1, 28), min_size=12, max_size=60))
def test_shares_keep_time_order(numbers: list[int]) -> None:
    at = days(*numbers)
    try:
        split = by_time(at, SplitTimes(valid_share=0.25, test_share=0.25))
    except InputError:
        return  # too few distinct days to make three parts
    rank = split.replace_strict({"train": 0, "valid": 1, "test": 2}, return_dtype=pl.Int64)
    parts = [at.filter(rank == k) for k in range(3)]
    assert parts[0].max() < parts[1].min() and parts[1].max() < parts[2].min()


def test_split_sizes_are_about_the_shares() -> None:
    assert by_time(days(*range(1, 21)), SplitTimes()).value_counts().sort("split").rows() == [
        ("test", 2),
        ("train", 16),
        ("valid", 2),
    ]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (SplitTimes(valid_from="2026-03-05", test_from="2026-03-03"), "must begin later"),
        (SplitTimes(valid_from="2026-03-03"), "both --valid-from and --test-from"),
        (SplitTimes(valid_from="2026-03-03", test_from="soon"), "--test-from 'soon': not a date"),
        (SplitTimes(valid_from="2026-03-03", test_from="2026-04-03"), "no request falls into test"),
        (SplitTimes(valid_share=0.6, test_share=0.4), "together below 1"),
        (SplitTimes(valid_share=0.0), "both above 0"),
    ],
)
def test_invalid_splits_are_rejected(cut: SplitTimes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_time(days(1, 2, 3, 4, 5, 6), cut)


def test_requests_of_a_single_instant_are_rejected() -> None:
    with pytest.raises(InputError):
        by_time(days(1, 1, 1, 1), SplitTimes())
