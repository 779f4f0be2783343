"""The checksum of a Parquet file: whole files, old files, and every flipped bit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from leadre import checked_parquet


def rows():
    start = datetime(2026, 11, 1, tzinfo=UTC)
    columns = {"user_id": [f"user-{number % 7}" for number in range(40)], "number": list(range(40))}
    return pl.DataFrame(columns | {"at": [start + timedelta(seconds=number) for number in range(40)]})


def test_file_with_a_checksum_is_intact_and_other_readers_read_it(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(checked_parquet.to_bytes(rows()))
    assert checked_parquet.is_intact(path)
    assert pl.read_parquet(path).equals(rows())
    assert int(pl.read_parquet_metadata(path)[checked_parquet.KEY], 16) > 0


def test_file_without_a_checksum_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.parquet"
    for content in (b"", b"PAR1", b"text that is longer than a footer"):
        path.write_bytes(content)
        assert checked_parquet.is_intact(path)
    rows().write_parquet(path)
    assert checked_parquet.is_intact(path)


def test_every_flipped_bit_is_found(tmp_path):
    """A bit of the entry itself may hide the checksum; the rows are whole then."""
    path = tmp_path / "a.parquet"
    content = checked_parquet.to_bytes(rows())
    hidden = []
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if checked_parquet.is_intact(path):
            hidden.append(bit // 8)
    start = content.rindex(checked_parquet.KEY.encode()) - 2
    assert set(hidden) <= set(range(start, start + len(checked_parquet.KEY) + 12))


def test_cut_file_is_no_whole_one(tmp_path):
    path = tmp_path / "a.parquet"
    content = checked_parquet.to_bytes(rows())
    path.write_bytes(content[: len(content) // 2] + content[len(content) // 2 + 1 :])
    assert not checked_parquet.is_intact(path)
