"""The five verbs on the synthetic market.

The model recovers planted preferences, all generated ads are live, and the same seed gives the same bytes.
"""

import json

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main

STAGES = {"data": "data", "semid": "semid", "tune": "tune-sft", "generate": "generate", "evaluate": "evaluate"}
KINDS = {"data": artifact.TABLES, "semid": artifact.CODEBOOK, "tune": artifact.MODEL, "generate": artifact.LISTS}


def verb(name, work, models, flags=""):
    """Exit status of one verb in the run `e2e`; ``models`` is (text encoder, backbone)."""
    encoder, backbone = models
    flags_of = {
        "data": "--source world --world-users 100 --world-ads 90 --world-contents 24",
        "semid": f"--encoder {encoder} --levels 8,6 --collisions 24 --collaborative 2 --collaborative-dim 8",
        "tune": f"--backbone {backbone} --layers 0 --short-tokens 150 --long-tokens 60 --described 0",
        "generate": "",
        "evaluate": "--channels popularity,own_frequency --resamples 50",
    }
    argv = [name, "--work", str(work), "--run", "e2e", "--threads", "1", *flags_of[name].split(), *flags.split()]
    return main(argv)


@pytest.fixture(scope="module")
def models(tiny_encoder, tiny_llama):
    return tiny_encoder, tiny_llama


def read(work, name):
    return artifact.read(work / "e2e" / STAGES[name], KINDS[name])


def logs_of(work):
    from leadre.data import histories

    return histories.load(read(work, "data"))


