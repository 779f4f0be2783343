"""The Python API, which `leadre/__init__.py` exports: a finished run recommends ads and shows its codebook.

No stage imports this folder; it imports from stages, as the command line does.
"""

from __future__ import annotations

from leadre.api.codebook import Codebook, NewObject, load_codebook
from leadre.api.recommender import Recommendation, Recommendations, Recommender
from leadre.api.runs import Request, Run, load
from leadre.api.users import Event, User

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
    "load",
    "load_codebook",
]
