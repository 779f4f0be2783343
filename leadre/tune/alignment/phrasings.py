"""Wording of the alignment tasks: templates about ads, beside the prompts about users in `prompts`.

A field in braces is replaced by token IDs, never by text that is parsed again: a title that contains ``{codes}`` stays
a title. Texts begin with a blank of their own, so no blank precedes a brace.

    codes, object, prefix       an ID as generated codes, as one object token, its first codes
    title, category, brand      words of an ad; ``leaf`` is the last part of its category path
    items                       the objects that a user acted on, oldest first
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from leadre.lm.layout import Ids

_FIELD = re.compile(r"\{(\w+)\}")


class Phrasing(NamedTuple):
    """A question and its answer: words, an ID (``writes_id``), or words and then an ID."""

    question: str
    words: str = ""
    writes_id: bool = False

    @property
    def fields(self) -> frozenset[str]:
        """The fields in braces."""
        return frozenset(_FIELD.findall(self.question + self.words))


TITLE_OF = Phrasing("Title of ad{codes}:", "{title}")
CATEGORY_OF = Phrasing("Category of ad{codes}:", "{category}")
CATEGORY_OF_OBJECT = Phrasing("Category of{object}:", "{category}")
ID_OF_TITLE = Phrasing("Which ad has the title{title}?", writes_id=True)

PHRASINGS: Mapping[str, tuple[Phrasing, ...]] = {
    "id_to_text": (
        TITLE_OF,
        CATEGORY_OF,
        CATEGORY_OF_OBJECT,
        Phrasing("Title of{object}:", "{title}"),
        Phrasing("Brand of ad{codes}:", "{brand}"),
        Phrasing("Brand of{object}:", "{brand}"),
        Phrasing("What does{codes} show?", "{title} |{category}"),
        Phrasing("What is{object}?", "{title} |{brand}"),
    ),
    "text_to_id": (
        ID_OF_TITLE,
        Phrasing("Ad for{title}:", writes_id=True),
        Phrasing("Category{category}, title{title}. Which ad is it?", writes_id=True),
        Phrasing("Title{title}, brand{brand}, category{category}. The ad:", writes_id=True),
    ),
    "prefix_to_category": (
        Phrasing("Category of all ads that begin with{prefix}:", "{category}"),
        Phrasing("What do ads under{prefix} show?", "{category}"),
    ),
    "mixed": (
        Phrasing("A customer acted on{items} The next ad:", writes_id=True),
        Phrasing("History:{items} Which ad follows?", writes_id=True),
    ),
    "search": (
        Phrasing("A customer looks for{leaf}. The ad:", writes_id=True),
        Phrasing("Wanted:{leaf} of{brand}. The ad:", writes_id=True),
        Phrasing("Search:{category},{brand}.", writes_id=True),
    ),
    "content_to_ad": (
        Phrasing("Elsewhere a customer met{items} An ad for them:", writes_id=True),
        Phrasing("Contents:{items} Which ad fits?", writes_id=True),
    ),
    "why": (
        Phrasing("A customer acted on{items} They want", "{category}", writes_id=True),
        Phrasing("History:{items} What interest comes next, and which ad?", "{category}", writes_id=True),
    ),
}


def fill(template: str, text: Callable[[str], Ids], fields: Mapping[str, Ids]) -> Ids:
    """The template as token IDs; ``text`` converts its words, ``fields`` replace its braces."""
    parts = _FIELD.split(template)  # words and field names, in turn
    ids = [fields[part] if at % 2 else text(part) for at, part in enumerate(parts) if part]
    return np.concatenate(ids) if ids else np.zeros(0, np.int32)
