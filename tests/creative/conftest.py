"""The catalogue's example ad, which tests of serving use too."""

from __future__ import annotations

import pytest

from ..serve.conftest import make_ad


@pytest.fixture
def ad():
    return make_ad
