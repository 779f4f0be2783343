"""Open bids: number and money by sender, ends by time and by events, shares of a campaign's budget."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from leadre.serve.callers.open_bids import ACTIVE_S, Account, OpenBids
from leadre.serve.callers.party import ANYBODY, Bound, Party
from leadre.units import US_PER_S

NOON_US = 1_772_366_400 * US_PER_S
EXP_US = 120 * US_PER_S


def party(name, max_bids=1000, max_nanos=10**12):
    return Party(name=name, bounds=(Bound(name, max_bids, max_nanos),), share=name, cap_holder=name)


def add(open_bids, sender, nanos=10, *, campaign="c", now_us=NOON_US, currency="USD"):
    open_bids.add(sender, campaign, currency, nanos, now_us + EXP_US, now_us)


def permits(open_bids, sender, currency, nanos, now_us):
    return nanos <= open_bids.room_nanos(sender, currency, now_us)


def close(open_bids, sender, nanos=10, *, campaign="c", now_us=NOON_US, is_shown=True):
    open_bids.close(sender.sender, campaign, "USD", nanos, now_us + EXP_US, is_shown=is_shown)


def test_sender_has_at_most_its_number_and_money_of_open_bids():
    caller = party("one", max_bids=3, max_nanos=100)
    open_bids = OpenBids()
    for _ in range(3):
        assert permits(open_bids, caller, "USD", 10, NOON_US)
        add(open_bids, caller)
    assert not permits(open_bids, caller, "USD", 10, NOON_US) and not permits(open_bids, caller, "EUR", 10, NOON_US)
    assert permits(open_bids, party("other", 3, 100), "USD", 10, NOON_US)
    close(open_bids, caller)
    assert permits(open_bids, caller, "USD", 80, NOON_US) and not permits(open_bids, caller, "USD", 81, NOON_US)
    assert permits(open_bids, caller, "EUR", 100, NOON_US), "each currency has a bound of its own"
    assert open_bids.count("one", NOON_US) == 2
    later_us = NOON_US + EXP_US
    assert permits(open_bids, caller, "USD", 100, later_us) and open_bids.count("one", later_us) == 0


def test_workers_have_parts_of_a_bound_and_each_at_least_one_bid():
    open_bids = OpenBids(workers=4)
    caller = party("one", max_bids=2, max_nanos=40)
    assert permits(open_bids, caller, "USD", 10, NOON_US) and not permits(open_bids, caller, "USD", 11, NOON_US)
    add(open_bids, caller, 1)
    assert not permits(open_bids, caller, "USD", 1, NOON_US)


def test_page_is_bounded_by_its_origin_and_by_its_network():
    origin = Bound("o:1", 3, 100)
    near = Bound("n:1", 2, 100)
    far = Bound("n:2", 2, 100)
    pages = [Party(bounds=(origin, network), share="o:1", cap_holder=network.key) for network in (near, far)]
    open_bids = OpenBids()
    for page, results in ((pages[0], [True, True, False]), (pages[1], [True, False])):
        for is_permitted in results:
            assert permits(open_bids, page, "USD", 1, NOON_US) == is_permitted
            if is_permitted:
                add(open_bids, page, 1)
    close(open_bids, pages[0], 1)
    assert permits(open_bids, pages[0], "USD", 1, NOON_US) and permits(open_bids, pages[1], "USD", 1, NOON_US)


def test_one_sender_may_reserve_a_whole_budget():
    open_bids = OpenBids()
    left = 100
    while left and open_bids.shares(party("one"), "c", 10, left, NOON_US):
        add(open_bids, party("one"))
        left -= 10
    assert left == 0


def run(rounds, budget, price, senders, exp_rounds, rng):
    """Money charged to each sender that requests a campaign at random. ``senders``: name -> share of bids it shows."""
    open_bids = OpenBids()
    charged = dict.fromkeys(senders, 0)
    pending: list[tuple[int, str, bool, int]] = []  # end, sender, is shown, price
    left = budget
    for number in range(rounds):
        now_us = NOON_US + number * US_PER_S
        for bid in [bid for bid in pending if bid[0] <= number]:
            pending.remove(bid)
            _, name, is_shown, nanos = bid
            if is_shown:
                charged[name] += nanos
                close(open_bids, party(name), nanos, now_us=now_us - 5 * US_PER_S)
            else:
                left += nanos
        for name in rng.sample(list(senders), len(senders)):
            for _ in range(3):
                sender = party(name)
                if left < price:
                    open_bids.want(name, "c", now_us)
                elif open_bids.shares(sender, "c", price, left, now_us):
                    left -= price
                    open_bids.add(sender, "c", "USD", price, now_us + EXP_US, now_us)
                    is_shown = rng.random() < senders[name]
                    pending.append((number + (5 if is_shown else exp_rounds), name, is_shown, price))
                else:
                    open_bids.want(name, "c", now_us)
    return charged


def test_budget_is_spent_by_the_sender_that_shows_though_two_others_request_and_show_nothing():
    """Without shares the two keep a tenth and more of it, as each of their bids is open for 120 s."""
    senders = {"honest": 0.2, "hostile-1": 0.0, "hostile-2": 0.0}
    charged = run(3600, 10_000, 10, senders, 120, random.Random(3))
    alone = run(3600, 10_000, 10, {"honest": 0.2}, 120, random.Random(3))
    assert charged["honest"] >= 0.98 * alone["honest"] > 0, (charged, alone)


def test_senders_that_show_share_a_scarce_budget_in_the_ratio_of_their_rates():
    open_bids = OpenBids()
    often = party("often")
    seldom = party("seldom")
    for sender, shown in ((often, 30), (seldom, 10)):
        for number in range(100):
            add(open_bids, sender, campaign="")
            if number < shown:
                close(open_bids, sender, campaign="")
    money = {"often": 0, "seldom": 0}
    left = 1000
    for _ in range(200):
        for sender in (seldom, often):
            if left >= 10 and open_bids.shares(sender, "c", 10, left, NOON_US):
                add(open_bids, sender)
                money[sender.name] += 10
                left -= 10
            open_bids.want(sender.share, "c", NOON_US)
    assert 230 <= money["seldom"] <= 330 and money["seldom"] + money["often"] >= 990, money


def test_sender_that_is_gone_leaves_its_share_after_a_while():
    open_bids = OpenBids()
    gone = party("gone")
    here = party("here")
    add(open_bids, gone)
    add(open_bids, here)
    assert not open_bids.shares(here, "c", 10, 10, NOON_US), "half of 30"
    later_us = NOON_US + ACTIVE_S * US_PER_S
    assert open_bids.shares(here, "c", 10, 10, later_us)


def test_event_of_a_bid_of_another_worker_ends_one_of_its_own():
    open_bids = OpenBids()
    caller = party("one", max_bids=2)
    add(open_bids, caller, 10, now_us=NOON_US)
    add(open_bids, caller, 20, now_us=NOON_US + US_PER_S)
    close(open_bids, caller, 15, now_us=NOON_US + 50 * US_PER_S)
    assert open_bids.count("one", NOON_US) == 1
    close(open_bids, caller, 15)
    close(open_bids, caller, 15)
    close(open_bids, party("unknown"), 15)
    open_bids.close("", "", "USD", 1, NOON_US, is_shown=True)
    assert open_bids.count("one", NOON_US) == 0


def test_bids_of_senders_without_bounds_are_no_account():
    open_bids = OpenBids()
    add(open_bids, ANYBODY)
    assert permits(open_bids, ANYBODY, "USD", 10**15, NOON_US) and open_bids.has_one_sender(ANYBODY)
    assert not open_bids.has_one_sender(party("one"))


@given(st.lists(st.tuples(st.sampled_from(["add", "close", "sweep"]), st.integers(1, 5), st.integers(1, 9))))
def test_account_is_never_negative_and_is_empty_after_its_last_end(steps):
    account = Account()
    now_s = 0
    for step, seconds, nanos in steps:
        if step == "add":
            account.add(now_s + seconds, nanos)
        elif step == "close":
            account.close(now_s + seconds, nanos)
        else:
            now_s += seconds
            account.sweep(now_s)
        assert account.count >= 0 and account.nanos >= 0 and (account.count > 0 or account.nanos == 0)
    account.sweep(now_s + 100)
    assert (account.count, account.nanos) == (0, 0)
