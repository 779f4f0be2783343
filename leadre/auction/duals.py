"""One step of dual mirror descent (Balseiro, Lu and Mirrokni, arXiv 2011.10124): from a dual to the next.

The gradient of a constraint is what it allows in an auction less what the auction used, in units of what it allows, so
that one step suits all budgets. A dual falls while the gradient is above 0. Its reference function gives the two forms.
"""

from __future__ import annotations

import math

MAX_EXPONENT = 0.5  # one price may be a hundred times the money of an auction


def additive(dual: float, gradient: float, step: float, most: float) -> float:
    """Euclidean reference m^2 / 2: ``m - step x gradient``, kept in [0, most]."""
    return min(max(dual - step * gradient, 0.0), most)


def entropic(dual: float, gradient: float, step: float, most: float) -> float:
    """Entropy m log m: ``m x exp(-step x gradient)``, at most ``most``. A dual of 0 stays."""
    exponent = min(max(-step * gradient, -MAX_EXPONENT), MAX_EXPONENT)
    return min(dual * math.exp(exponent), most)
