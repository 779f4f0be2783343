"""Durable files: a write replaces the whole file, and is on the disk when the call returns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from leadre.errors import InputError, StorageError

LOCK_TRIES = 20
LOCK_RETRY_S = 0.05

Sync = Callable[[int], None]  # writes the file of a descriptor to the disk; tests replace it


def replace(path: Path, data: bytes, *, mode: int = 0o644, sync: Sync = os.fsync) -> None:
    """Write a file atomically: readers see the old content or the new one.

    StorageError if the disk refuses. The old content then stays, unless only the sync of the folder failed.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent, sync)
    except OSError as error:
        with suppress(OSError):  # the same disk; `tidy` deletes the file later
            temporary.unlink(missing_ok=True)
        raise failed(path, error) from error


def tidy(folder: Path) -> None:
    """Delete the temporary files of killed processes under a folder."""
    for path in folder.rglob(".*.new"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path, sync: Sync = os.fsync) -> None:
    """Write a folder's entries to the disk; otherwise a power cut may lose the name of a new file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, refusal: str) -> int:
    """A file, made if it is missing, open and locked until it is closed; its content is the number of the process.

    InputError with ``refusal`` and the number of the owner if another process holds the lock. The kernel releases it
    when its owner dies. `is_locked` and a process that is about to end hold it for a moment, so a refusal is final
    after `LOCK_TRIES`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if not left:
                owner = os.pread(file, 20, 0).decode(errors="replace").strip() or "of unknown number"
                os.close(file)
                raise InputError(f"{path.parent}: {refusal} (process {owner})") from error
            time.sleep(LOCK_RETRY_S)
    with contextlib.suppress(OSError):  # on a full disk the lock holds without the number
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
    return file


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; False for a missing file."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file, made if it is missing. False, without ``wait``, while another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        is_held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = False
        yield is_held
    finally:
        os.close(file)


def failed(path: Path, error: OSError) -> StorageError:
    """The StorageError for a file that could not be written."""
    return StorageError(f"{path}: cannot be written ({error.strerror or error}); free or repair the disk")
