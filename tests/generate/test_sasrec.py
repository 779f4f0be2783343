"""SASRec under the contract suite of channels, and its windows, losses and weights by hand."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from leadre.data import histories
from leadre.data.moment import of_requests
from leadre.evaluate.retrieval import measure as retrieval
from leadre.generate.channels import contract, popularity
from leadre.generate.channels import sasrec as channels
from leadre.lm import sasrec, sasrec_fit

# pytest imports by file here, so the suite next door has no package to come from
_spec = importlib.util.spec_from_file_location("contract_channel", Path(__file__).with_name("contract_channel.py"))
suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)

SMALL = sasrec.Shape(
    length=30, width=32, layers=1, heads=1, dropout=0.2, epochs=6, batch=16, learning_rate=5e-3, live_weight=1.0
)
SAMPLED = replace(SMALL, live_weight=0.0, negatives=50)


def sasrec_of(shape):
    return contract.Method(
        title="SASRec",
        settings={},
        fit=lambda logs, seed, threads: channels.SasRec(
            fitted=sasrec_fit.train(logs, seed=seed, threads=threads, shape=shape)
        ),
        load=channels.load,
    )


def window(*baskets, first=0):
    """Baskets of objects as a window whose events begin at event ``first`` of a log."""
    offsets = np.cumsum([0, *map(len, baskets)])
    return sasrec_fit.Window(sasrec.Baskets(np.concatenate(baskets), offsets), first + offsets[:-1])


class TestSasRecSampled(suite.ChannelContract):
    method = sasrec_of(SAMPLED)


class TestSasRec(suite.ChannelContract):
    method = sasrec_of(SMALL)

    def test_leaves_the_global_random_state_alone(self, logs):
        state = torch.random.get_rng_state()
        sasrec_fit.train(logs, seed=0, threads=1, shape=replace(SMALL, length=8, width=8, epochs=1))
        assert (torch.random.get_rng_state() == state).all()

    def test_each_basket_predicts_every_object_of_the_next(self):
        batch = sasrec_fit.collate([window([0, 1, 2], [3, 4], [5], first=10), window([6], [7, 8], first=20)])
        assert [(i.object_E.tolist(), i.offsets.tolist()) for i in batch.inputs] == [
            ([0, 1, 2, 3, 4], [0, 3, 5]),
            ([6], [0, 1]),
        ]
        assert (batch.row_N.tolist(), batch.position_N.tolist()) == ([0, 0, 1], [0, 1, 0])
        assert batch.next_N.tolist() == [13, 15, 21]
        assert (batch.source_T.tolist(), batch.target_T.tolist()) == ([0, 0, 1, 2, 2], [3, 4, 5, 7, 8])

    @pytest.mark.parametrize("baskets", [2, 9, 16, 17, 18, 40])
    def test_windows_predict_every_basket_but_the_first_once(self, baskets):
        rng = np.random.default_rng(0)
        user = window(*[np.full(size, n) for n, size in enumerate(rng.integers(1, 9, baskets))], first=5)
        for _ in range(20):
            batch = sasrec_fit.collate(list(sasrec_fit.cut(user, 16, rng)))
            assert max(len(i.offsets) - 1 for i in batch.inputs) <= 16
            assert np.unique(batch.target_T).tolist() == list(range(1, baskets))
            assert batch.next_N.tolist() == user.first_L[1:].tolist()

    def test_order_within_a_basket_does_not_matter_and_that_of_baskets_does(self):
        torch.manual_seed(0)
        network = sasrec.Network(9, SMALL).eval()
        states = [network([window(*b).baskets])[0, -1] for b in ([[1, 2], [3]], [[2, 1], [3]], [[3], [1, 2]])]
        assert torch.allclose(states[0], states[1], atol=1e-6) and not torch.allclose(states[0], states[2], atol=1e-2)

    def test_sampled_loss_over_all_objects_is_the_cross_entropy(self):
        torch.manual_seed(0)
        network = sasrec.Network(20, SMALL)
        batch = sasrec_fit.collate([window([0], [1], [2, 3])])
        state_ND = torch.randn(2, SMALL.width)
        loss = sasrec_fit.sampled_loss(network, state_ND, batch, 20, np.random.default_rng(0))
        log_p = network.logits(state_ND)[batch.source_T].log_softmax(-1)
        assert loss.item() == pytest.approx(-log_p[range(3), batch.target_T].mean().item(), abs=0.06)  # 20 of 19 others

    def test_live_loss_is_over_the_live_objects_with_their_features(self, logs):
        rate = np.linspace(-3, -1, len(logs.objects)).astype(np.float32)
        live = sasrec_fit.LiveRequests(logs, rate)
        network = sasrec.Network(len(logs.objects), SMALL)
        weight = torch.tensor([0.9, 1.1, 0.5, 0.3, 0.2, 1.0, 0.8])
        with torch.no_grad():
            network.weight.copy_(weight)
        next_N = np.flatnonzero(live.request_E[:-1] >= 0)[[3, 30, 60]]
        logits_NO = torch.randn(3, len(logs.objects))
        terms = []
        new_terms = []
        for row, request in enumerate(live.request_E[next_N].tolist()):
            moment = live.moments[request]
            assert moment.is_training and len(moment.history)
            objects = moment.inventory.objects
            features = torch.from_numpy(sasrec.features(moment.history, objects, rate))
            scores = sasrec.combine(logits_NO[row, objects], features, weight)
            acted = np.searchsorted(objects, np.unique(logs.ad_object_A[logs.relevant(request)[0]]))
            is_new = features[:, 0] == 0
            terms += [-scores.log_softmax(-1)[o].item() for o in acted]
            among_new = scores.masked_fill(~is_new, -torch.inf).log_softmax(-1)
            new_terms += [-among_new[o].item() for o in acted if is_new[o]]
        loss = live.loss(network, logits_NO, next_N).item()
        assert new_terms and loss == pytest.approx(np.mean(terms) + np.mean(new_terms), rel=1e-5)

    def test_seen_and_new_objects_have_weights_of_their_own(self):
        features = torch.tensor([[0.7, 0.6, 0.5, -2.0], [0.0, 0.0, 0.0, -3.0]])
        scores = sasrec.combine(torch.tensor([4.0, 5.0]), features, torch.tensor([1.0, 10.0, 1.0, 2.0, 3.0, 0.5, 0.1]))
        assert torch.allclose(scores, torch.tensor([4 + 0.7 + 1.2 + 1.5 - 1.0, 50 - 0.3]))

    def test_weights_are_fitted_on_users_that_the_network_has_not_seen(self, logs, monkeypatch):
        """A network that the fit finds useless gets no weight; the counts of this market get more than at first."""
        network = sasrec.Network(len(logs.objects), SMALL)
        live = sasrec_fit.LiveRequests(logs, np.full(len(logs.objects), -2, np.float32))
        users = list(sasrec_fit._train_baskets(logs))
        torch.manual_seed(0)
        monkeypatch.setattr(network, "logits", lambda state_ND: torch.randn(len(state_ND), len(logs.objects)))
        sasrec_fit.fit_weights(network, live, users, SMALL.length)
        weight = network.weight.detach()
        assert weight[:2].abs().max() < 0.2 and weight[2:5].sum() > 0.5, weight

    def test_log_without_repeats_ranks_seen_objects_last(self, logs, requests, channel):
        assert channel.fitted.repeats and sasrec_fit.has_repeats(logs)
        once = channels.SasRec(fitted=replace(channel.fitted, repeats=False))
        for r, scores in suite.scored(once, logs, requests[:20]).items():
            is_seen = np.isin(logs.ad_object_A[logs.inventory(r)], logs.object_E[logs.history(r)])
            assert scores[is_seen].max(initial=-np.inf) < scores[~is_seen].min()
        first = logs.event_offsets[:-1][np.diff(logs.event_offsets) > 0]
        names = ("at_us_E", "object_E", "ad_E")
        single = replace(logs, event_offsets=np.arange(len(first) + 1), **{n: getattr(logs, n)[first] for n in names})
        assert not sasrec_fit.has_repeats(single)

    def test_weights_of_own_counts_and_rate_are_trained(self, channel):
        weight = channel.fitted.network.weight.detach().numpy()
        assert np.abs(weight - sasrec.FIRST_WEIGHTS).max() > 0.1, weight


def test_features_count_baskets_back_from_the_last_one(logs):
    r = int(logs.requests_of(histories.TEST)[-1])
    history = of_requests(logs)[r].history
    baskets = np.unique(history.at_us_E)
    features = sasrec.features(history, np.arange(len(logs.objects)), np.zeros(len(logs.objects), np.float32))
    for o in np.unique(history.object_E)[:5]:
        ages = len(baskets) - 1 - np.searchsorted(baskets, history.at_us_E[history.object_E == o])
        np.testing.assert_allclose(features[o, :3], [np.log1p((d**ages).sum()) for d in sasrec.DECAYS], rtol=1e-5)
    assert not features[np.setdiff1d(np.arange(len(logs.objects)), history.object_E)].any()


@pytest.mark.parametrize("users", [1, 9])
def test_few_baskets_are_trained_on(hand, users):
    """The only user is not held out. Users with one basket each train nothing."""
    events = [(n % users, 10 + n, 1, n % 3, 0) for n in range(9)]
    logs = hand(events, [(0, 30, "train", [0]), (0, 40, "test", [1])], objects=3)
    logs = replace(logs, objects=logs.objects.with_columns(text="title"))
    network = sasrec_fit.train(logs, seed=0, threads=1, shape=SMALL).network
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    assert bool(network.bias.any()) == (users == 1)  # it begins as zeros


def test_crawler_gives_its_last_visits_alone(hand, monkeypatch):
    monkeypatch.setattr(sasrec_fit, "MAX_VISITS", 4)
    events = [(0, 10 + n, 1, n % 3, 0) for n in range(50)] + [(1, 20 + n, 1, n % 3, 0) for n in range(3)]
    logs = hand(events, [(0, 100, "train", [0]), (0, 101, "test", [1])], objects=3)
    windows = list(sasrec_fit._train_baskets(logs))
    assert [window.first_L.tolist() for window in windows] == [[46, 47, 48, 49], [50, 51, 52]]
    assert windows[0].baskets.object_E.tolist() == [46 % 3, 47 % 3, 48 % 3, 49 % 3]


def test_shape_of_sasrec_follows_the_length_of_histories(logs):
    assert sasrec_fit.shape_of(logs) is sasrec_fit.SHORT
    repeated = np.repeat(np.arange(len(logs.at_us_E)), 60)
    arrays = {name: getattr(logs, name)[repeated] for name in ("at_us_E", "object_E", "ad_E", "domain_E")}
    long = replace(logs, event_offsets=logs.event_offsets * 60, **arrays)
    assert sasrec_fit.shape_of(long) is sasrec_fit.LONG


def test_a_planted_taste_is_recovered(logs):
    """In this market everybody has a category of their own, so SASRec must beat popularity."""
    view = retrieval.build_view(logs, logs.requests_of(histories.TEST), "all")
    key = retrieval.tie_key(logs, 0)
    recall = []
    for method in (popularity.CONVERSIONS, TestSasRec.method):
        lists = retrieval.tabulate(retrieval.rank(logs, method.fit(logs, 0, 1), [view], key_A=key), [view])
        recall.append(retrieval.measure(view, lists["all"])["recall@5"].mean)
    assert recall[1] > 1.3 * recall[0], recall


@pytest.mark.parametrize(
    ("texts", "columns"),
    [
        (["Rose soap", "soap rose!", "steel pan", "pan of steel", "thread"], 3),  # words of two texts, "thread" of one
        (["same", "same", "same"], 0),
        (["one", "two", "three"], 0),
        (["", "", ""], 0),
    ],
)
def test_vectors_of_words_tell_objects_apart(texts, columns):
    logs = SimpleNamespace(objects=pl.DataFrame({"text": texts}))
    vectors = sasrec_fit.word_vectors(logs, 8, seed=0)
    assert vectors.dtype == np.float32 and vectors.shape == (len(texts), columns)
    if columns:
        pairs = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
        assert np.allclose(vectors @ vectors.T, pairs, atol=1e-5)
