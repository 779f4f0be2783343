"""`leadre rank train`, `calibrate` and `score` on a small market, from the log to calibrated probabilities."""

from __future__ import annotations

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from leadre import artifact, readings
from leadre.__main__ import main
from leadre.data import histories
from leadre.errors import InputError
from leadre.rank import ranker, report, rows, score
from leadre.rank.models import shared
from leadre.rank.score import ScoredRows


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_encoder):
    """A work folder with tables and semantic IDs of the run ``m``."""
    folder = tmp_path_factory.mktemp("rank")
    size = ("--world-users", "80", "--world-ads", "40", "--world-contents", "12")
    assert main(["data", "--work", str(folder), "--run", "m", "--source", "world", *size]) == 0
    ids = ("--encoder", str(tiny_encoder), "--levels", "8,4", "--collisions", "24", "--collaborative-dim", "6")
    assert main(["semid", "--work", str(folder), "--run", "m", *ids]) == 0
    return folder


def rank(work, part, *flags):
    return main(["rank", part, "--work", str(work), "--run", "m", "--threads", "1", *flags])


@pytest.mark.parametrize("model", ["gbdt", "tin", "muse"])
def test_from_logs_to_calibrated_probabilities(work, model):
    assert rank(work, "train", "--model", model, "--negatives", "0.5", "--ids", "true", "--requests", "240") == 0
    assert rank(work, "calibrate") == 0
    assert rank(work, "score") == 0
    figures = json.loads((work / "m" / "rank-score" / "metrics.json").read_text())
    assert figures["auc"]["lo"] < figures["auc"]["mean"] < figures["auc"]["hi"]
    assert figures["gauc_user"]["mean"] > 0.7, "the market plants preferences and repeats"
    assert 0.6 < figures["sum_ratio"]["all"]["mean"] < 1.5
    assert {"seen", "new", "price_low", "popularity_high", "quiet_users"} <= set(figures["sum_ratio"])
    assert (work / "m" / "rank-score" / "calibration.png").stat().st_size > 10_000


def test_the_same_users_are_drawn_with_and_without_empty_requests(work):
    """So that the lists of `generate --users` and of `rank score --users` are of the same requests."""
    data = artifact.read(work / "m" / "data", artifact.TABLES)
    without, with_empty = (histories.load(data, empty=empty) for empty in (False, True))
    for seed in range(20):
        few = histories.choose_requests(without, split="test", users=3, seed=seed)
        assert set(few) <= set(histories.choose_requests(with_empty, split="test", users=3, seed=seed))


def test_lists_can_be_evaluated_and_hold_live_ads_best_first(work):
    lists = artifact.read(work / "m" / "rank-score", artifact.LISTS)
    logs = histories.load(artifact.read(work / "m" / "data", artifact.TABLES))
    frame = pl.read_parquet(lists.path / "lists.parquet")
    assert set(frame["request"]) == set(logs.requests_of(histories.TEST).tolist())
    for row in frame.iter_rows(named=True):
        assert np.isin(row["ads"], logs.inventory(row["request"])).all()
        assert row["scores"] == sorted(row["scores"], reverse=True)
        if row["view"] == "new":
            seen = logs.object_E[logs.history(row["request"])]
            assert not np.isin(logs.ad_object_A[row["ads"]], seen).any()


def test_scores_of_test_requests_are_a_reading_and_those_of_validation_are_none(work):
    data = artifact.read(work / "m" / "data", artifact.TABLES)
    count = readings.count(readings.of_test_set(work, data.hash))
    assert count == {"rank.gbdt": 1, "rank.tin": 1, "rank.muse": 1}
    assert rank(work, "score", "--split", "valid") == 0
    assert readings.count(readings.of_test_set(work, data.hash)) == count
    assert rank(work, "score") == 0
    assert readings.count(readings.of_test_set(work, data.hash)) == count | {"rank.muse": 2}


