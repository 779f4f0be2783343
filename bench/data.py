"""Claims: the data stage of `journey` takes under 60 s and 3 GB on 2 cores; that of own logs with 10 million events at
most 5 times as long as DuckDB needs to read the same files, and under 4 GB; that of 20,000 ads with windows of their
own in 50,000 requests under 1 GB, also if the requests have 1,000 placements that each have an ad of their own.

    python bench/data.py
    python bench/data.py --parts windows,csv --events 1000000

Parts: `journey`; `csv` and `parquet`, the events of `--events` rows in that form with 20,000 ads and 200,000 users;
`windows`, a market in which each ad is live for 57 days of its own in a year: 156 million pairs of a request and a live
ad; `placements`, the same ads in all of 1,000 placements, each of which has a window of its own beside. Baseline, in
the same run: DuckDB alone reads the same files (every column of every row, reduced to a hash); the difference is the
cost of the stage beyond reading. Each measurement is a process of its own, because peak memory is per process and a
child inherits its parent's. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import duckdb

from leadre.data.sources import journey

JOURNEY_S = 60.0
MAX_MB = {"journey": 3000.0, "csv": 4000.0, "parquet": 4000.0, "windows": 1000.0, "placements": 1000.0}
MAX_RATIO = 5.0
ADS = 20_000
VISITS = 50_000  # of the parts windows and placements
PLACEMENTS = 1_000

STAGE = """
import sys
from leadre.__main__ import main
sys.exit(main(["data", "--run", "bench", *sys.argv[1:]]))
"""

# A hash of every value: minima, maxima and counts could be answered from the footers without reading.
READ = """
import sys, duckdb
for file in sys.argv[1:]:
    columns = [row[0] for row in duckdb.sql(f"describe select * from '{file}'").fetchall()]
    duckdb.sql("select " + ", ".join(f"bit_xor(hash(\\"{c}\\"))" for c in columns) + f" from '{file}'").fetchall()
"""

ADS_SQL = (
    "select format('ad-{:05}', i) as ad_id, format('thing {} of kind {}', i, i % 97) as title from range($ads) t(i)"
)

# A user's visit is 8 views, then an impression and, in every second visit, a conversion of the same ad.
EVENTS_SQL = """
select format('user-{:06}', hash(visit) % 200000) as user_id,
       make_timestamptz(1767225600000000 + visit * 3000000 + step * 1000) as at,
       case when step < 8 then 'content' else 'ad' end as domain,
       case when step < 8 then format('content-{:04}', hash(i) % 1000)
            else format('ad-{:05}', hash(visit, 1) % $ads) end as item_id,
       case step when 8 then 'impression' when 9 then 'conversion' else 'view' end as action,
       case when step = 9 then 5000000000 end as value_nanos,
       case when step > 7 then format('place-{}', visit % 7) end as placement_id,
       case when step > 7 then format('visit-{:08}', visit) end as request_id
