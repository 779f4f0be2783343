"""The five verbs on the synthetic market with known laws: the planted preferences must be recovered."""

import json

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main

STAGES = {"data": "data", "semid": "semid", "tune": "tune-sft", "generate": "generate", "evaluate": "evaluate"}
KINDS = {"data": "tables", "semid": "codebook", "tune": "model", "generate": "lists", "evaluate": "metrics"}


def verb(name, work, models, flags=""):
    """Exit status of one verb in the run `e2e`."""
    encoder, backbone = models
    own = {
        "data": "--source world --world-users 100 --world-ads 90 --world-contents 24",
        "semid": f"--encoder {encoder} --levels 8,6 --collisions 24 --collaborative 2 --collaborative-dim 8",
        "tune": f"--backbone {backbone} --layers 0 --short-tokens 150 --long-tokens 60 --described 0",
        "generate": "",
        "evaluate": "--channels popularity,own_frequency --resamples 50",
    }
    argv = [name, "--work", str(work), "--run", "e2e", "--threads", "1", *own[name].split(), *flags.split()]
    return main(argv)


@pytest.fixture(scope="module")
def models(tiny_encoder, tiny_llama):
    return tiny_encoder, tiny_llama


def read(work, name):
    return artifact.read(work / "e2e" / STAGES[name], kind=KINDS[name], version=3 if name == "tune" else 1)


def logs_of(work):
    from leadre.data import histories

    return histories.load(read(work, "data"))


