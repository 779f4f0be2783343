"""The market has its planted probabilities, and the same seed gives the same tables."""

from __future__ import annotations

import numpy as np

from leadre.data import histories, world
from leadre.data.histories import TRAIN, first_seen


def logs(seed: int, **sizes: int) -> histories.Logs:
    return histories.of_tables(world.read(seed, **sizes), "conversion")


def test_same_seed_same_tables() -> None:
    first, second, other = (world.read(seed, users=20, ads=30, contents=6) for seed in (5, 5, 6))
    for name, frame in first.named().items():
        assert frame.equals(second.named()[name]), name
    assert not first.events.equals(other.events)


def test_preference_and_repeats_are_planted() -> None:
    market = world.draw(seed=1)
    market_logs = logs(1)
    is_preferred = []
    is_repeat = []
    for r in range(len(market_logs.request_user_R)):
        ads, _ = market_logs.relevant(r)
        if market_logs.history_end(r) - market_logs.history(r).start > 20:
            new = first_seen(market_logs, r)
            is_repeat += (~new).tolist()
            is_preferred += (market.category_A[ads[new]] == market.preference_U[market_logs.request_user_R[r]]).tolist()
    assert 0.7 < np.mean(is_preferred) < 0.95  # PREFERRED, and a fifth of the others at random
    assert np.mean(is_repeat) > world.REPEAT  # planted repeats, and random ones


def test_shape_of_the_market() -> None:
    market_logs = logs(0)
    assert (len(market_logs.users), len(market_logs.ads)) == (200, 120)
    assert len(market_logs.objects) < 120 + 30  # some ads share an object
    late = (world.draw(0).first_week_A > 0).mean()
    assert 0.1 < late < 0.3
    assert len(market_logs.requests_of(TRAIN)) > 2000
    sizes = market_logs.inventories.sizes_R
    assert sizes.min() >= 1 and 20 < sizes.mean() < 60
