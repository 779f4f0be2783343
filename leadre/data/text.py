"""Clean untrusted text of logs, so that it is safe to print, embed and put into a prompt.

Invisible characters are removed: control characters end lines or tokens, bidirectional marks reorder the text that a
reviewer reads (Unicode TR36, "Trojan Source"), zero-width characters split a blocked word. Visible text stays as it is,
even if it spells a control token. No text encodes to a semantic ID, because the tokenizer's vocabulary has none
(`lm.layout`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_CHARS = 512  # of one object's text: about 130 English word pieces, of the 256 that MiniLM encodes

# Cc control, Cf format (bidi marks, zero-width, tags, soft hyphen), Cs surrogate, Co private use, Cn unassigned.
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
# Invisible, although in the categories letter and mark: Hangul fillers, braille blank, variation selectors, joiners.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SPACE = re.compile(r"\s+")


def clean(text: str, max_chars: int = MAX_CHARS) -> str:
    """NFKC, invisible characters removed, runs of white space folded to one blank, at most ``max_chars`` characters.

    Idempotent. The cut falls between words if a word ends in the last quarter.
    """
    if text.isascii() and text.isprintable():  # the common case, and isprintable excludes every control character
        return _cut(" ".join(text.split()), max_chars)
    # a removal can join two characters that compose, so repeat until the text is stable (usually two passes)
    for _ in range(8):
        cleaned = _clean_once(text)
        if cleaned == text:
            break
        text = cleaned
    return _cut(text, max_chars)


def join(title: str | None, brand: str | None, category: Iterable[str] | None, description: str | None) -> str:
    """The text of an object: ``title | brand | category > path | description``, missing parts left out."""
    path = " > ".join(part for part in (clean(entry) for entry in category or ()) if part)
    parts = [clean(title or ""), clean(brand or ""), path, clean(description or "")]
    return clean(" | ".join(part for part in parts if part))


def _clean_once(text: str) -> str:
    text = _SPACE.sub(" ", text)  # first, so that a line break separates words
    text = "".join(char for char in text if unicodedata.category(char) not in _DROPPED)
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return _SPACE.sub(" ", text).strip()


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    blank = text.rfind(" ", max_chars * 3 // 4, max_chars + 1)
    return text[: blank if blank > 0 else max_chars].rstrip()
