"""The position of the tables: the last record of the event log whose rows they have.

The file holds the number of the record, and since November 2026 its place in the log as well, so that a flush reads
what is new and no byte before it.
"""

from __future__ import annotations

from pathlib import Path

from leadre.errors import StorageError
from leadre.serve.events import durable
from leadre.serve.events.event_log import Place

POSITION = "position"  # the file in the folder of the tables


def read(folder: Path) -> int:
    """The number of the last record in the tables; 0 before the first run. StorageError if the file is damaged."""
    return _words(folder)[0]


def place(folder: Path) -> Place | None:
    """The place of that record in the log; None if it is not known. StorageError if the file is damaged."""
    words = _words(folder)
    return Place(*words) if len(words) == len(Place._fields) else None


def write(folder: Path, number: int, last: Place | None) -> None:
    """Replace the file. ``last``: the place of record ``number``, if it is known."""
    assert last is None or last.number == number
    durable.replace(folder / POSITION, " ".join(map(str, last or (number,))).encode())


def _words(folder: Path) -> list[int]:
    path = folder / POSITION
    words = path.read_text(errors="replace").split() if path.exists() else ["0"]
    if len(words) not in (1, len(Place._fields)) or not all(word.isascii() and word.isdigit() for word in words):
        raise StorageError(
            f"{path}: damaged (it holds no number); stop the bidder and delete {folder}: the next start writes"
            " the tables again from the log"
        )
    return [int(word) for word in words]