TRAINED = "--batch-tokens 1500 --epochs 6 --learning-rate 0.003 --codes-learning-rate 0.01 --new-weight 1"
QUICK = {"tune": "--max-steps 2 --batch-tokens 800", "generate": "--users 8"}


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A work folder after all five verbs; tune has run long enough to learn."""
    work = tmp_path_factory.mktemp("work")
    for name in STAGES:
        assert verb(name, work, models, TRAINED if name == "tune" else "") == 0
    return work


def recall(work, view, method):
    metrics = json.loads((work / "e2e" / "evaluate" / "metrics.json").read_text())
    return metrics["views"][view][method]["recall@10"]["mean"]


def chance(work, view):
    """Expected Recall@10 of ten ads drawn blindly from those that may be listed."""
    from leadre.data.histories import TEST
    from leadre.evaluate.retrieval import measure as retrieval

    logs = logs_of(work)
    chances = []
    view_rows = retrieval.build_view(logs, logs.requests_of(TEST), view)
    for r, relevant in zip(view_rows.requests_V.tolist(), view_rows.relevant, strict=True):
        live = int(retrieval.eligible(logs, r, view).sum())
        chances.append(min(10, live) / live * len(relevant) / min(10, len(relevant)))
    return float(np.mean(chances))


def test_planted_repetition_is_recovered(finished):
    """Four in ten conversions repeat one; popularity cannot know whose. 200 requests, so 0.04 is one standard error.

    Seen: ours .86, the user's own counts .71, popularity .30, chance .28.
    """
    ours = recall(finished, "all", "leadre")
    assert ours > recall(finished, "all", "popularity") + 0.3
    assert ours > chance(finished, "all") + 0.3
    assert ours > recall(finished, "all", "own_frequency")  # they know the repetition, but not the category


def test_planted_preference_is_recovered(finished):
    """Eight in ten new conversions are of the user's one category in six; no ad of the answer was ever seen before.

    86 requests, so 0.05 is one standard error. Seen: ours .69, popularity .16, chance .32; who knew the category and
    nothing else would reach about .85.
    """
    ours = recall(finished, "new", "leadre")
    assert ours > chance(finished, "new") + 0.15
    assert ours > recall(finished, "new", "popularity") + 0.2


def test_every_generated_ad_is_live(finished):
    logs = logs_of(finished)
    lists = pl.read_parquet(finished / "e2e" / "generate" / "lists.parquet")
    assert set(lists["request"].to_list()) == set(np.flatnonzero(logs.request_split_R == 2).tolist())
    for r, view, ads in lists.select("request", "view", "ads").iter_rows():
        assert set(ads) <= set(logs.inventory(r).tolist())
        objects = logs.ad_object_A[ads]
        assert view == "all" or not np.isin(objects, logs.object_E[logs.history(r)]).any()
        assert len(set(ads)) == len(ads) > 0


def test_a_second_run_does_nothing(finished, models, capsys):
    written = {path: path.stat().st_mtime_ns for path in (finished / "e2e").rglob("*") if path.is_file()}
    for name in STAGES:
        assert verb(name, finished, models, TRAINED if name == "tune" else "") == 0
        assert f"{name}: {finished / 'e2e' / STAGES[name]} is current, nothing to do" in capsys.readouterr().err
    assert written == {path: path.stat().st_mtime_ns for path in (finished / "e2e").rglob("*") if path.is_file()}


def test_half_done_work_is_cleared_away(finished):
    hidden = [path.name for path in (finished / "e2e").iterdir() if path.name.startswith(".")]
    assert hidden == []


@pytest.fixture(scope="module")
def quick(models, tmp_path_factory):
    """The same, hardly trained."""
    work = tmp_path_factory.mktemp("quick")
    for name in STAGES:
        assert verb(name, work, models, QUICK.get(name, "")) == 0
    return work


def test_a_killed_stage_leaves_nothing_half_done_and_changes_no_byte(models, quick, tmp_path, monkeypatch, capsys):
    """Each stage dies once, with all its files written but not yet in place; then it is run again."""
    for name, step in STAGES.items():
        with monkeypatch.context() as patch:
            patch.setattr(artifact, "_swap", interrupt)
            assert verb(name, tmp_path, models, QUICK.get(name, "")) == 130
        assert not (tmp_path / "e2e" / step).exists()
        assert not list((tmp_path / "e2e").glob(f".{step}.tmp-*"))
        for later in list(STAGES)[list(STAGES).index(name) + 1 :][:1]:
            capsys.readouterr()
            assert verb(later, tmp_path, models, QUICK.get(later, "")) == 2
            assert f"there is no {KINDS[name]} artifact here; run `leadre {name}" in capsys.readouterr().err
        assert verb(name, tmp_path, models, QUICK.get(name, "")) == 0
    for name in ("data", "semid", "tune", "generate"):  # the report contains its wall time
        assert files(read(tmp_path, name)) == files(read(quick, name)), name


def interrupt(*_):
    raise KeyboardInterrupt


def files(artifact):
    """File names and hashes. The path of a test's own folder is written into a tokenizer's config, if anywhere."""
    return artifact.meta["files"]


def test_the_same_seed_gives_the_same_ids_and_prompts(models, quick, tmp_path):
    for name in ("data", "semid"):
        assert verb(name, tmp_path, models) == 0
        assert read(tmp_path, name).hash == read(quick, name).hash
    assert prompts_of(tmp_path, models) == prompts_of(quick, models)
    other = tmp_path / "other"
    assert verb("data", other, models, "--seed 1") == 0
    assert read(other, "data").hash != read(quick, "data").hash


def prompts_of(work, models):
    """Bytes of all served threads."""
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
def test_wrong_input_is_reported_in_one_line(models, quick, tmp_path, capsys, name, flags, message):
    (tmp_path / "e2e").mkdir()
    for step in ("data", "semid"):
        (tmp_path / "e2e" / step).symlink_to(quick / "e2e" / step)
    capsys.readouterr()
    assert verb(name, tmp_path, models, flags) == 2
    assert f"leadre: {message}" in capsys.readouterr().err
    assert not (tmp_path / "e2e" / STAGES[name]).exists()


def test_generate_refuses_ids_that_the_model_was_not_trained_on(models, quick, tmp_path, capsys):
    (tmp_path / "e2e").mkdir()
    for step in ("data", "tune-sft"):
        (tmp_path / "e2e" / step).symlink_to(quick / "e2e" / step)
    assert verb("semid", tmp_path, models, "--levels 6,8") == 0
    capsys.readouterr()
    assert verb("generate", tmp_path, models) == 2
    assert "was tuned on other semantic IDs" in capsys.readouterr().err
