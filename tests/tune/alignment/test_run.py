"""`leadre tune` with alignment tasks on the synthetic market.

Tasks add report files; without a share of tasks the model has the same bytes as before.
"""

import json

import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main
from leadre.tune.alignment.phrasings import PHRASINGS

FLAGS = "--layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 3 --batch-tokens 900"
ALIGNED = f"{FLAGS} --aux-share 0.3 --aux-hidden 0.2 --task-search 0"


def verb(name, work, flags=""):
    return main([name, "--work", str(work), "--run", "r", "--threads", "1", *flags.split()])


def model(work):
    return artifact.read(work / "r" / "tune-sft", artifact.MODEL)


def link_inputs(work, source):
    """Link the tables and the codebook of ``source`` into the empty folder ``work``; return ``work``."""
    (work / "r").mkdir()
    for step in ("data", "semid"):
        (work / "r" / step).symlink_to(source / "r" / step)
    return work


@pytest.fixture(scope="module")
def plain(tiny_encoder, tiny_llama, tmp_path_factory):
    """(work folder, flag of the backbone) of a run without alignment tasks."""
    work = tmp_path_factory.mktemp("work")
    backbone = f" --backbone {tiny_llama}"
    assert verb("data", work, "--source world --world-users 30 --world-ads 40 --world-contents 12") == 0
    assert verb("semid", work, f"--encoder {tiny_encoder} --levels 8,6 --collisions 24") == 0
    assert verb("tune", work, FLAGS + backbone) == 0
    return work, backbone


@pytest.fixture(scope="module")
def aligned(plain, tmp_path_factory):
    """Work folder of a run with alignment tasks on the same tables and codebook."""
    work = link_inputs(tmp_path_factory.mktemp("aligned"), plain[0])
    assert verb("tune", work, ALIGNED + plain[1]) == 0
    return work


def test_model_without_alignment_share_has_the_same_bytes(plain, tmp_path):
    work = link_inputs(tmp_path, plain[0])
    assert verb("tune", work, f"{FLAGS} --aux-hidden 0.5 --task-why 9 --task-mixed 0 {plain[1]}") == 0
    assert model(work).meta["files"] == model(plain[0]).meta["files"]
    assert not {"tasks.csv", "tasks.png", "alignment.json"} & set(model(work).meta["files"])


def test_alignment_reports_are_files_of_the_model(plain, aligned):
    tuned = model(aligned)
    assert set(tuned.meta["files"]) - set(model(plain[0]).meta["files"]) == {"tasks.csv", "tasks.png", "alignment.json"}
    tasks = pl.read_csv(tuned.path / "tasks.csv")
    assert tasks.columns == ["task", "examples", "positions", "first_loss", "last_loss"]
    assert tasks["task"].to_list() == [task for task in PHRASINGS if task != "search"]
    assert tasks["examples"].min() > 0 and 0.5 * 3 * 256 < tasks["positions"].sum() <= 3 * 256
    figures = json.loads((tuned.path / "alignment.json").read_text())
    assert list(figures) == ["seen", "new"]
    ads = pl.read_parquet(plain[0] / "r" / "data" / "ads.parquet")["object_id"].n_unique()
    assert figures["seen"]["objects"] + figures["new"]["objects"] == ads and figures["new"]["objects"] >= 4
    for group in figures.values():
        assert list(group) == [
            "objects",
            "category",
            "category_of_object",
            "majority",
            "lookup_1",
            "lookup_2",
            "known_category",
            "title_f1",
            "recall@10",
        ]
        shares = [group["title_f1"], group["recall@10"], group["known_category"], *group["category"].values()]
        assert all(0 <= share <= 1 for share in shares)
    assert figures["seen"]["known_category"] == 1 and figures["seen"]["majority"]["1"] > 0


def test_resumed_run_writes_the_same_bytes(plain, aligned, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    work = link_inputs(tmp_path, plain[0])
    flags = f"{ALIGNED} --checkpoint-s 0 {plain[1]}"
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_swap", interrupt)
        assert verb("tune", work, flags) == 130
    assert (work / "r" / ".tune-sft.checkpoint").exists()
    assert verb("tune", work, flags) == 0
    assert model(work).meta["files"] == model(aligned).meta["files"]


def test_aligned_model_generates_lists(aligned):
    assert verb("generate", aligned, "--users 4") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--aux-share 1", "--aux-share: must be at least 0 and below 1, got 1.0"),
        ("--aux-hidden -0.1", "--aux-hidden: must be at least 0 and below 1, got -0.1"),
        ("--task-why -1", "--task-why: must be at least 0, got -1.0"),
        ("--aux-share 0.3 --words false", "--aux-share 0.3: alignment tasks need words in prompts; set --words true"),
        ("--aux-share 0.3 --batch-tokens 200", "--aux-share 0.3: 256 of 200 positions a step leave none"),
        (
            "--aux-share 0.3 " + " ".join(f"--task-{t.replace('_', '-')} 0" for t in PHRASINGS),
            "no alignment task has examples",
        ),
    ],
)
def test_invalid_flag_is_refused_with_one_line(plain, tmp_path, capsys, flags, message):
    work = link_inputs(tmp_path, plain[0])
    capsys.readouterr()
    assert verb("tune", work, f"{FLAGS} {flags} {plain[1]}") == 2
    assert message in capsys.readouterr().err
    assert not (work / "r" / "tune-sft").exists()
