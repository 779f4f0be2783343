"""One memory-mapped file that can be replaced, while others read it, by one with nothing in it but what is alive."""

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

from leadre.errors import StoreDown

MAP_BYTES = 1 << 38  # of address space, not of disk
MAX_READERS = 1024  # threads of all processes that read at the same instant
LOOK_EVERY_S = 0.2


class _Opened(NamedTuple):
    path: Path
    env: lmdb.Environment
    tables: tuple[lmdb._Database, ...]


class MappedFile:
    """One LMDB file, ``NAME.NUMBER.mdb``, which `compact` replaces by the next number.

    Writing, opening and replacing exclude each other by a lock on ``NAME.lock`` that dies with its process.
    """

    # LMDB forbids to open a file twice in a process, so stores of one folder share it
    _all: ClassVar[weakref.WeakValueDictionary[Path, MappedFile]] = weakref.WeakValueDictionary()
    _guard: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def at(cls, path: Path, tables: Sequence[str], *, sync: bool = True, metasync: bool = True) -> MappedFile:
        with cls._guard:
            found = cls._all.get(path.absolute())
            if found is None:
                found = cls._all[path.absolute()] = cls(path.absolute(), tables, sync, metasync)
            return found

    def __init__(self, path: Path, tables: Sequence[str], sync: bool, metasync: bool) -> None:
        self.path, self.names, self.sync, self.metasync = path, tables, sync, metasync
        self._opened: _Opened | None = None
        self._looked_s = 0.0

    @contextmanager
    def read(self) -> Iterator[tuple[lmdb.Transaction, tuple[lmdb._Database, ...]]]:
        now_s, opened = time.monotonic(), self._opened
        if opened is None or now_s - self._looked_s > LOOK_EVERY_S:
            if opened is None or self._newest() != opened.path:
                with self._locked():
                    opened = self._open()
            self._looked_s = now_s
        with translated(self.path), opened.env.begin() as transaction:
            yield transaction, opened.tables

    @contextmanager
    def write(self) -> Iterator[tuple[lmdb.Transaction, tuple[lmdb._Database, ...]]]:
        with self._locked():
            opened = self._open()
            with translated(self.path), opened.env.begin(write=True) as transaction:
                yield transaction, opened.tables

    def copy(self, folder: Path) -> None:
        """What is there now as a file of another folder; nobody waits meanwhile."""
        with self._locked():
            opened = self._open()
        with translated(folder):
            self._rewrite(opened, folder / self._numbered(1).name)

    def compact(self) -> None:
        """Leave no byte in the folder that is not alive."""
        with self._locked(), translated(self.path):
            opened = self._open()
            number = int(opened.path.suffixes[-2][1:]) + 1
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            self._rewrite(opened, temporary)
            temporary.rename(self._numbered(number))
            del opened  # the last thread that reads the old file closes it
            self._opened = None
            self._tidy()

    def _rewrite(self, opened: _Opened, path: Path) -> None:
        """Every entry into a new file, in order.

        LMDB's own compacting copy would not do: branch pages keep keys that were deleted from the leaves as separators.
        """
        path.unlink(missing_ok=True)  # an earlier try may have ended on a full disk
        target = lmdb.open(str(path), subdir=False, map_size=MAP_BYTES, max_dbs=len(self.names), lock=False, mode=0o600)
        try:
            with opened.env.begin(buffers=True) as source, target.begin(write=True) as transaction:
                for name, table in zip(self.names, opened.tables, strict=True):
                    into = target.open_db(name.encode(), txn=transaction)
                    transaction.cursor(into).putmulti(source.cursor(table), append=True)
        finally:
            target.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with translated(self.path):
            file = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _open(self) -> _Opened:
        """The newest file, opened; the caller has the lock."""
        newest = self._newest()
        if self._opened is None or self._opened.path != newest:
            with translated(self.path):
                self._tidy()
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
                env.reader_check()  # slots of killed processes would keep old pages alive
                self._opened = _Opened(newest, env, tuple(env.open_db(name.encode()) for name in self.names))
        return self._opened

    def _newest(self) -> Path:
        with translated(self.path):
            return max(self._numbers(), default=self._numbered(1))

    def _numbers(self) -> list[Path]:
        """Numbered files; the digits sort as numbers."""
        start = f"{self.path.name}."
        names = os.listdir(self.path.parent)
        return [self.path.with_name(name) for name in names if name.startswith(start) and name.endswith(".mdb")]

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number:09d}.mdb")

    def _tidy(self) -> None:
        """Remove older files, and what a killed `compact` left."""
        old = sorted(self._numbers())[:-1]
        locks = [path.with_name(f"{path.name}-lock") for path in old]
        for path in (*old, *locks, self.path.with_name(f"{self.path.name}.tmp")):
            path.unlink(missing_ok=True)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise StoreDown(f"store {path}: {error}; check the disk's space and the folder's rights") from error
    except msgspec.DecodeError as error:
        raise StoreDown(
            f"store {path}: a record is damaged ({error}); restore a backup, or make the lists anew"
        ) from error
