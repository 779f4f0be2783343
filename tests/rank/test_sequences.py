"""Models of sequences: their planted laws, their formulas, and the faults known of their public codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from leadre.data.worlds import evolution, long
from leadre.rank import measure, planted_histories, train
from leadre.rank.inputs import collate
from leadre.rank.models import dien
from leadre.rank.models.dien import Dien
from leadre.rank.models.sdim import Sdim
from leadre.rank.train import Training

from .contract import drawn, repeated

GROUPS = evolution.groups()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_clicks_of_the_evolution_law_have_its_log_odds():
    rows = evolution.rows(20_000, 12, 4, seed=0)
    p = sigmoid(rows.logit_RC).ravel()
    assert abs(rows.label_RC.mean() - p.mean()) < 0.005
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1)):
        part = (p >= low) & (p < high)
        assert part.sum() > 500 and abs(rows.label_RC.ravel()[part].mean() - p[part].mean()) < 0.02
    again = evolution.rows(20_000, 12, 4, seed=0)
    assert (again.history_RT == rows.history_RT).all() and (again.label_RC == rows.label_RC).all()


def test_a_shuffled_history_has_the_same_events_in_another_order():
    plain = evolution.rows(50, 12, 4, seed=0)
    shuffled = evolution.rows(50, 12, 4, seed=0, shuffled=True)
    assert (plain.history_RT != shuffled.history_RT).any()
    np.testing.assert_array_equal(np.sort(plain.history_RT), np.sort(shuffled.history_RT))
    np.testing.assert_array_equal(plain.label_RC, shuffled.label_RC)


def test_a_certain_history_gives_the_log_odds_of_its_last_move(monkeypatch):
    monkeypatch.setattr(evolution, "NOISE", 1e-9)
    p_C = evolution.click_probabilities(np.array([[3, 3, 5, 5]]), np.array([[5, 7, 6, 3]]))[0]
    hit = sigmoid(evolution.BASE + evolution.LOGIT)
    miss = sigmoid(evolution.BASE)
    np.testing.assert_allclose(p_C, [hit, hit, miss, miss], atol=1e-6)


def test_the_second_gru_leaves_its_state_where_the_attention_is_0():
    """In the official code it is an ordinary GRU there."""
    rng = np.random.default_rng(0)
    gate, state = (rng.normal(size=(5, width)) for width in (12, 4))
    weight = rng.normal(size=(4, 12))
    np.testing.assert_array_equal(dien._step(gate, state, weight, np.zeros((5, 1))), state)
    update, reset = (sigmoid(gate[:, part] + state @ weight[:, part]) for part in (slice(0, 4), slice(4, 8)))
    proposed = np.tanh(gate[:, 8:] + (reset * state) @ weight[:, 8:])
    for attention in (1.0, 0.3):
        u = attention * update
        expected = (1 - u) * state + u * proposed
        np.testing.assert_allclose(dien._step(gate, state, weight, np.full((5, 1), attention)), expected, atol=1e-12)


def test_scores_of_dien_are_those_of_its_formula(market, examples):
    ranker = Dien()
    params = drawn(ranker, market.spec)
    row = max((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_short"].gap_T))
    batch = collate([row])
    state = ranker.user(params, market.spec, batch)
    interest_TD = state["interest"][0]
    assert len(interest_TD) > 5
    v_D = np.concatenate([params[f"table.{n}"][k] for n, k in zip(market.spec.fields, row.field_CK[0], strict=True)])
    fit_T = interest_TD @ params["attention"] @ v_D
    attention_T = np.exp(fit_T - fit_T.max()) / np.exp(fit_T - fit_T.max()).sum()
    s = np.zeros_like(v_D)
    gate_TG = interest_TD @ params["evolution.input.weight"] + params["evolution.input.bias"]
    for a, gate in zip(attention_T, gate_TG, strict=True):
        s = dien._step(gate, s, params["evolution.state"], a)
    silent = dict(params)
    first = silent["head.0.weight"].copy()
    first[:] = 0
    first[len(v_D) : 2 * len(v_D), : len(v_D)] = np.eye(len(v_D))  # the head reads s alone
    silent["head.0.weight"] = first
    np.testing.assert_allclose(
        ranker.score(silent, market.spec, state, batch)[0, 0],
        _head(silent, s @ first[len(v_D) : 2 * len(v_D)]),
        atol=1e-4,
    )


def test_padding_changes_no_score_of_a_gru_alone(market, examples):
    """The AUGRU reads padding by its attention of 0; without it the last state must be that of the last event."""
    ranker = Dien(evolves=False)
    params = drawn(ranker, market.spec)
    requests = sorted((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_short"].gap_T))
    alone = train.logits(ranker, market.spec, params, collate(requests[:1]))[0]
    together = train.logits(ranker, market.spec, params, collate([requests[0], requests[-1]]))[0]
    np.testing.assert_allclose(together[: len(alone)], alone, atol=1e-5)


def _head(params, hidden):
    x = np.maximum(hidden + params["head.0.bias"], 0)
    x = np.maximum(x @ params["head.1.weight"] + params["head.1.bias"], 0)
    return x @ params["head.2.weight"] + params["head.2.bias"]


def test_auxiliary_loss_is_a_mean_over_real_events_of_each_user(market, examples):
    """The official code averages over padding too, so that a short history counts less beside a long one."""
    ranker = Dien(alpha=0.5)
    params = {name: torch.from_numpy(values) for name, values in drawn(ranker, market.spec).items()}
    requests = sorted((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_short"].gap_T))
    pair = [requests[len(requests) // 2], requests[-1]]
    lengths = [len(row.sequences["ad_short"].gap_T) for row in pair]
    assert 2 < lengths[0] < lengths[1]
    batch = train.as_tensors(collate(pair))
    state = ranker.user(params, market.spec, batch)
    loss = float(ranker.auxiliary(params, market.spec, state, batch, np.random.default_rng(0)))
    fields = [row.sequences["ad_short"].field_TK for row in pair]
    tables = [params[f"table.{name}"].numpy() for name in market.spec.fields]
    events = [np.concatenate([table[rows] for table, rows in zip(tables, part.T, strict=True)], 1) for part in fields]
    expected = 0.0
    for r, other in ((0, 1), (1, 0)):
        terms = []
        for t in range(lengths[r] - 1):
            h_D = state["interest"][r, t].numpy()
            term = -np.log(sigmoid(h_D @ events[r][t + 1]))
            if t + 1 < lengths[other]:
                term -= np.log(1 - sigmoid(h_D @ events[other][t + 1]))
            terms.append(term)
        expected += 0.5 * np.mean(terms)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_dien_learns_the_order_of_events():
    parts = [evolution.rows(requests, 6, 8, seed) for seed, requests in enumerate((1500, 100, 400))]
    rows, stop, test = (planted_histories.examples(part, GROUPS, 6) for part in parts)
    spec = planted_histories.spec_of(GROUPS, 6)
    training = Training(epochs=5, batch=32, learning_rate=1e-2, table_rate=3e-2)
    params, _ = train.fit(Dien(), spec, rows, stop, training, 0)
    turned = dataclasses.replace(parts[2], history_RT=parts[2].history_RT[:, ::-1])
    label_N = parts[2].label_RC.ravel()
    auc, auc_turned = (
        measure.auc(label_N, train.logits(Dien(), spec, params, collate([row.inputs for row in part])).ravel())
        for part in (test, planted_histories.examples(turned, GROUPS, 6))
    )
    assert auc > 0.72 and auc_turned < auc - 0.05


def test_objects_share_a_bucket_by_the_law_of_random_planes():
    ranker = Sdim(signatures=4000, bits=3)
    rng = np.random.default_rng(0)
    planes = np.round(rng.normal(0, 32, (24, 12_000))).astype(np.float32)
    first, second = rng.normal(size=(2, 24)).astype(np.float32)
    for mix in (0.0, 0.5, 0.9, 0.99):
        other = (mix * first + (1 - mix) * second).astype(np.float32)
        cosine = first @ other / np.linalg.norm(first) / np.linalg.norm(other)
        shared_bucket = (ranker.signed(planes, first) * ranker.signed(planes, other)).sum() / 4000
        assert shared_bucket == pytest.approx((1 - np.arccos(cosine) / np.pi) ** 3, abs=0.03)


def test_signatures_are_the_same_in_any_batch_and_library():
    """A sum of floats depends on its order, and the sign of a sum near zero with it."""
    ranker = Sdim()
    rng = np.random.default_rng(0)
    params = ranker.init(planted_histories.spec_of(GROUPS, 10), rng)
    x = rng.normal(0, 0.1, (3000, 16)).astype(np.float32)
    x[:500] = x[500:1000] * np.float32(-1)  # opposite vectors have opposite signs, but for sums of zero
    x[1000:1500] = 0
    planes = params["fixed.planes"]
    together = ranker.signed(planes, x)
    np.testing.assert_array_equal(together, np.concatenate([ranker.signed(planes, row[None]) for row in x]))
    np.testing.assert_array_equal(together, ranker.signed(torch.from_numpy(planes), torch.from_numpy(x)).numpy())
    exact = (x * 4096).round().astype(np.int64) @ planes.astype(np.int64) >= 0
    np.testing.assert_array_equal(together.reshape(3000, 16, 8).argmax(2), exact.reshape(3000, 16, 3) @ [1, 2, 4])
    assert (together.sum(1) == 16).all()


def test_buckets_have_norm_1_so_common_objects_do_not_drown_rare_ones(market, examples):
    ranker = Sdim()
    params = drawn(ranker, market.spec)
    requests = [row.inputs for row in examples[:6]]
    state = ranker.user(params, market.spec, collate(requests))
    norm = np.linalg.norm(state["ad_short"], axis=2)
    empty = np.isclose(state["ad_short"], params["ad_short.nothing"], atol=1e-6).all(2)
    np.testing.assert_allclose(norm[~empty], 1, atol=1e-4)
    assert empty.any() and not empty.all()
    again = ranker.user(params, market.spec, collate([repeated(request, 3) for request in requests]))
    np.testing.assert_allclose(again["ad_short"], state["ad_short"], atol=1e-4)


def test_state_of_sdim_has_the_same_size_for_any_history(market, examples):
    ranker = Sdim()
    params = drawn(ranker, market.spec)
    requests = sorted((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_long"].gap_T))
    shapes = [
        {name: part.shape for name, part in ranker.user(params, market.spec, collate([request])).items()}
        for request in (requests[0], requests[-1])
    ]
    assert shapes[0] == shapes[1] and shapes[0]["ad_long"][1] == 16 * 8


def test_interest_of_sdim_is_the_mean_of_the_buckets_of_the_candidate(market, examples):
    ranker = Sdim(signatures=2, bits=2)
    params = drawn(ranker, market.spec)
    row = max((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_short"].gap_T))
    part = row.sequences["ad_short"]
    tables = [params[f"table.{name}"] for name in market.spec.fields]

    def embedded(field_K):
        return np.concatenate([table[k] for table, k in zip(tables, field_K, strict=True)])

    def signs(x_D, signature):
        return tuple((x_D * 4096).round() @ params["fixed.planes"][:, 2 * signature : 2 * signature + 2] >= 0)

    v_D = embedded(row.field_CK[0])
    expected = np.zeros_like(v_D)
    for signature in (0, 1):
        total = np.zeros_like(v_D)
        for field_K, gap, count in zip(part.field_TK, part.gap_T, part.count_T, strict=True):
            if signs(embedded(field_K), signature) == signs(v_D, signature):
                total += (1 + count) * (embedded(field_K) + params["table.gap"][gap])
        expected += (total / np.linalg.norm(total) if total.any() else params["ad_short.nothing"]) / 2
    state = ranker.user(params, market.spec, collate([row]))
    np.testing.assert_allclose(
        ranker.signed(params["fixed.planes"], v_D) @ state["ad_short"][0] / 2, expected, atol=1e-4
    )


def test_events_far_back_decide_the_law_of_long_histories():
    rows = long.rows(400, 120, 40, 8, seed=0)
    topic_O = long.groups()["category"]
    topic_RC = topic_O[rows.candidate_RC]
    is_seen, is_recent = (
        (topic_O[history_RT][:, None] == topic_RC[..., None]).any(2)
        for history_RT in (rows.history_RT, rows.history_RT[:, -40:])
    )
    np.testing.assert_array_equal(rows.logit_RC, long.BASE + long.LOGIT * is_seen)
    assert 0.4 < is_recent.sum() / is_seen.sum() < 0.6
    p = sigmoid(rows.logit_RC)
    assert abs(rows.label_RC[is_seen].mean() - p[is_seen].mean()) < 0.03
