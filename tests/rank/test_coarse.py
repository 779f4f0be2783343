"""Coarse rankers: vectors that no user changes, their losses by hand, and the cut."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import polars as pl
import pytest
import torch

from leadre import artifact
from leadre.__main__ import main
from leadre.data import counts
from leadre.data.worlds import interests
from leadre.rank import coarse, layers, planted_histories, ranker, run_coarse, train
from leadre.rank.inputs import Positions, collate
from leadre.rank.losses import LiveSetLoss, LogLoss
from leadre.rank.models import finalmlp, hcn, shared, towers
from leadre.rank.models.finalmlp import FinalMlpSplit
from leadre.rank.models.hcn import Hcn
from leadre.rank.models.registry import COARSE, RANKERS
from leadre.rank.rows import Example
from leadre.rank.score import ScoredRows
from leadre.rank.train import Training

from .contract import drawn, logits

NAMES = pytest.mark.parametrize("name", COARSE)


def test_every_coarse_ranker_is_a_model_of_the_command():
    assert get_args(get_type_hints(run_coarse.Config)["model"]) == COARSE


@NAMES
def test_scores_are_dot_products_with_vectors_that_no_user_changes(market, examples, name):
    """So a catalogue computes the vectors once, for all requests."""
    model = RANKERS[name]
    params = drawn(model, market.spec)
    first, second = (row.inputs for row in examples[:2])
    of_object = np.isin(market.spec.numbers, counts.OF_OBJECT)
    number_CF = np.where(of_object, first.number_CF, first.number_CF[::-1] + 1)
    stranger = dataclasses.replace(
        first, number_CF=number_CF, user_P=second.user_P, sequences=second.sequences, is_new_C=~first.is_new_C
    )
    vectors = [model.vectors(params, market.spec, collate([request])) for request in (first, stranger)]
    np.testing.assert_array_equal(*vectors)
    batch = collate([first])
    state = model.user(params, market.spec, batch)
    expected_CH = np.einsum("cd,dgh->cgh", vectors[0][0], state["vectors"][0]).max(1) + state["level"][0]
    for part in market.spec.sequences if f"{market.spec.sequences[0].name}.weights" in state else ():
        events = zip(state[f"{part.name}.objects"][0], state[f"{part.name}.weights"][0], strict=True)
        for object_row, weight_H in events:
            expected_CH[first.field_CK[:, 0] == object_row] += weight_H
    np.testing.assert_allclose(model.score(params, market.spec, state, batch)[0], expected_CH, atol=1e-4)


def test_repeats_weigh_time_and_count_and_match_known_objects_alone(market, examples):
    model = RANKERS["two_tower"]
    params = drawn(model, market.spec)
    request = max((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_long"].gap_T))
    state = towers.repeats(params, market.spec, collate([request]))
    part = request.sequences["ad_long"]
    table = params["table.repeat"][:, [sequence.name for sequence in market.spec.sequences].index("ad_long"), :, 0]
    assert (part.field_TK[:, 0] == 0).any() and (part.field_TK[:, 0] > 0).any()
    for row, gap, count, weight in zip(
        part.field_TK[:, 0], part.gap_T, part.count_T, state["ad_long.weights"][0, :, 0], strict=True
    ):
        expected = table[gap, 0] + count * table[gap, 1] if row else 0.0
        assert weight == pytest.approx(expected, abs=1e-5)


@NAMES
def test_the_state_of_a_user_does_not_read_the_candidates(market, examples, name):
    model = RANKERS[name]
    params = drawn(model, market.spec)
    request = examples[3].inputs
    context = np.isin(market.spec.numbers, counts.CONTEXT)
    others = dataclasses.replace(
        request,
        field_CK=request.field_CK[::-1],
        number_CF=np.where(context, request.number_CF, request.number_CF[::-1] + 1),
    )
    states = [model.user(params, market.spec, collate([part])) for part in (request, others)]
    for part in states[0]:
        np.testing.assert_allclose(states[1][part], states[0][part], atol=1e-5)


def test_score_is_the_largest_of_several_dot_products():
    vectors_DG = np.array([[1.0, 0.0], [0.0, 1.0]])
    state = {"vectors": vectors_DG[None, ..., None], "level": np.array([[10.0]])}
    scores = towers.largest_dot(state, np.array([[[3.0, 1.0], [-2.0, -5.0]]]))
    np.testing.assert_array_equal(scores[..., 0], [[13.0, 8.0]])


def rows_with(labels, teachers):
    """Requests with these labels and scores of the final ranker, without inputs."""
    return [
        Example(
            request=number,
            ads=np.arange(len(label)),
            label_CH=np.array(label, np.bool_)[:, None],
            inputs=SimpleNamespace(),
            teacher_C=np.array(teacher, np.float32),
        )
        for number, (label, teacher) in enumerate(zip(labels, teachers, strict=True))
    ]


ROWS = rows_with([[True, True, False, False], [False, False, True]], [[0.0, 2.0, -1.0, 1.0], [3.0, 0.0, 1.0]])
SCORES = torch.tensor([[1.0, 0.0, -1.0, 2.0], [0.5, 0.0, 1.0, 99.0]])[..., None]
IS_ROW = torch.tensor([[True] * 4, [True] * 3 + [False]])


def test_softmax_is_over_the_live_ads_by_hand():
    first = np.exp([1, 0, -1, 2]).sum()
    second = np.exp([0.5, 0, 1]).sum()
    expected = ((np.log(first) - 1) + (np.log(first) - 0)) / 2 + np.log(second) - 1
    loss = LiveSetLoss(negatives=1.0)
    assert float(loss.total(SCORES, IS_ROW, ROWS)) == pytest.approx(expected, rel=1e-5)
    assert loss.size(ROWS) == 2


def test_a_sampled_row_counts_as_often_as_it_was_left_out():
    sampled = LiveSetLoss(negatives=0.25, teacher_weight=1.0)
    quarter = rows_with([[True, False]], [[1.0, 0.5]])
    whole = rows_with([[True, False, False, False, False]], [[1.0, 0.5, 0.5, 0.5, 0.5]])
    few = sampled.total(torch.tensor([[[0.3], [-0.7]]]), torch.ones(1, 2, dtype=torch.bool), quarter)
    scores = torch.tensor([[0.3, -0.7, -0.7, -0.7, -0.7]])[..., None]
    every = LiveSetLoss(negatives=1.0, teacher_weight=1.0).total(scores, torch.ones(1, 5, dtype=torch.bool), whole)
    assert float(few) == pytest.approx(float(every), rel=1e-5)


def test_distance_to_the_final_ranker_by_hand():
    plain, distilled = (LiveSetLoss(negatives=1.0, teacher_weight=weight) for weight in (0.0, 0.5))
    expected = 0.0
    for teacher, score in (([0, 2, -1, 1], [1, 0, -1, 2]), ([3, 0, 1], [0.5, 0, 1])):
        p, q = (np.exp(np.array(values) / 2) for values in (teacher, score))
        expected += 0.5 * 4 * (p / p.sum() * np.log(p / p.sum() * q.sum() / q)).sum()
    difference = float(distilled.total(SCORES, IS_ROW, ROWS)) - float(plain.total(SCORES, IS_ROW, ROWS))
    assert difference == pytest.approx(expected, rel=1e-4)


def test_equal_scores_but_for_a_constant_have_no_distance_and_padding_has_no_gradient():
    scores = torch.tensor([[5.0, 7.0, 4.0, 6.0], [-1.0, -4.0, -3.0, 99.0]])[..., None].requires_grad_()
    loss = LiveSetLoss(negatives=0.1, teacher_weight=1.0)
    value = loss.total(scores, IS_ROW, ROWS)
    without = LiveSetLoss(negatives=0.1).total(scores, IS_ROW, ROWS)
    assert value.item() == pytest.approx(without.item(), rel=1e-5)
    value.backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[1, 3] == 0 and scores.grad.any()


def test_a_request_without_a_label_has_no_softmax_and_log_losses_are_those_of_each_row():
    nothing = rows_with([[False, False]], [[0.0, 1.0]])
    is_row = torch.ones(1, 2, dtype=torch.bool)
    scores = torch.tensor([[[0.3], [-0.7]]])
    assert float(LiveSetLoss(negatives=1.0).total(scores, is_row, nothing)) == 0
    by_row = LiveSetLoss(negatives=1.0, is_softmax=False).total(scores, is_row, nothing)
    assert float(by_row) == pytest.approx(float(LogLoss().total(scores, is_row, nothing)))


def test_rows_without_scores_of_the_final_ranker_are_a_fault():
    bare = [dataclasses.replace(row, teacher_C=None) for row in ROWS]
    with pytest.raises(AssertionError, match="no score of the final ranker for request 0"):
        LiveSetLoss(negatives=1.0, teacher_weight=1.0).total(SCORES, IS_ROW, bare)


def test_cut_keeps_the_first_of_each_request_and_recall_counts_the_best_in_it():
    request_N = np.repeat([7, 3], [4, 12])
    coarse_N = np.concatenate([[0.1, 0.4, 0.3, 0.2], np.arange(12.0)])
    final_N = np.concatenate([np.arange(4.0), -np.arange(12.0)])
    is_in_N = coarse.first(request_N, coarse_N, 3, seed=0)
    np.testing.assert_array_equal(np.flatnonzero(is_in_N), [1, 2, 3, 13, 14, 15])
    np.testing.assert_allclose(coarse.recall(request_N, final_N, is_in_N, seed=0), [0.1, 0.75])  # requests 3, 7
    rows = ScoredRows(
        request_N=request_N,
        ad_N=np.zeros(16, np.int32),
        logit_N=final_N,
        new_score_N=-final_N,
        label_N=final_N > 0,
        is_new_N=np.arange(16) >= 10,
        coarse_N=coarse_N,
    )
    np.testing.assert_array_equal(coarse.cut(rows, 3, seed=0), is_in_N)
    logs = SimpleNamespace(request_user_R=np.array([0, 0, 0, 5, 0, 0, 0, 9]))
    figures = coarse.figures(logs, rows, final_N, is_in_N, resamples=20, seed=0)
    assert figures["recall_of_top_10_all"]["mean"] == pytest.approx(0.425)
    assert figures["recall_of_top_10_new"]["mean"] == pytest.approx(3 / 6)
    assert rows.rows(is_in_N).coarse_N.tolist() == coarse_N[is_in_N].tolist()


def test_equal_scores_are_cut_at_random_not_by_place():
    is_in_N = coarse.first(np.zeros(1000, np.int64), np.zeros(1000), 100, seed=0)
    assert is_in_N.sum() == 100 and 20 < is_in_N[:500].sum() < 80


def test_clicks_of_the_law_of_interests_have_its_log_odds():
    rows = interests.rows(500, 40, 400, seed=0)
    p_RC = 1 / (1 + np.exp(-rows.logit_RC))
    topic_O = interests.groups()["category"]
    is_own = (rows.history_RT[:, None] == rows.candidate_RC[..., None]).any(2)
    is_topic = (topic_O[rows.history_RT][:, None] == topic_O[rows.candidate_RC][..., None]).any(2)
    for part in (is_own, is_topic & ~is_own, ~is_topic):
        assert part.sum() > 2000 and rows.label_RC[part].mean() == pytest.approx(p_RC[part].mean(), rel=0.15)
    assert (np.diff(np.sort(rows.candidate_RC), axis=1) > 0).all(), "an ad is live once"
    count_O = np.bincount(rows.history_RT.ravel(), minlength=len(topic_O))
    assert np.corrcoef(np.log1p(count_O)[1:], interests.popularity()[1:])[0, 1] > 0.8


def test_distillation_and_softmax_find_the_best_of_many_live_ads():
    model = RANKERS["two_tower"]
    parts = [interests.rows(requests, 20, 100, seed) for seed, requests in enumerate((500, 30, 100))]
    spec = planted_histories.spec_of(interests.groups(), 20)
    rows, stop, test = (
        [
            dataclasses.replace(row, teacher_C=logit_C.astype(np.float32))
            for row, logit_C in zip(
                planted_histories.examples(part, interests.groups(), 20), part.logit_RC, strict=True
            )
        ]
        for part in parts
    )
    training = Training(epochs=3, batch=16, learning_rate=2e-2, table_rate=6e-2)
    request_N = np.repeat(np.arange(100), 100)
    shares = {}
    for weight in (0.0, 10.0):
        loss = LiveSetLoss(negatives=1.0, teacher_weight=weight)
        params, _ = train.fit(model, spec, rows, stop, training, 0, loss=loss)
        score_N = logits(model, params, spec, test)[..., 0].ravel()
        is_in_N = coarse.first(request_N, score_N, 20, seed=0)
        shares[weight] = coarse.recall(request_N, parts[2].logit_RC.ravel(), is_in_N, seed=0).mean()
    assert shares[10.0] > 0.6 and shares[10.0] > shares[0.0] + 0.05 > 0.45, "a fifth is chance"


def test_split_finalmlp_is_its_bilinear_form(market, examples):
    model = FinalMlpSplit()
    params = drawn(model, market.spec)
    batch = collate([examples[2].inputs])
    state = {key: part for key, part in model.user(params, market.spec, batch).items() if "." not in key}
    user_1D = model._stream(params, "user", towers.user(params, market.spec, batch))
    candidate_CD = model.vectors(params, market.spec, batch)[0]
    linear_C = layers.mlp(params, "candidate.out", candidate_CD) + layers.mlp(params, "user.out", user_1D)
    expected = linear_C + finalmlp._bilinear(params["fusion"], np.repeat(user_1D, len(candidate_CD), 0), candidate_CD)
    np.testing.assert_allclose(towers.largest_dot(state, candidate_CD[None])[0], expected, rtol=1e-4, atol=1e-3)


def test_cosines_of_centres_by_hand_and_their_penalty(market):
    centre_RGD = np.array([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    half = 0.5**0.5
    np.testing.assert_allclose(hcn.cosines(centre_RGD), [[0, half, 0, half, half, half]], atol=1e-6)
    state = {"centres": torch.from_numpy(centre_RGD)}
    loss = Hcn(penalty=0.3).auxiliary({}, market.spec, state, None, np.random.default_rng(0))
    assert loss.item() == pytest.approx(0.3 * 4 * 0.5 / 6)


def test_centres_are_levels_of_soft_clusters_of_the_events(market, examples):
    model = Hcn(centres=2, levels=2)
    params = drawn(model, market.spec)
    request = max((row.inputs for row in examples), key=lambda row: len(row.sequences["ad_long"].gap_T))
    batch = collate([request])
    parts = hcn._groups(market.spec)["long"]
    assert [part.name for _, part in parts] == ["ad_long", "content_long"]

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    events = []
    weights = []
    for number, part in parts:
        sequence = request.sequences[part.name]
        embedded = shared.embed(params, market.spec, sequence.field_TK)
        events.append(unit(layers.dense(params, "long.event", embedded)))
        weights.append(np.exp(params["table.gap"][sequence.gap_T, number] + sequence.count_T))
    event_TD = np.concatenate(events)
    weight_T = np.concatenate(weights)
    weight_T /= weight_T.sum()
    centre_GD = unit(params["long.queries"])
    total = 0
    for _ in range(2):
        fit_TG = np.exp(hcn.SHARPNESS * event_TD @ centre_GD.T)
        fit_TG /= fit_TG.sum(1, keepdims=True)
        centre_GD = unit((fit_TG * weight_T[:, None]).T @ event_TD)
        event_TD = event_TD - 0.5 * fit_TG @ centre_GD
        total = total + centre_GD
    np.testing.assert_allclose(model._centres(params, market.spec, batch, "long", parts)[0], unit(total), atol=1e-4)


def test_a_user_without_events_has_no_centres(market, examples):
    model = Hcn()
    params = drawn(model, market.spec)
    request = examples[0].inputs
    nothing = {
        name: Positions(**{f.name: getattr(part, f.name)[:0] for f in dataclasses.fields(part)})
        for name, part in request.sequences.items()
    }
    state = model.user(params, market.spec, collate([dataclasses.replace(request, sequences=nothing)]))
    assert not state["centres"].any() and all(np.isfinite(part).all() for part in state.values())


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with tables and a calibrated ranker of the run ``m``."""
    folder = tmp_path_factory.mktemp("coarse")
    size = ("--world-users", "30", "--world-ads", "60", "--world-contents", "12")
    assert main(["data", "--work", str(folder), "--run", "m", "--source", "world", *size]) == 0
    assert rank(folder, "train", "--negatives", "0.5", "--requests", "120", "--rounds", "20") == 0
    assert rank(folder, "calibrate") == 0
    return folder


