"""Learning from label proportions: sums of bags, messages against all labelings, and no label of a row in training."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit

from leadre.data.worlds import bags as law
from leadre.errors import InputError
from leadre.rank import measure, planted, train
from leadre.rank.inputs import collate
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.models.registry import RANKERS
from leadre.rank.proportions import bags, beliefs, learn, losses, neighbours
from leadre.rank.proportions.bags import BagRows
from leadre.rank.proportions.beliefs import Propagation
from leadre.rank.proportions.learn import Proportions
from leadre.rank.proportions.neighbours import Graph, Vectors
from leadre.rank.train import Training

from .contract import drawn

LAW = law.draw(1, fields=4, values=8)
SPEC = planted.spec_of(LAW, 4)
TRAIN, STOP, TEST = (LAW.rows(requests, 8, seed) for seed, requests in enumerate((400, 100, 400)))
OTHERS = ("esmm", "finalmlp_split", "hcn", "infnet", "two_tower")  # several networks or dot products at their end
NETWORK = DcnV2(depth=0, deep=(16,))
TRAINING = Training(epochs=4, patience=4, learning_rate=1e-2, table_rate=3e-2)
EXACT = Propagation(agreement=1.0, is_neutral=False, rounds=300, tolerance=1e-12)


def hidden(part, size, kind="iid", seed=0):
    return bags.hide(planted.examples(part), law.bags(part, kind, size, seed))


def labels(rows, seed=0):
    """Any labels with the sums of the bags."""
    return beliefs.likeliest(rows, np.random.default_rng(seed).random(len(rows.bag_N)))


def unary(kernel, rate):
    """The factor of each label with which a neighbour at the rate sends nothing, found numerically."""
    odds = rate / (1 - rate)

    def sent(c):
        return np.log((odds * np.exp(-c) + np.exp(-kernel)) / (odds * np.exp(-c - kernel) + 1)) - c

    return optimize.brentq(sent, -10, 10)


def of_all_labelings(bag_N, sum_B, graph, rate=0.5):
    """Marginals by the definition of the law, with an agreement of 1; neighbours at ``rate`` are neutral."""
    unary_E = np.array([unary(kernel, rate) for kernel in graph.kernel_E])
    total = 0.0
    marginal_N = np.zeros(len(bag_N))
    for labeling in itertools.product((0, 1), repeat=len(bag_N)):
        y = np.array(labeling)
        if (np.bincount(bag_N, y, len(sum_B)) == sum_B).all():
            differs_E = y[graph.first_E] != y[graph.second_E]
            actions_E = y[graph.first_E] + y[graph.second_E]
            weight = np.exp(-(graph.kernel_E * differs_E + unary_E * actions_E).sum())
            total += weight
            marginal_N += weight * y
    return marginal_N / total


def pairs(*edges):
    first, second, kernel = (np.array(column) for column in zip(*edges, strict=True)) if edges else (np.zeros(0),) * 3
    return Graph(first_E=first.astype(np.int64), second_E=second.astype(np.int64), kernel_E=kernel.astype(float))


def without_examples(bag_N, sum_B):
    return BagRows(examples=[], bag_N=np.array(bag_N), sum_B=np.array(sum_B), weight_B=np.ones(len(sum_B)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-60, 60), min_size=1, max_size=8), st.data())
def test_messages_of_a_count_are_those_of_all_labelings(log_odds, data):
    """The marginal of a row in one bag, whose rows have log-odds of their own."""
    total = data.draw(st.integers(0, len(log_odds)))
    labelings = np.array([y for y in itertools.product((0, 1), repeat=len(log_odds)) if sum(y) == total])
    log_weight = labelings @ np.array(log_odds)
    weight = np.exp(log_weight - log_weight.max())
    expected = weight @ labelings / weight.sum()
    message = beliefs.count_messages(np.array([[*log_odds, -np.inf]]), np.array([total]))[0, :-1]
    np.testing.assert_allclose(expit(message + log_odds), expected, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_marginals_are_those_of_all_labelings_where_bags_and_neighbours_form_a_tree(data):
    """A bag is one node of the tree: each further bag has one edge to a row of a bag before it."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    sums = [data.draw(st.integers(0, size)) for size in sizes]
    starts = np.cumsum([0, *sizes])
    edges = [
        (
            data.draw(st.integers(0, int(starts[bag]) - 1)),
            data.draw(st.integers(int(starts[bag]), int(starts[bag + 1]) - 1)),
            data.draw(st.floats(0.1, 3)),
        )
        for bag in range(1, len(sizes))
    ]
    rows = without_examples(np.repeat(np.arange(len(sizes)), sizes), sums)
    marginal_N = beliefs.marginals(rows, pairs(*edges), EXACT)
    np.testing.assert_allclose(marginal_N, of_all_labelings(rows.bag_N, rows.sum_B, pairs(*edges)), atol=1e-6)
    if 0 < rows.rate < 1:
        neutral = beliefs.marginals(rows, pairs(*edges), dataclasses.replace(EXACT, is_neutral=True))
        expected = of_all_labelings(rows.bag_N, rows.sum_B, pairs(*edges), rows.rate)
        np.testing.assert_allclose(neutral, expected, atol=1e-6)