TRAINED = "--batch-tokens 1500 --epochs 6 --learning-rate 0.003 --codes-learning-rate 0.01 --new-weight 1"
QUICK = {"tune": "--max-steps 2 --batch-tokens 800", "generate": "--users 8"}


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A work folder in which all five verbs have run; `tune` ran long enough to learn the planted preferences."""
    work = tmp_path_factory.mktemp("work")
    for name in STAGES:
        assert verb(name, work, models, TRAINED if name == "tune" else "") == 0
    return work


def recall(work, view, method):
    metrics = json.loads((work / "e2e" / "evaluate" / "metrics.json").read_text())
    return metrics["views"][view][method]["recall@10"]["mean"]


def chance(work, view):
    """Expected Recall@10 of ten ads drawn uniformly from the eligible ones."""
    from leadre.data.histories import TEST
    from leadre.evaluate.retrieval import measure as retrieval

    logs = logs_of(work)
    requests = retrieval.build_view(logs, logs.requests_of(TEST), view)
    recalls = []
    for r, relevant in zip(requests.requests_V.tolist(), requests.relevant, strict=True):
        eligible = int(retrieval.eligible(logs, r, view).sum())
        recalls.append(min(10, eligible) / eligible * len(relevant) / min(10, len(relevant)))
    return float(np.mean(recalls))


def test_model_recovers_planted_repetition(finished):
    """Four in ten conversions repeat an earlier one of the same user, which popularity cannot know.

    200 requests, so 0.04 is one standard error. Measured: LEADRE .86, the user's own counts .71, popularity .30,
    chance .28.
    """
    leadre = recall(finished, "all", "leadre")
    assert leadre > recall(finished, "all", "popularity") + 0.3
    assert leadre > chance(finished, "all") + 0.3
    assert leadre > recall(finished, "all", "own_frequency")  # own counts know the repetition, but not the category


def test_model_recovers_planted_preference(finished):
    """Eight in ten new conversions fall into the user's preferred category, one of six; all ads are new to the user.

    86 requests, so 0.05 is one standard error. Measured: LEADRE .69, popularity .16, chance .32. An oracle that knows
    the category alone would reach about .85.
    """
    leadre = recall(finished, "new", "leadre")
    assert leadre > chance(finished, "new") + 0.15
    assert leadre > recall(finished, "new", "popularity") + 0.2


def test_generated_ads_are_live_and_distinct(finished):
    logs = logs_of(finished)
    lists = pl.read_parquet(finished / "e2e" / "generate" / "lists.parquet")
    assert set(lists["request"].to_list()) == set(np.flatnonzero(logs.request_split_R == 2).tolist())
    for r, view, ads in lists.select("request", "view", "ads").iter_rows():
        assert set(ads) <= set(logs.inventory(r).tolist())
        objects = logs.ad_object_A[ads]
        assert view == "all" or not np.isin(objects, logs.object_E[logs.history(r)]).any()
        assert len(set(ads)) == len(ads) > 0


def test_second_run_skips_current_stages(finished, models, capsys):
    written = {path: path.stat().st_mtime_ns for path in (finished / "e2e").rglob("*") if path.is_file()}
    for name in STAGES:
        assert verb(name, finished, models, TRAINED if name == "tune" else "") == 0
        assert f"{name}: {finished / 'e2e' / STAGES[name]} is current, nothing to do" in capsys.readouterr().err
    assert written == {path: path.stat().st_mtime_ns for path in (finished / "e2e").rglob("*") if path.is_file()}


def test_finished_run_leaves_no_temporary_files(finished):
    temporary = [path.name for path in (finished / "e2e").iterdir() if path.name.startswith(".")]
    assert temporary == []


@pytest.fixture(scope="module")
def quick(models, tmp_path_factory):
    """A work folder in which all five verbs have run, `tune` for two steps only."""
    work = tmp_path_factory.mktemp("quick")
    for name in STAGES:
        assert verb(name, work, models, QUICK.get(name, "")) == 0
    return work


def test_killed_stage_leaves_no_half_artifact_and_reruns_the_same(models, quick, tmp_path, monkeypatch, capsys):
    """Each stage is interrupted once, with all files written but not yet renamed into place, and then runs again."""
    for name, step in STAGES.items():
        with monkeypatch.context() as patch:
            patch.setattr(artifact, "_swap", interrupt)
            assert verb(name, tmp_path, models, QUICK.get(name, "")) == 130
        assert not (tmp_path / "e2e" / step).exists()
        assert not list((tmp_path / "e2e").glob(f".{step}.tmp-*"))
        for later in list(STAGES)[list(STAGES).index(name) + 1 :][:1]:
            capsys.readouterr()
            assert verb(later, tmp_path, models, QUICK.get(later, "")) == 2
            assert f"there is no {KINDS[name].name} artifact here; run `leadre {name}" in capsys.readouterr().err
        assert verb(name, tmp_path, models, QUICK.get(name, "")) == 0
    for name in KINDS:  # a report contains its time
        assert files(read(tmp_path, name)) == files(read(quick, name)), name


def interrupt(*_):
    raise KeyboardInterrupt


def files(folder):
    """File name -> hash, of an artifact."""
    return folder.meta["files"]


def test_same_seed_gives_same_ids_and_prompts(models, quick, tmp_path):
    for name in ("data", "semid"):
        assert verb(name, tmp_path, models) == 0
        assert read(tmp_path, name).hash == read(quick, name).hash
    assert prompts_of(tmp_path, models) == prompts_of(quick, models)
    other = tmp_path / "other"
    assert verb("data", other, models, "--seed 1") == 0
    assert read(other, "data").hash != read(quick, "data").hash


def prompts_of(work, models):
    """Bytes of all prompts of the test split, one thread a window."""
    from leadre.data.moment import of_requests
    from leadre.lm import pretrained
    from leadre.lm.layout import Layout
    from leadre.semid import codebook as codebooks
    from leadre.tune.prompts import PromptBlocks, PromptWriter
    from leadre.tune.threads import ThreadBuilder

    logs = logs_of(work)
    tokenizer = pretrained.tokenizer(models[1])
    layout = Layout(len(tokenizer), codebooks.load(read(work, "semid")).sizes)
    threads = ThreadBuilder(PromptWriter(logs, tokenizer, layout, PromptBlocks()), of_requests(logs))
    return [threads.write(window).ids.tobytes() for window in threads.serving(logs.requests_of(2))]


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("tune", "--epochs 0", "command line, --epochs: must be at least 1, got 0"),
        ("tune", "--validate-every 0", "command line, --validate-every: must be at least 1, got 0"),
        ("tune", "--layers 9", "--layers 9: the backbone has layers 0 to 1"),
        ("tune", "--backbone no/such/model/anywhere", "--backbone no/such/model/anywhere: neither"),
        ("generate", "--beam 0", "command line, --beam: must be at least 1, got 0"),
    ],
)
def test_invalid_flag_is_refused_with_one_line(models, quick, tmp_path, capsys, name, flags, message):
    (tmp_path / "e2e").mkdir()
    for step in ("data", "semid"):
        (tmp_path / "e2e" / step).symlink_to(quick / "e2e" / step)
    capsys.readouterr()
    assert verb(name, tmp_path, models, flags) == 2
    assert f"leadre: {message}" in capsys.readouterr().err
    assert not (tmp_path / "e2e" / STAGES[name]).exists()


def test_generate_refuses_ids_that_the_model_was_not_tuned_on(models, quick, tmp_path, capsys):
    (tmp_path / "e2e").mkdir()
    for step in ("data", "tune-sft"):
        (tmp_path / "e2e" / step).symlink_to(quick / "e2e" / step)
    assert verb("semid", tmp_path, models, "--levels 6,8") == 0
    capsys.readouterr()
    assert verb("generate", tmp_path, models) == 2
    assert "was tuned on other semantic IDs" in capsys.readouterr().err
