"""The stage as a whole: files, skipping, resuming, errors that teach, a page that loads nothing."""

import base64
import csv
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.data import histories, prices
from leadre.data import run as data_run
from leadre.data.moment import cut
from leadre.errors import ArtifactError, InputError
from leadre.evaluate import run
from leadre.evaluate.retrieval import measure as retrieval
from leadre.evaluate.retrieval import rerank, slices
from leadre.evaluate.run import Config
from leadre.generate.channels.registry import CHANNELS

# pytest imports by file here, so the helpers next door have no package to come from
_spec = importlib.util.spec_from_file_location("evaluate_helpers", Path(__file__).with_name("conftest.py"))
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

PIXEL = b"\x89PNG, as good as any for a page that only embeds it"


@pytest.fixture(scope="module")
def done(market, tmp_path_factory):
    """One finished evaluation with everything beside it that the page can show."""
    work = tmp_path_factory.mktemp("done")
    root = work / "tiny"
    root.mkdir()
    (root / "data").symlink_to(market[0] / "tiny" / "data")
    helpers.write_lists(root, market[1])
    control = helpers.write_lists(root, market[1], step="control/generate", seed=9)
    (root / "tune-sft").mkdir()
    with (root / "tune-sft" / "loss.csv").open("w", newline="") as file:
        rows = [("step", "loss", "lr", "tokens"), *((i, 5 / (i + 1) + 1, 1e-3, 100 * i) for i in range(200))]
        csv.writer(file).writerows(rows)
    (root / "tune-sft" / "valid.csv").write_text("step,recall@10\n0,0.1\n100,0.2\n")
    group = {
        "objects": 7,
        "category": {"1": 0.75, "2": 0.375},
        "majority": {"1": 0.25, "2": 0.0},
        "title_f1": 0.5,
        "recall@10": 0.125,
    }
    (root / "tune-sft" / "alignment.json").write_text(json.dumps({"seen": group, "new": group | {"objects": 3}}))
    (root / "tune-dpo").mkdir()
    (root / "tune-dpo" / "pairs.png").write_bytes(PIXEL)
    (root / "rank-score").mkdir()
    (root / "rank-score" / "calibration.png").write_bytes(PIXEL[::-1])
    run.run(helpers.config(Config, work, extra=(f"control={control}",)))
    return root / "evaluate", market[1]


def test_view_without_a_relevant_ad_is_left_out(market, said):
    """A small log: in a handful of requests each converted object may be known to its user."""
    logs = market[1]
    requests = logs.requests_of(histories.TEST)
    known = np.setdiff1d(requests, retrieval.build_view(logs, requests, "new").requests_V)
    assert len(known)
    assert [view.name for view in run.views_of(logs, known)] == ["all"]
    assert any("view new" in line and "left out" in line for line in said)
    with pytest.raises(InputError, match="none of these 0 requests has a positive action"):
        run.views_of(logs, known[:0])


def test_metrics_json_has_the_documented_shape(done):
    folder, _ = done
    figures = json.loads((folder / "metrics.json").read_text())
    measured = {"split", "seed", "requests", "users", "readings", "seconds", "peak_rss_mb"}
    assert set(figures) == {"views", "slices", "rerank", *measured} and figures["rerank"] == {}
    assert set(figures["readings"].values()) == {1} and set(figures["readings"]) == set(figures["views"]["all"])
    assert figures["requests"]["new"] <= figures["requests"]["all"] == len(done[1].requests_of(histories.TEST))
    assert set(figures["views"]) == {"all", "new"} and set(figures["slices"]) <= {"cold", "few"}
    for table in figures["views"].values():
        assert list(table) == ["leadre", "leadre+counts", "control", "popularity", "own_frequency"]
        for method, row in table.items():
            assert list(row) == list(retrieval.metrics_of(20))
            for metric, cell in row.items():
                keys = {"mean", "lo", "hi"} | ({"diff"} if method != "leadre" else set())
                assert set(cell) == ({"mean"} if metric == "coverage@10" else keys)
                if metric != "value@10":  # in units of the currency
                    assert cell["mean"] <= 1
                assert cell["mean"] >= 0 and cell.get("lo", 0) <= cell["mean"] <= cell.get("hi", 1)
    everything = figures["views"]["all"]
    assert everything["own_frequency"]["recall@10"]["diff"]["lo"] > 0, "counts beat random lists"
    assert everything["control"]["recall@10"]["diff"]["lo"] <= 0 <= everything["control"]["recall@10"]["diff"]["hi"]


def test_lists_hold_live_ads_of_every_method(done):
    folder, logs = done
    lists = pl.read_parquet(folder / "lists.parquet")
    assert set(lists["method"]) == {"leadre", "leadre+counts", "control", "popularity", "own_frequency"}
    for method, view, r, ads in lists.sample(200, seed=0).iter_rows():
        assert len(set(ads)) == len(ads) <= retrieval.LIST_LENGTH, method
        assert set(ads) <= set(logs.inventory(r)[retrieval.eligible(logs, r, view)].tolist())


