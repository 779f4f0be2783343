"""Semantic IDs of objects whose ads were made after the run: the codes nearest to their text.

`leadre semid --extend` assigns them in the same way. IDs in use never change, and the model needs no new row.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from leadre.data import text
from leadre.semid import embed
from leadre.semid.codebook import Codebook, assign
from leadre.semid.quantiser import Codes
from leadre.types import Ad

AT_ONCE = 64  # objects that are embedded at once


@dataclass
class NewAds:
    """Reads the ads made at the management API, and those changed since, from ``manage.db``."""

    version: int = 0

    def read(self, connection: sqlite3.Connection) -> list[Ad]:
        """Ads written since the last call, in the order in which they were made; imported ones belong to the run."""
        is_new = "version > ? AND json_extract(body, '$.created_at_us') > 0"
        query = f"SELECT body, version FROM ads WHERE {is_new} ORDER BY place"
        rows = connection.execute(query, [self.version]).fetchall()
        self.version = max((version for _, version in rows), default=self.version)
        return [msgspec.json.decode(body, type=Ad) for body, _ in rows]


@dataclass(frozen=True)
class NewObjects:
    """New objects with their codes int32 [N, L]."""

    object_ids: Sequence[str]
    codes_NL: Codes


class ObjectCoder:
    """Assigns codes to new objects by their text. ``encoder``: that of the codebook."""

    def __init__(self, codebook: Codebook, encoder: str) -> None:
        self._encoder = encoder
        self._codebook = codebook
        self._taken_OL = codebook.codes_OL
        self._known = set(codebook.object_ids)

    def assign(self, ads: Sequence[Ad]) -> NewObjects:
        """Codes for the unknown objects among those of the ads, at most `AT_ONCE`. Takes a second or more.

        The first ad of an object describes it. InputError without the encoder, or if all IDs are taken.
        """
        unknown: dict[str, Ad] = {}
        for ad in ads:
            if ad.object_id not in self._known:
                unknown.setdefault(ad.object_id, ad)
        new = dict(itertools.islice(unknown.items(), AT_ONCE))
        if not new:
            return NewObjects((), self._taken_OL[:0])
        texts = [text.join(ad.title, ad.brand, None, ad.description) for ad in new.values()]
        vectors_NT = embed.embed(texts, self._encoder)
        vectors_ND = self._codebook.complete(vectors_NT)
        quantiser = self._codebook.quantiser
        codes_NL, _ = assign(vectors_ND, quantiser, self._codebook.sizes[-1], taken_OL=self._taken_OL)
        self._taken_OL = np.concatenate([self._taken_OL, codes_NL])
        self._known |= new.keys()
        return NewObjects(list(new), codes_NL)