from (select i, i // 10 as visit, i % 10 as step from range($events) t(i)) where step < 9 or visit % 2 = 0
order by i
"""
CONTENTS_SQL = "select format('content-{:04}', i) as content_id, format('page {}', i) as title from range(1000) t(i)"

# The ad of a visit is one that began in the 57 days before it; a user has 10 visits in a year.
WINDOWS_SQL = """
select format('ad-{:05}', i) as ad_id, make_timestamptz(1735689600000000 + started_us) as starts_at,
       make_timestamptz(1735689600000000 + started_us + 57 * 86400000000) as ends_at
from (select i, i * 422 * 86400000000 // $ads as started_us from range($ads) t(i))
"""
VISITS_SQL = """
select format('user-{:05}', visit % 5000) as user_id,
       make_timestamptz(1735689600000000 + cast(day * 86400000000 as bigint)) as at, 'ad' as domain,
       format('ad-{:05}', cast(floor((day - 1 - hash(visit) % 55) / 422 * $ads) as int)) as item_id,
       'conversion' as action, format('visit-{:05}', visit) as request_id
from (select visit, 57 + visit * 365.0 / $visits as day from range($visits) t(visit)) order by visit
"""

PLACED_WINDOWS_SQL = f"""{WINDOWS_SQL} union all by name
select format('ad-{{:05}}', i) as ad_id, format('place-{{}}', i) as placement_id from range($placements) t(i)
"""
PLACED_VISITS_SQL = (
    f"select *, format('place-{{}}', hash(request_id) % $placements) as placement_id from ({VISITS_SQL})"
)

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


def write_events(folder: Path, form: str, events: int) -> None:
    """A folder of logs whose events have about this many rows, in ``form``: csv or parquet."""
    _write(folder, form, ads=ADS_SQL, contents=CONTENTS_SQL, events=EVENTS_SQL, rows=events)


def write_windows(folder: Path, *, shared: bool = False) -> None:
    """Logs of `VISITS` requests and `ADS` ads with a window each; ``shared``: one open window for all ads."""
    inventory = "select ad_id from (" + ADS_SQL + ")" if shared else WINDOWS_SQL
    _write(folder, "parquet", ads=ADS_SQL, events=VISITS_SQL, inventory=inventory)


def write_placements(folder: Path) -> None:
    """The logs of `write_windows` with `PLACEMENTS` placements, in each of which one ad has a window beside."""
    _write(folder, "parquet", ads=ADS_SQL, events=PLACED_VISITS_SQL, inventory=PLACED_WINDOWS_SQL)


def _write(folder: Path, form: str, rows: int = 0, **queries: str) -> None:
    folder.mkdir(parents=True)
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        for name, query in queries.items():
            for key, value in {"$ads": ADS, "$visits": VISITS, "$placements": PLACEMENTS, "$events": rows}.items():
                query = query.replace(key, str(value))
            db.execute(f"copy ({query}) to '{folder / name}.{form}'")


def measure(code: str, *arguments: str) -> dict[str, float]:
    """Wall and processor seconds and peak MiB of ``python -c code arguments``."""
    line = subprocess.run(
        [sys.executable, "-c", MEASURE, code, *arguments], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    result: dict[str, float] = json.loads(line)
    if result.pop("rc"):
        raise SystemExit("the measured process failed; see its messages above")
    return result


def typical(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median times, and the highest memory."""
    return {
        "wall_s": round(median(r["wall_s"] for r in runs), 2),
        "cpu_s": round(median(r["cpu_s"] for r in runs), 2),
        "peak_rss_mb": round(max(r["peak_rss_mb"] for r in runs), 1),
    }


def part(name: str, folder: Path, events: int, repeats: int) -> dict[str, object]:
    """Stage and baseline of one part, alternating, so that a busy machine slows both."""
    if name == "journey":
        files = [str(journey.folder_of_package() / f"{file}.parquet") for file in journey.FILES]
        arguments = []
    else:
        logs = folder / "logs"
        if name == "windows":
            write_windows(logs)
        elif name == "placements":
            write_placements(logs)
        else:
            write_events(logs, name, events)
        files = sorted(map(str, logs.iterdir()))
        arguments = ["--source", "files", "--path", str(logs)]
    stage = []
    read = []
    for number in range(repeats):
        read.append(measure(READ, *files))
        work = folder / f"work-{number}"
        stage.append(measure(STAGE, "--work", str(work), *arguments))
    summary = json.loads((work / "bench" / "data" / "summary.json").read_text())
    result = {"stage": typical(stage), "duckdb_read_alone": typical(read), "rows": summary["rows"]}
    ratio = result["stage"]["wall_s"] / result["duckdb_read_alone"]["wall_s"]
    wall_s = result["stage"]["wall_s"]
    is_quick = {"journey": wall_s < JOURNEY_S, "csv": ratio <= MAX_RATIO, "parquet": ratio <= MAX_RATIO}.get(name, True)
    holds = is_quick and result["stage"]["peak_rss_mb"] < MAX_MB[name]
    return result | {"ratio": round(ratio, 2), "limit_mb": MAX_MB[name], "holds": holds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default=",".join(MAX_MB))
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = {}
    for name in options.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = part(name, Path(folder), options.events, options.repeats)
        sys.stdout.write(f"{name:10} {results[name]}\n")
        sys.stdout.flush()
    holds = all(result["holds"] for result in results.values())
    sys.stdout.write(json.dumps({"bench": "data", "events": options.events, **results, "holds": holds}) + "\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
