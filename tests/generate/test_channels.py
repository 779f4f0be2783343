"""Every channel under the contract suite, and tests of its own."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from leadre.data import collaborative_fit, histories
from leadre.data.user_counts import event_users
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.run import RIVALS
from leadre.generate.channels import als, contract, counts, itemknn, popularity, repeats, tifu_knn, up_cf
from leadre.generate.channels.registry import CHANNELS

# pytest imports by file here, so the suite next door has no package to come from
_spec = importlib.util.spec_from_file_location("contract_channel", Path(__file__).with_name("contract_channel.py"))
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)


class TestPopularity(suite.ChannelContract):
    method = popularity.CONVERSIONS

    def test_counts_conversions_of_training_time(self, logs, channel):
        early = logs.at_us_E < contract.train_end_us(logs)
        for ad in range(0, len(logs.ads), 7):
            assert channel.score_A[ad] == ((logs.ad_E == ad) & early).sum()


class TestPopularityBuyers(suite.ChannelContract):
    method = popularity.BUYERS

    def test_counts_each_user_once_in_both_domains(self, logs, channel):
        early = logs.at_us_E < contract.train_end_us(logs)
        users = event_users(logs)
        for ad in range(0, len(logs.ads), 7):
            is_own_E = early & (logs.object_E == logs.ad_object_A[ad])
            assert channel.score_A[ad] == len(np.unique(users[is_own_E]))


class TestRateWhenLive(suite.ChannelContract):
    method = popularity.RATE

    def test_is_the_smoothed_share_of_requests_with_the_ad_live(self, logs, channel):
        train = logs.requests_of(histories.TRAIN)
        live = np.zeros(len(logs.objects))
        acted = np.zeros(len(logs.objects))
        for r in train.tolist():
            live[np.unique(logs.ad_object_A[logs.inventory(r)])] += 1
            acted[np.unique(logs.ad_object_A[logs.relevant(r)[0]])] += 1
        want = (acted + 2) / (live + 2 / (acted.sum() / live.sum()))
        np.testing.assert_allclose(channel.score_A, want[logs.ad_object_A], rtol=1e-5)


class TestOwnFrequency(suite.ChannelContract):
    method = repeats.PLAIN

    def test_counts_the_history(self, logs, channel):
        for r, scores in suite.scored(channel, logs, logs.requests_of(histories.TEST)[::17]).items():
            history = logs.object_E[logs.history(r)]
            for place in np.flatnonzero(scores)[:5]:
                assert scores[place] == (history == logs.ad_object_A[logs.inventory(r)[place]]).sum()
            assert scores.sum() > 0


class TestOwnFrequencyDecayed(suite.ChannelContract):
    method = repeats.DECAYED

    def test_a_basket_is_one_moment_and_each_later_one_decays(self, logs):
        channel = repeats.Repeats(decay=0.5)
        for r, scores in suite.scored(channel, logs, logs.requests_of(histories.TEST)[::29]).items():
            span = logs.history(r)
            moments = np.unique(logs.at_us_E[span])
            for place, ad in enumerate(logs.inventory(r)):
                own_at_us = logs.at_us_E[span][logs.object_E[span] == logs.ad_object_A[ad]]
                want = sum(0.5 ** (len(moments) - 1 - np.searchsorted(moments, at)) for at in own_at_us)
                assert scores[place] == pytest.approx(want, rel=1e-5)


class TestItemKnn(suite.ChannelContract):
    method = itemknn.ITEM_KNN

    def test_object_is_no_neighbour_of_itself(self, channel):
        assert (channel.similarity_OO.diagonal() == 0).all() and channel.similarity_OO.nnz > 0


class TestAls(suite.ChannelContract):
    method = als.ALS


class TestTifuKnn(suite.ChannelContract):
    method = tifu_knn.TIFU_KNN

    def test_weights_of_five_baskets_in_groups_of_two(self):
        """The oldest group has one basket; groups count .5, 1 / 2 and 1 by age, and their mean is taken."""
        settings = tifu_knn.Settings(group=2, within=0.1, between=0.5)
        age = np.array([4, 3, 2, 1, 0])
        want = np.array([0.25 * 1, 0.5 * 0.1 / 2, 0.5 * 1 / 2, 0.1 / 2, 1 / 2]) / 3
        np.testing.assert_allclose(tifu_knn.weights(settings, age), want)

    def test_blends_own_and_nearest_users(self, logs):
        """With one neighbour, the score of an object is own + neighbour; the neighbour is another user."""
        channel = tifu_knn.fit(logs, 0, 1)
        vectors = channel.vectors_UO.toarray()
        r = int(logs.requests_of(histories.TEST)[0])
        alone = tifu_knn.TifuKnn(vectors_UO=channel.vectors_UO, settings=tifu_knn.Settings(alpha=1.0, neighbours=1))
        other = tifu_knn.TifuKnn(vectors_UO=channel.vectors_UO, settings=tifu_knn.Settings(alpha=0.0, neighbours=1))
        own = suite.scored(alone, logs, np.array([r]))[r]
        near = suite.scored(other, logs, np.array([r]))[r]
        span = logs.history(r)
        age = np.unique(logs.at_us_E[span])[::-1]
        vector = np.zeros(len(logs.objects))
        for rank, at in enumerate(age):
            weight = tifu_knn.weights(alone.settings, np.arange(len(age)))[rank]
            vector[np.unique(logs.object_E[span][logs.at_us_E[span] == at])] += weight
        live = logs.ad_object_A[logs.inventory(r)]
        np.testing.assert_allclose(own, vector[live], rtol=1e-5)
        distance = ((vectors - vector) ** 2).sum(axis=1)
        distance[logs.request_user_R[r]] = np.inf
        np.testing.assert_allclose(near, vectors[distance.argmin()][live], rtol=1e-5)


class TestUpCf(suite.ChannelContract):
    method = up_cf.UP_CF

    def test_similarity_by_hand(self):
        settings = up_cf.Settings(asymmetry=0.25, locality=2.0)
        got = up_cf.similarity(np.array([[2.0]], np.float32), np.array([16]), np.array([81.0], np.float32), settings)
        assert got[0, 0] == pytest.approx((2 / (2 * 27)) ** 2)

    def test_own_frequency_in_the_last_baskets(self, logs, channel):
        """With a locality that no other user reaches, the score is the user's own recent frequency."""
        alone = up_cf.UpCf(
            frequency_UO=channel.frequency_UO, seen_UO=channel.seen_UO, settings=up_cf.Settings(recent=3, locality=400)
        )
        r = int(logs.requests_of(histories.TEST)[0])
        span = logs.history(r)
        at = np.unique(logs.at_us_E[span])[-3:]
        live = logs.ad_object_A[logs.inventory(r)]
        own = [sum(o in logs.object_E[span][logs.at_us_E[span] == instant] for instant in at) / len(at) for o in live]
        np.testing.assert_allclose(suite.scored(alone, logs, np.array([r]))[r], own, atol=1e-5)
        assert max(own) > 0

    def test_a_users_training_row_is_not_counted_twice(self, logs, channel):
        r = int(logs.requests_of(histories.TEST)[0])
        user = int(logs.request_user_R[r])
        changed = channel.frequency_UO.tolil(copy=True)
        changed[user] = 100.0
        other = up_cf.UpCf(frequency_UO=changed.tocsr(), seen_UO=channel.seen_UO, settings=channel.settings)
        np.testing.assert_allclose(
            suite.scored(other, logs, np.array([r]))[r], suite.scored(channel, logs, np.array([r]))[r]
        )


class TestCountsNetwork(suite.ChannelContract):
    method = counts.COUNTS_NETWORK


def test_the_command_line_knows_every_channel():
    assert tuple(CHANNELS) == RIVALS


@pytest.mark.parametrize("name", ["own_frequency", "als", "tifu_knn", "up_cf", "counts_network"])
def test_a_planted_taste_is_recovered(logs, name, monkeypatch):
    """In this market everybody has a category of their own, so personal channels must beat popularity."""
    monkeypatch.setattr(collaborative_fit, "FACTORS", 8)  # 80 users, not 2,469
    monkeypatch.setattr(collaborative_fit, "REGULARISATION", 0.1)
    monkeypatch.setattr(collaborative_fit, "ALPHA", 1.0)
    requests = logs.requests_of(histories.TEST)
    view = retrieval.build_view(logs, requests, "all")
    key = retrieval.tie_key(logs, 0)
    recall = {}
    for method in ("popularity", name):
        lists = retrieval.tabulate(retrieval.rank(logs, CHANNELS[method].fit(logs, 0, 1), [view], key_A=key), [view])
        recall[method] = retrieval.measure(view, lists["all"])["recall@5"].mean
    assert recall[name] > 1.3 * recall["popularity"], recall