def test_one_bag_of_thousands_keeps_its_sum_and_stays_finite():
    log_odds = np.random.default_rng(0).normal(0, 30, (2, 2048))
    for total in (1, 100, 1024, 2000, 2047):
        message = beliefs.count_messages(log_odds, np.array([total, 1]))
        p = expit(message + log_odds)
        assert np.isfinite(message).all()
        np.testing.assert_allclose(p.sum(1), [total, 1], rtol=1e-6)


def test_neighbours_pull_the_marginals_of_a_bag_apart():
    """Row 0 is near rows that act, row 1 near rows that do not; chance alone leaves both at one half."""
    rows = without_examples([0, 0, 1, 1, 2, 2], [1, 2, 0])
    near = pairs((0, 2, 1.0), (0, 3, 1.0), (1, 4, 1.0), (1, 5, 1.0))
    assert beliefs.marginals(rows, pairs(), EXACT)[0] == pytest.approx(0.5)
    marginal_N = beliefs.marginals(rows, near, EXACT)
    assert marginal_N[0] > 0.8 and marginal_N[0] + marginal_N[1] == pytest.approx(1)
    np.testing.assert_array_equal(beliefs.likeliest(rows, marginal_N), [1, 0, 1, 1, 0, 0])


def test_many_neighbours_alone_make_no_action_less_likely():
    """All bags have the same share, so no row should differ; without neutral pairs row 0 does, for its degree."""
    rows = without_examples(np.repeat(np.arange(8), 4), [1] * 8)
    star = pairs(*((0, 4 * bag, 1.0) for bag in range(1, 8)))
    neutral = dataclasses.replace(EXACT, is_neutral=True)
    np.testing.assert_allclose(beliefs.marginals(rows, star, neutral), 0.25, atol=1e-6)
    assert beliefs.marginals(rows, star, EXACT)[0] < 0.15


def test_bags_of_the_law_have_their_size_and_shares_differ_by_their_key():
    spread = {}
    for kind in ("iid", "cluster", "key"):
        bag_N = law.bags(TRAIN, kind, 64, seed=0)
        assert (np.bincount(bag_N) == 64).all()
        spread[kind] = np.std(np.bincount(bag_N, TRAIN.label_RC.ravel()) / 64)
    rate = TRAIN.label_RC.mean()
    assert spread["iid"] < 1.4 * (rate * (1 - rate) / 64) ** 0.5 < spread["cluster"]
    assert spread["key"] > 1.5 * spread["iid"]


def test_labels_of_the_law_have_its_log_odds():
    many = LAW.rows(4000, 8, seed=9)
    p = expit(many.logit_RC)
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 1)):
        part = (p >= low) & (p < high)
        assert part.sum() > 500 and abs(many.label_RC[part].mean() - p[part].mean()) < 0.02


def test_loss_of_bags_of_one_row_is_the_log_loss_and_soft_labels_are_the_labels():
    singles = hidden(TEST, 1)
    label_N = TEST.label_RC.ravel()
    np.testing.assert_allclose(losses.easy_targets(singles), label_N, atol=1e-12)
    logit_N = torch.randn(len(label_N), generator=torch.manual_seed(0))
    target_N = torch.from_numpy(label_N).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit_N, target_N, reduction="sum")
    loss = losses.bag_loss(logit_N, singles.bag_N, singles.sum_B, singles.weight_B)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_loss_of_a_bag_is_that_of_its_share_and_mean():
    p = np.array([0.1, 0.8, 0.2, 0.6, 0.6])
    logit_N = torch.from_numpy(np.log(p / (1 - p)))
    loss = losses.bag_loss(logit_N, np.array([0, 1, 0, 1, 0]), np.array([1, 2]), np.array([1.0, 0.5]))
    assert float(loss) == pytest.approx(-(np.log(0.3) + 2 * np.log(0.7)) - 0.5 * 2 * np.log(0.7), rel=1e-6)


