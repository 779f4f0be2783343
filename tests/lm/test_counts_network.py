"""The counts network: its loss against hand-worked numbers, sampling of large inventories, and a law that it learns."""

import dataclasses

import numpy as np
import pytest
import torch

from leadre.data import collaborative_fit
from leadre.data import counts as features
from leadre.data.histories import train_end_us
from leadre.errors import InputError
from leadre.lm import counts, counts_fit


def test_loss_is_the_mean_log_probability_of_the_answers_by_visit():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.6, 0.2, 0.2]]))
    answers = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    first = -(np.log(0.5) + np.log(0.25)) / 2
    second = -np.log(0.1)
    assert counts.cross_entropy(logits, answers, 0.0).item() == pytest.approx((first + second) / 2)
    assert counts.cross_entropy(logits, answers, 1.0).item() == pytest.approx((2 * first + second) / 3)


def test_loss_leaves_out_objects_that_are_no_candidates():
    logits = torch.tensor([[1.0, 1.0, -torch.inf]], requires_grad=True)
    loss = counts.cross_entropy(logits, torch.tensor([[True, False, False]]), 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert torch.isfinite(logits.grad).all()


def test_loss_without_answers_is_zero():
    assert counts.cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), 0.5).item() == 0


def test_drawn_rows_keep_the_answers_and_represent_the_inventory():
    acted = np.zeros(5_000, bool)
    acted[[7, 4_000]] = True
    rows, log_share = counts._drawn(acted, np.random.default_rng(0))
    assert acted[rows].sum() == 2 and len(rows) == counts.MAX_ROWS_OF_A_VISIT + 2
    assert (np.diff(rows) > 0).all()
    assert np.exp(log_share).sum() == pytest.approx(5_000, rel=1e-4)
    small, log_one = counts._drawn(acted[:300], np.random.default_rng(0))
    assert len(small) == 300 and not log_one.any()


def product_visits(seed, visits=300, live=20):
    """Visits in which the object with the largest product of features 0 and 1 is acted on: no linear law finds it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(visits, live, 3)).astype(np.float32)
    best = (x[:, :, 0] * x[:, :, 1]).argmax(axis=1)
    acted = np.zeros((visits, live), bool)
    acted[np.arange(visits), best] = True
    return counts.Examples(
        x_NF=x.reshape(-1, 3),
        offsets=np.arange(visits + 1) * live,
        acted_N=acted.ravel(),
        new_N=np.ones(visits * live, bool),
        log_share_N=np.zeros(visits * live, np.float32),
    )


def forward(network, x_NF):
    x = counts.standardise(x_NF, network.centre_F, network.scale_F)
    for weight, bias in network.layers[:-1]:
        x = np.maximum(x @ weight.T + bias, 0)
    weight, bias = network.layers[-1]
    return (x @ weight.T + bias)[:, 0]


def test_learns_an_interaction_of_two_features():
    training = counts.Training(epochs=30, batch=16, learning_rate=5e-3)
    network = counts.fit(product_visits(0), None, training, 0)
    unseen = product_visits(1)
    best = forward(network, unseen.x_NF).reshape(300, 20).argmax(axis=1)
    assert unseen.acted_N.reshape(300, 20)[np.arange(300), best].mean() > 0.7


def test_new_weight_trains_the_order_of_new_objects():
    """Seen objects follow feature 0, new ones feature 2; without a weight, rare new answers teach less."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20, 3)).astype(np.float32)
    x[:, :10, 1] = 3.0  # seen
    x[:, 10:, 1] = -3.0
    acted = np.zeros((400, 20), bool)
    acted[np.arange(400), x[:, :10, 0].argmax(axis=1)] = True
    acted[np.arange(0, 400, 20), 10 + x[::20, 10:, 2].argmax(axis=1)] = True
    examples = counts.Examples(
        x_NF=x.reshape(-1, 3),
        offsets=np.arange(401) * 20,
        acted_N=acted.ravel(),
        new_N=(x[:, :, 1] < 0).ravel(),
        log_share_N=np.zeros(8_000, np.float32),
    )
    right = []
    for weight in (0.0, 3.0):
        network = counts.fit(examples, None, counts.Training(epochs=8, batch=16, new_weight=weight), 0)
        best = forward(network, examples.x_NF).reshape(400, 20)[:, 10:].argmax(axis=1)
        right.append((best == x[:, 10:, 2].argmax(axis=1)).mean())
    assert right[1] > right[0] + 0.1