def rank(work, part, *flags):
    return main(["rank", part, "--work", str(work), "--run", "m", "--threads", "1", *flags])


def test_lists_of_a_cut_have_its_ads_alone_and_its_recall_is_reported(work, capsys):
    assert rank(work, "score", "--cut", "8") == 2
    assert "run `leadre rank coarse --run m`" in capsys.readouterr().err
    assert rank(work, "coarse", "--epochs", "1") == 0
    assert rank(work, "score", "--resamples", "20") == 0
    whole, figures = lists_and_figures(work)
    assert "cut" not in figures
    assert rank(work, "score", "--cut", "8", "--resamples", "20") == 0
    in_cut, cut_figures = lists_and_figures(work)
    assert {key: value for key, value in cut_figures.items() if key != "cut"} == figures
    all_ads, kept_ads = (frame.filter(pl.col("view") == "all") for frame in (whole, in_cut))
    assert kept_ads["ads"].list.len().max() == 8 < all_ads["ads"].list.len().max()
    kept = [len(set(some) & set(full[:10])) / 10 for some, full in zip(kept_ads["ads"], all_ads["ads"], strict=True)]
    recall = cut_figures["cut"]["recall_of_top_10_all"]
    assert recall["lo"] <= recall["mean"] <= recall["hi"]
    assert recall["mean"] == pytest.approx(np.mean(kept), abs=0.03), "requests without an action have no list"
    assert rank(work, "coarse", "--epochs", "1") == 0
    assert "rank-coarse is current" in capsys.readouterr().err


