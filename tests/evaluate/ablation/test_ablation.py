"""The ablation: which rows there are, what they are compared with, and the whole of it on the synthetic market."""

import json

import numpy as np
import pytest

from leadre import artifact, config, readings
from leadre.__main__ import main
from leadre.errors import InputError
from leadre.evaluate.ablation import compare as ablation
from leadre.evaluate.ablation import variants
from leadre.evaluate.ablation.variants import compose
from leadre.evaluate.run import Config as Evaluate
from leadre.metrics import Ratio
from leadre.tune.preferences.run import Config as Prefer
from leadre.tune.run import Config as Tune

TUNE = Tune().flat()
DPO = Prefer().changed({"on_policy": True}).flat()


def test_every_field_of_the_table_is_one_of_its_stage():
    assert set(variants.OFF) <= set(TUNE)
    assert {field for step in variants.STEPS for field in step.on} == set(variants.OFF)
    for row in (*variants.TASKS, *variants.CONTROLS):
        assert set(row.options) <= set(TUNE)
    for row in variants.LEFT_OUT:
        assert set(row.options) <= set(DPO)
        unchanged = Prefer().changed({"on_policy": "on_policy" in row.options})
        assert Prefer().changed(row.options) != unchanged, row.name


def test_rows_build_up_to_the_config_as_given():
    tune = {name: value for name, value in TUNE.items() if not name.startswith("aux_")}
    rows = compose(tune, DPO)
    cumulative = [row for row in rows if not row.left_out]
    assert [row.name for row in cumulative] == ["base", "long-term", "content", "words", "dpo"]
    assert rows[0].tune == {name: False for name in variants.OFF if not name.startswith("aux_")}
    assert [len(row.tune) for row in cumulative] == [5, 4, 2, 0, 0]
    assert [row.against for row in cumulative] == [None, "base", "long-term", "content", "words"]
    left_out = [row for row in rows if row.left_out and row.dpo is not None]
    assert all(row.against == "dpo" and not row.tune for row in left_out) and len(left_out) == len(variants.LEFT_OUT)


def test_controls_are_compared_with_the_config_itself():
    rows = compose({**TUNE, "aux_share": 0.2, "learnt_prior": True}, DPO)
    controls = [row for row in rows if row.name in {control.name for control in variants.CONTROLS}]
    assert [row.name for row in controls] == [control.name for control in variants.CONTROLS]
    assert all(row.left_out and row.dpo is None and row.against == "aux" for row in controls)
    for row in controls:
        Tune().changed(row.tune)  # options that exist, of the right types
    without_tasks = compose(TUNE, DPO, ("words", "no-pointer", "dpo"))
    assert [row.against for row in without_tasks] == [None, "words", "words"]
    assert [row.against for row in compose(TUNE, DPO, ("content", "no-pointer"))] == [None, None]
    assert "rate-prior" not in [row.name for row in compose(TUNE, DPO)]
    assert "random-body" not in [row.name for row in compose({**TUNE, "random_backbone": True}, DPO)]


def test_each_alignment_task_is_left_out_once_beside_all_of_them():
    rows = compose({**TUNE, "aux_share": 0.2, "task_why": 0.0}, DPO)
    names = [row.name for row in rows]
    assert names[3:5] == ["words", "aux"]
    assert names[5:11] == [row.name for row in variants.TASKS[:-1]]  # the last one is off already
    assert rows[6].tune == {"task_text_to_id": 0.0} and rows[6].left_out
    assert {row.against for row in rows[5:11]} == {"aux"} and rows[names.index("dpo")].against == "aux"


def test_rows_that_would_repeat_another_are_left_out():
    off = {**TUNE, "long_ad": False}
    assert "long-term" not in [row.name for row in compose(off, DPO)]
    alone = DPO | {"live_unbought": False, "higher_value": False, "similarity": False}
    left_out = {row.name for row in compose(TUNE, alone) if row.left_out}
    assert not left_out & {"no-on-policy", "no-live-unbought", "no-higher-value", "no-similarity"}
    assert "no-guard" in left_out


def test_chosen_rows_are_compared_among_themselves():
    rows = compose(TUNE, DPO, ("words", "base", "no-guard"))
    assert [(row.name, row.against) for row in rows] == [("base", None), ("words", "base"), ("no-guard", None)]
    with pytest.raises(InputError, match="no row 'bse'; the nearest is 'base'"):
        compose(TUNE, DPO, ("bse",))


def test_seeds_are_averaged_and_differences_paired_by_seed():
    def ratio(*tops):
        return Ratio(numerator_U=np.array(tops, float), denominator_U=np.ones(len(tops)))

    rows = compose(TUNE, DPO, ("words", "dpo", "no-guard"))
    ratios = {
        "words": {0: ratio(0, 1), 1: ratio(0.5, 0.5)},
        "dpo": {0: ratio(0.2, 1), 1: ratio(0.9, 0.9)},
        "no-guard": {0: ratio(0.1, 0.9)},
    }
    cells = ablation._cells(rows, ratios, resamples=200, seed=0)
    assert cells["dpo"]["mean"] == pytest.approx(0.75) and cells["dpo"]["by_seed"] == {"0": 0.6, "1": 0.9}
    assert cells["dpo"]["diff"]["mean"] == pytest.approx(0.25)
    assert "diff" not in cells["words"]
    # against the same seed of the full row alone, where every user loses a tenth
    assert list(cells["no-guard"]["diff"].values()) == pytest.approx([-0.1] * 3)
    assert ablation._cells(rows[:1], {"words": {0: 0.25, 1: 0.5}}, 10, 0)["words"]["mean"] == 0.375


