"""Deterministic exploration: uniform draws from a keyed hash of request ID and imp ID.

A replay draws the same numbers. Without the key, a caller cannot predict which requests explore.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

from leadre.serve.events.key_file import open_key


class ExplorationDraws:
    """Uniform draws in [0, 1) that depend on the key, the request, and the imp or campaign alone."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=16)
        self._price = hashlib.blake2b(key=key, digest_size=16, person=b"price")
        self._participation = hashlib.blake2b(key=key, digest_size=8, person=b"participation")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the key file, or create it. InputError for a file with any other content."""
        return cls(open_key(path))

    def pair(self, request_id: str, imp_id: str) -> tuple[float, float]:
        """Two independent draws for an imp of a request."""
        return _pair(self._keyed, request_id, imp_id)

    def price(self, request_id: str, imp_id: str) -> tuple[float, float]:
        """Two independent draws for the price of a bid, independent of those of `pair`."""
        return _pair(self._price, request_id, imp_id)

    def participation(self, request_id: str, campaign_id: str) -> float:
        """A draw for a campaign in a request, independent of those of `pair`."""
        hasher = self._participation.copy()
        hasher.update(f"{request_id}\0{campaign_id}".encode(errors="surrogatepass"))
        return (int.from_bytes(hasher.digest()) >> 11) * 2.0**-53


def _pair(keyed: hashlib.blake2b, request_id: str, imp_id: str) -> tuple[float, float]:
    text = f"{request_id}\0{imp_id}".encode(errors="surrogatepass")
    hasher = keyed.copy()
    hasher.update(text)
    digest = hasher.digest()
    first = int.from_bytes(digest[:8]) >> 11  # 53 bits: exact as a float
    second = int.from_bytes(digest[8:]) >> 11
    return first * 2.0**-53, second * 2.0**-53
