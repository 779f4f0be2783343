"""Claim: `leadre data` reads or refuses 2,000 folders of mutated logs: exit status 0 or 2, never a traceback; and the
rows that it read, called bad or left out by name are the rows in the files.

    python -m bench.mutated_logs --folders 2000

The mutations are those of the tests (tests/data/mutations.py): cells, columns, types, rows, parts, forms, compressions,
broken bytes, files of other names, options. The command runs in this process, and every 40th time as a
process of its own; every eighth folder is also inspected (`leadre data --inspect`). A folder is a function of its seed:
`--first 1234 --folders 1` repeats one. Faults are printed at once. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path

from leadre import progress
from leadre.__main__ import main as leadre
from tests.data import mutations

PROCESS_EVERY = 40
INSPECT_EVERY = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=2000)
    parser.add_argument("--first", type=int, default=40, help="the first seed; the tests have those below 40")
    options = parser.parse_args()
    counts = {"read": 0, "refused": 0, "processes": 0, "inspected": 0}
    faults = []
    started_s = time.monotonic()
    for seed in range(options.first, options.first + options.folders):
        with tempfile.TemporaryDirectory() as temporary:
            for fault in check(seed, Path(temporary), counts):
                faults.append(seed)
                print(f"seed {seed}: {fault}", flush=True)
    seconds = round(time.monotonic() - started_s)
    summary = {"bench": "mutated_logs", "folders": options.folders, **counts, "faults": len(faults), "seconds": seconds}
    print(json.dumps(summary))
    sys.exit(1 if faults else 0)


def check(seed: int, temporary: Path, counts: dict[str, int]) -> list[str]:
    """The faults of one folder."""
    logs = temporary / "logs"
    folder = mutations.write_mutated(random.Random(seed), logs)
    options = ["--run", "mine", "--work", str(temporary / "work"), "--source", "files", "--path", str(logs)]
    is_process = seed % PROCESS_EVERY == 0
    status, output = (in_process if is_process else in_place)(["data", *options, *folder.arguments])
    counts["processes"] += is_process
    counts["read"] += status == 0
    counts["refused"] += status == 2
    faults = outcome(status, output)
    if status == 0:
        faults += mutations.faults(folder, output, temporary / "work" / "mine" / "data")
    if seed % INSPECT_EVERY == 0:
        status, output = in_place(["data", "--inspect", str(logs), "--inspect-to", str(temporary / "mine.toml")])
        counts["inspected"] += 1
        faults += [f"--inspect: {fault}" for fault in outcome(status, output)]
    return faults


def outcome(status: int, output: str) -> list[str]:
    """The faults of an exit status with its output."""
    if status not in (0, 2) or "Traceback" in output:
        return [f"status {status}: {output[-2000:]}"]
    return ["refused without a word"] if status == 2 and "leadre: " not in output else []


def in_place(arguments: list[str]) -> tuple[int, str]:
    """(exit status, console) of a command in this process; a traceback is status 1."""
    output = io.StringIO()
    stderr = sys.stderr
    sys.stderr = progress.console.file = output
    try:
        with redirect_stdout(output):
            status = leadre(arguments)
    except Exception:  # a user would see it
        status = 1
        output.write(traceback.format_exc())
    finally:
        sys.stderr = progress.console.file = stderr
    return status, output.getvalue()


def in_process(arguments: list[str]) -> tuple[int, str]:
    """The same of a process of its own."""
    done = subprocess.run([sys.executable, "-m", "leadre", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    main()
