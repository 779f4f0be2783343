"""The files of each table in a folder of logs, and the names of the files that no table reads.

A table is a file (``events.csv``), or a folder (``events``, ``events.parquet``) of such files in any sub-folders, in
the order of their paths. The endings may be in upper case and have that of a compression after them. A sub-folder
``key=value`` (Hive, Spark) gives a column to its rows. Names that begin with ``.`` or ``_`` are hidden, as in Spark.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from leadre.artifact import META
from leadre.data.tables import SCHEMAS, Tables
from leadre.errors import InputError

FORMS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "separated",
    ".tsv": "separated",
    ".tab": "separated",
    ".psv": "separated",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_NULL_KEY = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a table. ``keys``: the columns that the names of its folders give to all rows."""

    path: Path
    label: str  # path from the folder of the logs, for messages
    form: str  # a value of FORMS
    compression: str | None  # a value of COMPRESSIONS
    keys: tuple[tuple[str, str | None], ...] = ()


def find(folder: Path, table: str) -> list[Part]:
    """The files of a table, in the order of their paths; [] if there are none.

    Raises InputError if the table exists in two forms, or if a file that only it can belong to has an unknown ending.
    """
    entries = [entry for entry in _visible(folder) if _table_of(entry) == table]
    known = [entry for entry in entries if entry.is_dir() or _form(entry)]
    tables = [(entry, _parts(entry, folder)) for entry in known or entries]
    for entry, parts in tables:
        if not parts:
            raise InputError(
                f"{entry.name}/: the folder has no files; write the table {table} into it, or delete the folder"
            )
    if len(tables) > 1:
        names = ", ".join(entry.name + "/" * entry.is_dir() for entry, _ in tables)
        raise InputError(
            f"{folder}: the table {table} exists {len(tables)} times ({names}); keep one of them, or put the parts of"
            f" one table into a folder {table}/"
        )
    return tables[0][1] if tables else []


def matching(folder: Path, pattern: str) -> list[Part]:
    """The files of a path or pattern below the folder. An ending that is not known means separated fields.

    Raises InputError if there is none, and for a path that leads out of the folder.
    """
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"file = {pattern!r}: must be below {folder}; write it relative to --path")
    parts: list[Part] = []
    for entry in sorted(folder.glob(pattern)):
        parts += _parts(entry, folder) if entry.is_dir() else [part(entry, folder, other="separated")]
    if not parts:
        names = ", ".join(entry.name for entry in _visible(folder)[:30])
        raise InputError(f"file = {pattern!r}: no such file in {folder}; it has {names or 'no files'}")
    return parts


def unread(folder: Path, read: Sequence[Part]) -> list[str]:
    """The names of files and folders that no table reads, with the nearest name of a table; ``read``: those that do."""
    names = []
    in_use = {part.label.split("/")[0] for part in read}
    for entry in _visible(folder):
        if entry.name in in_use or entry.name == META:
            continue
        if _table_of(entry) is not None:
            if not entry.is_dir() and _form(entry) is None:
                names.append(f"{entry.name} (of this ending)")
            continue
        names.append(entry.name + "/" * entry.is_dir() + _hint(entry))
    return names


def _hint(entry: Path) -> str:
    """How a file or folder that no table reads would be read, if it seems to hold a table or a part of one."""
    stem = _stem(entry)
    if stem in Tables.names():  # the result of a run is beside the tables
        return ""
    if part_of := next((name for name in SCHEMAS if re.fullmatch(rf"{name}[\W_]*\d.*", stem)), None):
        return f" (move it into a folder {part_of}/ if it is a part of that table)"
    if near := difflib.get_close_matches(stem, SCHEMAS, n=1, cutoff=0.7):
        return f" (rename it if it is the table {near[0]})"
    is_log = entry.is_dir() and any(_table_of(below) and _form(below) for below in _visible(entry))
    return " (it has tables: name it in --path if it is the log)" if is_log else ""


def _parts(entry: Path, folder: Path) -> list[Part]:
    if not entry.is_dir():
        return [part(entry, folder)]
    files = sorted(path for path in entry.rglob("*") if path.is_file())
    return [part(path, folder) for path in files if not any(_is_hidden(name) for name in path.relative_to(entry).parts)]


def part(path: Path, folder: Path, other: str | None = None) -> Part:
    """``other``: the form of a file whose ending is not known."""
    label = path.relative_to(folder).as_posix()
    form = _form(path)
    if form is None and other is not None:
        form = (other, COMPRESSIONS.get(path.suffix.lower()))
    if form is None:
        raise InputError(
            f"{label}: a file of this ending is not read; write the table as Parquet, CSV or JSON lines"
            f" ({', '.join(FORMS)}; {', '.join(COMPRESSIONS)} after them), or move the file away"
        )
    keys = [name.split("=", 1) for name in path.relative_to(folder).parts[1:-1] if "=" in name]
    return Part(
        path=path,
        label=label,
        form=form[0],
        compression=form[1],
        keys=tuple((unquote(key), None if value == _NULL_KEY else unquote(value)) for key, value in keys),
    )


def _form(path: Path) -> tuple[str, str | None] | None:
    """(form, compression) by the endings of a name; None for an ending that is not known."""
    name = path.name.lower()
    compression = COMPRESSIONS.get(Path(name).suffix)
    form = FORMS.get(Path(name if compression is None else name.rsplit(".", 1)[0]).suffix)
    return None if form is None else (form, compression)


def _table_of(entry: Path) -> str | None:
    """The table that a file or folder belongs to by its name, in any case; None if there is none."""
    return _stem(entry) if _stem(entry) in SCHEMAS else None


def _stem(entry: Path) -> str:
    return entry.name.split(".")[0].lower()


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not _is_hidden(entry.name))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))
