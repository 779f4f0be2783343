"""Threads: windows, the positions of answers, and no events of the future."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from leadre.data import histories
from leadre.data.histories import AD, TEST, TRAIN, VALID
from leadre.data.inventories import Inventories
from leadre.data.moment import of_requests
from leadre.tune.prompts import PromptBlocks, PromptWriter
from leadre.tune.threads import ThreadBuilder, Window
from leadre.units import US_PER_HOUR


def cut_at(logs, r):
    """(the log without events at or after request ``r`` and without later requests, index of the request in it)."""
    at_us = logs.request_at_us_R[r]
    user_E = np.repeat(np.arange(len(logs.users)), np.diff(logs.event_offsets))
    kept_E = logs.at_us_E < at_us
    kept_R = logs.request_at_us_R < at_us
    kept_R[r] = True
    relevant = np.repeat(kept_R, np.diff(logs.relevant_offsets))
    lengths = np.diff(logs.relevant_offsets)[kept_R]
    event_names = ("at_us_E", "object_E", "ad_E", "domain_E", "value_nanos_E", "request_E")
    request_names = tuple(f"request_{n}_R" for n in ("user", "at_us", "placement", "split"))
    ids = pl.Series("inventory_id", [f"set {number}" for number in logs.inventories.set_R[kept_R]])
    live = pl.DataFrame({"inventory_id": ids, "ad": [logs.inventory(r) for r in np.flatnonzero(kept_R)]}).unique(
        "inventory_id"
    )
    requests = pl.DataFrame({"inventory_id": ids, "at": pl.from_epoch(pl.Series(logs.request_at_us_R[kept_R]), "us")})
    windows = live.explode("ad").select("inventory_id", ad_id=pl.lit(logs.ads["ad_id"]).gather("ad"))
    past = replace(
        logs,
        event_offsets=np.concatenate([[0], np.cumsum(np.bincount(user_E[kept_E], minlength=len(logs.users)))]),
        relevant_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        relevant_ads=logs.relevant_ads[relevant],
        relevant_value_nanos=logs.relevant_value_nanos[relevant],
        inventories=Inventories.of(requests, windows, logs.ads["ad_id"]),
        **{name: getattr(logs, name)[kept_E] for name in event_names},
        **{name: getattr(logs, name)[kept_R] for name in request_names},
    )
    return past, int(kept_R[:r].sum())


def sample(requests, count, seed=0):
    return np.random.default_rng(seed).choice(requests, count, replace=False).tolist()


@pytest.fixture(scope="module")
def threads(small):
    return small.threads()


def test_serving_thread_is_that_of_a_log_which_ends_at_the_request(small, threads):
    """The thread up to the answer is the same, byte by byte, in a world that ends at the request."""
    requests = np.flatnonzero(small.logs.request_split_R != TRAIN)
    end_of = {}
    for window in threads.serving(requests):
        thread = threads.write(window)
        for r, end in zip(thread.requests.tolist(), thread.ends.tolist(), strict=True):
            end_of[r] = thread.ids[: end + 1]
    assert sorted(end_of) == requests.tolist()
    for r in sample(requests, 12):
        past, there = cut_at(small.logs, r)
        then = small.threads(past)
        (window,) = then.serving(np.array([there]))
        thread = then.write(window)
        assert thread.ids[: int(thread.ends[0]) + 1].tobytes() == end_of[r].tobytes()
        assert int(thread.ends[0]) == len(thread.ids) - 1


def test_training_thread_is_that_of_a_log_which_ends_at_the_request(small, threads):
    checked = 0
    for window in threads.training(seed=1)[::7]:
        thread = threads.write(window)
        at = len(window.requests) // 2
        r = int(thread.requests[at])
        end = int(thread.ends[at])
        past, there = cut_at(small.logs, r)
        then = small.threads(past)
        first = int(then.visits.user_offsets[window.user])
        start = first + window.start - window.first
        begun = then.write(Window(window.user, first, start, int(then.visit_R[there]) + 1, np.array([there])))
        assert begun.ids.tobytes() == thread.ids[: end + 1].tobytes()
        checked += 1
    assert checked > 5


def test_objects_before_an_answer_are_in_its_history(small, threads):
    """Objects before the answer's position are those of events strictly before the request, in all threads."""
    logs = small.logs
    first = small.layout.words + small.layout.codes
    windows = [*threads.training(seed=0), *threads.serving(logs.requests_of(TEST))]
    for window in windows:
        thread = threads.write(window)
        for r, end in zip(thread.requests.tolist(), thread.ends.tolist(), strict=True):
            read = {int(i) - first for i in thread.ids[: end + 1] if i >= first}
            assert read <= set(logs.object_E[logs.history(r)].tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_every_request_is_a_target_once_an_epoch(small, threads, seed):
    windows = threads.training(seed)
    learnt = np.concatenate([window.requests for window in windows])
    assert learnt.tolist() == small.logs.requests_of(TRAIN).tolist()  # in user order, so in the order of the log
    for window in windows:
        assert np.all(small.logs.request_user_R[window.requests] == window.user)
        visits = threads.visit_R[window.requests]
        assert np.all((window.start <= visits) & (visits < window.stop))
        assert np.all(np.diff(small.logs.request_at_us_R[window.requests]) >= 0)


def test_windows_of_an_epoch_do_not_overlap(threads):
    last = {}
    for window in threads.training(seed=0):
        assert window.start >= last.get(window.user, 0)
        last[window.user] = window.stop


def test_every_request_is_served_once(small, threads):
    for split in (VALID, TEST):
        requests = small.logs.requests_of(split)
        served = np.concatenate([window.requests for window in threads.serving(requests)])
        assert sorted(served.tolist()) == requests.tolist()
    assert threads.serving(np.zeros(0, np.int64)) == []


def test_start_of_a_serving_window_does_not_depend_on_other_requests(small, threads):
    requests = small.logs.requests_of(TEST)
    together = {int(r): window.start for window in threads.serving(requests) for r in window.requests}
    for r in sample(requests, 10):
        (window,) = threads.serving(np.array([r]))
        assert window.start == together[r]


def test_one_to_two_steps_of_visits_precede_a_request(small, threads):
    step = threads.prompter.blocks.short_tokens
    tokens_V = threads.tokens_V
    longest_visit = int(np.diff(tokens_V).max())
    long_enough = 0
    for window in threads.serving(np.arange(len(small.logs.request_user_R))):
        for r in window.requests:
            behind = tokens_V[threads.visit_R[r]] - tokens_V[window.start]
            ever = tokens_V[threads.visit_R[r]] - tokens_V[threads.visits.user_offsets[window.user]]
            assert behind < 2 * step
            assert behind > min(ever, step) - longest_visit
            long_enough += behind >= step - longest_visit
    assert long_enough > 100


def test_same_seed_gives_same_bytes_and_another_seed_other_windows(small, threads):
    again = small.threads()
    first = threads.training(seed=4)
    second = again.training(seed=4)
    assert [(w.user, w.start, w.stop) for w in first] == [(w.user, w.start, w.stop) for w in second]
    assert all(
        threads.write(a).ids.tobytes() == again.write(b).ids.tobytes() for a, b in zip(first, second, strict=True)
    )
    other = threads.training(seed=5)
    assert [(w.user, w.start, w.stop) for w in first] != [(w.user, w.start, w.stop) for w in other]


def threads_of(small, logs, **blocks):
    blocks = PromptBlocks(profile=False, words=False, **blocks)
    return ThreadBuilder(PromptWriter(logs, small.tokenizer, small.layout, blocks), of_requests(logs))


def objects_until(small, thread, at):
    first = small.layout.words + small.layout.codes
    return [int(i) - first for i in thread.ids[: int(thread.ends[at]) + 1] if i >= first]


def test_visits_at_one_instant_do_not_see_each_other(small, hand):
    logs = hand(
        [(0, US_PER_HOUR, AD, 1, 0), (0, 2 * US_PER_HOUR, AD, 2, 0), (0, 2 * US_PER_HOUR, AD, 3, 0)],
        [(0, 2 * US_PER_HOUR, "train", [2]), (0, 2 * US_PER_HOUR, "train", [3])],
    )
    threads = threads_of(small, logs)
    for window in (*threads.training(0), *threads.serving(np.array([0, 1]))):
        thread = threads.write(window)
        assert len(set(thread.ends.tolist())) == 1
        assert set(objects_until(small, thread, 0)) <= {1}


def test_late_outcomes_are_not_in_threads_of_earlier_requests(small, hand):
    """A click now, its conversion an hour later; another request in between."""
    logs = hand(
        [(0, US_PER_HOUR, AD, 1, 0), (0, 4 * US_PER_HOUR, AD, 2, 0), (0, 5 * US_PER_HOUR, AD, 3, 0)],
        [(0, 2 * US_PER_HOUR, "train", [3]), (0, 3 * US_PER_HOUR, "train", [2]), (0, 5 * US_PER_HOUR, "train", [3])],
    )
    threads = threads_of(small, logs)
    (window,) = threads.serving(np.arange(3))
    thread = threads.write(window)
    assert [objects_until(small, thread, at) for at in range(3)] == [[1], [1], [1, 2]]
    assert np.all(np.diff(thread.ends) > 0)


def test_request_after_the_last_event_of_its_user(small, hand):
    """It has no visit of its own, and there is no later user either."""
    logs = hand(
        [(0, US_PER_HOUR, AD, 1, 0), (1, US_PER_HOUR, AD, 2, 0)],
        [
            (0, 2 * US_PER_HOUR, "test", []),
            (1, US_PER_HOUR, "train", [2]),
            (1, 2 * US_PER_HOUR, "test", []),
            (1, 3 * US_PER_HOUR, "test", []),
        ],
    )
    threads = threads_of(small, logs)
    windows = threads.serving(np.array([0, 2, 3]))
    assert [window.requests.tolist() for window in windows] == [[0], [2, 3]]
    for window, seen in zip(windows, ([1], [2]), strict=True):
        thread = threads.write(window)
        assert all(objects_until(small, thread, at) == seen for at in range(len(window.requests)))
        assert threads.tokens_V[window.stop] >= threads.tokens_V[window.start]  # what generation sorts by


def test_requests_without_an_outcome_are_no_targets(small, hand):
    logs = hand(
        [(0, US_PER_HOUR, AD, 1, 0), (0, 3 * US_PER_HOUR, AD, 2, 0)],
        [(0, US_PER_HOUR, "train", [1]), (0, 2 * US_PER_HOUR, "train", []), (0, 3 * US_PER_HOUR, "train", [2])],
    )
    windows = threads_of(small, logs).training(0)
    assert sorted(np.concatenate([window.requests for window in windows]).tolist()) == [0, 2]


def test_visit_longer_than_a_window_has_a_window_of_its_own(small, hand):
    events = [(0, US_PER_HOUR, AD, o, 0) for o in range(8)] + [
        (0, 2 * US_PER_HOUR, AD, 1, 0),
        (0, 3 * US_PER_HOUR, AD, 2, 0),
    ]
    logs = hand(events, [(0, t * US_PER_HOUR, "train", [1]) for t in (1, 2, 3)])
    windows = threads_of(small, logs, short_tokens=1).training(0)
    assert [(w.start, w.stop, w.requests.tolist()) for w in windows] == [(0, 1, [0]), (1, 2, [1]), (2, 3, [2])]


def test_last_requests_of_a_user_are_targets(small):
    moments = of_requests(small.logs)
    users = small.logs.request_user_R
    everyone = ThreadBuilder(small.prompter(), moments).train_R
    bounded = ThreadBuilder(small.prompter(), moments, visits=3).train_R
    expected = [r for user in np.unique(users[everyone]) for r in everyone[users[everyone] == user][-3:]]
    assert 0 < len(bounded) < len(everyone)
    assert bounded.tolist() == expected


def test_long_history_costs_a_window_its_end_alone(small, monkeypatch):
    """A user of a million events: each window reads the last of them, and the IDs of its prompt are as bounded."""
    monkeypatch.setattr(histories, "MAX_HISTORY", 8)
    logs = small.logs
    first_R = logs.event_offsets[logs.request_user_R]
    logs = replace(logs, history_begin_R=histories.history_begins(first_R, logs.history_ends()))
    threads = ThreadBuilder(small.prompter(), of_requests(logs))
    training = threads.training(seed=0)
    assert sorted(np.concatenate([window.requests for window in training]).tolist()) == threads.train_R.tolist()
    serving = threads.serving(np.flatnonzero(logs.request_split_R == TEST))
    assert len({(window.user, window.first) for window in serving}) < sum(len(window.requests) for window in serving)
    longest = 0
    for window in [*training, *serving]:
        thread = threads.write(window)
        events = threads.visits.event_offsets[[window.first, window.start, window.stop]]
        assert events[1] - events[0] < 16
        assert len(thread.moments[-1].history) <= events[2] - events[0]
        longest = max(longest, int(events[1] - events[0]))
    assert longest > 0


def test_requests_in_the_burn_in_are_context_and_no_targets(small):
    logs = small.logs
    every = small.threads()
    moments = of_requests(logs)
    late = ThreadBuilder(small.prompter(), moments, burn_in=0.5)
    at_us = logs.request_at_us_R[every.train_R]
    half_us = (int(at_us.min()) + int(at_us.max())) / 2
    assert late.train_R.tolist() == every.train_R[at_us >= half_us].tolist()
    targets = np.concatenate([window.requests for window in late.training(seed=0)])
    assert sorted(targets.tolist()) == late.train_R.tolist() and 0 < len(late.train_R) < len(every.train_R)
    requests = np.flatnonzero(logs.request_split_R == TEST)
    for window, same in zip(every.serving(requests), late.serving(requests), strict=True):
        assert window.start == same.start and np.array_equal(every.write(window).ids, late.write(same).ids)


def test_short_windows_hold_their_own_visits_alone(small):
    threads = ThreadBuilder(small.prompter(), of_requests(small.logs), short_share=1.0)
    windows = threads.training(seed=0)
    assert sorted(np.concatenate([window.requests for window in windows]).tolist()) == threads.train_R.tolist()
    sizes = [window.stop - window.start for window in windows]
    assert min(sizes) == 1 and max(sizes) > 3
    first = small.layout.words + small.layout.codes
    for window in windows[::5]:
        thread = threads.write(window)
        begin, end = (threads.visits.event_offsets[visit] for visit in (window.start, window.stop))
        shown = small.logs.object_E[begin:end]
        assert {int(i) - first for i in thread.ids if i >= first} <= set(shown.tolist())
        assert thread.ids[: len(threads.prefix(window))].tolist() == threads.prefix(window).tolist()
        for r, moment in zip(window.requests.tolist(), thread.moments, strict=True):
            visit = int(threads.visit_R[r])
            assert (
                moment.history.object_E.tolist()
                == small.logs.object_E[begin : threads.visits.event_offsets[visit]].tolist()
            )


def test_share_of_short_windows(small):
    def windows(share):
        return ThreadBuilder(small.prompter(), of_requests(small.logs), short_share=share).training(seed=0)

    whole = windows(0.0)
    some = windows(0.5)
    assert all(window.first == small.moments.visits.user_offsets[window.user] for window in whole)
    short = [window.first > small.moments.visits.user_offsets[window.user] for window in some]
    assert 0.3 < np.mean(short) < 0.7