def test_the_page_loads_nothing_and_escapes_everything(done):
    folder, _ = done
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", page), "no outside references"
    assert not re.findall(r"url\((?!#)", page) and "<script" not in page and "@import" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;b&gt;&amp; what" in page
    assert page.count("<article") == 6 and page.count("<svg") == 3
    assert "<th>7 seen</th><th>3 new</th>" in page and "<td>.750</td>" in page
    for picture in (PIXEL, PIXEL[::-1]):
        assert f"data:image/png;base64,{base64.b64encode(picture).decode()}" in page
    for name in ("comparison.png", "loss.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_nothing_is_done_twice_and_a_killed_run_does_not_fit_again(run_folder, said, monkeypatch):
    work, logs = run_folder
    lists = helpers.write_lists(work / "tiny", logs)
    run.run(helpers.config(Config, work))
    before = json.loads((work / "tiny" / "evaluate" / "metrics.json").read_text())

    run.run(helpers.config(Config, work))
    assert "is current, nothing to do" in said[-1]

    def never(logs, seed, threads):
        raise AssertionError("fitted again")

    for name in helpers.QUICK:
        monkeypatch.setitem(CHANNELS, name, _with_fit(name, never))
    shutil.rmtree(work / "tiny" / "evaluate")
    run.run(helpers.config(Config, work))
    again = json.loads((work / "tiny" / "evaluate" / "metrics.json").read_text())
    assert again["views"] == before["views"]

    shutil.rmtree(lists)
    helpers.write_lists(work / "tiny", logs, seed=1)
    run.run(helpers.config(Config, work))
    assert "nothing to do" not in said[-1], "new lists, new figures"


def _with_fit(name, fit):
    import dataclasses

    return dataclasses.replace(CHANNELS[name], fit=fit)


def test_without_lists_the_error_names_the_command(run_folder):
    work, _ = run_folder
    with pytest.raises(ArtifactError, match="leadre generate --run tiny"):
        run.run(helpers.config(Config, work))
    assert not (work / "tiny" / "evaluate").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"channels": ("popularty",)}, "nearest is 'popularity'"),
        ({"extra": ("work/x",)}, "NAME=FOLDER"),
        ({"extra": ("leadre=work/x",)}, "exists already"),
        ({"split": "valid"}, "no request of the valid split"),
    ],
)
def test_errors_teach(run_folder, changes, why):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    with pytest.raises(InputError, match=why):
        run.run(helpers.config(Config, work, **changes))


def test_an_ad_that_is_not_live_stops_the_run_and_leaves_nothing(run_folder):
    work, logs = run_folder

    def spoil(r, view, ads):
        dead = np.setdiff1d(np.arange(len(logs.ads)), logs.inventory(r))
        return np.append(ads, dead[0])

    helpers.write_lists(work / "tiny", logs, swap=spoil)
    with pytest.raises(ArtifactError, match="is not live"):
        run.run(helpers.config(Config, work))
    assert not (work / "tiny" / "evaluate").exists()


def test_lists_of_other_logs_are_refused(run_folder, tmp_path):
    work, logs = run_folder
    with artifact.create(tmp_path / "x" / "data", kind=artifact.TABLES, config={}, seed=0, parents=[]) as folder:
        (folder / "other").write_text("other logs")
    other = artifact.read(tmp_path / "x" / "data", artifact.TABLES)
    helpers.write_lists(work / "tiny", logs, data=other)
    with pytest.raises(ArtifactError, match="other logs than"):
        run.run(helpers.config(Config, work))


def test_longer_lists_have_one_recall_more(run_folder):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs, config={"top": 20})
    with pytest.raises(ArtifactError, match="lists of 20 ads; run `leadre generate` with --top 30"):
        run.run(helpers.config(Config, work, length=30))
    helpers.write_lists(work / "tiny", logs, config={"top": 30})
    run.run(helpers.config(Config, work, length=30, channels=("own_frequency",)))
    rows = json.loads((work / "tiny" / "evaluate" / "metrics.json").read_text())["views"]["all"]
    assert list(rows["own_frequency"]) == list(retrieval.metrics_of(30))
    assert rows["own_frequency"]["recall@30"]["mean"] > rows["own_frequency"]["recall@20"]["mean"]


def test_lists_and_rivals_see_equally_much_of_a_history(run_folder):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    with pytest.raises(ArtifactError, match="generated with --last-visits -1, not 0"):
        run.run(helpers.config(Config, work, last_visits=0))
    helpers.write_lists(work / "tiny", cut(logs, 0), config={"last_visits": 0})
    run.run(helpers.config(Config, work, last_visits=0, channels=("own_frequency",)))
    figures = json.loads((work / "tiny" / "evaluate" / "metrics.json").read_text())
    assert figures["requests"]["all"] == figures["requests"]["new"], "without a history every object is new"
    own = [figures["views"][view]["own_frequency"]["recall@10"]["mean"] for view in ("all", "new")]
    assert own[0] == own[1], "a user without a history has no counts"


