"""The file of users who were erased, which names none of them: who writes lists or profiles must leave them out.

A key stands in the first line, and behind it one keyed hash (HMAC-SHA256) a user, all in hex. Whoever erases a user
holds the file's lock from the moment in which the user is added until the stores have forgotten; who writes what may
name users holds it meanwhile. So either the user is in the file already, or the erasure finds what was written.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from leadre.errors import InputError

KEY_BYTES = 32


def read(path: Path) -> tuple[bytes, set[str]]:
    """(the key, the hashes). InputError for a file that holds anything else."""
    lines = path.read_text(encoding="ascii", errors="replace").split()
    try:
        if not lines or any(len(line) != 64 for line in lines):
            raise ValueError
        return bytes.fromhex(lines[0]), set(lines[1:])
    except ValueError as error:
        raise InputError(f"{path}: wants a key and hashes of 32 bytes in hex, one a line; restore the file") from error


def hash_of(key: bytes, user_id: str) -> str:
    """What stands in the file for a user."""
    return hmac.digest(key, user_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()


def listed_in(path: Path) -> Callable[[str], bool]:
    """Whether a user is in the file as it is now; without a file nobody is."""
    if not path.exists():
        return lambda user_id: False
    key, hashes = read(path)
    return lambda user_id: bool(hashes) and hash_of(key, user_id) in hashes


@contextmanager
def held(path: Path) -> Iterator[Callable[[str], bool]]:
    """Nobody is erased while another process or thread is in here; yields `listed_in`. Dies with its process."""
    lock = path.parent / "run" / "erasing.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield listed_in(path)
    finally:
        os.close(file)
