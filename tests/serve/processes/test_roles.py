"""Entry points of a bidder's processes: none but a model server that starts imports torch, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "transformers"}

OTHERS = f"""
import sys
from leadre.serve.processes import bootstrap, http, management, supervisor, worker, writer, writer_state
print(set({HEAVY}) & set(sys.modules))
"""

REFUSED = f"""
import pathlib, sys
from leadre.serve.paths import StatePaths
from leadre.serve.plan import Plan, Timing
from leadre.serve.processes import roles
from leadre.serve.settings import Settings
folder = pathlib.Path(sys.argv[1])
plan = Plan(
    paths=StatePaths(folder=folder, store=""), settings=Settings(public_url=""), host="", port=0, manage_port=0,
    workers=1, timing=Timing(), tables=folder, codebook=folder, model=folder, beam=1, retain_days=1,
)
try:
    roles.run_model_server(plan)
except SystemExit as ended:
    print(ended.code, set({HEAVY}) & set(sys.modules))
"""

BLAS = """
from types import SimpleNamespace
import threadpoolctl
from leadre.serve.processes import process_setup, roles
def stop(_):
    raise SystemExit
process_setup.set_up = lambda: None
roles._wait_for_database = stop  # the first step of a worker after its set-up
try:
    roles.run_worker(SimpleNamespace(paths=SimpleNamespace(manage_database=None)), None)
except SystemExit:
    pass
import numpy.linalg
print({pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"})
"""

METRICS = """
import os, resource, sys
from leadre.serve.processes import process_setup
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
process_setup._allocate_metrics()
print(len(os.listdir(sys.argv[2])), "PROMETHEUS_MULTIPROC_DIR" in os.environ)
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_processes_other_than_the_model_server_do_not_import_torch() -> None:
    assert run(OTHERS).stdout.splitlines() == ["set()"]


def test_worker_computes_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert run(BLAS).stdout.splitlines() == ["{1}"]


def test_missing_artifact_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    done = run(REFUSED, tmp_path)
    assert done.stdout.splitlines() == ["1 set()"]
    assert "bids go on without the language model" in done.stderr


def test_metrics_without_room_leave_no_file_that_other_processes_would_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert run(METRICS, 1 << 12, tmp_path).stdout.split() == ["0", "False"]
    assert run(METRICS, 1 << 30, tmp_path).stdout.split() == ["3", "True"]