def test_users_are_drawn_by_the_seed(run_folder, said):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    run.run(helpers.config(Config, work, users=7, fusion=False))
    assert "7 users" in said[0]
    lists = pl.read_parquet(work / "tiny" / "evaluate" / "lists.parquet")
    assert len(np.unique(logs.request_user_R[lists["request"].to_numpy()])) == 7
    assert "leadre+counts" not in set(lists["method"])


def test_few_users_and_missing_money_show_on_the_console(run_folder, said):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    run.run(helpers.config(Config, work, users=7, fusion=False))
    text = "\n".join(said)
    assert "GMV@10" in text and "intervals over 7 users are too narrow" in text
    row = {metric: {"mean": 0.5} for metric in ("recall@10", "ndcg@10")} | {"gmv@10": {"mean": 0.0}}
    view = retrieval.build_view(logs, logs.requests_of(histories.TEST), "all")
    lines = run._summary({"all": {"leadre": row}}, [view])
    assert "GMV@10" not in "\n".join(lines) and lines[1].split() == ["leadre", "0.5000", "0.5000"]


def test_re_ranked_lists_are_a_row_with_the_weights_that_validation_chose(run_folder, said):
    work, logs = run_folder
    price_A = prices.training_prices(logs)

    def cheap_first(r, view, ads):
        may = logs.inventory(r)[retrieval.eligible(logs, r, view)]
        relevant = may[np.isin(may, logs.relevant(r)[0])]
        others = np.setdiff1d(may, relevant)
        return np.concatenate([others[np.argsort(price_A[others])][:15], relevant])

    helpers.write_lists(work / "tiny", logs)
    valid = helpers.write_lists(work / "tiny", logs, step="generate-valid", split=histories.VALID, swap=cheap_first)
    run.run(helpers.config(Config, work, rerank=valid))
    folder = work / "tiny" / "evaluate"
    figures = json.loads((folder / "metrics.json").read_text())
    assert set(figures["rerank"]) == {"all", "new"} and set(figures["rerank"].values()) <= set(rerank.WEIGHTS)
    lists = pl.read_parquet(folder / "lists.parquet").filter(view="all")
    ours, theirs = (lists.filter(method=name)["ads"] for name in ("leadre", "sft+price"))
    assert figures["rerank"]["all"] > 0, "validation found no use for the price"
    # the lists of this test have equal scores, so only the price can order them
    assert all(np.all(np.diff(price_A[ads]) <= 0) for ads in theirs.to_list())
    assert any(a != b for a, b in zip(ours.to_list(), theirs.to_list(), strict=True))
    assert "LEADRE x price" in (folder / "report.html").read_text(encoding="utf-8")
    run.run(helpers.config(Config, work, rerank=valid))
    assert "nothing to do" in said[-1]


def test_lists_of_another_model_or_split_do_not_choose_the_weight(run_folder, tmp_path):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    test = helpers.write_lists(work / "tiny", logs, step="generate-test")
    with pytest.raises(InputError, match="no request of the valid split"):
        run.run(helpers.config(Config, work, rerank=test))
    with artifact.create(tmp_path / "tune-sft", kind=artifact.MODEL, config={}, seed=0, parents=[]) as folder:
        (folder / "other").write_text("another model")
    other = artifact.read(tmp_path / "tune-sft", artifact.MODEL)
    valid = helpers.write_lists(work / "tiny", logs, step="generate-valid", split=histories.VALID, model=other)
    with pytest.raises(ArtifactError, match="generated by another model than the lists in"):
        run.run(helpers.config(Config, work, rerank=valid))


def test_cold_start_is_reported_if_objects_are_hidden(tmp_path):
    settings = {"source": "world", "world_users": 60, "world_ads": 50, "world_contents": 10, "hide": 0.2}
    data_run.run(data_run.Config(run="tiny", work=tmp_path, **settings))
    logs = histories.load(artifact.read(tmp_path / "tiny" / "data", artifact.TABLES))
    helpers.write_lists(tmp_path / "tiny", logs)
    run.run(helpers.config(Config, tmp_path))
    figures = json.loads((tmp_path / "tiny" / "evaluate" / "metrics.json").read_text())
    row = figures["slices"]["cold"]["popularity"]
    assert list(row) == list(slices.METRICS) and set(row["recall@10"]) == {"mean", "lo", "hi", "diff"}
    assert row["recall@10"]["mean"] < figures["views"]["all"]["popularity"]["recall@10"]["mean"]
    page = (tmp_path / "tiny" / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Cold start</h2>" in page and "<h3>Cold: " in page
