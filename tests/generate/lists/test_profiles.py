"""The popular list and the profiles that are written beside users' lists."""

import numpy as np

from leadre.generate.lists import profiles as remembered
from leadre.store import open_store
from leadre.store.contract import MAX_RECENT, Profile, ProfileEvent


def test_profiles_hold_the_events_before_now(small):
    logs = small.logs
    now_us = int(np.quantile(logs.at_us_E, 0.6))
    for user, profile in enumerate(remembered.profiles(logs, now_us, np.arange(len(logs.users)))):
        events = slice(*logs.event_offsets[user : user + 2])
        before = logs.at_us_E[events] < now_us
        assert profile.user_id == logs.users["user_id"][user]
        assert [seen.at_us for seen in profile.recent] == logs.at_us_E[events][before].tolist()
        assert [seen.value_nanos for seen in profile.recent] == logs.value_nanos_E[events][before].tolist()
        objects = logs.objects["object_id"].gather(logs.object_E[events][before]).to_list()
        assert [seen.object_id for seen in profile.recent] == objects
        kinds = [("content", "ad")[kind] for kind in logs.domain_E[events][before]]
        assert [seen.domain for seen in profile.recent] == kinds and {*kinds} == {"content", "ad"}
        assert profile.segments == () and profile.updated_at_us == now_us


def test_profile_holds_the_last_events(hand):
    logs = hand([(0, at_us, 1, at_us % 8, 0) for at_us in range(MAX_RECENT + 9)])
    (profile,) = remembered.profiles(logs, MAX_RECENT + 5, np.array([0]))
    assert [seen.at_us for seen in profile.recent] == list(range(5, MAX_RECENT + 5))


def test_events_that_serving_added_to_a_profile_stay(small, tmp_path):
    now_us = int(np.quantile(small.logs.at_us_E, 0.5))
    old = next(remembered.profiles(small.logs, now_us, np.array([0])))
    new = ProfileEvent("o", now_us, "ad", 9)
    store = open_store(f"lmdb:{tmp_path}")
    store.write_profiles(Profile(old.user_id, (*old.recent[-2:], new), ("sporty",), now_us + 1))
    remembered.remember(store, [old], tmp_path / "erased", 0)
    stored = store.read_profile(old.user_id)
    assert stored.retained(0) == stored and (stored.updated_at_us, stored.log_until_us) == (now_us + 1, now_us)
    assert (stored.recent, stored.segments) == ((*old.recent, new), ("sporty",))
    assert stored.retained(stored.log_read_at_us + 1) is None, "the log may be old, what is counted is when it was read"
    assert stored.retained(now_us + 1).recent == old.recent
    store.close()


def test_popular_list_counts_conversions_before_now_of_live_ads(hand):
    logs = hand([(0, 10, 1, 0, 0), (1, 20, 1, 2, 0), (1, 30, 1, 2, 0), (0, 40, 1, 3, 0), (0, 50, 1, 3, 0)], objects=4)
    stored = remembered.popular(logs, 40, np.array([0, 2, 3]), "v", 2)
    assert stored.ad_ids == ("a2", "a0")
    np.testing.assert_allclose(np.exp(stored.log_p), [3 / 6, 2 / 6])
