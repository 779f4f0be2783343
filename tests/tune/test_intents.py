"""Long-term interests as of a moment, worked by hand."""

import numpy as np
import pytest

from leadre.data.histories import AD, CONTENT
from leadre.data.moment import of_requests
from leadre.tune.intents import DECAY_PER_VISIT, long_term

from ..hand_events import EVENTS

D = DECAY_PER_VISIT


@pytest.fixture
def logs(hand):
    return hand(EVENTS)


def interests(logs, user, before_us, domain, limit=9):
    """The interests of a user in the visits strictly before a time."""
    history = of_requests(logs).timeline(user)
    return long_term(history, history.visits.before(0, before_us), domain, limit)


def test_weights_decay_by_visit_and_counts_do_not(logs):
    result = interests(logs, 0, 31, AD)
    # object 5 in the last visit and the one before; object 3 one and two visits before the last
    assert result.objects_N.tolist() == [5, 3]
    assert result.weight_N.tolist() == pytest.approx([1 + D, D + D**2])
    assert result.count_N.tolist() == [2, 2]
    assert result.last_us_N.tolist() == [30, 20]
    assert result.money_nanos_N.tolist() == [16, 150]


def test_interests_as_of_a_visit_leave_the_visit_out(logs):
    result = interests(logs, 0, 30, AD)
    assert result.objects_N.tolist() == [3, 5]
    assert result.weight_N.tolist() == pytest.approx([1 + D, 1])
    assert result.last_us_N.tolist() == [20, 20]
    first = interests(logs, 0, 10, AD)
    assert len(first.objects_N) == len(first.weight_N) == 0
    # user 1 has no history, although user 0 has earlier visits
    assert len(interests(logs, 1, 30, AD).objects_N) == 0


def test_interests_are_kept_by_domain_and_age_counts_visits_of_both(logs):
    result = interests(logs, 0, 30, CONTENT)
    assert dict(zip(result.objects_N.tolist(), result.weight_N.tolist(), strict=True)) == pytest.approx({1: 1.0})
    result = interests(logs, 0, 31, CONTENT)
    assert dict(zip(result.objects_N.tolist(), result.weight_N.tolist(), strict=True)) == pytest.approx({3: 1.0, 1: D})


def test_limit_keeps_the_first_objects_of_a_tie(hand):
    assert interests(hand([(0, 10, AD, o, 0) for o in (4, 2, 6, 0)]), 0, 11, AD, 3).objects_N.tolist() == [0, 2, 4]


def test_user_without_events_has_no_interests(hand):
    logs = hand([(0, 10, AD, 1, 0), (2, 10, AD, 1, 0)])
    assert len(interests(logs, 1, 99, AD).objects_N) == 0


def test_later_events_do_not_change_interests(small):
    logs = small.logs
    moments = small.moments
    rng = np.random.default_rng(0)
    for user in range(0, len(logs.users), 5):
        history = moments.timeline(user)
        now_us = int(rng.choice(history.visits.at_us_V))
        result = interests(logs, user, now_us, AD, 50)
        is_read_E = (history.at_us_E < now_us) & (history.domain_E == AD)
        assert result.count_N.sum() == is_read_E.sum()
        assert set(result.objects_N.tolist()) == set(history.object_E[is_read_E].tolist())
        assert np.all(result.last_us_N < now_us)
