"""Each neural ranker under the contract suite, and what one model alone has."""

from __future__ import annotations

import pytest

from leadre.errors import InputError
from leadre.rank import train
from leadre.rank.models.registry import RANKERS
from leadre.rank.train import Training

from .contract import RankerContract


def _suite(name):
    return type(f"Test_{name}", (RankerContract,), {"ranker": RANKERS[name]})


Test_dcnv2, Test_din, Test_din_paper, Test_muse, Test_tin = map(_suite, ("dcnv2", "din", "din_paper", "muse", "tin"))


def test_every_ranker_is_under_contract():
    assert set(RANKERS) == {name.removeprefix("Test_") for name in globals() if name.startswith("Test_")}


def test_a_training_that_diverges_is_an_error(market, examples):
    absurd = Training(epochs=2, batch=16, learning_rate=1e30, table_rate=1e30)
    with pytest.raises(InputError, match="diverges: its loss is nan in step"):
        train.fit(RANKERS["dcnv2"], market.spec, examples, examples, absurd, 0)
