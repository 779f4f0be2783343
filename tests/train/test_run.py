"""`leadre train` on a small market: all stages, the options chosen, a second run, kills and unusable logs."""

import json
import shutil

import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main
from leadre.train import plan as plans
from leadre.train import probe
from leadre.train import run as train_stage

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
    tuned = config_of(work, "tune-sft")
    assert tuned["learnt_prior"] is True
    assert tuned.items() >= plans.BESIDE_LEARNT.items()
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


def test_killed_run_continues_with_the_stored_plan(write_config, finished, tmp_path, monkeypatch, capsys):
    """A kill before the lists: the plan and the model stay, and nothing is measured again."""
    path, work = finished
    shutil.copytree(work / "small", tmp_path / "small")
    for stage in ("generate", "evaluate"):
        shutil.rmtree(tmp_path / "small" / stage)
    monkeypatch.setattr(probe, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert train(path, tmp_path) == 0
    assert "tune: " in capsys.readouterr().err
    assert (tmp_path / "small" / "evaluate" / "report.html").is_file()
    plans = [json.loads((folder / "small" / "train" / "plan.json").read_text()) for folder in (work, tmp_path)]
    assert plans[0] == plans[1]


def test_options_of_the_config_hold(write_config, finished, tmp_path, capsys):
    """The plan changes only options that the file leaves open; another budget makes another plan."""
    _, work = finished
    shutil.copytree(work / "small" / "data", tmp_path / "small" / "data")
    shutil.copytree(work / "small" / "semid", tmp_path / "small" / "semid")
    fixed = {"tune": "max_steps = 2\nbatch_tokens = 900\nlearnt_prior = false", "generate": "users = 3"}
    path = write_config(tmp_path, **fixed)
    assert train(path, tmp_path, "--budget", "20m") == 0
    assert (
        config_of(tmp_path, "tune-sft").items() >= {"max_steps": 2, "batch_tokens": 900, "learnt_prior": False}.items()
    )
    assert config_of(tmp_path, "generate")["users"] == 3
    reasons = json.loads((tmp_path / "small" / "train" / "plan.json").read_text())["reasons"]
    assert any(reason.startswith("2 steps of about 900 positions") for reason in reasons)
    assert config_of(tmp_path, "semid")["levels"] == [8, 6]
    assert not (tmp_path / "small" / "channels" / "sasrec").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--budget", "soon"), "budget = 'soon'"),
        (("--budget", "0.001s"), "nothing is left of 0.001s after data and IDs"),
        (("--memory-gb", "0.5"), "memory: 500 MB may be taken"),
        (("--stages", "nothing.toml"), "nothing.toml: cannot read this config"),
    ],
)
def test_input_that_cannot_work_ends_with_words(finished, flags, message, tmp_path, capsys):
    path, work = finished
    for stage in ("data", "semid"):
        shutil.copytree(work / "small" / stage, tmp_path / "small" / stage)
    assert train(path, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small" / "tune-sft").exists()


def test_time_of_stages_of_earlier_commands_is_shown(tmp_path):
    settings = train_stage.Config(run="small", work=tmp_path)

    def finish(name, seed):
        output = {"kind": train_stage.FOLDERS[name], "config": {}, "seed": seed, "parents": []}
        with artifact.create(settings.folder(name), **output) as folder:
            (folder / "part").write_text(f"{seed}")

    assert train_stage._earlier({}, train_stage._seconds_of(settings)) == ""
    finish("semid", 0)
    finish("data", 0)
    before = dict.fromkeys(train_stage._seconds_of(settings), 125.0)
    finish("tune-sft", 0)
    assert (
        train_stage._earlier(before, train_stage._seconds_of(settings))
        == " beside 4 min 10 s of earlier commands (data, semid)"
    )
    finish("semid", 1)
    assert (
        train_stage._earlier(before, train_stage._seconds_of(settings))
        == " beside 2 min 5 s of earlier commands (data)"
    )


def test_missing_logs_are_named_before_any_work(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text('run = "small"\n[data]\nsource = "files"\npath = "no-such-folder"\n')
    assert train(path, tmp_path) == 2
    assert "no-such-folder" in capsys.readouterr().err


def test_log_without_test_labels_stops_before_the_ids(write_config, tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "ads.csv").write_text("ad_id,title\na1,Tea\na2,Red tea\n")
    rows = [f"u1,2026-03-0{day}T08:00:00Z,ad,a1,click" for day in (1, 2)]
    (tmp_path / "logs" / "events.csv").write_text("\n".join(["user_id,at,domain,item_id,action", *rows]) + "\n")
    path = tmp_path / "mine.toml"
    path.write_text(f'run = "small"\n[data]\nsource = "files"\npath = "{tmp_path / "logs"}"\npositive = "click"\n')
    assert train(path, tmp_path / "work") == 2
    assert "set --valid-from and --test-from" in capsys.readouterr().err
    assert not (tmp_path / "work" / "small" / "semid").exists()
