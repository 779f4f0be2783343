"""Parquet files: the columns that a table reads, their texts checked.

Columns that could hold a field of gigabytes are checked batch by batch before they are loaded; in others such a check
follows the loading, and only to find the place of a fault.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leadre import checked_parquet
from leadre.data.sources import scan
from leadre.data.tables import ROW, FileColumns, check_reserved
from leadre.errors import InputError

_LARGE_BYTES = 1 << 28  # of a text column in a row group, unpacked


def read(path: Path, columns: FileColumns, label: str, max_field_bytes: int) -> pl.DataFrame:
    """The rows with the column ROW. Columns that the table does not read are there without values, for their names."""
    if not checked_parquet.is_intact(path):
        raise InputError(
            f"{label}: is damaged, as its checksum differs; if a bidder wrote it, stop the bidder and delete the"
            " folder of its tables: the next start writes them again from the log"
        )
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_reserved(names, label)
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise InputError(
                    f"{label}: column {repeated[0]!r} occurs {names.count(repeated[0])} times; keep one of them"
                )
            read_names = [name for name in names if columns.reads(name)]
            frame = _load(path, file, read_names, label, max_field_bytes) if read_names else pl.DataFrame()
            rows = file.metadata.num_rows
    except (pa.ArrowException, pl.exceptions.PolarsError, UnicodeDecodeError) as error:  # the last: of a column's name
        raise InputError(
            f"{label}: not a Parquet file that can be read ({scan.first_line(error)}); write the file again"
        ) from error
    unread = [pl.lit(None).alias(name) for name in names if name not in read_names]
    numbers = pl.int_range(1, rows + 1, dtype=pl.Int64, eager=True).alias(ROW)
    return pl.DataFrame([numbers, *frame.get_columns()]).with_columns(unread)


def _load(path: Path, file: pq.ParquetFile, names: list[str], label: str, max_field_bytes: int) -> pl.DataFrame:
    """The columns; InputError for a text that is too long or not UTF-8."""
    text_names = [name for name in names if _is_text(file.schema_arrow.field(name).type)]
    largest = [_check_chunk_sizes(file, name, label, max_field_bytes) for name in text_names]
    if max(largest, default=0) > _LARGE_BYTES:
        _scan(file, text_names, label, max_field_bytes)
    try:
        frame = pl.read_parquet(path, columns=names, hive_partitioning=False)
    except pl.exceptions.PolarsError:
        _scan(file, text_names, label, max_field_bytes)
        raise
    if any((frame[name].str.len_bytes() > max_field_bytes).any() for name in text_names):
        _scan(file, text_names, label, max_field_bytes)
    return frame


def _scan(file: pq.ParquetFile, names: list[str], label: str, max_field_bytes: int) -> None:
    """Check length and UTF-8 of text columns, batch by batch."""
    for name in names:
        row = 1
        for batch in file.iter_batches(batch_size=1 << 16, columns=[name]):
            texts = batch.column(0)
            as_bytes = texts.cast(pa.large_binary())
            if len(texts) and (pc.max(pc.binary_length(as_bytes)).as_py() or 0) > max_field_bytes:
                too_long = pc.index(pc.greater(pc.binary_length(as_bytes), max_field_bytes), True).as_py()
                scan.too_long(label, row + too_long, name, max_field_bytes)
            try:
                texts.validate(full=True)
            except pa.ArrowInvalid:
                scan.invalid_utf8(label, row + _first_invalid_utf8(as_bytes), name)
            row += len(texts)


def _check_chunk_sizes(file: pq.ParquetFile, name: str, label: str, max_field_bytes: int) -> int:
    """The unpacked bytes of the column's largest chunk, by the footer; InputError if the mean field is too long."""
    first = 1
    largest = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if chunk.path_in_schema != name:
                continue
            largest = max(largest, chunk.total_uncompressed_size)
            if chunk.total_uncompressed_size > (max_field_bytes + 64) * group.num_rows + 4096:
                scan.too_long(label, first, name, max_field_bytes)
        first += group.num_rows
    return largest


def _first_invalid_utf8(values: pa.Array) -> int:
    for index, value in enumerate(values.to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return index
    raise AssertionError("Arrow found invalid UTF-8 that Python does not")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
