"""Users leave a run: its tables, and the lists, cases and pages made from them; children accept the new tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.__main__ import main
from leadre.artifact import Kind
from leadre.data import histories
from leadre.errors import ArtifactError

from .conftest import market

Logs = Callable[..., Path]
GONE = "household-4711"
NAMES = {"u0": "u0", "u1": GONE, "u2": "pubcid.org:u9"}
PAGE = Kind("metrics", 1)


@pytest.fixture
def run(logs: Logs, tmp_path: Path) -> Path:
    """A run with tables, a model, lists, and an evaluation of the lists; all requests are in the lists."""
    rows = {name: [row | {"user_id": NAMES[row["user_id"]]} for row in market()[name]] for name in ("users", "events")}
    rows["events"][7]["item_id"] = GONE  # a bad row of another user, whose reason quotes the ID
    rows["events"] = [
        row for n, row in enumerate(rows["events"]) if row["action"] != "conversion" or n % 4
    ]  # empty ones
    folder = logs(**rows)
    command = ["data", "--work", str(tmp_path), "--run", "r", "--source", "files", "--path", str(folder)]
    assert main([*command, "--max-bad-share", "0.1"]) == 0
    root = tmp_path / "r"
    assert GONE in pl.read_parquet(root / "data" / "empty_requests.parquet")["user_id"].to_list()
    tables = artifact.read(root / "data", artifact.TABLES)
    with artifact.create(root / "tune-sft", kind=artifact.MODEL, config={"a": 1}, seed=3, parents=[tables]) as copy:
        (copy / "weights.safetensors").write_bytes(b"weights")
    model = artifact.read(root / "tune-sft", artifact.MODEL)
    with artifact.create(root / "generate", kind=artifact.LISTS, config={}, seed=0, parents=[tables, model]) as copy:
        count = len(histories.load(tables).request_user_R)
        columns = {"request": pl.Series(range(count), dtype=pl.Int32), "ads": [[number] for number in range(count)]}
        pl.DataFrame(columns).write_parquet(copy / "lists.parquet")
        cases = [json.dumps({"request": number, "prompt": f"of {number}"}) for number in range(count)]
        (copy / "cases.jsonl").write_text("\n".join(cases) + "\n")
    lists = artifact.read(root / "generate", artifact.LISTS)
    with artifact.create(root / "evaluate", kind=PAGE, config={}, seed=0, parents=[tables, lists]) as copy:
        examples = [f'<article class="case"><h3>{user}</h3></article>' for user in NAMES.values()]
        (copy / "report.html").write_text("<h2>examples</h2>" + "\n".join(examples))
    return root


def erase(run: Path, users: str) -> int:
    return main(["data", "--work", str(run.parent), "--run", run.name, "--erase", users])


def users_of_lists(run: Path) -> list[tuple[int, str]]:
    """(ad of the list, user and time of its request) of each list, as a reader of the artifacts sees them."""
    tables = artifact.read(run / "data", artifact.TABLES)
    lists = artifact.read(run / "generate", artifact.LISTS)
    assert lists.meta["parents"]["data"] == tables.hash
    logs = histories.load(tables)
    users = logs.users["user_id"].to_list()
    frame = pl.read_parquet(run / "generate" / "lists.parquet")
    cases = [json.loads(line) for line in (run / "generate" / "cases.jsonl").read_text().splitlines()]
    assert [(case["request"], case["prompt"]) for case in cases] == [
        (number, f"of {ads[0]}") for number, ads in zip(frame["request"], frame["ads"], strict=True)
    ]
    who = [f"{users[logs.request_user_R[r]]} {logs.request_at_us_R[r]}" for r in frame["request"]]
    return list(zip(frame["ads"].list.first().to_list(), who, strict=True))


def assert_erased(run: Path, before: list[tuple[int, str]], gone: str) -> None:
    """The user is in no file, all else is as before, and every child is of the new tables."""
    assert users_of_lists(run) == [(ad, who) for ad, who in before if not who.startswith(gone)]
    frames = [pl.read_parquet(path) for path in run.glob("*/*.parquet")]
    assert not any(gone in json.dumps(frame.to_dicts(), default=str) for frame in frames)
    texts = [path.read_text() for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".html")]
    assert not any(gone in text for text in texts)
    tables = artifact.read(run / "data", artifact.TABLES)
    model = artifact.read(run / "tune-sft", artifact.MODEL)
    lists = artifact.read(run / "generate", artifact.LISTS)
    assert artifact.current(model.path, kind=artifact.MODEL, config={"a": 1}, seed=3, parents=[tables])
    assert artifact.current(lists.path, kind=artifact.LISTS, config={}, seed=0, parents=[tables, model])
    assert artifact.current(run / "evaluate", kind=PAGE, config={}, seed=0, parents=[tables, lists])
    assert sorted(path.name for path in run.iterdir()) == ["data", "evaluate", "generate", "tune-sft"]


def test_user_is_erased_from_tables_lists_and_pages(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = users_of_lists(run)
    old = artifact.read(run / "data", artifact.TABLES)
    model = artifact.read(run / "tune-sft", artifact.MODEL)
    assert GONE in pl.read_parquet(run / "data" / "bad_rows.parquet")["why"].str.join(" ").item()
    assert erase(run, f"{GONE},never-was") == 0
    said = capsys.readouterr().err
    assert "1 of 2 users were in the run and are erased" in said and "weights of models are not changed" in said
    assert_erased(run, before, GONE)
    new = artifact.read(run / "data", artifact.TABLES)
    assert new.hash != old.hash and new.meta["config"] == old.meta["config"]
    assert artifact.read(run / "tune-sft", artifact.MODEL).hash == model.hash
    assert json.loads((run / "data" / "summary.json").read_text())["rows"]["users"] == 2
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert erase(run, GONE) == 0 and "0 of 1 users" in capsys.readouterr().err
    assert times == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_users_of_a_file_are_erased_also_as_extended_ids(run: Path, tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text(f"{GONE}\n\nu9\n")
    assert erase(run, str(tmp_path / "gone.txt")) == 0
    assert {who.split()[0] for _, who in users_of_lists(run)} == {"u0"}


def test_run_without_another_training_user_and_empty_names_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = artifact.read(run / "data", artifact.TABLES).hash
    assert erase(run, ",".join(NAMES.values())) == 2
    assert "no training request of another user is left; delete the run" in capsys.readouterr().err
    assert erase(run, " , ") == 2 and "names no user" in capsys.readouterr().err
    assert artifact.read(run / "data", artifact.TABLES).hash == before


def test_damaged_child_is_refused_and_nothing_hides_the_damage(run: Path) -> None:
    (run / "generate" / "cases.jsonl").write_text("")
    assert erase(run, GONE) == 2
    with pytest.raises(ArtifactError, match=r"cases\.jsonl is missing or has changed"):
        artifact.read(run / "generate", artifact.LISTS)


# Kills the process before its Nth rename.
KILLED = """
import os, signal, sys
from pathlib import Path
from leadre.__main__ import main

left = int(sys.argv[1])
rename = Path.rename

def counted(path, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

Path.rename = counted
sys.exit(main(sys.argv[2:]))
"""


def test_erasure_that_is_killed_anywhere_is_finished_by_the_next_call(run: Path) -> None:
    before = users_of_lists(run)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["data", "--work", str(run.parent), "--run", run.name, "--erase", GONE]
    statuses = []
    for left in (1, 2, 3, 4, 5, 4, 3, 2):  # each call does some steps more, until one ends
        code = [sys.executable, "-c", KILLED, str(left), *command]
        statuses.append(subprocess.run(code, env=environment, capture_output=True, timeout=120).returncode)
    assert -signal.SIGKILL in statuses
    assert erase(run, GONE) == 0
    assert_erased(run, before, GONE)
    assert np.unique([who.split()[0] for _, who in users_of_lists(run)]).tolist() == ["pubcid.org:u9", "u0"]