def test_ranker_survives_the_disk(work, tmp_path):
    data = artifact.read(work / "m" / "data", artifact.TABLES)
    logs = histories.load(data, empty=True)
    first = ranker.load(work / "m" / "rank-train")
    first.save(tmp_path)
    requests = logs.requests_of(histories.TEST)[:10]
    scores = [
        score.stacked(score.score(logs, requests, rows.candidates(data, logs, "live", empty=True), model))
        for model in (first, ranker.load(tmp_path))
    ]
    np.testing.assert_array_equal(scores[0].logit_N, scores[1].logit_N)


def test_parts_of_different_rankers_are_refused(work, tmp_path):
    first = ranker.load(work / "m" / "rank-train")
    first.save(tmp_path)
    (tmp_path / "objects.json").write_text('["one"]')
    with pytest.raises(InputError, match="different rankers"):
        ranker.load(tmp_path)
    fewer = dataclasses.replace(first.spec, tables={**first.spec.tables, "hour": 7})
    first.save(tmp_path)
    fewer.save(tmp_path)
    with pytest.raises(InputError, match=r"weights are .* different rankers"):
        ranker.load(tmp_path)


def test_an_unchanged_stage_is_skipped(work, capsys):
    assert rank(work, "score") == 0
    assert "is current, nothing to do" in capsys.readouterr().err


def test_empty_requests_are_between_the_others_in_order_of_time(work):
    size = ("--world-users", "80", "--world-ads", "40", "--world-contents", "12", "--hide", "0.4")
    assert main(["data", "--work", str(work), "--run", "hidden", "--source", "world", *size]) == 0
    data = artifact.read(work / "hidden" / "data", artifact.TABLES)
    plain, every = (histories.load(data, empty=empty) for empty in (False, True))
    number_R = rows.plain_numbers(data)
    assert len(every.request_user_R) > len(plain.request_user_R) == (number_R >= 0).sum()
    for r in np.flatnonzero(number_R >= 0)[::97]:
        assert every.relevant(r)[0].tolist() == plain.relevant(number_R[r])[0].tolist()
        assert every.request_at_us_R[r] == plain.request_at_us_R[number_R[r]]


def test_shown_ads_are_the_rows_of_a_log_with_impressions(work):
    data = artifact.read(work / "m" / "data", artifact.TABLES)
    logs = histories.load(data, empty=True)
    events = pl.read_parquet(data.path / "events.parquet")
    shown = events.filter((pl.col("domain") == "ad") & (pl.col("action") == "impression"))
    of = rows.candidates(data, logs, "shown", empty=True)
    requests = pl.read_parquet(data.path / "requests.parquet").sort(histories.REQUEST_ORDER)["request_id"]
    ads = logs.ads["ad_id"]
    for r in range(0, len(requests), 37):
        expected = set(shown.filter(pl.col("request_id") == requests[r])["item_id"])
        assert expected and {ads[int(ad)] for ad in of(r)} == expected | {ads[int(ad)] for ad in logs.relevant(r)[0]}


def test_parts_of_different_trainings_are_refused(work, capsys):
    assert rank(work, "train", "--seed", "3", "--rounds", "5") == 0
    before = artifact.read(work / "m" / "rank-score", artifact.LISTS).hash
    capsys.readouterr()
    assert rank(work, "score") == 2
    assert "was made from another rank-train" in capsys.readouterr().err
    assert rank(work, "calibrate", "--requests", "60") == 0
    assert rank(work, "score", "--refit-days", "99") == 2
    assert "are training time" in capsys.readouterr().err
    assert artifact.read(work / "m" / "rank-score", artifact.LISTS).hash == before
    assert rank(work, "score", "--refit-days", "3") == 0


def test_importance_names_every_feature_and_finds_the_own_counts(work):
    with (work / "m" / "rank-train" / "importance.csv").open() as file:
        rise = {row["feature"]: float(row["loss_rise"]) for row in csv.DictReader(file)}
    spec = ranker.load(work / "m" / "rank-train").spec
    assert set(rise) == {*spec.numbers, *spec.fields, *spec.user_tables, *(part.name for part in spec.sequences)}
    assert max(rise.values()) > 0.001
    assert all(rise[part.name] == 0 for part in spec.sequences), "trees read no sequence"


