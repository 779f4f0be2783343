"""Models of field interactions: the planted products, and the faults known of their public codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from leadre.data.worlds import interaction
from leadre.rank import dimensions, measure, planted, train
from leadre.rank.inputs import collate
from leadre.rank.models import shared, tokens
from leadre.rank.models.autoint import AutoInt
from leadre.rank.models.dcnv2 import DcnV2
from leadre.rank.models.finalmlp import FinalMlp
from leadre.rank.models.gdcn import Gdcn
from leadre.rank.models.mlcc import Mlcc
from leadre.rank.train import Training

from .contract import drawn, logits

LAW = interaction.draw(2, seed=3, fields=6, values=10)
SPEC = planted.spec_of(LAW, 4)
PARTS = [LAW.rows(requests, 8, seed) for seed, requests in enumerate((1200, 200, 500))]
TRAIN, STOP, TEST = map(planted.examples, PARTS)


@pytest.mark.parametrize(
    "ranker",
    [
        *(AutoInt(width=16, deep=()), DcnV2(deep=()), FinalMlp(hidden=(32, 16), gate=16), Gdcn(deep=())),
        Mlcc(width=8, heads=2, gated=False, deep=()),
    ],
    ids=lambda ranker: type(ranker).__name__,
)
def test_product_of_two_fields_is_learnt_to_most_of_the_possible(ranker):
    training = Training(epochs=4, batch=32, learning_rate=3e-3, table_rate=1e-2)
    params, _ = train.fit(ranker, SPEC, TRAIN, STOP, training, 0)
    possible = measure.auc(PARTS[2].label_RC.ravel(), PARTS[2].logit_RC.ravel())
    reached = measure.auc(PARTS[2].label_RC.ravel(), logits(ranker, params, SPEC, TEST)[..., 0].ravel())
    assert reached - 0.5 > 0.9 * (possible - 0.5)


def test_single_fields_alone_do_not_give_the_product():
    linear = DcnV2(depth=0, deep=())
    params, _ = train.fit(linear, SPEC, TRAIN, STOP, Training(epochs=4, batch=32, learning_rate=3e-3), 0)
    assert measure.auc(PARTS[2].label_RC.ravel(), logits(linear, params, SPEC, TEST)[..., 0].ravel()) < 0.7


def test_attention_of_autoint_is_that_of_its_formula():
    ranker = AutoInt(blocks=1, heads=2, width=8, deep=())
    weight = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    x_MW = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    query, key, value, residual = np.split(x_MW @ weight, 4, axis=1)
    mixed = np.zeros_like(x_MW)
    for head in (slice(0, 4), slice(4, 8)):
        for m in range(5):
            fit = np.exp([query[m, head] @ key[k, head] / 2 for k in range(5)])
            mixed[m, head] = sum(fit[k] / fit.sum() * value[k, head] for k in range(5))
    expected = np.maximum(mixed + residual, 0)
    np.testing.assert_allclose(
        ranker._attend(x_MW[None, None], *np.split(weight, 4, axis=1))[0, 0], expected, atol=1e-5
    )


@pytest.mark.parametrize(
    "ranker", [AutoInt(), DcnV2(), FinalMlp(), Gdcn(), Mlcc()], ids=lambda ranker: type(ranker).__name__
)
def test_units_of_a_number_do_not_change_scores(market, examples, ranker):
    """A number in thousandths must not decide the softmax, a gate or a product."""
    rows = [row.inputs for row in examples[:6]]
    larger = [dataclasses.replace(request, number_CF=request.number_CF * 1024) for request in rows]
    params = drawn(ranker, market.spec)
    scores = []
    for requests in (rows, larger):
        fixed = shared.fit_numbers(np.concatenate([request.number_CF for request in requests]))
        scores.append(train.logits(ranker, market.spec, params | fixed, collate(requests)))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3, atol=1e-3)


def test_gates_of_finalmlp_start_near_1():
    """A sigmoid without the factor 2 starts at one half and halves every input."""
    gated = FinalMlp()
    params = gated.init(SPEC, np.random.default_rng(0))
    rows = collate([row.inputs for row in TEST[:20]])
    np.testing.assert_allclose(gated.user(params, SPEC, rows)["gate"], 1, atol=0.05)
    silent = {name: values * (".gate." not in name) for name, values in params.items()}
    open_scores = logits(FinalMlp(gate=0), params, SPEC, TEST[:20])
    np.testing.assert_allclose(logits(gated, silent, SPEC, TEST[:20]), open_scores, atol=1e-6)
    assert np.abs(logits(gated, drawn(gated, SPEC), SPEC, TEST[:20]) - open_scores).max() > 0.01


def test_bilinear_form_of_finalmlp_is_that_of_its_formula():
    ranker = FinalMlp(hidden=(12, 8), heads=2, gate=0)
    params = drawn(ranker, SPEC)
    fused = logits(ranker, params, SPEC, TEST[:5])
    plain = logits(FinalMlp(hidden=(12, 8), heads=0, gate=0), params, SPEC, TEST[:5])
    batch = collate([row.inputs for row in TEST[:5]])
    state = ranker.user(params, SPEC, batch)
    inputs = np.concatenate(
        [shared.candidate(params, SPEC, batch), np.repeat(state["user"][:, None], batch.field_RCK.shape[1], 1)], axis=2
    )
    streams = []
    for name in ("user", "candidate"):
        x = inputs
        for layer in range(2):
            x = np.maximum(x @ params[f"{name}.stream.{layer}.weight"] + params[f"{name}.stream.{layer}.bias"], 0)
        streams.append(x.reshape(*x.shape[:2], 2, 4))
    expected = np.einsum("rcji,jikh,rcjk->rch", streams[0], params["fusion"], streams[1])
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(fused - plain, expected, atol=1e-4)


def test_gates_of_gdcn_without_input_halve_each_product_of_dcnv2():
    params = drawn(Gdcn(), SPEC)
    silent = {name: values * (not name.startswith("gate.")) for name, values in params.items()}
    halved = {
        name: values * 0.5 if name.startswith("cross.") and ".up." in name else values
        for name, values in params.items()
    }
    np.testing.assert_allclose(
        logits(Gdcn(), silent, SPEC, TEST[:20]), logits(DcnV2(), halved, SPEC, TEST[:20]), atol=1e-4
    )
    initial = Gdcn().init(SPEC, np.random.default_rng(0))
    assert not any(values.any() for name, values in initial.items() if name.endswith(".bias")), "biases start at 0"


@pytest.mark.parametrize("channels", [1, 2])
def test_scores_of_mlcc_are_those_of_its_formula(channels):
    ranker = Mlcc(width=4, channels=channels, heads=2, levels=(3, 1), columns=2, deep=(5,))
    params = drawn(ranker, SPEC)
    batch = collate([TEST[0].inputs])
    flat = np.concatenate(
        [tokens.candidate_tokens(params, SPEC, batch)[0, 0], tokens.pooled_tokens(params, SPEC, batch)[0]]
    )
    x_SKE = flat.reshape(-1, channels, 4)
    slots = len(x_SKE)
    parts = []
    for channel in range(channels):
        weight = np.concatenate([params[f"theta.{channel}.{side}"] for side in ("candidate", "user")])
        theta = x_SKE[:, channel].ravel() @ weight
        first = theta[:24].reshape(2, 4, 3)
        second = theta[24:].reshape(2, 3, 1)
        levels = [x_SKE[:, channel] @ first[head] for head in (0, 1)]
        parts += [x_SKE[:, channel], *levels, *(level @ second[head] for head, level in enumerate(levels))]
    row_SI = np.concatenate(parts, axis=1)
    slot_SO = np.stack([row_SI[slot] @ params["slots"][slot] for slot in range(slots)])
    hidden = np.maximum(slot_SO.mean(1) @ params["gate.0.weight"] + params["gate.0.bias"], 0)
    slot_SO = slot_SO * 2 / (1 + np.exp(-(hidden @ params["gate.1.weight"] + params["gate.1.bias"])))[:, None]
    hidden = np.maximum(slot_SO.ravel() @ params["deep.0.weight"] + params["deep.0.bias"], 0)
    expected = hidden @ params["deep.1.weight"] + params["deep.1.bias"]
    assert np.abs(row_SI[:, 4:]).max() > 0.1, "the levels are not silent"
    np.testing.assert_allclose(logits(ranker, params, SPEC, TEST[:1])[0, 0], expected, rtol=1e-3, atol=1e-4)


def test_each_level_of_mlcc_adds_one_order():
    """The log-odds are a polynomial of the tokens: its differences of a higher order than the products vanish."""
    for levels in ((3,), (3, 2), (3, 3, 2)):
        ranker = Mlcc(width=4, heads=2, levels=levels, gated=False, deep=())
        params = {name: values.astype(np.float64) for name, values in drawn(ranker, SPEC).items()}
        scaled = [
            {name: values * (scale if name.startswith("token.") else 1) for name, values in params.items()}
            for scale in range(-1, len(levels) + 2)
        ]
        score = np.stack([logits(ranker, part, SPEC, TEST[:5]) for part in scaled])
        order = len(levels) + 1
        assert np.abs(np.diff(score, n=order, axis=0)).max() > 0.01
        np.testing.assert_allclose(np.diff(score, n=order + 1, axis=0), 0, atol=1e-8)


def test_a_field_keeps_the_columns_of_its_variance_and_unseen_rows_do_not_count():
    rng = np.random.default_rng(0)
    name = SPEC.fields[0]
    values = 1 + int(max(row.inputs.field_CK[:, 0].max() for row in TRAIN))
    seen = np.outer(rng.normal(size=values), [1, 2, 0, 0]) + np.outer(rng.normal(size=values), [0, 0, 0.1, 0])
    unseen = rng.normal(size=(500, 4))
    params = {f"table.{other}": rng.normal(size=(11, 4)) for other in SPEC.tables}
    params[f"table.{name}"] = np.concatenate([seen, unseen])
    columns = [dimensions.widths(SPEC, params, TRAIN, share)[name] for share in (0.5, 0.95, 1.0)]
    assert columns == [1, 1, 2]
    assert dimensions.widths(SPEC, {key: np.zeros_like(table) for key, table in params.items()}, TRAIN, 0.95)[name] == 1


def test_network_with_tables_of_other_widths_is_trained_and_scored():
    narrow = dataclasses.replace(SPEC, widths={**SPEC.widths, SPEC.fields[0]: 2, SPEC.user_tables[0]: 3})
    narrow.check()
    for ranker in (AutoInt(width=16), Gdcn(), Mlcc(width=8)):
        params, _ = train.fit(ranker, narrow, TRAIN[:64], STOP, Training(epochs=1), 0)
        assert params[f"table.{SPEC.fields[0]}"].shape[1] == 2 and params[f"table.{SPEC.user_tables[0]}"].shape[1] == 3
        assert np.isfinite(logits(ranker, params, narrow, TEST[:3])).all()
