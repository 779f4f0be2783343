"""Metrics that one process writes and another reads."""

from __future__ import annotations

import os
import subprocess
import sys


def test_failing_tasks_of_another_process_are_read(tmp_path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    sets = "from leadre import telemetry; telemetry.FAILING_TASKS.labels('history').set({})"
    reads = "from leadre import telemetry; print(telemetry.failing_tasks())"

    def run(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    assert run(reads) == "set()\n"
    run(sets.format(1))
    assert run(reads) == "{'history'}\n"