def test_soft_labels_of_easyllp_have_the_mean_of_the_labels():
    part = hidden(TRAIN, 16)
    target_N = losses.easy_targets(part)
    assert target_N.mean() == pytest.approx(part.rate) and part.rate == pytest.approx(TRAIN.label_RC.mean())
    is_label_N = TRAIN.label_RC.ravel()
    assert target_N[is_label_N].mean() - target_N[~is_label_N].mean() == pytest.approx(1, abs=0.2)


def test_blocks_have_every_row_once_in_its_bag():
    part = hidden(TRAIN, 50)
    target_N = np.arange(len(part.bag_N), dtype=float)
    chosen = bags.blocks(part, target_N, first_bag=7)
    seen_N = np.concatenate([row.target_CH[:, 0] for block in chosen for row in block]).astype(int)
    np.testing.assert_array_equal(np.sort(seen_N), target_N)
    assert not any(row.label_CH.any() for block in chosen for row in block), "no label of a row is left"
    for block in chosen:
        rows_M = np.concatenate([row.target_CH[:, 0] for row in block]).astype(int)
        bag_M = np.concatenate([row.bag_C for row in block])
        assert len(bag_M) <= bags.BLOCK_ROWS + 50
        np.testing.assert_array_equal(np.unique(bag_M, return_counts=True)[1], 50)
        np.testing.assert_array_equal(bag_M, 7 + part.bag_N[rows_M])
        fields = np.concatenate([row.inputs.field_CK for row in block])
        np.testing.assert_array_equal(fields, TRAIN.candidate_RCK.reshape(-1, 2)[rows_M])


def test_bags_without_an_action_are_sampled_by_their_weight():
    every = hidden(TRAIN, 8)
    few = bags.hide(planted.examples(TRAIN), law.bags(TRAIN, "iid", 8, 0), empty=0.25, seed=3)
    assert few.sum_B.sum() == every.sum_B.sum() and len(few.sum_B) < len(every.sum_B)
    assert set(few.weight_B[few.sum_B == 0]) == {4.0} and set(few.weight_B[few.sum_B > 0]) == {1.0}
    assert len(few.bag_N) == sum(len(row.ads) for row in few.examples) == few.size_B.sum()
    assert few.rate == pytest.approx(every.rate, rel=0.15)


@pytest.mark.parametrize("method", ["dllp", "easyllp", "bp"])
def test_labels_moved_within_bags_leave_the_same_bytes(method):
    """Training and early stop read the sums alone, so any labels with these sums give the same ranker."""

    def trained(parts):
        hid = [bags.hide(part, bag_N) for part, bag_N in zip(parts, bags_of, strict=True)]
        params, curve = learn.fit(
            NETWORK, SPEC, *hid, dataclasses.replace(TRAINING, epochs=1), Proportions(method=method), 0
        )
        return {name: values.tobytes() for name, values in params.items()}, curve

    drawn_rows = [LAW.rows(100, 8, seed) for seed in (5, 6)]
    bags_of = [law.bags(part, "iid", 20, seed) for seed, part in enumerate(drawn_rows)]
    plain = [planted.examples(part) for part in drawn_rows]
    moved = []
    other = []
    for part, bag_N in zip(plain, bags_of, strict=True):
        label_N = labels(bags.hide(part, bag_N), seed=5).astype(bool)
        assert (label_N != np.concatenate([row.label_CH[:, 0] for row in part])).any()
        moved.append(_with_labels(part, label_N))
        other.append(_with_labels(part, np.random.default_rng(0).permutation(label_N)))
    params, curve = trained(plain)
    assert trained(moved) == (params, curve)
    assert trained(other)[0] != params, "other sums give another ranker"


def _with_labels(part, label_N):
    return [
        dataclasses.replace(row, label_CH=label_C[:, None])
        for row, label_C in zip(part, label_N.reshape(len(part), -1), strict=True)
    ]


