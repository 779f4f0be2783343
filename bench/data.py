"""Claim: the whole journey data stage takes under 60 s and under 3 GB on 2 cores.

    python bench/data.py

Baseline, in the same run: DuckDB alone reads the same four Parquet files (every column of every row, reduced to a
hash); the difference is the cost of the stage beyond reading. Each part is a process of its own, because peak memory is
per process and a child inherits its parent's. The last line of the output is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MAX_S = 60.0
MAX_MB = 3000.0
REPEATS = 3

STAGE = """
import sys
from pathlib import Path
from leadre.data import run
run.run(run.Config(run="bench", work=Path(sys.argv[1])))
"""

# A hash of every value: minima, maxima and counts could be answered from the footers without reading.
READ = """
import duckdb
from leadre.data.sources import journey
folder = journey.folder_of_package()
for name in journey.FILES:
    file = str(folder / f"{name}.parquet")
    columns = [row[0] for row in duckdb.sql(f"describe select * from '{file}'").fetchall()]
    duckdb.sql("select " + ", ".join(f"bit_xor(hash({c}))" for c in columns) + f" from '{file}'").fetchall()
"""

# A fresh interpreter starts the clock and the process, and reads the child's peak alone.
MEASURE = """
import json, resource, subprocess, sys, time
started_s = time.monotonic()
done = subprocess.run([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.DEVNULL)
wall_s = time.monotonic() - started_s
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"rc": done.returncode, "wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime,
                  "peak_rss_mb": used.ru_maxrss / 1024}))
"""


def measure(code: str, *arguments: str) -> dict[str, float]:
    """Wall and processor seconds and peak MiB of ``python -c code arguments``."""
    line = subprocess.run(
        [sys.executable, "-c", MEASURE, code, *arguments], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    result: dict[str, float] = json.loads(line)
    if result.pop("rc"):
        raise SystemExit("the measured process failed; see its messages above")
    return result


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The fastest wall time, and the highest memory."""
    return {
        "wall_s": round(min(r["wall_s"] for r in runs), 2),
        "cpu_s": round(min(r["cpu_s"] for r in runs), 2),
        "peak_rss_mb": round(max(r["peak_rss_mb"] for r in runs), 1),
    }


def main() -> None:
    stage = []
    read = []
    for _ in range(REPEATS):  # alternating, so that a busy machine slows both
        read.append(measure(READ))
        with tempfile.TemporaryDirectory() as folder:
            stage.append(measure(STAGE, folder))
            rows = json.loads((Path(folder) / "bench" / "data" / "summary.json").read_text())["rows"]
    result = {"bench": "data", "stage": best(stage), "duckdb_read_alone": best(read), "rows": rows}
    holds = result["stage"]["wall_s"] < MAX_S and result["stage"]["peak_rss_mb"] < MAX_MB
    for name in ("duckdb_read_alone", "stage"):
        sys.stdout.write(f"{name:20} {result[name]}\n")
    result |= {"limit_s": MAX_S, "limit_mb": MAX_MB, "holds": holds}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