def test_slices_and_samples_without_an_action_have_no_ratio():
    nothing = np.zeros(4, np.bool_)
    ratio = report._sum_ratio(nothing, np.full(4, 0.25), np.arange(4), 4, 10, 0)
    assert ratio == {"mean": None, "lo": None, "hi": None, "positives": 0, "expected": 1.0}
    rows = ScoredRows(
        request_N=np.arange(4),
        ad_N=np.arange(4, dtype=np.int32),
        logit_N=np.zeros(4),
        new_score_N=np.zeros(4),
        label_N=nothing,
        is_new_N=nothing,
    )
    with pytest.raises(InputError, match="0 of 4 scored rows have an action"):
        report.figures(SimpleNamespace(request_user_R=np.arange(4)), rows, np.zeros(4), resamples=10, seed=0)


def test_bad_options_and_logs_are_refused(work, capsys, tmp_path):
    assert rank(work, "train", "--model", "muse") == 2
    assert "set --ids true" in capsys.readouterr().err
    assert rank(work, "train", "--model", "esmm") == 2
    assert "set --clicks true" in capsys.readouterr().err
    assert rank(work, "train", "--table-variance", "0.9") == 2
    assert "trees have no tables" in capsys.readouterr().err
    before = artifact.read(work / "m" / "rank-train", artifact.Kind("ranker", 2)).hash
    assert rank(work, "train", "--requests", "1", "--negatives", "0.001", "--seed", "8") == 2
    assert (
        "so nothing can be learnt; of the other ads, if there are any, a share --negatives 0.001"
        in capsys.readouterr().err
    )
    assert artifact.read(work / "m" / "rank-train", artifact.Kind("ranker", 2)).hash == before
    assert main(["rank", "score", "--work", str(tmp_path), "--run", "m"]) == 2
    assert "leadre data" in capsys.readouterr().err


def test_a_ranker_of_two_labels_scores_the_first(work, capsys):
    """In this market every conversion has a click, and no other ad has."""
    assert rank(work, "train", "--model", "esmm", "--clicks", "true", "--requests", "60", "--epochs", "1") == 0
    trained = ranker.load(work / "m" / "rank-train")
    assert trained.spec.labels == ("conversion", "click")
    assert rank(work, "calibrate", "--requests", "60") == 0
    size = ("--world-users", "20", "--world-ads", "40", "--world-contents", "12", "--positive", "click")
    assert main(["data", "--work", str(work), "--run", "clicks", "--source", "world", *size]) == 0
    capsys.readouterr()
    assert main(["rank", "train", "--work", str(work), "--run", "clicks", "--model", "esmm", "--clicks", "true"]) == 2
    assert "a log with both" in capsys.readouterr().err


def test_narrow_tables_are_part_of_the_ranker(work):
    flags = ("--model", "gdcn", "--table-variance", "0.6", "--requests", "60", "--epochs", "1")
    assert rank(work, "train", *flags) == 0
    spec = ranker.load(work / "m" / "rank-train").spec
    assert set(spec.widths) == {*spec.fields, *spec.user_tables}
    assert 1 <= spec.widths["object"] < shared.OBJECT_WIDTH
    assert not (work / "m" / ".rank-train.checkpoint").exists()


@pytest.mark.parametrize("flags", [("--bag-method", "bp"), ("--bag-rows", "random", "--bag-size", "40")])
def test_a_network_is_trained_from_sums_of_bags(work, flags):
    options = ("--labels", "bags", "--requests", "120", "--epochs", "2", "--negatives", "0.5", *flags)
    assert rank(work, "train", "--model", "dcnv2", *options) == 0
    folder = work / "m" / "rank-train"
    assert not (folder / "importance.csv").exists(), "it would read labels of rows"
    assert ranker.load(folder).spec.negatives == 1, "bags are sampled by weight, so scores need no correction"
    assert len((folder / "curve.csv").read_text().splitlines()) == 3


def test_bags_are_refused_for_trees_and_for_two_labels(work, capsys):
    assert rank(work, "train", "--labels", "bags") == 2
    assert rank(work, "train", "--labels", "bags", "--model", "esmm", "--clicks", "true") == 2
    assert capsys.readouterr().err.count("--labels bags") == 2
