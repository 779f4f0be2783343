"""A secret key of `KEY_BYTES` in a file that its owner alone can read, in hex."""

from __future__ import annotations

import secrets
from pathlib import Path

from leadre.errors import InputError
from leadre.serve.events import durable

KEY_BYTES = 32


def open_key(path: Path) -> bytes:
    """The key; a missing file is made with a random one. InputError for a file with any other content."""
    if not path.exists():
        durable.replace(path, f"{secrets.token_bytes(KEY_BYTES).hex()}\n".encode(), mode=0o600)
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(f"{path}: holds no key of {KEY_BYTES} bytes in hex; restore the file from a backup")
    return key
