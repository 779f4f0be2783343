"""Interests as of a moment, worked by hand."""

import numpy as np
import pytest

from leadre.data.histories import AD, CONTENT
from leadre.tune.intents import DECAY_PER_VISIT, group_visits, long_term

D = DECAY_PER_VISIT
EVENTS = [
    # user 0: three visits
    (0, 10, AD, 3, 100),
    (0, 20, AD, 3, 50),
    (0, 20, AD, 5, 7),
    (0, 20, CONTENT, 1, 0),
    (0, 30, AD, 5, 9),
    (0, 30, CONTENT, 3, 2),
    # user 1: one visit, at a moment at which user 0 was there too
    (1, 30, AD, 6, 1),
]


@pytest.fixture
def logs(hand):
    return hand(EVENTS)


def test_a_visit_is_what_a_user_did_at_one_instant(logs):
    visits = group_visits(logs)
    assert visits.at_us_V.tolist() == [10, 20, 30, 30]
    assert visits.event_offsets.tolist() == [0, 1, 4, 6, 7]
    assert visits.user_offsets.tolist() == [0, 3, 4]
    assert list(visits.of_user(0)) == [0, 1, 2] and list(visits.of_user(1)) == [3]
    assert logs.object_E[visits.events(1)].tolist() == [3, 5, 1]


def test_before_leaves_out_the_visit_at_that_very_moment(logs):
    visits = group_visits(logs)
    assert [visits.before(0, at) for at in (9, 10, 11, 20, 30, 31)] == [0, 0, 1, 1, 2, 3]
    assert [visits.before(1, at) for at in (30, 31)] == [3, 4]


def test_weights_decay_by_visits_and_counts_do_not(logs):
    visits = group_visits(logs)
    found = long_term(logs, visits, user=0, end_visit=visits.before(0, 31), domain=AD, most=9)
    # object 5 in the last visit and the one before; object 3 one and two visits before the last
    assert found.objects_N.tolist() == [5, 3]
    assert found.weight_N.tolist() == pytest.approx([1 + D, D + D**2])
    assert found.count_N.tolist() == [2, 2]
    assert found.last_us_N.tolist() == [30, 20]
    assert found.money_nanos_N.tolist() == [16, 150]


def test_as_of_a_visit_the_visit_itself_is_not_known(logs):
    visits = group_visits(logs)
    found = long_term(logs, visits, user=0, end_visit=visits.before(0, 30), domain=AD, most=9)
    assert found.objects_N.tolist() == [3, 5]
    assert found.weight_N.tolist() == pytest.approx([1 + D, 1])
    assert found.last_us_N.tolist() == [20, 20]
    first = long_term(logs, visits, user=0, end_visit=visits.before(0, 10), domain=AD, most=9)
    assert len(first.objects_N) == len(first.weight_N) == 0
    # user 1 starts with nothing, although user 0 came before
    assert len(long_term(logs, visits, 1, visits.before(1, 30), AD, 9).objects_N) == 0


def test_domains_are_kept_apart_but_age_together(logs):
    visits = group_visits(logs)
    found = long_term(logs, visits, 0, 3, CONTENT, 9)
    assert dict(zip(found.objects_N.tolist(), found.weight_N.tolist(), strict=True)) == pytest.approx({3: 1.0, 1: D})


def test_the_most_and_ties(hand):
    logs = hand([(0, 10, AD, o, 0) for o in (4, 2, 6, 0)])
    visits = group_visits(logs)
    assert long_term(logs, visits, 0, 1, AD, 3).objects_N.tolist() == [0, 2, 4]


def test_a_user_without_events(hand):
    logs = hand([(0, 10, AD, 1, 0), (2, 10, AD, 1, 0)])
    visits = group_visits(logs)
    assert list(visits.of_user(1)) == []
    assert visits.before(1, 99) == 1
    assert len(long_term(logs, visits, 1, 1, AD, 9).objects_N) == 0


def test_what_comes_later_changes_nothing(small):
    logs = small.logs
    visits = group_visits(logs)
    rng = np.random.default_rng(0)
    for user in range(0, len(logs.users), 5):
        visit = int(rng.choice(list(visits.of_user(user))))
        now_us = int(visits.at_us_V[visit])
        found = long_term(logs, visits, user, visits.before(user, now_us), AD, 50)
        mine = slice(int(logs.event_offsets[user]), int(logs.event_offsets[user + 1]))
        read = (logs.at_us_E[mine] < now_us) & (logs.domain_E[mine] == AD)
        assert found.count_N.sum() == read.sum()
        assert set(found.objects_N.tolist()) == set(logs.object_E[mine][read].tolist())
        assert np.all(found.last_us_N < now_us)
