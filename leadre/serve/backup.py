"""Backup of a bidder's state as an artifact, written while the bidder serves, and its restore.

Files are copied in an order that keeps them consistent: a later copy may contain more than an earlier one, never less.

    ledger      first; the last record that it posted is in the log, which is copied later
    clock       first; a start compares its time with the machine's
    counts      up to a record that is in the log, which is copied later
    tables      their position before their rows: rows beyond it are in the log too; the next start removes them
    log         its last record may be cut off; the backup truncates it
    rankers     complete versions
    manage.db   last; it has every campaign and ad that the others name, as none is ever deleted
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from leadre import artifact, database
from leadre.auction.budget import schema
from leadre.auction.budget.ledger import Ledger
from leadre.data.sources import raw
from leadre.errors import InputError
from leadre.serve.catalogue import database as records
from leadre.serve.events import durable, event_log, suppression, table_position
from leadre.serve.events.log_writer import EventLog
from leadre.serve.paths import StatePaths
from leadre.serve.private import keep_private
from leadre.store import erased
from leadre.store.lmdb.store import LmdbStore

BACKUP = artifact.Kind("backup", 1)
STATE, LISTS = "state", "lists"  # folders of a backup; LISTS is absent if the store is a server


def write(paths: StatePaths, folder: Path) -> artifact.Artifact:
    """Copy the state into a new folder. InputError if there is no state, or the folder is not empty.

    StorageError if the log is damaged: no backup is written.
    """
    if not paths.ledger.exists():
        raise InputError(f"{paths.folder}: holds no state of a bidder that has served; check --state")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is there already; name a new folder, so that no backup is lost")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        erased.locked(paths.erased),  # no erasure runs meanwhile, so the copy has all of a user or nothing
        artifact.create(folder, kind=BACKUP, config={}, seed=0, parents=[]) as temporary,
    ):
        keep_private(temporary)  # the backup names users, and contains the keys of event tokens
        copy = StatePaths(folder=temporary / STATE, store="")
        copy.folder.mkdir()
        _copy_database(paths.ledger, schema.MIGRATIONS, copy.ledger)
        _copy_files([paths.counts, paths.clock], paths.folder, copy.folder)
        with raw.reading(paths.tables):
            _copy_files([paths.tables / table_position.POSITION], paths.tables, copy.tables)
            _copy_files(_visible(paths.tables), paths.tables, copy.tables)
        _copy_files(event_log.segments(paths.events), paths.events, copy.events)
        _copy_files(_visible(paths.rankers), paths.rankers, copy.rankers)
        _copy_database(paths.manage_database, records.MIGRATIONS, copy.manage_database)
        keys = [paths.token_keys, paths.exploration_key, paths.caller_id_key]
        _copy_files([*keys, paths.erased, paths.callers], paths.folder, copy.folder)
        _check(copy)
        lists = _lists_of(paths)
        if lists is not None:
            (temporary / LISTS).mkdir()
            with closing(LmdbStore(lists)) as store:
                store.copy(temporary / LISTS)
        suppression.add_folder(paths, folder.parent)
    return artifact.read(folder, BACKUP)


def restore(folder: Path, paths: StatePaths, erased_list: str = "") -> int:
    """Restore a backup as the state in ``paths``, completely or not at all, without the users erased since it was made.

    ``erased_list``: as in `suppression.read`. Returns the number of users that were removed. InputError if ``paths``
    has a state already, or if there is no list of erased users; ArtifactError if the backup is damaged.
    """
    backup = artifact.read(folder, BACKUP)
    lists = _lists_of(paths)
    state = paths.folder.absolute()
    is_inside = lists is not None and lists.is_relative_to(state)
    for target in [paths.folder] + ([] if lists is None or is_inside else [lists]):
        if target.exists() and any(target.iterdir()):
            is_running = durable.is_locked(paths.lock) or durable.is_locked(event_log.lock_of(paths.events))
            raise InputError(
                f"{target}: "
                + ("a bidder runs on it; stop it, and " if is_running else "is not empty; ")
                + "move it away first"
            )
    hashes = suppression.read(folder, StatePaths(folder=backup.path / STATE, store=""), erased_list)
    temporary = _copied(backup.path / STATE, paths.folder)
    copied_lists = None
    if lists is not None and (backup.path / LISTS).exists():
        copied_lists = _copied(backup.path / LISTS, temporary / lists.relative_to(state) if is_inside else lists)
    restored = StatePaths(folder=temporary, store="")
    keep_private(temporary)
    removed = suppression.apply(restored, copied_lists, hashes)
    suppression.add_folder(restored, folder.parent)
    os.sync()  # before the renames: after a power cut, a named state must have its content
    if lists is not None and copied_lists is not None:
        copied_lists.rename(temporary / lists.relative_to(state) if is_inside else lists)
    temporary.rename(paths.folder)
    durable.sync_folder(paths.folder.parent)
    return removed


def _copied(folder: Path, target: Path) -> Path:
    """A copy of a folder beside the place ``target``, to be renamed to it."""
    copy = target.with_name(f".{target.name}.restored")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def _copy_database(path: Path, migrations: Sequence[str], copy: Path) -> None:
    """Copy a database as of its last commit; its writer does not wait."""
    with closing(database.connect(path, migrations, read_only=True)) as connection:
        database.backup(connection, copy)


def _copy_files(files: Sequence[Path], root: Path, copy: Path) -> None:
    """Copy files to the same place below ``copy`` that they have below ``root``."""
    for file in files:
        target = copy / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # retention removed the file meanwhile, or it does not exist yet
            shutil.copy(file, target)


def _visible(folder: Path) -> list[Path]:
    """Finished files below a folder, except the position of the tables."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != table_position.POSITION)
    return [path for path in files if not path.name.startswith(".")]


def _check(copy: StatePaths) -> None:
    """Truncate an incomplete last record of the log, and verify ledger and log.

    InputError if they disagree, StorageError if a segment of the log is damaged.
    """
    for path in event_log.segments(copy.events)[:-1]:
        data = path.read_bytes()
        event_log.refuse_damage(path, data, *event_log.first_fault(data, event_log.first_number(path)))
    with EventLog(copy.events) as log, Ledger(copy.ledger) as ledger:
        faults = ledger.verify()
        if ledger.log_number > log.last:
            faults.append(f"record {ledger.log_number} is posted, and the log ends at {log.last}")
    event_log.lock_of(copy.events).unlink()
    if faults:
        raise InputError(f"the ledger does not add up, so no backup was written: {'; '.join(faults)}")


def _lists_of(paths: StatePaths) -> Path | None:
    """The folder of the store; None if it is a server, which has backups of its own."""
    kind, _, folder = paths.store.partition(":")
    return Path(folder).absolute() if kind == "lmdb" else None
