"""File of erased users, as keyed hashes: writers of lists and profiles leave these users out.

The erasure of an ID covers it as an extended ID (`source:id`) of every source too (`leadre.extended_ids`).

Format: a key in the first line, then one HMAC-SHA256 per user, then the SHA-256 of all lines before, in hex. The file
does not contain user IDs.

An erasure holds the file's lock from the moment it adds the user until the stores have removed the user's data. A
writer of data that may contain users holds the lock while it writes. So either the writer finds the user in the file,
or the erasure finds the data that was written.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from leadre.errors import InputError
from leadre.extended_ids import covering

KEY_BYTES = 32
CHECKSUM = "sha256:"  # begins the last line


def read(path: Path) -> tuple[bytes, set[str]]:
    """Return (key, hashes in hex). InputError if the file is damaged or has another format."""
    text = path.read_text(encoding="ascii", errors="replace")
    content, mark, checksum = text.partition(CHECKSUM)
    lines = content.split()
    try:
        if mark and checksum.strip() != _checksum(content):
            raise ValueError
        key, *hashes = (bytes.fromhex(line) for line in lines)
        if {len(key), *map(len, hashes)} != {KEY_BYTES}:
            raise ValueError
        return key, set(lines[1:])
    except ValueError as error:
        raise InputError(
            f"{path}: wants a key and hashes of 32 bytes in hex, one a line, and their checksum; restore the file from"
            " a backup: without it, events in circulation could restore an erased user"
        ) from error


def encode(key: bytes, hashes: set[str]) -> bytes:
    """The bytes of the file. Files of earlier releases have no checksum."""
    content = "".join(f"{line}\n" for line in (key.hex(), *sorted(hashes)))
    return f"{content}{CHECKSUM}{_checksum(content)}\n".encode()


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode("ascii", "replace")).hexdigest()


def user_hash(key: bytes, user_id: str) -> str:
    """Return the keyed hash of a user ID, in hex."""
    return hmac.digest(key, user_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()


def load(path: Path) -> Callable[[str], bool]:
    """Read the file once; return a function from user ID to "is erased". A missing file contains no users."""
    if not path.exists():
        return lambda user_id: False
    key, hashes = read(path)
    return lambda user_id: is_erased(key, hashes, user_id)


def is_erased(key: bytes, hashes: Collection[str], user_id: str) -> bool:
    """Whether the hash of an ID that covers this one is among the hashes."""
    return bool(hashes) and any(user_hash(key, user) in hashes for user in covering(user_id))


@contextmanager
def locked(path: Path) -> Iterator[Callable[[str], bool]]:
    """Block erasures by other processes and threads; yields the function of `load`.

    The kernel releases the lock if the process dies.
    """
    lock = path.parent / "run" / "erasing.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield load(path)
    finally:
        os.close(file)
