"""`leadre train` on a small market: all stages, what it chose, a second run, kills and logs that cannot be trained on."""

import json

import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main

STAGES = ("data", "semid", "train", "tune-sft", "generate", "evaluate")


def train(path, work, *flags):
    return main(["train", "--config", str(path), "--work", str(work), "--threads", "1", *flags])


@pytest.fixture(scope="module")
def finished(write_config, tmp_path_factory):
    """(config, work folder) of a finished run."""
    folder = tmp_path_factory.mktemp("train")
    path = write_config(folder)
    assert train(path, folder / "work") == 0
    return path, folder / "work"


def config_of(work, stage):
    return json.loads((work / "small" / stage / "meta.json").read_text())["config"]


def test_all_stages_run_with_the_options_that_were_chosen(finished):
    _, work = finished
    chosen = json.loads((work / "small" / "train" / "plan.json").read_text())["changes"]
    for section, stage in (("tune", "tune-sft"), ("generate", "generate"), ("evaluate", "evaluate")):
        assert config_of(work, stage).items() >= chosen[section].items()
    steps = pl.read_csv(work / "small" / "tune-sft" / "loss.csv")
    assert len(steps) == chosen["tune"]["max_steps"]
    assert config_of(work, "tune-sft")["learnt_prior"] is True
    assert (work / "small" / "evaluate" / "report.html").is_file()


def test_second_run_skips_all_stages_and_prints_the_report(finished, capsys):
    path, work = finished
    written = {file: file.stat().st_mtime_ns for file in (work / "small").rglob("*") if file.is_file()}
    assert train(path, work) == 0
    out, err = capsys.readouterr()
    assert out == f"{work / 'small' / 'evaluate' / 'report.html'}\n"
    assert err.count("is current, nothing to do") == 5
    assert written == {file: file.stat().st_mtime_ns for file in (work / "small").rglob("*") if file.is_file()}


def test_show_prints_the_options_that_were_chosen(finished, capsys):
    path, work = finished
    assert main(["train", "--config", str(path), "--work", str(work), "--show"]) == 0
    shown = capsys.readouterr().out
    for name, value in json.loads((work / "small" / "train" / "plan.json").read_text())["changes"]["tune"].items():
        assert f"\n{name} = {value}\n" in shown
