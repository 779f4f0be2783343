"""Chance that can be looked up again: what is drawn for a request follows from its ID and the bidder's key.

So a log replays as it was, and whoever does not have the key cannot tell which request will explore.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Self

from leadre.errors import InputError
from leadre.serve.events import durable

KEY_BYTES = 32


class ExplorationDraws:
    """Numbers from 0 to below 1, as good as random, the same whenever they are asked for again."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, path: Path) -> Self:
        """The key in a file, made where there is none. InputError for a file that holds anything else."""
        if not path.exists():
            durable.replace(path, f"{secrets.token_bytes(KEY_BYTES).hex()}\n".encode(), mode=0o600)
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise InputError(f"{path}: wants a key of {KEY_BYTES} bytes in hex; restore the file")
        return cls(key)

    def pair(self, request_id: str, place: str) -> tuple[float, float]:
        """Two numbers for a place of a request."""
        text = f"{request_id}\0{place}".encode(errors="surrogatepass")
        digest = hashlib.blake2b(text, key=self._key, digest_size=16).digest()
        first, second = (int.from_bytes(part) >> 11 for part in (digest[:8], digest[8:]))  # 53 bits: exact as a float
        return first * 2.0**-53, second * 2.0**-53
