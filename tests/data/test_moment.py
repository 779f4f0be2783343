"""Moments: a stored profile and a request of the log give the same Moment, the same prompt and the same prior."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from leadre.data.histories import AD, CONTENT, TEST, TRAIN, VALID, first_seen
from leadre.data.moment import as_of, cut, group_visits, history_of, of_requests
from leadre.generate.channels import repeats
from leadre.generate.lists.profiles import profiles
from leadre.lm.prior import InventoryPrior, PriceExponents
from leadre.serve.processes.model_server import ModelServer
from leadre.store.contract import ProfileEvent
from leadre.tune.threads import serving_prompt

from ..hand_events import EVENTS


@pytest.fixture(scope="module")
def one_placement(small):
    """The market with one placement: a stored profile does not hold the placements of past visits."""
    logs = small.logs
    return dataclasses.replace(
        logs, placements=["everywhere"], request_placement_R=np.zeros(len(logs.request_placement_R), np.int32)
    )


def server_of(logs, prior, prompter):
    """The attributes of a `ModelServer` that `ModelServer.moment` uses, without a model."""
    return SimpleNamespace(
        live=prior,
        prompter=prompter,
        objects={object_id: row for row, object_id in enumerate(logs.objects["object_id"].to_list())},
        users={user_id: row for row, user_id in enumerate(logs.users["user_id"].to_list())},
        profiles=of_requests(logs).profiles,
    )


def online(server, profile, moment):
    """The Moment that the model server builds from a stored profile, at the time and with the objects of another."""
    eligible_O = np.isin(np.arange(len(server.objects)), moment.inventory.objects)
    return ModelServer.moment(server, profile.user_id, profile.recent, moment.at_us, eligible_O)


def assert_same_moment(served, logged):
    assert (served.user, served.profile, served.at_us) == (logged.user, logged.profile, logged.at_us)
    for name in ("at_us_E", "object_E", "domain_E", "value_nanos_E"):
        served_E = getattr(served.history, name)
        logged_E = getattr(logged.history, name)
        assert served_E.dtype == logged_E.dtype
        np.testing.assert_array_equal(served_E, logged_E, err_msg=name)
    for name in ("at_us_V", "event_offsets", "user_offsets"):
        np.testing.assert_array_equal(getattr(served.history.visits, name), getattr(logged.history.visits, name))
    np.testing.assert_array_equal(served.inventory.objects, logged.inventory.objects)


def test_profile_and_log_give_the_same_moment_prompt_and_values(small, one_placement):
    """Offline a request of the log; online the profile that the store holds at that time, through the model server."""
    logs = one_placement
    moments = of_requests(one_placement)
    prior = InventoryPrior(logs, small.codebook, money=PriceExponents(0.5, 0.2))
    threads = small.threads(logs)
    server = server_of(logs, prior, small.prompter(logs))
    own_frequency = repeats.fit_decayed(logs, 0, 1)
    with_history = 0
    for r in range(0, len(moments), 5):
        logged = moments[r]
        (profile,) = profiles(logs, logged.at_us, np.array([logged.user]))
        served = online(server, profile, logged)
        assert_same_moment(served, logged)
        (window,) = threads.serving(np.array([r]))
        ids = threads.write(window).ids
        np.testing.assert_array_equal(serving_prompt(server.prompter, served), ids)
        objects_T = small.layout.objects(ids)
        np.testing.assert_array_equal(prior.pointer_bias(served, objects_T), prior.pointer_bias(logged, objects_T))
        for view in (prior.all, prior.new):
            np.testing.assert_array_equal(view(served)[0].mass, view(logged)[0].mass)
            np.testing.assert_array_equal(view(served)[1], view(logged)[1])
        with_ads = dataclasses.replace(served, inventory=logged.inventory)
        for scores, expected in zip(own_frequency.score([with_ads]), own_frequency.score([logged]), strict=True):
            np.testing.assert_array_equal(scores, expected)
        with_history += len(served.history) > 0
    assert with_history > 60


def test_list_and_model_server_see_the_same_user_as_of_now(small, one_placement):
    logs = one_placement
    now_us = int(np.quantile(logs.at_us_E, 0.7))
    users = np.arange(len(logs.users))
    moments = as_of(logs, now_us, users, logs.inventory(0))
    server = server_of(logs, small.live, small.prompter(logs))
    for profile, listed in zip(profiles(logs, now_us, users), moments, strict=True):
        served = online(server, profile, listed)
        assert_same_moment(served, listed)
        np.testing.assert_array_equal(serving_prompt(server.prompter, served), serving_prompt(server.prompter, listed))


def test_unknown_user_has_no_profile_and_unknown_objects_are_left_out(small, one_placement):
    server = server_of(one_placement, small.live, small.prompter(one_placement))
    first = next(iter(server.objects))
    recent = (
        ProfileEvent("no such object", 5, "ad", 1),
        ProfileEvent(first, 7, "content"),
        ProfileEvent(first, 9, "ad"),
    )
    moment = ModelServer.moment(server, "no such user", recent, 9, np.ones(len(server.objects), np.bool_))
    assert (moment.user, moment.profile) == (-1, {})
    assert (moment.history.at_us_E.tolist(), moment.history.domain_E.tolist()) == ([7], [CONTENT])


def test_moment_of_a_request_is_a_view_of_its_log(small):
    logs = small.logs
    moments = small.moments
    assert len(moments) == len(logs.request_user_R)
    for r in range(0, len(moments), 7):
        moment = moments[r]
        rows = logs.history(r)
        assert np.shares_memory(moment.history.object_E, logs.object_E) or not len(moment.history)
        assert moment.history.object_E.tolist() == logs.object_E[rows].tolist()
        assert moment.history.at_us_E.max(initial=-1) < moment.at_us == logs.request_at_us_R[r]
        assert moment.inventory.ads.tolist() == logs.inventory(r).tolist()
        assert moment.inventory.ad_object.tolist() == logs.ad_object_A[logs.inventory(r)].tolist()
        assert moment.inventory.objects.tolist() == sorted(set(moment.inventory.ad_object.tolist()))
        assert moment.profile == logs.users.drop("user_id").row(moment.user, named=True)
        before = len(moment.history.visits) + moments.visits.user_offsets[moment.user]
        assert before == moments.visits_before()[r] == moments.visits.before(moment.user, moment.at_us)
    assert [moment.at_us for moment in moments[3:6]] == logs.request_at_us_R[3:6].tolist()
    assert [moment.at_us for moment in moments.at([4, 2])] == logs.request_at_us_R[[4, 2]].tolist()


def test_requests_of_one_inventory_share_it(small):
    logs = small.logs
    moments = small.moments
    first, second = np.flatnonzero(logs.inventories.set_R == logs.inventories.set_R[0])[:2]
    assert moments[int(first)].inventory is moments[int(second)].inventory


def test_visit_is_all_events_of_a_user_at_one_instant(hand):
    logs = hand(EVENTS)
    visits = group_visits(logs.at_us_E, logs.event_offsets)
    assert visits.at_us_V.tolist() == [10, 20, 30, 30]
    assert visits.event_offsets.tolist() == [0, 1, 4, 6, 7]
    assert visits.user_offsets.tolist() == [0, 3, 4]
    assert list(visits.of_user(0)) == [0, 1, 2] and list(visits.of_user(1)) == [3]
    assert logs.object_E[visits.events(1)].tolist() == [3, 5, 1]


def test_visits_before_a_time_leave_out_the_visit_at_that_time(hand):
    logs = hand(EVENTS)
    visits = group_visits(logs.at_us_E, logs.event_offsets)
    assert [visits.before(0, at_us) for at_us in (9, 10, 11, 20, 30, 31)] == [0, 0, 1, 1, 2, 3]
    assert [visits.before(1, at_us) for at_us in (30, 31)] == [3, 4]


def test_user_without_events_has_no_visits(hand):
    logs = hand([(0, 10, AD, 1, 0), (2, 10, AD, 1, 0)])
    visits = group_visits(logs.at_us_E, logs.event_offsets)
    assert list(visits.of_user(1)) == []
    assert visits.before(1, 99) == 1
    assert len(as_of(logs, 99, np.array([1]), np.zeros(0, np.int32))[0].history.visits) == 0


def test_history_of_rows_is_sorted_and_ends_before_the_time():
    rows = [(4, 30, AD, 9, -1), (1, 10, CONTENT, 0, 2), (3, 20, AD, 5, 0), (2, 20, CONTENT, 0, 0), (7, 40, AD, 1, 1)]
    history = history_of(rows, 40)
    assert history.object_E.tolist() == [1, 3, 2, 4]  # events of one instant keep their order
    assert history.domain_E.tolist() == [CONTENT, AD, CONTENT, AD]
    assert history.value_nanos_E.tolist() == [0, 5, 0, 9]
    assert history.placement_E.tolist() == [2, 0, 0, -1]
    assert len(history_of([], 40)) == len(history_of(rows, 10)) == 0


def test_visit_has_the_placement_of_its_own_users_request(hand):
    """User 0 has a request after all their visits, at the time of a visit of user 1, who made none."""
    logs = hand(
        [(0, 10, AD, 1, 0), (1, 20, AD, 2, 0)], [(0, 10, "train", [1]), (0, 20, "test", []), (1, 30, "test", [])]
    )
    logs = dataclasses.replace(logs, placements=["left", "top"], request_placement_R=np.array([1, 1, 0], np.int32))
    moments = of_requests(logs)
    assert moments.timeline(0).placement_E.tolist() == [1]
    assert moments.timeline(1).placement_E.tolist() == [-1]
    assert [moment.placement for moment in moments] == [1, 1, 0]


def test_users_as_of_now_are_in_no_placement_and_not_in_training(small):
    logs = small.logs
    now_us = int(np.quantile(logs.at_us_E, 0.5))
    users = np.arange(0, len(logs.users), 3)
    ads = logs.inventory(0)
    moments = as_of(logs, now_us, users, ads)
    assert [moment.user for moment in moments] == users.tolist()
    for moment in moments:
        start = logs.event_offsets[moment.user]
        end = logs.event_offsets[moment.user + 1]
        assert moment.history.at_us_E.tolist() == [at for at in logs.at_us_E[start:end].tolist() if at < now_us]
        assert (moment.at_us, moment.placement, moment.is_training) == (now_us, -1, False)
        assert moment.inventory is moments[0].inventory and moment.inventory.ads.tolist() == ads.tolist()
    assert small.moments[int(logs.requests_of(TEST)[0])].is_training is False


@pytest.mark.parametrize("visits", [0, 1, 3, 1_000])
def test_cut_logs_show_the_last_visits_of_a_history_and_leave_training_as_it_was(small, visits):
    whole = of_requests(small.logs)
    logs = cut(small.logs, visits)
    moments = of_requests(logs)
    shortened = 0
    for r in range(len(moments)):
        before = whole[r].history
        assert len(moments[r].history) == logs.history(r).stop - logs.history(r).start
        if logs.request_split_R[r] == TRAIN:
            assert len(moments[r].history) == len(before)
            continue
        times = np.unique(before.at_us_E)[len(np.unique(before.at_us_E)) - visits :] if visits else np.array([])
        seen_E = np.isin(before.at_us_E, times)
        for name in ("at_us_E", "object_E", "domain_E", "value_nanos_E", "placement_E"):
            np.testing.assert_array_equal(
                getattr(moments[r].history, name), getattr(before, name)[seen_E], err_msg=name
            )
        assert first_seen(logs, r).sum() >= first_seen(small.logs, r).sum()
        shortened += len(moments[r].history) < len(before)
    assert (shortened > 0) == (visits < 1_000)


@pytest.mark.parametrize("visits", [0, 1, 3])
def test_prompts_of_cut_logs_are_those_of_the_cut_histories(small, visits):
    logs = cut(small.logs, visits)
    threads = small.threads(logs)
    requests = np.flatnonzero(np.isin(logs.request_split_R, (VALID, TEST)))
    windows = threads.serving(requests)
    assert sorted(np.concatenate([window.requests for window in windows]).tolist()) == requests.tolist()
    for window in windows:
        thread = threads.write(window)
        assert thread.ids[: len(threads.prefix(window))].tobytes() == threads.prefix(window).tobytes()
        for r, end in zip(thread.requests.tolist(), thread.ends.tolist(), strict=True):
            alone = serving_prompt(threads.prompter, threads.moments[r])
            np.testing.assert_array_equal(thread.ids[: end + 1], alone)
