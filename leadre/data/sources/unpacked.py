"""Compressed files: unpacked in blocks into a temporary file, with a limit on the unpacked size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from leadre.data.sources.folder import Part
from leadre.data.sources.scan import BLOCK_BYTES
from leadre.errors import InputError


@contextmanager
def plain(part: Part, max_bytes: int) -> Iterator[Path]:
    """The path of the part's content, unpacked if it is compressed; the temporary file lasts as long as the context.

    Raises InputError for a damaged or truncated file, and for one that unpacks to more than ``max_bytes``.
    """
    if part.compression is None:
        yield part.path
        return
    with tempfile.TemporaryDirectory(prefix="leadre-") as folder:
        path = Path(folder) / "plain"
        _unpack(part, path, max_bytes)
        yield path


def _unpack(part: Part, path: Path, max_bytes: int) -> None:
    size = 0
    with path.open("wb") as target, part.path.open("rb") as file:
        try:
            with pa.CompressedInputStream(file, part.compression) as source:
                while block := source.read(BLOCK_BYTES):
                    size += len(block)
                    if size > max_bytes:
                        raise InputError(
                            f"{part.label}: unpacks to more than {max_bytes:,} bytes; split it, or raise"
                            " --max-unpacked-bytes"
                        )
                    target.write(block)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:  # a full disk, not a damaged file
                raise
            raise InputError(
                f"{part.label}: cannot be unpacked as {part.compression} ({error}); copy the file again, or take the"
                f" ending {part.path.suffix} away if it is not compressed"
            ) from error
