"""Categories of ads, of which each has meaning in one taxonomy alone (AdCOM, list "Category Taxonomies").

A code such as "IAB7-39" is of `FIRST` wherever it is written, and lies below its parent "IAB7". Any other code is of
the taxonomy that ``cattax`` names beside it, and has no parent here. `UNKNOWN` is the taxonomy of such a code where
nothing but the default is named: it is compared with every taxonomy in a list of blocked categories, and never sent.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

FIRST = 1  # IAB Content Category Taxonomy 1.0, the default of OpenRTB
UNKNOWN = 0
Code = tuple[int, str]  # taxonomy, code
_FIRST_CODE = re.compile(r"IAB\d+(-\d+)?")


def coded(codes: Iterable[str], cattax: int) -> tuple[Code, ...]:
    """The codes with their taxonomies. ``cattax``: the number that the ad or the request names for them."""
    return tuple((_taxonomy(code, cattax), code) for code in codes)


def taxonomies(codes: Iterable[str], cattax: int) -> frozenset[int]:
    """The taxonomies of `coded`."""
    return frozenset(_taxonomy(code, cattax) for code in codes)


def _taxonomy(code: str, cattax: int) -> int:
    if _FIRST_CODE.fullmatch(code):
        return FIRST
    return UNKNOWN if cattax == FIRST else cattax


def with_parent(code: Code) -> tuple[Code, ...]:
    """The code and the one above it."""
    taxonomy, text = code
    parent = text.partition("-")[0]
    return (code,) if taxonomy != FIRST or parent == text else (code, (taxonomy, parent))


@lru_cache(maxsize=4096)  # the ads of an advertiser share their categories
def sent(codes: tuple[str, ...], cattax: int, request_cattax: int) -> tuple[tuple[str, ...], int]:
    """(codes of one taxonomy, its number) for a bid: that of the request if the ad has codes of it, else another.

    ``cattax``: of the ad; ``request_cattax``: of the request.
    """
    by_taxonomy: dict[int, list[str]] = defaultdict(list)
    for taxonomy, code in coded(codes, cattax):
        by_taxonomy[taxonomy].append(code)
    for taxonomy in (request_cattax, FIRST, cattax):
        if taxonomy != UNKNOWN and taxonomy in by_taxonomy:
            return tuple(by_taxonomy[taxonomy]), taxonomy
    return (), FIRST
