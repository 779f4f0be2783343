"""The suppression list beside backups: the keyed hashes of erased users, which a restore of an older backup applies.

Each folder with backups has a copy of the state's file of erased users (`leadre.store.erased`), renewed by every
erasure, as the state itself may be lost. Its name has a hash of the key, so bidders may share a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from leadre.errors import InputError, StorageError
from leadre.serve.events import durable, erasure, event_log, records, training
from leadre.serve.events.log_writer import EventLog
from leadre.serve.paths import StatePaths
from leadre.store import erased
from leadre.store.lmdb.store import LmdbStore

NONE = "none"  # in place of a list: no user was erased since the backup


def add_folder(paths: StatePaths, folder: Path) -> None:
    """Keep a list in a folder of backups from now on. The caller holds `erased.locked`."""
    folders = _folders(paths)
    if str(folder.absolute()) not in folders:
        content = msgspec.json.encode([*folders, str(folder.absolute())])
        durable.replace(paths.backup_folders, content, mode=0o600)
    renew(paths)


def renew(paths: StatePaths) -> None:
    """Copy the erased users into every folder of backups that exists. StorageError if one cannot be written."""
    if paths.erased.exists():
        key, _ = erased.read(paths.erased)
        content = paths.erased.read_bytes()
        for folder in map(Path, _folders(paths)):
            if folder.is_dir():
                durable.replace(folder / _name(key), content, mode=0o600)


def read(backup: Path, state: StatePaths, named: str) -> set[str]:
    """The hashes of all users known to be erased: those of a backup's state, and of the list beside the backup.

    ``named``: another file with a list, or `NONE`. InputError if there is neither list nor name, or for a list with
    another key.
    """
    if not state.erased.exists():  # of a bidder that never ran
        return set()
    key, hashes = erased.read(state.erased)
    if named == NONE:
        return hashes
    path = Path(named) if named else backup.absolute().parent / _name(key)
    if not path.exists():
        raise InputError(
            f"{path}: is missing, the list of users erased since the backup; name a copy, such as `erased` of the lost"
            f" state or of a later backup, by --erased FILE, or, if there were no erasures, --erased {NONE}"
        )
    its_key, its_hashes = erased.read(path)
    if its_key != key:
        raise InputError(f"{path}: is the list of another bidder; name that of this one by --erased FILE")
    return hashes | its_hashes


def apply(state: StatePaths, lists: Path | None, hashes: set[str]) -> int:
    """Erase users from a restored state that no process has open yet, and from its lists; the number of users.

    ``hashes``: of all erased users.
    """
    if not state.erased.exists():
        return 0
    key, known = erased.read(state.erased)
    if hashes == known:  # the backup was made without them
        return 0
    durable.replace(state.erased, erased.encode(key, hashes), mode=0o600)
    is_erased = erased.load(state.erased)
    users = {user for user in _users(state, lists) if is_erased(user)}
    with EventLog(state.events) as log:
        log.rotate()  # an erasure leaves the newest segment to its writer
    event_log.lock_of(state.events).unlink()
    erasure.erase(state, users)
    if lists is not None:
        with closing(LmdbStore(lists)) as store:
            store.erase(*users)
    return len(users)


def _users(state: StatePaths, lists: Path | None) -> Iterator[str]:
    """The users whom a state names; some several times."""
    for entry in event_log.read(state.events):
        yield records.user_of(entry.record)
    yield from training.users(state.tables)
    if lists is not None:
        with closing(LmdbStore(lists)) as store:
            yield from store.users()


def _folders(paths: StatePaths) -> list[str]:
    try:
        return msgspec.json.decode(paths.backup_folders.read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except msgspec.DecodeError as error:
        raise StorageError(f"{paths.backup_folders}: damaged ({error}); delete it, and make a backup") from error


def _name(key: bytes) -> str:
    return f"erased-{hashlib.sha256(key).hexdigest()[:12]}"
