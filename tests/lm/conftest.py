"""A model in float64, and the same weights as a plain causal LM without threads, branches or caches."""

import pytest

from leadre.lm.export import causal_lm


@pytest.fixture(scope="module")
def with_pointer(small, exact):
    """(backbone in float64, the same weights as a plain causal LM)"""
    backbone = small.backbone(seed=1, double=True)
    return backbone, causal_lm(backbone, attention="eager")


@pytest.fixture(scope="module")
def without_pointer(small, exact):
    backbone = small.backbone(seed=2, pointer=False, double=True)
    return backbone, causal_lm(backbone, attention="eager")