def test_scores_by_numpy_are_those_of_the_trained_network(small):
    visits = [(moment, moment.inventory.objects[:2]) for moment in small.moments[:6]]
    tables = features.fit(small.logs, 0, collaborative_fit.fit(small.logs, train_end_us(small.logs), 0, 1))
    examples = counts.examples(visits, tables, np.random.default_rng(0))
    network = counts.fit(examples, tables, counts.Training(epochs=1), 0)
    together = forward(network, examples.x_NF)
    for v, (moment, _) in enumerate(visits):
        np.testing.assert_allclose(
            network.scores(moment), together[examples.offsets[v] : examples.offsets[v + 1]], atol=1e-5
        )


def test_tables_that_hold_a_training_visit_are_refused(small):
    moment = small.moments[5]
    tables = features.fit(small.logs, moment.at_us + 1, collaborative_fit.fit(small.logs, moment.at_us, 0, 1))
    with pytest.raises(AssertionError, match="own time"):
        counts.examples([(moment, moment.inventory.objects[:1])], tables, np.random.default_rng(0))


def test_training_visits_follow_their_tables(small):
    logs = small.logs
    at_us = np.sort(logs.request_at_us_R[logs.requests_of(0)])
    requests = counts_fit.training_visits(logs, int(at_us[len(at_us) // 2]), np.random.default_rng(0))
    assert len(requests) and (logs.request_at_us_R[requests] >= at_us[len(at_us) // 2]).all()
    assert (logs.request_split_R[requests] == 0).all()


def test_a_log_without_training_visits_after_the_tables_is_refused(hand):
    events = [(0, 1, 1, 0, 0), (0, 99, 1, 1, 0)]
    for requests, words in (
        ([(0, 1, "train", []), (0, 99, "test", [1])], "positive action"),
        ([(0, 99, "test", [1])], "no training request"),
    ):
        with pytest.raises(InputError, match=words):
            counts_fit.fit(hand(events, requests), 0, 1)


def test_tables_end_by_requests_not_by_time(hand):
    """The times of a leave-one-out log are positions, and its held-out time is far away."""
    requests = [(0, at, "train", [0]) for at in range(1, 11)]
    logs = hand([(0, at, 1, 0, 0) for at in range(1, 11)], [*requests, (0, 10**9, "test", [0])])
    assert counts_fit.tables_end_us(logs) == 7
    assert len(counts_fit.training_visits(logs, 7, np.random.default_rng(0))) == 4


def test_leaves_the_global_random_state_alone():
    state = torch.random.get_rng_state()
    counts.fit(product_visits(0, visits=20), None, counts.Training(epochs=1), 0)
    assert (torch.random.get_rng_state() == state).all()


def test_training_is_configured_in_one_place():
    assert set(dataclasses.asdict(counts.Training())) <= set(counts_fit.SETTINGS)


def test_mixture_weighs_a_network_and_a_sequence_model_by_the_answers():
    """A network that knows nothing beside a sequence model of half the true logits: 0 and 2."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3_000, 20)).astype(np.float32)
    noise = rng.normal(size=logits.size).astype(np.float32)
    answer = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    acted = np.zeros(logits.shape, bool)
    acted[np.arange(len(logits)), answer] = True
    visits = counts.Examples(
        x_NF=np.stack([noise, logits.ravel() / 2], axis=1),
        offsets=np.arange(len(logits) + 1) * 20,
        acted_N=acted.ravel(),
        new_N=np.ones(logits.size, bool),
        log_share_N=np.zeros(logits.size, np.float32),
    )
    first_feature = (np.array([[1.0, 0.0]], np.float32), np.zeros(1, np.float32))
    network = counts.CountsNetwork(
        tables=None, sequence=object(), centre_F=np.zeros(2), scale_F=np.ones(2), layers=(first_feature,)
    )
    mixture = counts.mixed(network, visits, counts.Training()).mixture
    assert mixture == pytest.approx((0, 2), abs=0.1)
    mixed = dataclasses.replace(network, mixture=mixture).forward(visits.x_NF)
    np.testing.assert_allclose(mixed, mixture[0] * noise + mixture[1] * logits.ravel() / 2, rtol=1e-4, atol=1e-5)


def test_few_visits_move_the_mixture_little():
    """Two visits in which the favourite of the sequence model is right do not make it certain."""
    x_NF = np.zeros((40, 2), np.float32)
    x_NF[[0, 20], 1] = 1.0
    acted = np.zeros(40, bool)
    acted[[0, 20]] = True
    visits = counts.Examples(
        x_NF=x_NF, offsets=np.array([0, 20, 40]), acted_N=acted, new_N=~acted, log_share_N=np.zeros(40, np.float32)
    )
    layer = (np.array([[1.0, 0.0]], np.float32), np.zeros(1, np.float32))
    network = counts.CountsNetwork(
        tables=None, sequence=object(), centre_F=np.zeros(2), scale_F=np.ones(2), layers=(layer,)
    )
    own, sequence = counts.mixed(network, visits, counts.Training()).mixture
    assert own == pytest.approx(0.5, abs=0.01) and 0.5 < sequence < 1
