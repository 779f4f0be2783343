"""A cursor over the bits of a consent string: unpadded base64url, read from the left. Pure."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode

from leadre.errors import LeadreError

MAX_FIBONACCI_BITS = 32  # of one Fibonacci integer; 32 bits hold numbers beyond 3 million


class MalformedConsent(LeadreError, ValueError):
    """A consent string that cannot be decoded. It grants nothing."""


class Bits:
    """The bits of a segment. Raises MalformedConsent for other characters and past the end."""

    def __init__(self, text: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", text, re.ASCII):
            raise MalformedConsent("is empty or holds a character that is not base64url")
        whole = urlsafe_b64decode(text + "A" * (-len(text) % 4))
        self._bits = format(int.from_bytes(whole, "big"), f"0{8 * len(whole)}b")[: 6 * len(text)]
        self.at = 0

    def take(self, width: int) -> str:
        """The next ``width`` bits, as "0" and "1"."""
        bits = self._bits[self.at : self.at + width]
        if len(bits) < width:
            raise MalformedConsent(f"ends at bit {len(self._bits)}, before bit {self.at + width}")
        self.at += width
        return bits

    def number(self, width: int) -> int:
        return int(self.take(width), 2)

    def numbers(self, count: int) -> list[int]:
        """The next ``count`` numbers of 2 bits each."""
        bits = self.take(2 * count)
        return [int(bits[at : at + 2], 2) for at in range(0, len(bits), 2)]

    def flags(self, count: int) -> frozenset[int]:
        """The positions, from 1, of those of the next ``count`` bits that are set."""
        return frozenset(position for position, bit in enumerate(self.take(count), start=1) if bit == "1")

    def fibonacci(self) -> int:
        """A number > 0 in Fibonacci coding: the bits of 1, 2, 3, 5, 8, ..., then a 1 that follows another 1."""
        end = self._bits.find("11", self.at, self.at + MAX_FIBONACCI_BITS)
        if end < 0:
            raise MalformedConsent(f"has no Fibonacci integer at bit {self.at}")
        total = 0
        value = 1
        following = 2
        for bit in self._bits[self.at : end + 1]:
            total += value if bit == "1" else 0
            value, following = following, value + following
        self.at = end + 2
        return total

    def end(self) -> None:
        """Raise MalformedConsent if a bit is left that is not padding."""
        if "1" in self._bits[self.at :]:
            raise MalformedConsent(f"holds more than its fields: a bit after {self.at} is set")
