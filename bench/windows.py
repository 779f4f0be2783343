"""Claim: an ad with a window of its own costs no stage memory by the request: 20,000 ads x 50,000 requests take at most
1 GB more in each stage than the same log in which all ads share one window.

    python bench/windows.py

The two logs are those of `write_windows` in bench/data.py. Each stage is a process of its own, with peak memory of its
own: tuning does a few steps, lists are generated for a few users, evaluation fits and scores the channels on the same
users. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from data import measure, write_windows

MAX_MB = 1000.0
DATA_MB = 1000.0

STAGE = """
import sys
from leadre.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def stages(users: int) -> dict[str, list[str]]:
    """Stage -> its command, without folders."""
    few = ["--users", str(users)]
    return {
        "data": ["data", "--source", "files"],
        "semid": ["semid", "--levels", "64,64"],
        "tune": ["tune", "--layers", "1", "--described", "0", "--max-steps", "5", "--batch-tokens", "1024"],
        "generate": ["generate", *few],
        "rank": ["rank", "train", "--requests", "1000"],
        "evaluate": ["evaluate", *few],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--stages", default="data,semid,tune,generate,rank,evaluate")
    options = parser.parse_args()
    peaks: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for log in ("own", "shared"):
            write_windows(folder / log, shared=log == "shared")
            for stage in options.stages.split(","):
                command = [*stages(options.users)[stage], "--work", str(folder / "work"), "--run", log]
                command += ["--path", str(folder / log)] if stage == "data" else []
                figures = measure(STAGE, *command)
                peaks.setdefault(stage, {})[log] = round(figures["peak_rss_mb"], 1)
                sys.stdout.write(f"{stage:10} {log:8} {figures}\n")
                sys.stdout.flush()
    above = {stage: round(peak["own"] - peak["shared"], 1) for stage, peak in peaks.items()}
    holds = all(difference <= MAX_MB for difference in above.values()) and peaks["data"]["own"] < DATA_MB
    sys.stdout.write(json.dumps({"bench": "windows", "peak_mb": peaks, "above_mb": above, "holds": holds}) + "\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
