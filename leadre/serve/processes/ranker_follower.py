"""A worker's ranker: the current one of the published versions, loaded off the path of requests.

A version that cannot be loaded is reported once, and the last one stays.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from leadre import progress
from leadre.errors import ArtifactError, InputError
from leadre.serve.catalogue.eligibility import CatalogueSnapshot

if TYPE_CHECKING:  # LightGBM, which a bidder without a ranker does not load
    from leadre.serve.rankers.published import PublishedRankers
    from leadre.serve.rankers.served import CatalogueRanker, ServedRanker


class RankerFollower:
    """Follows the published rankers in a folder. ``is_behind``: the current version could not be loaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = ""  # the last one that was tried
        self.served: ServedRanker | None = None
        self.is_behind = False

    async def follow(self) -> bool:
        """Load the current version if it is another one than at the last call. Whether ``served`` has changed."""
        from leadre.serve.rankers.published import NONE, PublishedRankers

        rankers = PublishedRankers(self._folder)
        version = ""
        try:
            version = rankers.current()
            if version == self._version:
                return False
            served = None if version == NONE else await asyncio.to_thread(_load, rankers, version)
        except (ArtifactError, InputError) as error:
            if not self.is_behind or version != self._version:
                kept = "without a ranker" if self.served is None else f"with ranker {self.served.version}"
                progress.say(f"serve: bids go on {kept}: {error}")
            self.is_behind = True
            self._version = version
            return False
        self._version = version
        self.is_behind = False
        self.served = served
        return True

    def over(self, catalogue: CatalogueSnapshot, before: CatalogueRanker | None) -> CatalogueRanker | None:
        """The ranker over a catalogue; ``before``: that over the catalogue before."""
        if self.served is None:
            return None
        from leadre.serve.rankers.served import CatalogueRanker

        return CatalogueRanker(self.served, catalogue, before)

    def forget(self) -> None:
        """Drop the states of all users: one of them was erased."""
        if self.served is not None:
            self.served.states.clear()

    def drop_unused(self, now_s: float) -> None:
        """Drop the states of users who sent no request lately."""
        if self.served is not None:
            self.served.states.drop_unused(now_s)


def _load(rankers: PublishedRankers, version: str) -> ServedRanker:
    from leadre.serve.rankers.served import ServedRanker

    return ServedRanker(version, *rankers.load(version))
