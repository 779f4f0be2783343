"""Equal rows make equal bytes, however their frame was put together."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from leadre import parquet


def test_the_chunks_of_a_frame_do_not_change_the_bytes(tmp_path: Path) -> None:
    numbers = pl.DataFrame({"n": pl.int_range(300_000, eager=True), "t": ["a", None, "c"] * 100_000})
    in_chunks = pl.concat([numbers[:1000], numbers[1000:200_001], numbers[200_001:]], rechunk=False)
    contents = []
    for frame in (numbers.rechunk(), in_chunks):
        parquet.write(frame, tmp_path / "frame.parquet")
        contents.append((tmp_path / "frame.parquet").read_bytes())
        assert pl.read_parquet(tmp_path / "frame.parquet").equals(numbers)
    assert in_chunks.n_chunks() == 3
    assert contents[0] == contents[1]


def test_artifacts_are_written_by_this_module_alone() -> None:
    source = Path(parquet.__file__).parent
    writers = {
        path.relative_to(source).as_posix() for path in source.rglob("*.py") if ".write_parquet(" in path.read_text()
    }
    assert writers == {"parquet.py", "checked_parquet.py"}  # the second has a checksum instead of a hash
