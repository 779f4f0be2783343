"""A model in float64, and the same weights as a causal LM that knows nothing of threads, branches or caches."""

import pytest

from leadre.lm.export import causal_lm


@pytest.fixture(scope="module")
def with_pointer(small, exact):
    """(backbone in float64, the same weights as a plain causal LM)"""
    made = small.backbone(seed=1, double=True)
    return made, causal_lm(made, attention="eager")


@pytest.fixture(scope="module")
def without_pointer(small, exact):
    made = small.backbone(seed=2, pointer=False, double=True)
    return made, causal_lm(made, attention="eager")