def lists_and_figures(work):
    folder = work / "m" / "rank-score"
    return pl.read_parquet(folder / "lists.parquet"), json.loads((folder / "metrics.json").read_text())


def test_a_coarse_ranker_of_another_ranker_is_refused(work, capsys):
    assert rank(work, "coarse", "--epochs", "1", "--loss", "log", "--teacher-weight", "0") == 0
    assert rank(work, "train", "--negatives", "0.5", "--requests", "120", "--rounds", "5") == 0
    assert rank(work, "calibrate") == 0
    capsys.readouterr()
    assert rank(work, "score", "--cut", "8") == 2
    assert "was made from another rank-train" in capsys.readouterr().err


def test_a_ranker_of_other_features_or_tables_is_no_teacher(work, capsys):
    folder = work / "m" / "rank-train"
    final = artifact.read(folder, artifact.RANKER)
    data = artifact.read(work / "m" / "data", artifact.TABLES)
    trained = ranker.load(folder)
    spec = dataclasses.replace(trained.spec, context=trained.spec.context[:1])
    weights = RANKERS["two_tower"].init(spec, np.random.default_rng(0))
    other = dataclasses.replace(trained, model="two_tower", spec=spec, weights=weights)
    with artifact.create(
        folder, kind=artifact.RANKER, config=final.meta["config"], seed=0, parents=[data]
    ) as temporary:
        other.save(temporary)
    assert rank(work, "coarse") == 2
    assert "reads other features than this version has; run `leadre rank train` again" in capsys.readouterr().err
    bags = final.meta["config"] | {"labels": "bags"}
    with artifact.create(folder, kind=artifact.RANKER, config=bags, seed=0, parents=[data]) as temporary:
        trained.save(temporary)
    assert rank(work, "coarse") == 2
    assert "set --labels rows" in capsys.readouterr().err
    size = ("--world-users", "20", "--world-ads", "60", "--world-contents", "12")
    assert main(["data", "--work", str(work), "--run", "m", "--source", "world", *size]) == 0
    assert rank(work, "coarse") == 2
    assert "was made from another data" in capsys.readouterr().err
