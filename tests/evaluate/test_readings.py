"""Each reading of a test set is logged, and the second one of a row warns."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from leadre import artifact, readings
from leadre.data import histories
from leadre.evaluate import run
from leadre.evaluate.run import Config

# pytest imports by file here, so the helpers next door have no package to come from
_spec = importlib.util.spec_from_file_location("evaluate_helpers", Path(__file__).with_name("conftest.py"))
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

ROWS = {"leadre", "leadre+counts", "popularity", "own_frequency"}


def logged(work: Path) -> list[dict[str, object]]:
    path = work / readings.FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_row_is_logged_once_and_a_skipped_stage_is_no_reading(run_folder, said):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    run.run(helpers.config(Config, work))
    run.run(helpers.config(Config, work))
    assert "is current, nothing to do" in said[-1]
    assert len(logged(work)) == len(ROWS) and {line["row"] for line in logged(work)} == ROWS
    line = logged(work)[0]
    data = artifact.read(work / "tiny" / "data", artifact.TABLES)
    assert (line["test_set"], line["run"]) == (data.hash, "tiny")
    assert line["requests"] == len(logs.requests_of(histories.TEST))
    assert line["code"] == artifact.code_version()
    assert not any("read before" in text for text in said)


def test_second_reading_of_a_row_warns_and_shows_in_the_report(run_folder, said):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    run.run(helpers.config(Config, work, channels=("popularity",)))
    run.run(helpers.config(Config, work, resamples=50))  # the same rows and one more
    warnings = [text for text in said if "read before" in text]
    assert len(warnings) == 1 and "popularity (1)" in warnings[0] and "own_frequency" not in warnings[0]
    figures = json.loads((work / "tiny" / "evaluate" / "metrics.json").read_text())
    assert figures["readings"] == {"leadre": 2, "leadre+counts": 2, "popularity": 2, "own_frequency": 1}
    page = (work / "tiny" / "evaluate" / "report.html").read_text()
    assert "<h2>Readings of this test set</h2>" in page
    configs = {line["config"] for line in logged(work)}
    assert len(configs) == 2, "two configs"


def test_another_run_with_the_same_tables_reads_the_same_test_set(run_folder, said):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)
    run.run(helpers.config(Config, work))
    shutil.copytree(work / "tiny", work / "other", symlinks=True)
    shutil.rmtree(work / "other" / "evaluate")
    run.run(helpers.config(Config, work, run="other", users=5))
    assert any("leadre (1)" in text for text in said if "read before" in text)
    assert {line["run"] for line in logged(work)} == {"tiny", "other"}


def test_validation_is_not_logged(run_folder, said):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs, split=histories.VALID)
    run.run(helpers.config(Config, work, split="valid"))
    assert logged(work) == []
    page = (work / "tiny" / "evaluate" / "report.html").read_text()
    assert "Readings of this test set" not in page


def test_a_killed_comparison_is_a_reading(run_folder, monkeypatch):
    work, logs = run_folder
    helpers.write_lists(work / "tiny", logs)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("leadre.evaluate.retrieval.measure.compare", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run(helpers.config(Config, work))
    assert {line["row"] for line in logged(work)} == ROWS
