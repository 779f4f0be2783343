"""Objects of the language model and the ads that show them."""

import numpy as np
import pytest

from leadre.serve.catalogue.objects import ObjectIndex

from ..conftest import make_ad


@pytest.fixture
def objects():
    """Two ads show "tea", one "mug", and one an object that is unknown to the model."""
    shown = {"a0": "tea", "a1": "mug", "a2": "new", "a3": "tea"}
    ads = [make_ad(ad_id, object_id=object_id) for ad_id, object_id in shown.items()]
    return ObjectIndex(["mug", "rug", "tea"], ads, "v1")


def test_object_with_an_eligible_ad_is_eligible(objects):
    def eligible_objects(*eligible):
        bits = objects.bits(np.array(eligible, np.bool_))
        return np.unpackbits(np.frombuffer(bits, np.uint8), count=3).tolist()

    assert eligible_objects(True, True, True, True) == [1, 0, 1]
    assert eligible_objects(False, False, True, True) == [0, 0, 1]
    assert eligible_objects(False, False, True, False) == [0, 0, 0]


def test_generated_objects_are_converted_to_their_eligible_ads(objects):
    rows, log_p = objects.ads_of([2, 1, 0], [-1.0, -2.0, -3.0], np.array([True, True, True, True]))
    assert rows.tolist() == [0, 3, 1] and log_p.tolist() == [-1.0, -1.0, -3.0]
    rows, log_p = objects.ads_of([2, 0], [-1.0, -3.0], np.array([False, True, True, True]))
    assert rows.tolist() == [3, 1] and log_p.tolist() == [-1.0, -3.0]


def test_no_generated_object_yields_no_ad(objects):
    rows, log_p = objects.ads_of([], [], np.ones(4, np.bool_))
    assert len(rows) == len(log_p) == 0
