"""A first look: `leadre train` from the config to the report. Time, memory of the process tree, R@10.

    python bench/first_look.py --config ml-100k.toml --repeat 3

Each repetition begins without the run's folder; the converted language model alone is kept. docs/quickstart.md makes
the config of MovieLens-100k. The last line is JSON: medians of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import psutil

SAMPLE_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--memory-gb", default="4")
    parser.add_argument("--work", type=Path, default=Path("work/bench"))
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    runs = [measure(options) for _ in range(options.repeat)]
    figures = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(json.dumps({"budget": options.budget, "runs": len(runs), **figures}))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One run from nothing: seconds, peak MB of the process tree, test requests, R@10 in `all` of some rows."""
    run = options.work / tomllib.loads(options.config.read_text())["run"]
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "leadre", "train", "--config", str(options.config), "--work", str(options.work)]
    started_s = time.monotonic()
    process = subprocess.Popen([*command, "--budget", options.budget, "--memory-gb", options.memory_gb])
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_rss(process.pid))
        time.sleep(SAMPLE_S)
    seconds = time.monotonic() - started_s
    assert process.returncode == 0, f"exit status {process.returncode}"
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    rows = {name: row["recall@10"]["mean"] for name, row in metrics["views"]["all"].items()}
    return {"seconds": round(seconds, 1), "peak_mb": round(peak / 2**20), "requests": metrics["requests"]["all"]} | {
        name: round(rows[name], 4) for name in ("leadre", "item_knn", "counts_network") if name in rows
    }


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and its children; 0 once it has ended."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += member.memory_info().rss
    return total


if __name__ == "__main__":
    main()
