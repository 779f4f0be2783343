"""The feature spec: all that a ranker reads of a (user, ad) pair, frozen in the ranker's artifact.

Training writes the spec and serving reads it, and both build their arrays from it by `rank/inputs.py`. A categorical
value is a row of a table; row 0 is for values that training has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from leadre.data import counts
from leadre.errors import InputError

FILE = "spec.json"
MAX_ROWS = 1 << 22  # of a table; a field with more values needs fewer of them, or semantic-ID prefixes in its place
PROFILE = "profile."  # begins the name of the table of a profile column
MAX_WIDTH = 4096  # columns of a table
CONTEXT = ("placement", "weekday", "hour")


@dataclass(frozen=True, kw_only=True)
class SequenceSpec:
    """A part of the history as positions, oldest first; the newest ``length`` are kept.

    ``is_distinct``: a position is an object, with the time of its last event and the number of its events; otherwise a
    position is an event.
    """

    name: str
    domain: Literal["content", "ad"]
    is_distinct: bool
    length: int


SEQUENCES = (
    SequenceSpec(name="ad_short", domain="ad", is_distinct=False, length=50),
    SequenceSpec(name="ad_long", domain="ad", is_distinct=True, length=200),
    SequenceSpec(name="content_short", domain="content", is_distinct=False, length=50),
    SequenceSpec(name="content_long", domain="content", is_distinct=True, length=200),
)


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Names of the features, sizes of their tables, and how rows are made.

    ``labels``: the heads, actions of the ad domain; scores are those of the first. ``rows``: which ads of a request
    are rows: all live ones, or those that were shown. ``negatives``: share of the rows without a label that
    training keeps; scores are corrected in the log-odds. ``popularity`` stops at the end of training (frozen) or at
    the last whole week before a request (fresh). ``tables``: rows of the table of each categorical feature, row 0
    included. ``widths``: columns of a table, by name, unless they are those of `models/shared.py`.
    """

    labels: tuple[str, ...]
    rows: Literal["live", "shown"]
    negatives: float
    popularity: Literal["frozen", "fresh"]
    numbers: tuple[str, ...] = counts.NAMES
    fields: tuple[str, ...] = ("object", *counts.GROUPINGS)
    profile: tuple[str, ...] = ()
    context: tuple[str, ...] = CONTEXT
    sequences: tuple[SequenceSpec, ...] = SEQUENCES
    tables: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    @property
    def user_tables(self) -> tuple[str, ...]:
        """The tables of user and context; a profile column may have the name of another feature, so it has a prefix."""
        return (*(PROFILE + name for name in self.profile), *self.context)

    def check(self) -> None:
        """InputError for names that no feature has, and for tables that are missing or too large."""
        known = {"numbers": counts.NAMES, "context": CONTEXT}
        for part, names in known.items():
            for name in getattr(self, part):
                if name not in names:
                    raise InputError(f"spec: {part} has {name!r}; it can have {', '.join(names)}")
        if not self.labels or not 0 < self.negatives <= 1:
            raise InputError(f"spec: labels {self.labels}, negatives {self.negatives}; one label, and a share above 0")
        for name in (*self.fields, *self.user_tables):
            rows = self.tables.get(name, 0)
            if not 1 <= rows <= MAX_ROWS:
                raise InputError(
                    f"spec: the table of {name!r} has {rows:,} rows; it can have 1 to {MAX_ROWS:,}. Leave"
                    " a column out of the tables that has another value in nearly every row"
                )
        for name, columns in self.widths.items():
            if name not in self.tables or not 1 <= columns <= MAX_WIDTH:
                raise InputError(
                    f"spec: the table of {name!r} has {columns:,} columns; a table of {', '.join(self.tables)} can"
                    f" have 1 to {MAX_WIDTH:,}"
                )

    def save(self, folder: Path) -> None:
        """Write ``spec.json``."""
        (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def load(folder: Path) -> FeatureSpec:
    """The spec that `FeatureSpec.save` wrote. InputError if it is damaged or has a feature that is not known here."""
    try:
        spec = msgspec.json.decode((folder / FILE).read_bytes(), type=FeatureSpec)
    except msgspec.MsgspecError as error:
        raise InputError(f"{folder / FILE}: {error}; train the ranker again") from error
    spec.check()
    return spec
