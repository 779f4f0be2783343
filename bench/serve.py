"""The bidder under load: `leadre serve` with its writer, and the load from the same machine over HTTP.

From stored lists, without a model: 100,000 users (Zipf) with a list of 100 ads each, 20,000 ads, unique requests of
three places, one worker, arrivals at a fixed rate (bench/load/load.mjs), deadlines as the client sees them.

- ``stored_*``: medians of five rounds at 300 requests a second, tmax 100 ms: ``stored_inside_tmax`` is the share that
  came back in time, ``stored_answered`` that with bids; ``worker_ms``, ``writer_ms`` and ``client_ms`` are processor
  time a request. The client's shares the cores with the bidder.
- ``knee_rps``: the highest rate with p99 <= 80 ms and bids for 90 %. ``overload_bids``: bids a second at twice the knee
  over those at the knee; ``overload_inside_tmax``; ``overload_5xx``; ``recovered_s``: seconds at half the knee until
  one has p99 <= 80 ms again.

With the demo's model, users with a history and no list, one place:

- ``first_bid_s``: from the start of the command, with an empty state folder, to the first bid; ``again_bid_s`` with a
  full one. ``model_s``: until the model answers too.
- ``generated_inside_100ms`` (300, 1000): share of requests, one at a time, answered with what the model said before
  tmax; the others fall back to context. ``generated_busy_inside_*``: the same at the rate that keeps the model busy,
  ``busy_rps``. With ``--full-depth`` also for all layers of SmolLM2, ``full_*``.

    python bench/serve.py [--quick] [--full-depth] [--no-batch]

``batch_speedup`` and the like are what bench/batch.py says.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from load import market
from load.server import Server, load, serving

from leadre import artifact
from leadre.data import histories
from leadre.store import open_store
from leadre.store.contract import Profile, ProfileEvent

TARGET_RPS, KNEE_P99_MS, KNEE_ANSWERED, OVERLOAD = 300, 80.0, 0.9, 2
SETTLE_S = 2.0
TMAX_MS = (100, 300, 1000)
STAGES = ("data", "semid", "tune-sft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer users, shorter and fewer rounds")
    parser.add_argument("--full-depth", action="store_true", help="also SmolLM2 with all its layers")
    parser.add_argument("--no-batch", action="store_true", help="without bench/batch.py")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the demo's artifacts are")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leadre-bench-") as folder:
        found = from_lists(Path(folder), 5_000 if args.quick else 100_000, quick=args.quick)
    if (args.work / "demo" / "tune-sft").exists():
        with tempfile.TemporaryDirectory(prefix="leadre-bench-") as folder:
            found |= from_model(args.work, "demo", Path(folder), quick=args.quick)
            if args.full_depth:
                full = from_model(*full_depth(args.work, Path(folder)), Path(folder) / "full", quick=args.quick)
                found |= {f"full_{name}": value for name, value in full.items()}
    else:
        say(f"no model in {args.work / 'demo'}: run runs/demo.sh first")
    if not args.no_batch:
        say("bench/batch.py")
        batch = subprocess.run(
            [sys.executable, Path(__file__).with_name("batch.py")], stdout=subprocess.PIPE, check=True
        )
        found |= json.loads(batch.stdout.splitlines()[-1])
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


def from_lists(folder: Path, users: int, *, quick: bool) -> dict[str, float]:
    """Fixed rate, knee, overload and what comes after it."""
    leadre("data", "--source", "world", "--work", str(folder), "--run", "bench")
    market.write(folder / "state", users, ads=20_000)
    seconds = 3 if quick else 10
    asked = market.request("@NUMBER@", "@USER@")
    with serving(folder, "bench", folder / "state", ["--generate", "false"]) as server:
        time.sleep(SETTLE_S)  # the writer has the book, and budgets are leased

        def at(rate: float, seconds: int) -> dict[str, Any]:
            result = load(server, asked, rate, seconds, users=users)
            say({name: value for name, value in result.items() if name != "seconds"})
            return result

        at(TARGET_RPS, 1)
        rounds = [at(TARGET_RPS, seconds) for _ in range(1 if quick else 5)]
        stored = {
            "stored_rps": "sent_rps",
            "stored_p50_ms": "p50_ms",
            "stored_p99_ms": "p99_ms",
            "stored_inside_tmax": "inside",
            "stored_answered": "answered",
            "worker_ms": "worker_ms",
            "writer_ms": "writer_ms",
            "client_ms": "client_ms",
        }
        found = {name: statistics.median(each[theirs] for each in rounds) for name, theirs in stored.items()}
        found["stored_5xx"] = sum(each["status_5xx"] + each["errors"] for each in rounds)
        knee, knee_bids_rps = knee_of(at, 2 if quick else 5, within=0.15 if quick else 0.05)
        over = at(OVERLOAD * knee, seconds)
        after = at(knee / 2, 5)["seconds"]
        good = [second for second, each in enumerate(after, start=1) if (each["p99_ms"] or np.inf) <= KNEE_P99_MS]
    return found | {
        "knee_rps": knee,
        "overload_rps": over["sent_rps"],
        "overload_bids": over["bids_rps"] / knee_bids_rps,
        "overload_inside_tmax": over["inside"],
        "overload_5xx": over["status_5xx"] + over["errors"],
        "recovered_s": min(good, default=np.inf),
    }


def knee_of(at: Callable[[float, int], dict[str, Any]], seconds: int, *, within: float) -> tuple[float, float]:
    """(the knee, bids a second there): doubled until it is passed, then halved in between."""
    low, high, bids_rps, rate = 0.0, np.inf, 0.0, float(TARGET_RPS)
    while high > (1 + within) * low:
        result = at(rate, seconds)
        if result["p99_ms"] <= KNEE_P99_MS and result["answered"] >= KNEE_ANSWERED:
            low, bids_rps = rate, result["bids_rps"]
        else:
            high = rate
        rate = min(2 * low, (low + high) / 2) if low else high / 2
        assert rate > 5, "the bidder hardly bids"
    return low, bids_rps


def from_model(work: Path, run: str, folder: Path, *, quick: bool) -> dict[str, float]:
    """First bids, and what the model says of users without a list in time."""
    tables = artifact.read(work / run / "data", artifact.TABLES)
    asked = one_place()
    first = json.dumps(asked | {"id": "first"})
    with serving(work, run, folder / "state", first=first) as server:
        found = {"first_bid_s": server.first_bid_s}
    with serving(work, run, folder / "state", first=first) as server:
        found["again_bid_s"] = server.first_bid_s
        users = remember(folder / "state", histories.load(tables), 50 if quick else 300)
        start_s = time.perf_counter()
        while "model" in server.ready()["away"]:
            time.sleep(0.05)
        found["model_s"] = server.first_bid_s + time.perf_counter() - start_s
        alone(server, asked, users, 1000, 3)
        alone_ms = np.inf
        for tmax_ms in TMAX_MS:
            share, alone_ms = alone(server, asked, users, tmax_ms, 15 if quick else 100)
            found[f"generated_inside_{tmax_ms}ms"] = share
        found["generated_ms"] = alone_ms
        found["busy_rps"] = max(1, round(1000 / alone_ms))
        for tmax_ms in TMAX_MS:
            before = generated(server)
            template = asked | {"id": "busy-@NUMBER@", "user": {"buyeruid": "@USER@"}, "tmax": tmax_ms}
            result = load(server, template, found["busy_rps"], 5 if quick else 20, user_ids=users)
            say({name: value for name, value in result.items() if name != "seconds"})
            late = (1 - result["inside"]) * result["asked"]
            share = (generated(server) - before - late) / result["asked"]
            found[f"generated_busy_inside_{tmax_ms}ms"] = max(0.0, share)
    return found


def alone(server: Server, asked: dict[str, Any], users: Sequence[str], tmax_ms: int, count: int) -> tuple[float, float]:
    """(share of requests, one at a time, that the model answered before tmax, median milliseconds)."""
    before, times_ms = generated(server), []
    for number in range(count):
        user = users[number % len(users)]
        body = asked | {"id": f"alone-{tmax_ms}-{number}", "user": {"buyeruid": user}, "tmax": tmax_ms}
        status, _, took_ms = server.bid(json.dumps(body))
        assert status in (200, 204), status
        times_ms.append(took_ms)
    late = sum(took_ms > tmax_ms for took_ms in times_ms)
    return max(0.0, (generated(server) - before - late) / count), statistics.median(times_ms)


def generated(server: Server) -> float:
    """Bids so far whose ad the model named; a request has one place."""
    return server.count('leadre_bids_total{source="generated"}')


def one_place() -> dict[str, Any]:
    asked = market.request("", "", 1000)
    return asked | {"imp": asked["imp"][:1], "bcat": [], "badv": [], "user": {}}


def remember(state: Path, logs: histories.Logs, count: int) -> list[str]:
    """Write the whole histories of users with long ones as profiles; their IDs."""
    lengths = np.diff(logs.event_offsets)
    chosen = np.argsort(-lengths, kind="stable")[: 4 * count : 4]
    user_ids, object_ids = logs.users["user_id"].to_list(), logs.objects["object_id"].to_list()
    profiles = []
    for user in chosen.tolist():
        events = range(logs.event_offsets[user], logs.event_offsets[user + 1])
        recent = [
            ProfileEvent(
                object_ids[logs.object_E[event]],
                int(logs.at_us_E[event]),
                "ad" if logs.domain_E[event] == histories.AD else "content",
                int(logs.value_nanos_E[event]),
            )
            for event in events
        ]
        profiles.append(Profile(user_ids[user], tuple(recent)).bounded())
    store = open_store(f"lmdb:{state / 'lists'}")
    store.write_profiles(*profiles)
    store.close()
    return [profile.user_id for profile in profiles]


def full_depth(work: Path, folder: Path) -> tuple[Path, str]:
    """(work folder, run) with SmolLM2 at full depth, tuned for one step: as slow as a good one."""
    for stage in STAGES[:2]:
        shutil.copytree(work / "demo" / stage, folder / "full" / stage)
    leadre(
        "tune", "--work", str(folder), "--run", "full", "--layers", "0", "--max-steps", "1", "--batch-tokens", "1024"
    )
    return folder, "full"


def leadre(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "leadre", *arguments], check=True, stdout=sys.stderr)


def say(what: object) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
