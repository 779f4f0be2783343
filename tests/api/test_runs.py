"""The Python API gives what the verbs write: the lists of `generate`, the rows of `evaluate`, the splits of `data`."""

import subprocess
import sys

import polars as pl
import pytest

import leadre
from leadre.data import histories
from leadre.errors import ArtifactError, InputError


def recommend(recommender, request, view):
    return recommender.recommend(
        request.user_id, at=request.at, live=request.live, placement_id=request.placement_id, k=20, new=view == "new"
    )


def test_model_recommends_the_lists_of_generate(run, folder, request_of):
    lists = pl.read_parquet(folder / "generate" / "lists.parquet")
    model = run.model("sft")
    ad_ids = run.ads["ad_id"]
    assert {"all", "new"} == set(lists["view"].unique()) and lists["request"].n_unique() > 10
    for r, view, ads, scores in lists.iter_rows():
        recommendations = recommend(model, request_of[r], view)
        assert [ad.ad_id for ad in recommendations] == ad_ids.gather(ads).to_list()
        assert [ad.score for ad in recommendations] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("name", ["item_knn", "als"])
def test_channel_ranks_as_evaluate_does(run, folder, request_of, name):
    lists = pl.read_parquet(folder / "evaluate" / "lists.parquet").filter(pl.col("method") == name)
    written = (folder / "channels" / name / "meta.json").stat().st_mtime_ns
    channel = run.channel(name)
    assert (folder / "channels" / name / "meta.json").stat().st_mtime_ns == written  # read, not fitted again
    ad_ids = run.ads["ad_id"]
    assert {"all", "new"} == set(lists["view"].unique()) and lists["request"].n_unique() > 10
    for _, view, r, ads in lists.iter_rows():
        recommendations = recommend(channel, request_of[r], view)
        assert [ad.ad_id for ad in recommendations] == ad_ids.gather(ads).to_list()
        assert [ad.score for ad in recommendations] == sorted((ad.score for ad in recommendations), reverse=True)


def test_missing_channel_is_fitted_and_written_once(run, folder):
    assert not (folder / "channels" / "popularity").exists()
    first = run.channel("popularity").recommend("user-00039")
    written = (folder / "channels" / "popularity" / "meta.json").stat().st_mtime_ns
    assert run.channel("popularity").recommend("user-00039") == first
    assert (folder / "channels" / "popularity" / "meta.json").stat().st_mtime_ns == written


def test_run_recommends_by_its_latest_model(run):
    assert run.recommend("user-00039", k=4) == run.model("sft").recommend("user-00039", k=4)
    assert run.recommend("user-00039").method == "sft"


def test_more_ads_than_beams_are_recommended_on_request(run):
    everything = run.model(beam=1).recommend("user-00039", k=50)
    assert len(everything) == min(50, everything.live) > 24


def test_requests_are_those_of_the_tables(run):
    logs = run.market.logs
    for number, split in enumerate(histories.SPLITS):
        requests = run.requests(split)
        rows = logs.requests_of(number).tolist()
        assert len(requests) == len(rows)
        for request, r in list(zip(requests, rows, strict=True))[::7]:
            assert list(request.live) == logs.ads["ad_id"].gather(logs.inventory(r)).to_list()
            assert list(request.acted_on) == logs.ads["ad_id"].gather(logs.relevant(r)[0]).to_list()
            assert request.user_id == logs.users["user_id"][int(logs.request_user_R[r])]
            assert request.placement_id == logs.placements[logs.request_placement_R[r]]
            assert round(request.at.timestamp() * 1e6) == logs.request_at_us_R[r]


def test_folder_that_is_no_run_is_refused_with_the_runs_near_it(run, folder, tmp_path):
    with pytest.raises(InputError, match=r"demo: is not the folder of a run; `leadre data --run NAME` begins one"):
        leadre.load(tmp_path / "demo")
    for path in (folder.parent, folder.parent / "serve"):
        with pytest.raises(InputError, match=r"is not the folder of a run, but .* has the runs served"):
            leadre.load(path)


@pytest.mark.parametrize(
    ("present", "use", "message"),
    [
        ((), lambda run: run.codebook, r"semid: there is no codebook artifact here; run `leadre semid --run served`"),
        ((), lambda run: run.channel("als"), r"run `leadre semid --run served`"),
        (
            ("semid",),
            lambda run: run.recommend("user-00039"),
            r"no model artifact here; run `leadre tune --run served`",
        ),
        (("semid", "tune-sft"), lambda run: run.model("dpo"), r"run `leadre tune dpo --run served`"),
    ],
)
def test_missing_stage_names_its_verb(folder, tmp_path, present, use, message):
    (tmp_path / "served").mkdir()
    for step in ("data", *present):
        (tmp_path / "served" / step).symlink_to(folder / step)
    with pytest.raises(ArtifactError, match=message):
        use(leadre.load(tmp_path / "served"))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda run: run.channel("alz"), "unknown channel 'alz'; the nearest is 'als'"),
        (lambda run: run.model("ppo"), "model 'ppo': must be latest, sft or dpo"),
        (lambda run: run.model(beam=0), "beam 0: must be at least 1"),
        (lambda run: run.requests("tests"), "split 'tests': must be one of train, valid, test"),
    ],
)
def test_unknown_name_is_refused(run, use, message):
    with pytest.raises(InputError, match=message):
        use(run)


def test_import_is_light_and_exports_are_listed():
    code = (
        "import sys, leadre\n"
        "assert not {'torch', 'numpy', 'polars'} & set(sys.modules), 'heavy import'\n"
        "assert set(leadre.__all__) <= set(dir(leadre))\n"
        "assert all(getattr(leadre, name) is not None for name in leadre.__all__)\n"
        "assert not {'torch', 'transformers', 'implicit'} & set(sys.modules), 'heavy API'\n"
        "assert not hasattr(leadre, 'laod')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reprs_are_short(run):
    assert repr(run) == f"Run({run.path}: 60 ads, 60 users, {len(run.market.logs.at_us_E):,} events)"
    assert repr(run.channel("als")) == "Recommender(name='als')"
    request = run.requests("test")[0]
    assert request.request_id in repr(request) and len(repr(request)) < 300


@pytest.mark.parametrize(
    ("module", "use", "message"),
    [
        ("safetensors", lambda run: run.codebook, r"a codebook needs safetensors.*'leadre\[generate\]'"),
        ("torch", lambda run: run.model(), r"a model needs torch, not installed here.*'leadre\[generate\]'"),
        ("implicit", lambda run: run.channel("als"), r"a channel needs implicit.*'leadre\[evaluate\]'"),
    ],
)
def test_missing_package_names_its_extra(folder, monkeypatch, module, use, message):
    run = leadre.load(folder)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=message):
        use(run)
    assert run.user("user-00039").events  # tables need no extra
