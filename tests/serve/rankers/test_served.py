"""A ranker over a catalogue: rates equal those of `leadre rank score`, and what is kept of users is bounded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from leadre import artifact
from leadre.data import histories
from leadre.data.histories import TEST
from leadre.generate.lists import profiles
from leadre.rank import calibrate, ranker, score
from leadre.rank.models.registry import RANKERS
from leadre.serve.rankers import served
from leadre.serve.rankers.served import CatalogueRanker, ServedRanker
from leadre.serve.rankers.user_states import UNUSED_S, UserStates
from leadre.store.contract import Profile, ProfileEvent

from ..conftest import make_ad


@pytest.fixture(scope="module")
def logs(ranked_work):
    return histories.load(artifact.read(ranked_work / "served" / "data", artifact.TABLES))


@pytest.fixture(scope="module", params=["gbdt", "tin"])
def model(request, ranked_work):
    """The trained ranker, and one with a network on the same spec."""
    trained = ranker.load(ranked_work / "served" / "rank-train")
    if request.param == "gbdt":
        return trained
    weights = RANKERS["tin"].init(trained.spec, np.random.default_rng(0))
    return dataclasses.replace(trained, model="tin", weights=weights)


def serve(model, ranked_work):
    return ServedRanker("v1", model, calibrate.load(ranked_work / "served" / "rank-calibrate"))


def catalogue_of(logs, live, columns=None):
    """The ads of the log and one of an unknown object, as the parts of a snapshot that a ranker reads."""
    objects = logs.objects["object_id"]
    ads = [make_ad(f"{row}", object_id=objects[int(o)]) for row, o in enumerate(logs.ad_object_A)]
    live_A = np.zeros(len(ads) + 1, np.bool_)
    live_A[live] = True
    return SimpleNamespace(ads=[*ads, make_ad("new", object_id="unknown")], columns=columns or object(), live_A=live_A)


def rates(over, profile, rows, at_us, placement="", is_open=None):
    is_open = np.ones(len(rows), np.bool_) if is_open is None else is_open
    return over.rates(profile, np.asarray(rows), is_open, placement=placement, now_us=at_us, now_s=0.0)


def test_rates_of_a_stored_profile_equal_those_of_the_log(model, logs, ranked_work):
    over = None
    for scored in score.score(logs, logs.requests_of(TEST)[::9], logs.inventory, model):
        r = scored.request
        at_us = int(logs.request_at_us_R[r])
        user = logs.request_user_R[r : r + 1].astype(np.int64)
        (profile,) = profiles.profiles(logs, at_us, user)
        placement = logs.placements[logs.request_placement_R[r]]
        over = CatalogueRanker(serve(model, ranked_work), catalogue_of(logs, scored.ads), over)
        actual = rates(over, profile, scored.ads, at_us, placement)
        np.testing.assert_allclose(actual.log_odds_K, scored.logit_C, atol=1e-5)
        np.testing.assert_array_equal(actual.is_new_K, scored.is_new_C)
        assert actual.history == (len(profile.recent), profile.recent[-1].at_us)
        expected = over.served.calibration.apply(scored.logit_C, scored.is_new_C.astype(np.int64))
        np.testing.assert_allclose(actual.p_K, expected, atol=1e-5)
        np.testing.assert_array_equal(rates(over, profile, scored.ads, at_us, placement).p_K, actual.p_K)  # cached


def test_attributes_of_the_user_reach_a_network(logs, ranked_work):
    trained = ranker.load(ranked_work / "served" / "rank-train")
    weights = RANKERS["tin"].init(trained.spec, np.random.default_rng(0))
    over = CatalogueRanker(
        serve(dataclasses.replace(trained, model="tin", weights=weights), ranked_work), catalogue_of(logs, [0, 1])
    )
    (profile,) = profiles.profiles(logs, 2**60, np.zeros(1, np.int64))
    assert profile.attributes["age"] in trained.known.profile["age"]
    other = Profile(profile.user_id, profile.recent, (), profile.updated_at_us)
    assert not np.allclose(rates(over, profile, [0, 1], 2**60).p_K, rates(over, other, [0, 1], 2**60).p_K)


def test_unknown_objects_and_closed_ads_have_no_rate(model, logs, ranked_work, monkeypatch):
    over = CatalogueRanker(serve(model, ranked_work), catalogue_of(logs, range(10)))
    new = len(logs.ad_object_A)
    actual = rates(over, None, [3, new, 4, 3], 2**60, is_open=np.array([True, True, False, True]))
    assert np.isfinite(actual.p_K).tolist() == [True, False, False, True] and actual.p_K[0] == actual.p_K[3]
    assert actual.history == (0, 0) and actual.event == "conversion" and actual.is_price
    monkeypatch.setattr(served, "MAX_SCORED", 2)
    assert np.isfinite(rates(over, None, [5, 4, 3, 2], 2**60).p_K).tolist() == [True, True, False, False]
    assert not np.isfinite(rates(over, None, [new], 2**60).p_K).any()


def test_parts_of_the_catalogue_are_computed_again_only_where_it_changed(logs, ranked_work):
    served_ranker = serve(ranker.load(ranked_work / "served" / "rank-train"), ranked_work)
    columns = object()
    first = CatalogueRanker(served_ranker, catalogue_of(logs, [0, 1, 2], columns))
    same = CatalogueRanker(served_ranker, catalogue_of(logs, [0, 1, 2], columns), first)
    assert same.object_A is first.object_A and same.live is first.live
    paused = CatalogueRanker(served_ranker, catalogue_of(logs, [0, 1], columns), same)
    assert paused.object_A is first.object_A and len(paused.live.objects) == len(np.unique(logs.ad_object_A[:2]))


def test_a_state_is_used_while_the_profile_stays_the_same(logs, ranked_work):
    ranking = serve(ranker.load(ranked_work / "served" / "rank-train"), ranked_work)
    objects = logs.objects["object_id"].to_list()
    events = tuple(ProfileEvent(objects[n % 5], n, "ad") for n in range(1, 9))
    first = ranking.state(Profile("u", events, updated_at_us=9), 100, 0.0)
    assert ranking.state(Profile("u", events, updated_at_us=9), 200, 0.0) is first
    assert ranking.state(Profile("v", events, updated_at_us=9), 200, 0.0) is not first
    longer = ranking.state(Profile("u", (*events, ProfileEvent(objects[0], 50, "ad")), updated_at_us=10), 200, 0.0)
    assert len(longer.history) == len(first.history) + 1 and len(ranking.states) == 2
    past = ranking.state(Profile("w", events, updated_at_us=9), 4, 0.0)  # before some of the events
    assert len(past.history) == 3 and len(ranking.state(Profile("w", events, updated_at_us=9), 100, 0.0).history) == 8
    assert len(ranking.state(Profile("w", events, updated_at_us=9), 4, 0.0).history) == 3


def test_states_are_bounded_in_bytes_and_time(logs, ranked_work):
    ranking = serve(ranker.load(ranked_work / "served" / "rank-train"), ranked_work)
    events = tuple(ProfileEvent(logs.objects["object_id"][0], n, "ad") for n in range(1, 9))
    state = ranking.state(Profile("u", events), 100, 0.0)
    states = UserStates(max_bytes=3 * state.nbytes)
    for n in range(5):
        states.put(Profile(f"u{n}", events), state, float(n))
    assert len(states) == 3 and states.nbytes == 3 * state.nbytes
    assert states.get(Profile("u1", events), 5.0) is None and states.get(Profile("u2", events), UNUSED_S) is state
    states.drop_unused(UNUSED_S + 4.5)
    assert len(states) == 1 and states.nbytes == state.nbytes
    states.clear()
    assert (len(states), states.nbytes) == (0, 0)


def test_scoring_imports_no_torch():
    code = "import sys, leadre.serve.rankers.served, leadre.serve.rankers.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
