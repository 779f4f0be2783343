"""Deterministic exploration: uniform draws from a keyed hash of request ID and imp ID.

A replay draws the same numbers. Without the key, a caller cannot predict which requests explore.
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
    """Uniform draws in [0, 1) that depend on the key, the request and the imp alone."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the key file, or create it. InputError for a file with any other content."""
        if not path.exists():
            durable.replace(path, f"{secrets.token_bytes(KEY_BYTES).hex()}\n".encode(), mode=0o600)
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise InputError(f"{path}: holds no key of {KEY_BYTES} bytes in hex; restore the file from a backup")
        return cls(key)

    def pair(self, request_id: str, imp_id: str) -> tuple[float, float]:
        """Two independent draws for an imp of a request."""
        text = f"{request_id}\0{imp_id}".encode(errors="surrogatepass")
        digest = hashlib.blake2b(text, key=self._key, digest_size=16).digest()
        first = int.from_bytes(digest[:8]) >> 11  # 53 bits: exact as a float
        second = int.from_bytes(digest[8:]) >> 11
        return first * 2.0**-53, second * 2.0**-53
