"""LEADRE: display ads retrieved by a language model that writes their semantic IDs.

The stages, in the order in which they run; each is a folder here, a verb on the command line and an artifact on disk:

data      logs -> clean tables, histories, requests
semid     ads -> semantic IDs
lm        (a library, no verb) the language model: what tuning and generation share
tune      histories and IDs -> a fine-tuned language model
generate  request -> candidate ads, all of them live
evaluate  logs -> numbers with intervals, and a report

From Python, a finished run recommends: ``leadre.load("work/demo").recommend("household-6")`` (`leadre.api`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadre.version import __version__

if TYPE_CHECKING:
    from leadre.api import (
        Codebook,
        Event,
        NewObject,
        Recommendation,
        Recommendations,
        Recommender,
        Request,
        Run,
        User,
        load,
        load_codebook,
    )
else:

    def __getattr__(name: str) -> object:
        """Import the Python API at its first use: `leadre --help` and the stages must not wait for it."""
        if name not in __all__:
            raise AttributeError(f"module 'leadre' has no attribute {name!r}")
        from leadre import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])


__all__ = [
    "Codebook",
    "Event",
    "NewObject",
    "Recommendation",
    "Recommendations",
    "Recommender",
    "Request",
    "Run",
    "User",
    "__version__",
    "load",
    "load_codebook",
]
