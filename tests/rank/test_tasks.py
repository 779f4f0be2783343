"""Rankers of several actions: the chain of click and conversion, and labels that are not known for all rows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import expit

from leadre.data import histories, world
from leadre.data.worlds import chain, tasks
from leadre.rank import layers, measure, planted, rows, train
from leadre.rank.inputs import collate
from leadre.rank.losses import LogLoss
from leadre.rank.models import tokens
from leadre.rank.models.esmm import Esmm
from leadre.rank.models.infnet import InfNet
from leadre.rank.train import Training

from .contract import drawn, logits, repeated

LAW = chain.draw(0.5, seed=1, fields=4, values=10)
SPEC = planted.spec_of(LAW, 4)
PARTS = [LAW.rows(requests, 8, seed) for seed, requests in enumerate((1200, 200, 500))]
TRAIN, STOP, TEST = map(planted.examples, PARTS)
ESMM = Esmm(hidden=(16,))
TOWERS = Esmm(chain=(), hidden=(16,))


def loss_of(ranker, params, examples):
    batch = train.as_tensors(collate([row.inputs for row in examples]))
    scores = ranker.score(params, SPEC, ranker.user(params, SPEC, batch), batch)
    return LogLoss().total(scores, batch.mask_RC, examples)


def test_log_odds_of_both_are_those_of_the_product():
    first, second = np.random.default_rng(0).normal(0, 3, (2, 1000))
    p = expit(first) * expit(second)
    np.testing.assert_allclose(layers.logit_of_both(first, second), np.log(p) - np.log1p(-p), rtol=1e-9)
    extreme = np.array([-300.0, -80, -1, 0, 2, 80, 300], np.float32)
    grid = np.meshgrid(extreme, extreme)
    both = layers.logit_of_both(*grid)
    assert np.isfinite(both).all() and (both <= np.minimum(*grid)).all()
    np.testing.assert_allclose(layers.logit_of_both(*map(torch.from_numpy, grid)).numpy(), both, rtol=1e-5)


def test_conversion_of_esmm_is_the_product_of_its_towers_in_any_order_of_labels():
    params = drawn(ESMM, SPEC)
    p = expit(logits(ESMM, params, SPEC, TEST[:50]))
    towers = expit(logits(TOWERS, params, SPEC, TEST[:50]))
    np.testing.assert_allclose(p[..., 0], towers[..., 0], rtol=1e-5)
    np.testing.assert_allclose(p[..., 1], towers[..., 0] * towers[..., 1], rtol=1e-4)
    reverse = dataclasses.replace(SPEC, labels=SPEC.labels[::-1])
    np.testing.assert_allclose(expit(logits(ESMM, params, reverse, TEST[:50])), p[..., ::-1], rtol=1e-5)


def test_loss_of_esmm_is_that_of_click_and_product_over_all_rows():
    params = drawn(ESMM, SPEC)
    tensors = {name: torch.from_numpy(values) for name, values in params.items()}
    loss = float(loss_of(ESMM, tensors, TRAIN[:40]))
    towers = expit(logits(TOWERS, params, SPEC, TRAIN[:40]))
    label = np.stack([row.label_CH for row in TRAIN[:40]])
    assert not (label[..., 1] & ~label[..., 0]).any(), "a conversion is a click"
    expected = measure.log_losses(label[..., 0].ravel(), towers[..., 0].ravel().astype(float)).sum()
    expected += measure.log_losses(label[..., 1].ravel(), towers.prod(-1).ravel().astype(float)).sum()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_conversion_after_a_click_is_learnt_for_rows_without_a_click():
    training = Training(epochs=6, patience=6, batch=32, learning_rate=3e-3, table_rate=1e-2)
    params, _ = train.fit(ESMM, SPEC, TRAIN, STOP, training, 0)
    after = logits(TOWERS, params, SPEC, TEST)[..., 1]
    idle = ~PARTS[2].click_RC
    converts = PARTS[2].converts_RC[idle]
    possible = measure.auc(converts, PARTS[2].converts_logit_RC[idle])
    assert measure.auc(converts, after[idle]) - 0.5 > 0.7 * (possible - 0.5)


def test_labels_of_weight_0_do_not_count_and_others_count_by_their_weight():
    weight = np.random.default_rng(0).integers(0, 3, TRAIN[0].label_CH.shape).astype(np.float32)
    tensors = {name: torch.from_numpy(values) for name, values in drawn(TOWERS, SPEC).items()}
    weighted = dataclasses.replace(TRAIN[0], weight_CH=weight)
    loss = float(loss_of(TOWERS, tensors, [weighted, TRAIN[1]]))
    other = dataclasses.replace(weighted, label_CH=TRAIN[0].label_CH ^ (weight == 0))
    assert float(loss_of(TOWERS, tensors, [other, TRAIN[1]])) == loss
    logit = logits(TOWERS, drawn(TOWERS, SPEC), SPEC, [TRAIN[0], TRAIN[1]]).astype(float)
    losses = measure.log_losses(np.stack([row.label_CH for row in TRAIN[:2]]), expit(logit))
    assert loss == pytest.approx((losses[0] * weight).sum() + losses[1].sum(), rel=1e-5)


def test_labels_of_two_tasks_have_the_log_odds_of_their_own_fields():
    law = tasks.draw(seed=0)
    world_rows = law.rows(3000, 6, 8, seed=0)
    p_RCK = expit(world_rows.logit_RCK)
    for task in (0, 1):
        for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 1)):
            part = (p_RCK[..., task] >= low) & (p_RCK[..., task] < high)
            rate = world_rows.label_RCK[..., task][part].mean()
            assert part.sum() > 500 and abs(rate - p_RCK[..., task][part].mean()) < 0.03
    assert not (world_rows.label_RCK[..., 1] & ~world_rows.label_RCK[..., 0]).any(), "a conversion is a click"
    after_RC = np.log(p_RCK[..., 1]) - np.log(p_RCK[..., 0])
    conversion_RC = after_RC - np.log1p(-np.exp(after_RC))
    fields = tasks.groups()
    for task, (name, logit_RC) in enumerate((("category", world_rows.logit_RCK[..., 0]), ("brand", conversion_RC))):
        value_RC = fields[name][world_rows.candidate_RC]
        is_seen_RC = (fields[name][world_rows.history_RT][:, None] == value_RC[..., None]).any(2)
        sign_RC = law.object_KV[task, value_RC - 1] * law.user_KV[task, world_rows.user_RK[:, task, None] - 1]
        base = (tasks.CLICK, tasks.CONVERSION)[task]
        np.testing.assert_allclose(logit_RC, base + tasks.MATCH * is_seen_RC + tasks.SIGN * sign_RC, atol=1e-9)


def test_scores_of_infnet_are_those_of_its_formula(market, examples):
    spec = dataclasses.replace(market.spec, labels=("click", "conversion"))
    ranker = InfNet(width=4, field_proxies=3, hidden=(5,))
    params = drawn(ranker, spec)
    row = max((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_short"].gap_T))
    batch = collate([row])
    candidate = tokens.candidate_tokens(params, spec, batch)[0, 0]
    user = tokens.user_tokens(params, spec, batch)[0]
    hidden = layers.dense(params, "proxy.candidate", candidate) + layers.dense(params, "proxy.user", user)
    read = {"fields": layers.dense(params, "proxy.fields", np.maximum(hidden, 0)).reshape(3, 4)}
    parts = []
    for part in spec.sequences:
        rows_TK = row.sequences[part.name].field_TK
        columns = [params[f"table.{name}"][rows_TK[:, k]] for k, name in enumerate(spec.fields)]
        event_TW = layers.dense(params, f"token.sequence.{part.name}", np.concatenate(columns, axis=1))
        event_TW = event_TW + params["table.gap"][row.sequences[part.name].gap_T]
        parts.append(event_TW + layers.dense(params, "token.count", row.sequences[part.name].count_T[:, None]))
    means = [
        np.maximum(layers.dense(params, f"proxy.sequence.{part.name}", event_TW), 0).mean(0)
        for part, event_TW in zip(spec.sequences, parts, strict=True)
    ]
    read["events"] = np.stack(means)
    read["tasks"] = np.stack([params[f"task.{label}"] for label in spec.labels])
    read["task_proxies"] = params["proxy.tasks"].reshape(-1, 4)
    held = {"fields": np.concatenate([candidate, user]).reshape(-1, 4), "events": np.concatenate(parts)}

    def attended(block, reader, kind):
        weights = {role: params[f"block.{block}.{role}.{kind}"] for role in ("key", "value")}
        fit = (read[reader] @ params[f"block.{block}.query.{reader}"]) @ (held[kind] @ weights["key"]).T / 2
        return np.exp(fit) / np.exp(fit).sum(1, keepdims=True) @ (held[kind] @ weights["value"])

    def factor(block, proxy):
        return 2 * expit(layers.mlp(params, f"block.{block}.gate.{proxy}", read[proxy].ravel()))

    tasks_read = {"tasks": ("fields", "events"), "task_proxies": ("fields", "events")}
    readers = ({"fields": ("events", "tasks"), "events": ("fields", "tasks"), **tasks_read}, tasks_read)
    for block in (0, 1):
        held["tasks"] = read["tasks"]
        read |= {
            reader: read[reader] + sum(attended(block, reader, kind) for kind in kinds)
            for reader, kinds in readers[block].items()
        }
        read["tasks"] = read["tasks"] * factor(block, "task_proxies")
        if block == 0:
            held = {kind: held[kind] * factor(0, kind) for kind in ("fields", "events")}
    expected = [layers.mlp(params, f"head.{label}", read["tasks"][k])[0] for k, label in enumerate(spec.labels)]
    np.testing.assert_allclose(logits(ranker, params, spec, [SimpleNamespace(inputs=row)])[0, 0], expected, atol=1e-4)


def test_a_history_repeated_changes_no_score_of_infnet(market, examples):
    """Proxies of events are means: a sum would grow with the length of a history."""
    ranker = InfNet()
    params = drawn(ranker, market.spec)
    requests = [row.inputs for row in examples[:6]]
    longer = [repeated(request, 3) for request in requests]
    scores = [train.logits(ranker, market.spec, params, collate(part)) for part in (requests, longer)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)


@pytest.mark.parametrize("has_tasks", [True, False])
def test_infnet_learns_without_sequences_or_tokens_of_tasks(has_tasks):
    """Fields then read tasks alone, or nothing."""
    ranker = InfNet(width=8, has_tasks=has_tasks)
    training = Training(epochs=2, batch=32, learning_rate=1e-2, table_rate=3e-2)
    params, curve = train.fit(ranker, SPEC, TRAIN[:300], STOP, training, 0)
    assert curve.train[1] < curve.train[0]
    assert logits(ranker, params, SPEC, TEST[:5]).shape == (5, 8, 2)


def test_clicks_are_a_second_label_that_a_conversion_has_too(market, tmp_path):
    tables = world.read(seed=4, users=40, ads=40, contents=12)
    request = int(market.requests[3])
    logs = market.logs
    shown = logs.inventory(request)
    idle = [int(ad) for ad in shown if ad not in logs.relevant(request)[0]][:2]
    requests = pl.concat([tables.requests, tables.empty_requests]).sort(histories.REQUEST_ORDER)
    ids = logs.ads["ad_id"].to_list()
    events = [(requests["request_id"][request], ids[ad], "ad", "click") for ad in idle]
    events.append((requests["request_id"][request], ids[int(shown[-1])], "content", "click"))
    frame = pl.DataFrame(events, schema=["request_id", "item_id", "domain", "action"], orient="row")
    frame.write_parquet(tmp_path / "events.parquet")
    tables.requests.write_parquet(tmp_path / "requests.parquet")
    tables.empty_requests.write_parquet(tmp_path / "empty_requests.parquet")
    data = SimpleNamespace(path=tmp_path)
    assert rows.acted(data, logs, "conversion", empty=True) is None
    clicked_of = rows.acted(data, logs, "click", empty=True)
    assert clicked_of(request).tolist() == idle and not len(clicked_of(request + 1))
    (example,) = rows.examples(
        *(logs, np.array([request]), logs.inventory, market.spec, market.known, market.popularity),
        negatives=1.0,
        seed=0,
        clicked_of=clicked_of,
    )
    converted = np.isin(example.ads, logs.relevant(request)[0])
    np.testing.assert_array_equal(example.label_CH[:, 0], converted)
    np.testing.assert_array_equal(example.label_CH[:, 1], converted | np.isin(example.ads, idle))
