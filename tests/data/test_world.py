"""The market keeps its laws, and the same seed draws the same market."""

from __future__ import annotations

import numpy as np

from leadre.data import histories, world
from leadre.data.histories import TRAIN, first_seen


def logs(seed: int, **sizes: int) -> histories.Logs:
    frames = {name: frame for name, frame in world.read(seed, **sizes).named().items() if name != "bad_rows"}
    return histories.build(**frames, positive="conversion")


def test_same_seed_same_tables() -> None:
    one, two, other = (world.read(seed, users=20, ads=30, contents=6) for seed in (5, 5, 6))
    for name, frame in one.named().items():
        assert frame.equals(two.named()[name]), name
    assert not one.events.equals(other.events)


def test_preference_and_repeats_are_planted() -> None:
    market, seen = world.draw(seed=1), logs(1)
    liked, again = [], []
    for r in range(len(seen.request_user_R)):
        ads, _ = seen.relevant(r)
        if seen.history_end(r) - seen.history(r).start > 20:
            new = first_seen(seen, r)
            again += (~new).tolist()
            liked += (market.category_A[ads[new]] == market.preference_U[seen.request_user_R[r]]).tolist()
    assert 0.7 < np.mean(liked) < 0.95  # PREFERRED, and a fifth of the others at random
    assert np.mean(again) > world.REPEAT  # planted, and chance beside it


def test_shape_of_the_market() -> None:
    seen = logs(0)
    assert (len(seen.users), len(seen.ads)) == (200, 120)
    assert len(seen.objects) < 120 + 30  # some ads share an object
    late = (world.draw(0).first_week_A > 0).mean()
    assert 0.1 < late < 0.3
    assert len(seen.requests_of(TRAIN)) > 2000
    sizes = np.diff(seen.inventory_offsets)
    assert sizes.min() >= 1 and 20 < sizes.mean() < 60
