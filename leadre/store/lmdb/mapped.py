"""Memory-mapped file (LMDB) that can be compacted while other processes read it.

LMDB keeps deleted bytes on free pages. `MappedFile.compact` therefore copies the live records into a new file with the
next number and renames it into place when it is complete. Other processes look for a newer number five times a second.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

import lmdb
import msgspec

from leadre.errors import StoreBusy, StoreDown

MAP_BYTES = 1 << 38  # address space, not disk space
MAX_READERS = 1024  # concurrent reader threads of all processes
LOCK_BYTES = 64 * (MAX_READERS + 2)  # size that LMDB gives the lock file: a cache line a reader, and its header
CHECK_EVERY_S = 0.2
POLL_S = 0.0005  # between two attempts to get a lock


class _OpenFile(NamedTuple):
    path: Path
    env: lmdb.Environment
    tables: tuple[lmdb._Database, ...]


class MappedFile:
    """One LMDB file, ``NAME.NUMBER.mdb``, which `compact` replaces by the next number.

    Writing, opening and compacting exclude each other by a lock on ``NAME.lock``; the kernel releases it if the
    process dies. ``lock_s`` limits the wait for it, None waits for ever; StoreBusy if others hold it for longer.
    """

    # LMDB allows one environment per file and process, so all stores of a folder share it
    _shared: ClassVar[weakref.WeakValueDictionary[Path, MappedFile]] = weakref.WeakValueDictionary()
    _guard: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def shared(cls, path: Path, tables: Sequence[str], *, sync: bool = True, metasync: bool = True) -> MappedFile:
        """Return this process's object for ``path``; it opens the file at the first read or write."""
        with cls._guard:
            file = cls._shared.get(path.absolute())
            if file is None:
                file = cls(path.absolute(), tables, sync, metasync)
                cls._shared[path.absolute()] = file
            return file

    def __init__(self, path: Path, tables: Sequence[str], sync: bool, metasync: bool) -> None:
        self.path = path
        self.names = tables
        self.sync = sync
        self.metasync = metasync
        self._opened: _OpenFile | None = None
        self._checked_s = 0.0

    def open(self, lock_s: float | None = None) -> None:
        """Open the file now: a first read or write on a full disk could not. StoreDown if it cannot be opened."""
        with self._locked(lock_s):
            self._open()

    @contextmanager
    def read(self, lock_s: float | None = None) -> Iterator[tuple[lmdb.Transaction, tuple[lmdb._Database, ...]]]:
        """Read transaction and the tables in the order of their names.

        While others hold the lock, the file that is open serves on although a newer one exists.
        """
        now_s = time.monotonic()
        opened = self._opened
        if opened is None or now_s - self._checked_s > CHECK_EVERY_S:
            if opened is None or self._newest() != opened.path:
                try:
                    with self._locked(lock_s):
                        opened = self._open()
                except StoreBusy:
                    if opened is None:
                        raise
            self._checked_s = now_s
        with store_errors(self.path), opened.env.begin() as transaction:
            yield transaction, opened.tables

    @contextmanager
    def write(self, lock_s: float | None = None) -> Iterator[tuple[lmdb.Transaction, tuple[lmdb._Database, ...]]]:
        """Write transaction and the tables; commits at the end of the block."""
        with self._locked(lock_s):
            opened = self._open()
            with store_errors(self.path), opened.env.begin(write=True) as transaction:
                yield transaction, opened.tables

    def copy(self, folder: Path) -> None:
        """Copy the live records into a file of another folder; readers and writers are not blocked."""
        with self._locked():
            opened = self._open()
        with store_errors(folder):
            self._copy_records(opened, folder / self._numbered(1).name)

    def compact(self) -> None:
        """Replace the file by one that holds the live records only."""
        with self._locked(), store_errors(self.path):
            opened = self._open()
            number = int(opened.path.suffixes[-2][1:]) + 1
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            self._copy_records(opened, temporary)
            _allocate_lock(self._numbered(number))
            temporary.rename(self._numbered(number))
            del opened  # the last thread that reads the old file closes it
            self._opened = None
            self._remove_old()

    def _copy_records(self, opened: _OpenFile, path: Path) -> None:
        """Write every record to a new file, in key order.

        LMDB's own compacting copy is not enough: branch pages keep deleted keys as separators.
        """
        path.unlink(missing_ok=True)  # an earlier call may have ended on a full disk
        target = lmdb.open(str(path), subdir=False, map_size=MAP_BYTES, max_dbs=len(self.names), lock=False, mode=0o600)
        try:
            with opened.env.begin(buffers=True) as source, target.begin(write=True) as transaction:
                for name, table in zip(self.names, opened.tables, strict=True):
                    new_table = target.open_db(name.encode(), txn=transaction)
                    transaction.cursor(new_table).putmulti(source.cursor(table), append=True)
        finally:
            target.close()

    @contextmanager
    def _locked(self, lock_s: float | None = None) -> Iterator[None]:
        with store_errors(self.path):
            file = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(file, self.path, lock_s)
            yield
        finally:
            os.close(file)

    def _open(self) -> _OpenFile:
        """Open the newest file; the caller holds the lock."""
        newest = self._newest()
        if self._opened is None or self._opened.path != newest:
            with store_errors(self.path):
                self._remove_old()
                _allocate_lock(newest)
                env = lmdb.open(
                    str(newest),
                    subdir=False,
                    map_size=MAP_BYTES,
                    max_dbs=len(self.names),
                    max_readers=MAX_READERS,
                    sync=self.sync,
                    metasync=self.metasync,
                    mode=0o600,
                )
                env.reader_check()  # reader slots of killed processes would keep old pages alive
                self._opened = _OpenFile(newest, env, tuple(env.open_db(name.encode()) for name in self.names))
        return self._opened

    def _newest(self) -> Path:
        with store_errors(self.path):
            return max(self._existing(), default=self._numbered(1))

    def _existing(self) -> list[Path]:
        """Return the numbered files; zero-padded numbers sort as text."""
        prefix = f"{self.path.name}."
        names = os.listdir(self.path.parent)
        return [self.path.with_name(name) for name in names if name.startswith(prefix) and name.endswith(".mdb")]

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number:09d}.mdb")

    def _remove_old(self) -> None:
        """Remove all but the newest file, and the temporary file of a killed `compact`."""
        old = sorted(self._existing())[:-1]
        locks = [_lock_of(path) for path in old]
        for path in (*old, *locks, self.path.with_name(f"{self.path.name}.tmp")):
            path.unlink(missing_ok=True)


def _lock(file: int, path: Path, lock_s: float | None) -> None:
    """Lock an open file, within ``lock_s`` or without a limit."""
    if lock_s is None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    until_s = time.monotonic() + lock_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= until_s:
                raise StoreBusy(f"store {path}: locked by others for more than {lock_s:.3f} s") from error
        time.sleep(POLL_S)


def _lock_of(path: Path) -> Path:
    """LMDB's lock file beside a file."""
    return path.with_name(f"{path.name}-lock")


def _allocate_lock(path: Path) -> None:
    """Allocate the disk blocks of LMDB's lock file before LMDB maps it. OSError if the disk has no room for them.

    LMDB only sets the file's size. On a full disk the first write to a page without a block would be a SIGBUS, which
    ends the process. The caller has not opened the file: closing a second descriptor would release LMDB's own locks.
    """
    file = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file, 0, os.fstat(file).st_size or LOCK_BYTES)
    finally:
        os.close(file)


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Raise errors of LMDB, the file system and the decoder as StoreDown."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise StoreDown(f"store {path}: {error}; check the disk's space and the folder's rights") from error
    except msgspec.DecodeError as error:
        raise StoreDown(
            f"store {path}: a record is damaged ({error}); restore a backup, or generate the lists again"
        ) from error