TOML = """
run = "steps"
threads = 1
[data]
source = "world"
world_users = 60
world_ads = 60
world_contents = 12
hide = 0.15
[semid]
encoder = "{encoder}"
levels = [8, 6]
collisions = 24
[tune]
backbone = "{backbone}"
layers = 0
short_tokens = 150
long_tokens = 60
described = 0
max_steps = 3
batch_tokens = 800
learning_rate = 0.01
codes_learning_rate = 0.1
[tune-dpo]
on_policy = true
users = 8
max_steps = 2
batch_tokens = 800
learning_rate = 0.01
codes_learning_rate = 0.1
validate_every = 2
guard = 0.9
[generate]
users = 25
[evaluate]
channels = []
fusion = false
resamples = 50
[evaluate-ablation]
variants = ["base", "words", "dpo", "no-guard"]
seeds = 2
resamples = 50
"""


def ablate(work, *flags):
    return main(["evaluate", "ablation", "--config", str(work / "x.toml"), "--work", str(work), *flags])


@pytest.fixture(scope="module")
def done(tiny_encoder, tiny_llama, tmp_path_factory):
    """A finished ablation that was killed once, after the first row had been tuned."""

    from leadre.generate import run as generate

    work = tmp_path_factory.mktemp("work")
    (work / "x.toml").write_text(TOML.format(encoder=tiny_encoder, backbone=tiny_llama))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "run", _interrupt)
        assert ablate(work) == 130
    assert not (work / "steps" / "evaluate-ablation").exists()
    first = work / "steps-base-0" / "tune-sft" / artifact.META
    before = first.stat().st_mtime_ns
    assert ablate(work) == 0
    assert first.stat().st_mtime_ns == before, "what the killed run had tuned was tuned again"
    return work


def _interrupt(*_):
    raise KeyboardInterrupt


def read_rows(work):
    return json.loads((work / "steps" / "evaluate-ablation" / "ablation.json").read_text())["rows"]


@pytest.mark.slow
def test_rows_are_written(done):
    rows = read_rows(done)
    assert [(row["name"], row["seeds"], row["against"]) for row in rows] == [
        ("base", [0, 1], None),
        ("words", [0, 1], "base"),
        ("dpo", [0, 1], "words"),
        ("no-guard", [0], "dpo"),
    ]
    assert len({row["columns"]["all/value@10"]["mean"] for row in rows}) > 2, "the rows learnt the same"
    for row in rows:
        assert set(row["columns"]) == set(ablation.COLUMNS)
        for column, cell in row["columns"].items():
            has = {"mean", "by_seed"} | (set() if column == ablation.COVERAGE else {"lo", "hi"})
            has |= {"diff"} if row["against"] and column != ablation.COVERAGE else set()
            assert set(cell) == has, column
    page = (done / "steps" / "evaluate-ablation" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1 and page.count("<tr") == 5 and "near-duplicates" not in page
    assert (done / "steps" / "evaluate-ablation" / "ablation.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_each_row_is_logged_as_a_reading_of_the_test_set(done):
    data = artifact.read(done / "steps" / "data", artifact.TABLES)
    read = readings.of_test_set(done, data.hash)
    assert readings.count(read) == {"base": 1, "words": 1, "dpo": 1, "no-guard": 1}


@pytest.mark.slow
def test_rows_that_tune_alike_share_a_model(done):
    assert (done / "steps-dpo-1" / "tune-sft").resolve() == done / "steps-words-1" / "tune-sft"
    assert (done / "steps-no-guard-0" / "generate-negatives").resolve() == done / "steps-words-0" / "generate-negatives"
    assert not (done / "steps-base-0" / "tune-sft").is_symlink()


@pytest.mark.slow
def test_a_second_run_does_nothing(done, capsys):
    times = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    assert ablate(done) == 0
    assert "evaluate-ablation is current, nothing to do" in capsys.readouterr().err
    assert times == {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_numbers_are_those_of_the_stages_run_by_hand(done, tmp_path):
    """Row `base`, seed 1, by five commands."""
    off = [f"--{field}={config.show(value)}" for field, value in variants.OFF.items() if field in TUNE]
    own = {"tune": [*off, "--seed", "1"]}
    for name in ("data", "semid", "tune", "generate", "evaluate"):
        flags = ["--config", str(done / "x.toml"), "--work", str(tmp_path), "--run", "hand"]
        assert main([name, *flags, *own.get(name, [])]) == 0
    figures = json.loads((tmp_path / "hand" / "evaluate" / "metrics.json").read_text())
    by_view = figures["views"] | figures["slices"]
    for column, cell in read_rows(done)[0]["columns"].items():
        view, _, metric = column.partition("/")
        assert cell["by_seed"]["1"] == by_view[view]["leadre"][metric]["mean"], column


@pytest.mark.slow
def test_an_artifact_of_another_run_is_not_replaced(done, tmp_path, capsys):
    (tmp_path / "x.toml").write_text((done / "x.toml").read_text())
    (tmp_path / "steps-base-0" / "data").mkdir(parents=True)
    assert ablate(tmp_path) == 2
    assert "exists and is not a link to that of" in capsys.readouterr().err
    assert ablate(tmp_path, "--seeds", "0") == 2
    assert "--seeds: must be at least 1, got 0" in capsys.readouterr().err


def test_evaluate_has_its_first_stage_still():
    assert Evaluate().resamples == 1000
    assert main(["evaluate", "--stage", "retrieval", "--show"]) == 0
