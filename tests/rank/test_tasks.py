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
from leadre.data.worlds import chain
from leadre.rank import layers, measure, planted, rows, train
from leadre.rank.inputs import collate
from leadre.rank.losses import LogLoss
from leadre.rank.models.esmm import Esmm
from leadre.rank.train import Training

from .contract import drawn, logits

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
