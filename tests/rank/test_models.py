"""Each neural ranker under the contract suite, and what one model alone has."""

from __future__ import annotations

from leadre.rank.models.registry import RANKERS

from .contract import RankerContract


def _suite(name):
    return type(f"Test_{name}", (RankerContract,), {"ranker": RANKERS[name]})


Test_dcnv2, Test_din, Test_din_paper, Test_muse, Test_tin = map(_suite, ("dcnv2", "din", "din_paper", "muse", "tin"))


def test_every_ranker_is_under_contract():
    assert set(RANKERS) == {name.removeprefix("Test_") for name in globals() if name.startswith("Test_")}
