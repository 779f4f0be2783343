"""Parquet files: the columns that a table reads, checked batch by batch as they are loaded.

Arrow reads them, since the reader of Polars panics at some damaged files. It reads texts as dictionaries, whose
distinct values are checked once.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leadre import checked_parquet
from leadre.data.sources import scan
from leadre.data.tables import ROW, FileColumns, check_reserved
from leadre.errors import InputError

_BATCH_ROWS = 1 << 16


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
            text_names = [name for name in read_names if _is_text(file.schema_arrow.field(name).type)]
            for name in text_names:
                _check_chunk_sizes(file, name, label, max_field_bytes)
            rows = file.metadata.num_rows
            dictionaries = [name for name in text_names if not _is_delta(file.metadata, name)]
        with pq.ParquetFile(path, read_dictionary=dictionaries) as file:
            frame = _load(file, read_names, label, max_field_bytes) if read_names else pl.DataFrame()
    except (pa.ArrowException, pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        # UnicodeDecodeError: of a column's name; OSError without a number: of the format
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(
            f"{label}: not a Parquet file that can be read ({scan.first_line(error)}); write the file again"
        ) from error
    unread = [pl.lit(None).alias(name) for name in names if name not in read_names]
    numbers = pl.int_range(1, rows + 1, dtype=pl.Int64, eager=True).alias(ROW)
    return pl.DataFrame([numbers, *frame.get_columns()]).with_columns(unread)


def _load(file: pq.ParquetFile, names: list[str], label: str, max_field_bytes: int) -> pl.DataFrame:
    """The columns. Raises InputError for a text that is too long or not UTF-8, before more rows are loaded."""
    without_rows = pa.RecordBatch.from_pylist([], schema=pa.schema([file.schema_arrow.field(name) for name in names]))
    frames = []
    row = 1
    for batch in chain([without_rows], file.iter_batches(batch_size=_BATCH_ROWS, columns=names)):
        columns = [_series(batch.column(name), row, name, label, max_field_bytes) for name in names]
        frames.append(pl.DataFrame(columns))
        row += len(batch)
    return pl.concat(frames, rechunk=True)


def _series(values: pa.Array, row: int, name: str, label: str, max_field_bytes: int) -> pl.Series:
    """``row``: number of the first value."""
    if _is_text(values.type):
        values = values.dictionary_encode()
    if not pa.types.is_dictionary(values.type) or not _is_text(values.type.value_type):
        return pl.Series(name, values)
    sizes = pc.binary_length(values.dictionary.cast(pa.large_binary()))
    try:
        values.dictionary.validate(full=True)
    except pa.ArrowInvalid:
        as_bytes = pc.take(values.dictionary.cast(pa.large_binary()), values.indices)
        scan.invalid_utf8(label, row + _first_invalid_utf8(as_bytes), name)
    if (pc.max(sizes).as_py() or 0) > max_field_bytes:
        too_long = pc.index(pc.greater(pc.take(sizes, values.indices), max_field_bytes), True).as_py()
        scan.too_long(label, row + too_long, name, max_field_bytes)
    return pl.Series(name, values.dictionary).gather(pl.Series(values.indices))


def _check_chunk_sizes(file: pq.ParquetFile, name: str, label: str, max_field_bytes: int) -> None:
    """Raise InputError, before any read, if by the byte counts of the footer the mean field exceeds the limit."""
    first = 1
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if (
                chunk.path_in_schema == name
                and chunk.total_uncompressed_size > (max_field_bytes + 64) * group.num_rows + 4096
            ):
                scan.too_long(label, first, name, max_field_bytes)
        first += group.num_rows


def _first_invalid_utf8(values: pa.Array) -> int:
    for index, value in enumerate(values.to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return index
    raise AssertionError("Arrow found invalid UTF-8 that Python does not")


def _is_delta(metadata: pq.FileMetaData, name: str) -> bool:
    """Whether a column is written as differences, which Arrow decodes into plain texts alone."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    return any("DELTA_" in str(chunk.encodings) for chunk in chunks if chunk.path_in_schema == name)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
