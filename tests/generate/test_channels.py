"""Every channel under the contract suite, and tests of its own."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from leadre.data import histories
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.run import RIVALS
from leadre.generate.channels import als, contract, itemknn, popularity, repeats, sasrec
from leadre.generate.channels.registry import CHANNELS

# pytest imports by file here, so the suite next door has no package to come from
_spec = importlib.util.spec_from_file_location("contract_channel", Path(__file__).with_name("contract_channel.py"))
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)

SMALL = sasrec.Shape(length=30, width=32, epochs=6, batch=16, learning_rate=5e-3)


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
        users = contract.event_users(logs)
        for ad in range(0, len(logs.ads), 7):
            is_own_E = early & (logs.object_E == logs.ad_object_A[ad])
            assert channel.score_A[ad] == len(np.unique(users[is_own_E]))


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


class TestSasRec(suite.ChannelContract):
    method = contract.Method(
        title="SASRec",
        settings={},
        fit=lambda logs, seed, threads: sasrec.train(logs, seed=seed, threads=threads, shape=SMALL),
        load=sasrec.load,
    )

    def test_leaves_the_global_random_state_alone(self, logs):
        import torch

        state = torch.random.get_rng_state()
        sasrec.train(logs, seed=0, threads=1, shape=sasrec.Shape(length=8, width=8, epochs=1))
        assert (torch.random.get_rng_state() == state).all()

    def test_predicts_from_a_baskets_end_every_item_of_the_next_and_nothing_else(self):
        """Two baskets of three: one predicting place (the first basket's end), three targets."""
        import torch

        window = sasrec._Sequence(np.array([0, 1, 2, 3, 4, 5]), np.array([0, 0, 0, 1, 1, 1]))
        shape = sasrec.Shape(length=4, width=8, dropout=0.0)
        torch.manual_seed(0)
        network = sasrec.Network(7, shape)
        loss = sasrec._loss(network, [window], objects=7)
        state = network(torch.tensor([[0, 1, 2]]))[0, 2]
        log_p = torch.log_softmax(network.logits(state[None]), dim=-1)[0]
        assert loss.item() == pytest.approx(-log_p[3:6].mean().item(), rel=1e-5)

    def test_windows_cover_every_basket_but_the_first_once(self):
        rng = np.random.default_rng(0)
        basket = np.repeat(np.arange(40), rng.integers(1, 9, 40))
        sequence = sasrec._Sequence(np.arange(len(basket)), basket)
        shape = sasrec.Shape(length=16)
        for _ in range(20):
            predicted = []
            for window in [w for batch in sasrec._epoch([sequence], shape, rng) for w in batch]:
                starts = np.flatnonzero(np.diff(window.basket_L)) + 1
                predicted += window.basket_L[starts[starts <= 16]].tolist()
            assert sorted(set(predicted)) == list(range(1, 40))
            assert len(predicted) <= 40 * 2


def test_the_command_line_knows_every_channel():
    assert tuple(CHANNELS) == RIVALS


@pytest.mark.parametrize("name", ["own_frequency", "als", "sasrec"])
def test_a_planted_taste_is_recovered(logs, name, monkeypatch):
    """In this market everybody has a category of their own, so personal channels must beat popularity."""
    monkeypatch.setattr(als, "FACTORS", 8)  # 80 users, not 2,469
    monkeypatch.setattr(als, "REGULARISATION", 0.1)
    monkeypatch.setattr(als, "ALPHA", 1.0)
    requests = logs.requests_of(histories.TEST)
    view = retrieval.build_view(logs, requests, "all")
    key = retrieval.tie_key(logs, 0)
    recall = {}
    for method in ("popularity", name):
        shape_or_all = TestSasRec.method if method == "sasrec" else CHANNELS[method]
        lists = retrieval.tabulate(retrieval.rank(logs, shape_or_all.fit(logs, 0, 1), [view], key_A=key), [view])
        recall[method] = retrieval.measure(view, lists["all"])["recall@5"].mean
    assert recall[name] > 1.3 * recall["popularity"], recall
