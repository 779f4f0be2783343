"""The Parquet file of a query."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from leadre import progress
from leadre.errors import InputError


def write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write the batches; the number of their rows. Raises InputError if the file cannot be written."""
    rows = 0
    try:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
                if time.monotonic() - progress.console.said_s >= progress.LOG_EVERY_S:
                    progress.say(f"data fetch: {path.stem}: {rows:,} rows so far")
    except OSError as error:
        if not error.errno:  # of a row, by the driver
            raise
        raise InputError(f"{path}: cannot be written ({os.strerror(error.errno)}); free some space") from error
    progress.say(f"data fetch: {path.stem}: {rows:,} rows")
    return rows


def check_names(names: Sequence[str], place: str) -> None:
    """Raise InputError for columns that share a name."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{place}: two columns have the name {repeated[0]!r}; rename one with AS, or leave it out")