@pytest.mark.parametrize(
    "options",
    [Proportions(method="dllp"), Proportions(method="easyllp"), Proportions(), Proportions(pseudo="soft")],
    ids=["dllp", "easyllp", "bp", "bp-soft"],
)
def test_order_of_rows_is_learnt_from_the_sums_of_small_bags(options):
    params, curve = learn.fit(NETWORK, SPEC, hidden(TRAIN, 4), hidden(STOP, 4), TRAINING, options, 0)
    batch = collate([row.inputs for row in planted.examples(TEST)])
    score = train.logits(NETWORK, SPEC, params, batch)[..., 0].ravel()
    possible = measure.auc(TEST.label_RC.ravel(), TEST.logit_RC.ravel())
    assert measure.auc(TEST.label_RC.ravel(), score) - 0.5 > 0.5 * (possible - 0.5)
    assert curve.valid[-1] < np.log(2), "the loss of bags is in nats a row"


@pytest.mark.parametrize("name", [name for name in RANKERS if name not in OTHERS])
def test_hidden_units_of_a_ranker_give_its_scores_by_its_last_layers(market, examples, name):
    ranker = RANKERS[name]
    params = drawn(ranker, market.spec)
    if neighbours.BILINEAR in params:
        params[neighbours.BILINEAR] = np.zeros_like(params[neighbours.BILINEAR])
    vectors = neighbours.hidden(ranker, market.spec, params, examples[:8])
    lasts = [neighbours._last(params, last) for last in neighbours.OUTPUTS if f"{last}.0.weight" in params]
    weight = np.concatenate([params[f"{last}.weight"] for last in lasts])
    logit = (vectors.number_ND @ weight)[:, 0] + sum(params[f"{last}.bias"] for last in lasts)
    batch = collate([row.inputs for row in examples[:8]])
    expected = train.logits(ranker, market.spec, params, batch)[batch.mask_RC][:, 0]
    np.testing.assert_allclose(logit, expected, atol=2e-3)


def test_a_ranker_without_a_last_layer_is_refused():
    with pytest.raises(InputError, match="no last hidden layer"):
        neighbours.hidden(RANKERS["two_tower"], SPEC, {}, planted.examples(TEST))


def test_neighbours_are_the_rows_of_the_highest_cosine(monkeypatch):
    monkeypatch.setattr(neighbours, "SEARCHED", 7)
    examples = planted.examples(LAW.rows(5, 8, seed=3))
    vectors = neighbours.features(SPEC, examples)
    dense = np.concatenate([vectors.number_ND, vectors.category_NV.toarray()], axis=1)
    for tested in (vectors, Vectors(number_ND=dense)):
        graph = tested.search(3, seed=0)
        cosine = dense @ dense.T / np.outer(*[np.linalg.norm(dense, axis=1)] * 2)
        np.testing.assert_allclose(graph.kernel_E, np.exp(cosine[graph.first_E, graph.second_E] - 1), rtol=1e-5)
        np.fill_diagonal(cosine, -1)
        third_N = np.sort(cosine, axis=1)[:, -3]
        pairs_of = set(zip(graph.first_E.tolist(), graph.second_E.tolist(), strict=True))
        assert all(a < b for a, b in pairs_of) and len(pairs_of) == len(graph.first_E)
        near = {(min(a, b), max(a, b)) for a, b in np.argwhere(cosine > third_N[:, None] + 1e-6)}
        assert near <= pairs_of
        assert np.bincount(np.concatenate([graph.first_E, graph.second_E])).min() >= 3
        assert all(cosine[a, b] >= min(third_N[a], third_N[b]) - 1e-6 for a, b in pairs_of)


def placement_week(logs, request):
    at = datetime.fromtimestamp(int(logs.request_at_us_R[request]) / 1e6, UTC)
    return int(logs.request_placement_R[request]), at.isocalendar()[:2]


def test_requests_of_reports_are_drawn_by_whole_placements_and_weeks(market):
    logs = market.logs
    drawn_requests = bags.drawn_reports(logs, market.requests, 20, seed=1)
    chosen = {placement_week(logs, request) for request in drawn_requests}
    assert 20 <= len(drawn_requests) < len(market.requests)
    assert drawn_requests.tolist() == [r for r in market.requests if placement_week(logs, r) in chosen]
    np.testing.assert_array_equal(bags.drawn_reports(logs, market.requests, 0, seed=1), market.requests)


def test_bags_of_a_report_are_placements_weeks_and_objects(market, examples):
    bag_N = bags.report_bags(market.logs, examples)
    logs = market.logs
    keys = [(*placement_week(logs, row.request), int(logs.ad_object_A[ad])) for row in examples for ad in row.ads]
    key_of = dict(zip(bag_N.tolist(), keys, strict=True))
    assert [key_of[bag] for bag in bag_N.tolist()] == keys and len(key_of) == len(set(keys))
