"""A bidder's state as an artifact, copied while it serves, and back again.

What is copied later may know more than what was copied before, and nothing knows of what is missing:

    ledger      its last booked record is in the log, which is copied behind it
    tables      their position first; whatever is in them beyond it is in the log, and is not put there twice
    log         its last record may be cut off in the middle; that is mended here
    book        has every campaign and ad that the others name, as none is ever deleted
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
from leadre.errors import InputError
from leadre.serve.catalogue import database as records
from leadre.serve.events import durable, event_log, training
from leadre.serve.events.log_writer import EventLog
from leadre.serve.paths import StatePaths
from leadre.store import erased
from leadre.store.lmdb.store import LmdbStore

BACKUP = artifact.Kind("backup", 1)
STATE, LISTS = "state", "lists"  # folders of a backup; there are no lists where the store is a server


def write(paths: StatePaths, folder: Path) -> artifact.Artifact:
    """Copy the state into a new folder. InputError where there is none, or the folder holds something."""
    if not paths.ledger.exists():
        raise InputError(f"{paths.folder}: holds no state of a bidder that has served; check --state")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is there already; name a new folder, so that no backup is lost")
    with (
        erased.locked(paths.erased),  # so that it has no half of a user
        artifact.create(folder, kind=BACKUP, config={}, seed=0, parents=[]) as made,
    ):
        made.chmod(0o700)  # it names users, and holds what tokens are signed with
        copy = StatePaths(folder=made / STATE, store="")
        copy.folder.mkdir()
        _copy_database(paths.ledger, schema.MIGRATIONS, copy.ledger)
        _copy_files([paths.tables / training.POSITION, *_visible(paths.tables)], paths.tables, copy.tables)
        _copy_files(event_log.segments(paths.events), paths.events, copy.events)
        _copy_database(paths.manage_database, records.MIGRATIONS, copy.manage_database)
        _copy_files([paths.token_keys, paths.exploration_key, paths.erased], paths.folder, copy.folder)
        _check(copy)
        lists = _lists_of(paths)
        if lists is not None:
            (made / LISTS).mkdir()
            with closing(LmdbStore(lists)) as store:
                store.copy(made / LISTS)
    return artifact.read(folder, BACKUP)


def restore(folder: Path, paths: StatePaths) -> None:
    """Make the state in ``paths`` that of a backup: whole, or not there.

    InputError where a state is there already, ArtifactError where the backup is damaged.
    """
    backup = artifact.read(folder, BACKUP)
    lists, home = _lists_of(paths), paths.folder.absolute()
    inside = lists is not None and lists.is_relative_to(home)
    for free in [paths.folder] + ([] if lists is None or inside else [lists]):
        if free.exists() and any(free.iterdir()):
            runs = durable.is_locked(event_log.lock_of(paths.events))
            raise InputError(
                f"{free}: "
                + ("a bidder runs on it; stop it, and " if runs else "is not empty; ")
                + "move it away first"
            )
    temporary = paths.folder.with_name(f".{paths.folder.name}.restored")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(backup.path / STATE, temporary)
    if lists is not None and (backup.path / LISTS).exists():
        target = temporary / lists.relative_to(home) if inside else lists
        shutil.copytree(backup.path / LISTS, target, dirs_exist_ok=True)
    os.sync()  # before the name: a power cut must not leave a state without its bytes
    temporary.rename(paths.folder)
    durable.sync_folder(paths.folder.parent)


def _copy_database(path: Path, migrations: Sequence[str], copy: Path) -> None:
    """As of its last commit; whoever writes does not wait."""
    with closing(database.connect(path, migrations, read_only=True)) as connection:
        database.backup(connection, copy)


def _copy_files(files: Sequence[Path], root: Path, copy: Path) -> None:
    for file in files:
        target = copy / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # retention was faster, or there was none yet
            shutil.copy(file, target)


def _visible(folder: Path) -> list[Path]:
    """The finished files under a folder, but for the position of the tables."""
    names = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != training.POSITION)
    return [path for path in names if not path.name.startswith(".")]


def _check(copy: StatePaths) -> None:
    """Mend the end of the log, and look whether books and log agree. InputError where they do not."""
    with EventLog(copy.events) as log, Ledger(copy.ledger) as books:
        faults = books.verify()
        if books.log_number > log.last:
            faults.append(f"record {books.log_number} is booked, and the log ends at {log.last}")
    event_log.lock_of(copy.events).unlink()
    if faults:
        raise InputError(f"the books do not add up, and no backup is made of them: {'; '.join(faults)}")


def _lists_of(paths: StatePaths) -> Path | None:
    """The folder of the store; None where it is a server, which has backups of its own."""
    kind, _, folder = paths.store.partition(":")
    return Path(folder).absolute() if kind == "lmdb" else None
