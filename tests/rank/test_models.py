"""Each neural ranker under the contract suite, and what one model alone has."""

from __future__ import annotations

import dataclasses
from typing import get_args, get_type_hints

import numpy as np
import pytest

from leadre.data import counts
from leadre.errors import InputError
from leadre.rank import run_train, train
from leadre.rank.models import gbdt
from leadre.rank.models.registry import RANKERS
from leadre.rank.ranker import MODELS
from leadre.rank.train import Training

from .contract import RankerContract


def _suite(name):
    return type(f"Test_{name}", (RankerContract,), {"ranker": RANKERS[name]})


Test_autoint, Test_dcnv2, Test_finalmlp, Test_gdcn = map(_suite, ("autoint", "dcnv2", "finalmlp", "gdcn"))
Test_esmm, Test_hstu, Test_infnet, Test_mlcc, Test_sdim = map(_suite, ("esmm", "hstu", "infnet", "mlcc", "sdim"))
Test_finalmlp_split, Test_hcn, Test_two_tower = map(_suite, ("finalmlp_split", "hcn", "two_tower"))
Test_dien, Test_din, Test_din_paper, Test_muse, Test_tin = map(_suite, ("dien", "din", "din_paper", "muse", "tin"))


def test_every_ranker_is_under_contract():
    assert set(RANKERS) == {name.removeprefix("Test_") for name in globals() if name.startswith("Test_")}


def test_every_ranker_is_a_model_of_the_command():
    assert get_args(get_type_hints(run_train.Config)["model"]) == MODELS


def test_a_training_that_diverges_is_an_error(market, examples):
    absurd = Training(epochs=2, batch=16, learning_rate=1e30, table_rate=1e30)
    with pytest.raises(InputError, match="diverges: its loss is nan in step"):
        train.fit(RANKERS["dcnv2"], market.spec, examples, examples, absurd, 0)


@pytest.mark.parametrize("part", ["training", "stop"])
def test_one_forest_serves_both_where_no_object_is_new(examples, part):
    """As in the logs of an advertiser with few ads, all of which every user has seen."""
    seen = [
        dataclasses.replace(
            row, inputs=dataclasses.replace(row.inputs, is_new_C=np.zeros_like(row.inputs.is_new_C, np.bool_))
        )
        for row in examples
    ]
    rows, stop = (seen, examples) if part == "training" else (examples, seen)
    forests = gbdt.fit(rows, stop, counts.NAMES, gbdt.Boosting(rounds=3, min_data_in_leaf=5), 0, 1)
    number_CF = examples[0].inputs.number_CF
    np.testing.assert_array_equal(forests.new_logits(number_CF), forests.logits(number_CF))
    assert len(set(forests.logits(number_CF).tolist())) > 1
    both = gbdt.fit(examples, examples, counts.NAMES, gbdt.Boosting(rounds=3, min_data_in_leaf=5), 0, 1)
    assert (both.new_logits(number_CF) != both.logits(number_CF)).any()
