"""The contract suite of retrieval channels; test_channels.py runs it for each channel."""

import dataclasses

import numpy as np
import pytest

from leadre.data import histories
from leadre.data.histories import Logs, train_end_us
from leadre.data.moment import of_requests
from leadre.generate.channels.contract import Channel, Method


def scored(channel: Channel, logs: Logs, requests: np.ndarray) -> dict[int, np.ndarray]:
    return dict(zip(requests.tolist(), channel.score(of_requests(logs).at(requests)), strict=True))


def without_future(logs: Logs, r: int) -> Logs:
    """The same log with every event of the request's user at or after its time turned into another object."""
    user = logs.request_user_R[r]
    end = logs.history_end(r)
    objects = logs.object_E.copy()
    span = slice(end, logs.event_offsets[user + 1])
    objects[span] = (objects[span] + 1) % len(logs.objects)
    return dataclasses.replace(logs, object_E=objects)


class ChannelContract:
    """Subclasses give `method`."""

    method: Method

    @pytest.fixture(scope="class")
    @classmethod
    def channel(cls, logs):
        return cls.method.fit(logs, 3, 1)

    @pytest.fixture(scope="class")
    @classmethod
    def requests(cls, logs):
        return logs.requests_of(histories.TEST)

    def test_scores_align_with_the_inventory(self, logs, channel, requests):
        scores_R = list(channel.score(of_requests(logs).at(requests)))
        for r, scores in zip(requests.tolist(), scores_R, strict=True):
            assert scores.shape == logs.inventory(r).shape and scores.dtype == np.float32
            assert np.isfinite(scores).all()

    def test_no_requests_no_scores(self, logs, channel):
        assert list(channel.score([])) == []

    def test_a_request_scores_the_same_alone_and_in_a_batch(self, logs, channel, requests):
        together = scored(channel, logs, requests[:40])
        for r in requests[:40:13]:
            np.testing.assert_allclose(scored(channel, logs, np.array([r]))[int(r)], together[int(r)], atol=1e-4)

    def test_survives_the_disk(self, logs, channel, requests, tmp_path):
        channel.save(tmp_path)
        assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors"}
        again = type(self).method.load(tmp_path)
        before = scored(channel, logs, requests[:30])
        after = scored(again, logs, requests[:30])
        for r, scores in before.items():
            np.testing.assert_allclose(after[r], scores, atol=1e-5)

    def test_same_seed_same_scores(self, logs, channel, requests):
        again = type(self).method.fit(logs, 3, 1)
        before = scored(channel, logs, requests[:30])
        after = scored(again, logs, requests[:30])
        for r, scores in before.items():
            np.testing.assert_allclose(after[r], scores, atol=1e-4)

    def test_fitting_does_not_see_held_out_time(self, logs, channel, requests):
        late = logs.at_us_E >= train_end_us(logs)
        objects = np.where(late, (logs.object_E + 1) % len(logs.objects), logs.object_E).astype(np.int32)
        ads = np.where(late & (logs.ad_E >= 0), (logs.ad_E + 1) % len(logs.ads), logs.ad_E).astype(np.int32)
        other = type(self).method.fit(dataclasses.replace(logs, object_E=objects, ad_E=ads), 3, 1)
        before = scored(channel, logs, requests[:30])
        after = scored(other, logs, requests[:30])
        for r, scores in before.items():
            np.testing.assert_allclose(after[r], scores, atol=1e-4)

    def test_scoring_does_not_see_the_visit_or_what_follows(self, logs, channel, requests):
        for r in requests[::29]:
            before = scored(channel, logs, np.array([r]))[int(r)]
            after = scored(channel, without_future(logs, int(r)), np.array([r]))[int(r)]
            np.testing.assert_array_equal(after, before)

    def test_a_user_without_a_history_gets_scores(self, logs, channel, requests):
        r = int(requests[0])
        # the request moves to before everything its user did
        at_us = logs.request_at_us_R.copy()
        at_us[r] = 0
        stranger = dataclasses.replace(logs, request_at_us_R=at_us)
        assert stranger.history(r).start == stranger.history(r).stop
        scores = scored(channel, stranger, np.array([r]))[r]
        assert scores.shape == logs.inventory(r).shape and np.isfinite(scores).all()
