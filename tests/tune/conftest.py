"""Logs written by hand, down to the microsecond."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from leadre.data.histories import SPLITS, Logs


def make_logs(events, requests=(), *, objects=8, live=None, users=None, titles=None) -> Logs:
    """``events``: (user, at_us, domain, object, value_nanos); ``requests``: (user, at_us, split, objects acted on).

    Ad ``a`` is the only ad of object ``a``; ``live`` objects are live everywhere, by default all of them.
    """
    events = sorted(events, key=lambda event: event[:2])
    requests = sorted(requests, key=lambda request: request[:2])
    count = 1 + max([user for user, *_ in [*events, *requests]], default=0)
    user, at_us, domain, thing, value = (np.array(column, np.int64) for column in zip(*events, strict=True))
    titles = titles or [f"thing {o}" for o in range(objects)]
    acted = [sorted(request[3]) for request in requests]
    live = np.array(sorted(range(objects) if live is None else live), np.int32)

    def offsets(lengths):
        return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)

    return Logs(
        ads=pl.DataFrame({"ad_id": [f"a{o}" for o in range(objects)], "title": titles}),
        objects=pl.DataFrame({"object_id": [f"o{o}" for o in range(objects)], "title": titles}),
        users=users if users is not None else pl.DataFrame({"user_id": [f"u{u}" for u in range(count)]}),
        ad_object_A=np.arange(objects, dtype=np.int32),
        event_offsets=offsets(np.bincount(user, minlength=count)),
        at_us_E=at_us,
        object_E=thing.astype(np.int32),
        ad_E=np.where(domain == 1, thing, -1).astype(np.int32),
        domain_E=domain.astype(np.int8),
        value_nanos_E=value,
        request_E=np.full(len(events), -1, np.int32),
        request_user_R=np.array([request[0] for request in requests], np.int32),
        request_at_us_R=np.array([request[1] for request in requests], np.int64),
        request_placement_R=np.zeros(len(requests), np.int32),
        placements=["top"],
        request_inventory_R=np.zeros(len(requests), np.int32),
        request_split_R=np.array([SPLITS.index(request[2]) for request in requests], np.int8),
        relevant_offsets=offsets([len(things) for things in acted]),
        relevant_ads=np.array([o for things in acted for o in things], np.int32),
        relevant_value_nanos=np.array([1 for things in acted for o in things], np.int64),
        inventory_offsets=np.array([0, len(live)], np.int64),
        inventory_ads=live,
    )


@pytest.fixture
def hand():
    return make_logs
