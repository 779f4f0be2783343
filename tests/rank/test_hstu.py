"""HSTU: its formula for one candidate after its history, and the planted law of counts."""

from __future__ import annotations

import numpy as np
import pytest

from leadre.data.worlds import intensity
from leadre.rank import planted_histories
from leadre.rank.inputs import GAP_ROWS, US_PER_HOUR, Positions, collate, gap_rows
from leadre.rank.models import hstu, shared
from leadre.rank.models.hstu import Hstu

from .contract import drawn

VARIANTS = (Hstu(), Hstu(blocks=1), Hstu(is_pointwise=False), Hstu(has_times=False))


def silu(x):
    return x / (1 + np.exp(-x))


def normal(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def of_formula(ranker, params, limit, x_ND, gap_N):
    """The last of N tokens after all blocks: each token attends to itself and those before it, one pair at a time."""
    inner = ranker.heads * ranker.width
    hours_N = 2 ** ((np.maximum(gap_N, 1) - 1) / 4) - 1
    last = len(x_ND) - 1
    for block in range(ranker.blocks):
        name = f"block.{block}"
        roles = [
            np.split(silu(normal(x) @ params[f"{name}.roles.weight"] + params[f"{name}.roles.bias"]), 4) for x in x_ND
        ]
        results = []
        for i, (gate, _, query, _) in enumerate(roles):
            mixed = np.zeros(inner)
            for head in range(ranker.heads):
                part = slice(head * ranker.width, (head + 1) * ranker.width)
                fits = []
                for j in range(i + 1):
                    fit = query[part] @ roles[j][3][part]
                    bias = params[f"{name}.distance"][i - j]
                    if ranker.has_times:
                        span_us = np.array([(hours_N[j] - hours_N[i]) * US_PER_HOUR]).astype(np.int64)
                        row = (gap_N[j] if j < last else 0) if i == last else gap_rows(span_us)[0]
                        bias += params[f"{name}.time"][row]
                    fits.append(fit + bias if ranker.is_pointwise else fit / np.sqrt(ranker.width) + bias)
                fits = np.array(fits)
                weights = silu(fits) / limit if ranker.is_pointwise else np.exp(fits) / np.exp(fits).sum()
                mixed[part] = sum(weight * roles[j][1][part] for j, weight in enumerate(weights))
            results.append((gate * normal(mixed)) @ params[f"{name}.out.weight"] + params[f"{name}.out.bias"])
        x_ND = x_ND + np.array(results)
    return x_ND[-1]


@pytest.mark.parametrize("ranker", VARIANTS, ids=["hstu", "one block", "softmax", "no times"])
def test_a_candidate_is_the_last_token_after_its_history(market, examples, ranker):
    params = drawn(ranker, market.spec)
    row = sorted((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_short"].gap_T))[-1]
    part = row.sequences["ad_short"]
    assert len(part.gap_T) > 5
    batch = collate([row])
    state = ranker.user(params, market.spec, batch)
    scores = ranker.score(params, market.spec, state, batch)[0]
    tables = [params[f"table.{name}"] for name in market.spec.fields]
    event_TD, v_CD = (
        np.concatenate([table[rows] for table, rows in zip(tables, fields.T, strict=True)], axis=1).astype(float)
        for fields in (part.field_TK, row.field_CK)
    )
    x_CD = [
        of_formula(ranker, params, 50, np.concatenate([event_TD, v_D[None]]), np.append(part.gap_T, 0)) for v_D in v_CD
    ]
    expected = shared.head(params, state, batch, [v_CD[None], np.array(x_CD)[None]])[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_weight_of_an_event_depends_on_no_other_event():
    fit = np.random.default_rng(0).normal(size=(1, 2, 3, 6)).astype(np.float32)
    spec = planted_histories.spec_of(intensity.groups(), 10)
    few = np.array([True, True, False, False, False, True])
    for ranker, is_kept in ((Hstu(), True), (Hstu(is_pointwise=False), False)):
        part, whole = (ranker._weights(spec, fit, 0 * fit[:, :1], sees) for sees in (few, np.ones(6, np.bool_)))
        assert not part[..., ~few].any() and part[..., few].any()
        assert np.array_equal(part[..., few], whole[..., few]) == is_kept
    np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-6)


def test_time_between_events_is_that_of_their_buckets():
    rows = hstu._rows_between()
    assert rows.shape == (GAP_ROWS, GAP_ROWS) and (np.diag(rows) == 1).all()
    hours = np.array([2, 9, 30, 200, 5000])
    for earlier in hours:
        for later in hours[hours < earlier]:
            at, span = gap_rows(np.array([[earlier, later], [earlier - later, 0]]) * US_PER_HOUR)
            assert abs(rows[at[1], at[0]] - span[0]) <= 2


def test_clicks_of_the_intensity_law_follow_the_count_of_events():
    rows = intensity.rows(6000, 6, seed=0)
    topic_O = intensity.groups()["category"]
    assert len(np.unique((rows.history_RT > 0).sum(1))) > 25
    is_event = topic_O[rows.history_RT][:, None] == topic_O[rows.candidate_RC][..., None]
    count_RC = is_event.sum(2)
    for count in set(intensity.COUNTS):
        part = count_RC == count
        np.testing.assert_allclose(rows.logit_RC[part], -3 + 1.2 * np.log2(1 + count))
        p = 1 / (1 + np.exp(-rows.logit_RC[part][0]))
        assert abs(rows.label_RC[part].mean() - p) < 0.03
    control = intensity.rows(6000, 6, seed=0, counted=False)
    np.testing.assert_array_equal(control.history_RT, rows.history_RT)
    np.testing.assert_allclose(control.logit_RC, -3 + 2.5 * (count_RC > 0))


def test_short_histories_of_a_law_have_no_event_before_their_first():
    rows = intensity.rows(30, 6, seed=0)
    groups = intensity.groups()
    for history_T, row in zip(rows.history_RT, planted_histories.examples(rows, groups, 40), strict=True):
        part: Positions = row.inputs.sequences["ad_short"]
        newest = history_T[history_T > 0][-40:]
        np.testing.assert_array_equal(part.field_TK[:, 0], newest)
        if len(newest):
            hours = np.arange(len(newest), 0, -1)
            np.testing.assert_array_equal(part.gap_T, gap_rows(hours * US_PER_HOUR))
