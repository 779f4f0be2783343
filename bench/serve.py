"""The bidder under load: `leadre serve` with its writer, and the load from the same machine over HTTP.

From stored lists, without a model: 100,000 users (Zipf) with a list of 100 ads each, 20,000 ads, unique requests of
three imps, one worker, arrivals at a fixed rate (bench/load/load.mjs), deadlines as the client sees them.

- ``stored_*``: medians of five rounds at 300 requests a second, tmax 100 ms: ``stored_inside_tmax`` is the share that
  was answered in time, ``stored_answered`` the share with bids; ``worker_ms``, ``writer_ms`` and ``client_ms`` are
  processor time a request. The client shares the cores with the bidder.
- ``ranked_*``, ``ranked_knee_rps``: the same rounds and the knee with a ranker that knows the objects of the ads. Users
  have histories of 60 events, and an imp may show about 50 of the 100 candidates. The others are with ``--rank false``.
- ``knee_rps``: the highest rate with p99 <= 80 ms and bids for 90 %. ``overload_bids``: bids a second at twice the knee
  over those at the knee; ``overload_inside_tmax``; ``overload_5xx``; ``recovered_s``: seconds at half the knee until
  one has p99 <= 80 ms again.

With the demo's model, users with a history and no list, one imp:

- ``first_bid_s``: from the start of the command, with an empty state folder, to the first bid; ``again_bid_s`` with a
  full one. ``model_s``: until the model server answers too.
- ``generated_inside_100ms`` (300, 1000): share of requests, sent one after another, that the model answered before
  tmax; the others get contextual ads. ``generated_busy_inside_*``: the same at the rate that keeps the model busy,
  ``busy_rps``. With ``--full-depth`` also for all layers of SmolLM2, ``full_*``.

    python bench/serve.py [--quick] [--full-depth] [--no-batch]

``batch_speedup`` and its siblings come from bench/batch.py.
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

TARGET_RPS = 300
KNEE_P99_MS = 80.0
KNEE_ANSWERED = 0.9
OVERLOAD = 2
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
        figures = from_lists(Path(folder), 5_000 if args.quick else 100_000, quick=args.quick)
    if (args.work / "demo" / "tune-sft").exists():
        with tempfile.TemporaryDirectory(prefix="leadre-bench-") as folder:
            figures |= from_model(args.work, "demo", Path(folder), quick=args.quick)
            if args.full_depth:
                full = from_model(*full_depth(args.work, Path(folder)), Path(folder) / "full", quick=args.quick)
                figures |= {f"full_{name}": value for name, value in full.items()}
    else:
        say(f"no model in {args.work / 'demo'}: run runs/demo.sh first")
    if not args.no_batch:
        say("bench/batch.py")
        batch = subprocess.run(
            [sys.executable, Path(__file__).with_name("batch.py")], stdout=subprocess.PIPE, check=True
        )
        figures |= json.loads(batch.stdout.splitlines()[-1])
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def from_lists(folder: Path, users: int, *, quick: bool) -> dict[str, float]:
    """Fixed rate and knee without and with a ranker; overload and recovery without."""
    run = ("--work", str(folder), "--run", "bench")
    ads = 2_000 if quick else 20_000
    leadre("data", "--source", "world", "--world-ads", str(ads), "--world-users", "1000", *run)
    leadre("rank", "train", "--rows", "shown", "--negatives", "1", "--threads", "1", *run)
    leadre("rank", "calibrate", "--resamples", "2", *run)
    objects = histories.load(artifact.read(folder / "bench" / "data", artifact.TABLES)).objects["object_id"].to_list()
    market.write(folder / "state", users, ads, objects)
    seconds = 3 if quick else 10
    template = market.request("@NUMBER@", "@USER@")

    def at(rate: float, seconds: int) -> dict[str, Any]:
        result = load(server, template, rate, seconds, users=users)
        say({name: value for name, value in result.items() if name != "seconds"})
        return result

    with serving(folder, "bench", folder / "state", ["--generate", "false"]) as server:
        ranked, ranked_knee, _ = rounds_and_knee(at, seconds, quick=quick)
        assert server.count('leadre_rankings_total{outcome="ranked"}'), "no request was ranked"
    with serving(folder, "bench", folder / "state", ["--generate", "false", "--rank", "false"]) as server:
        figures, knee, knee_bids_rps = rounds_and_knee(at, seconds, quick=quick)
        figures |= {f"ranked_{name}": value for name, value in ranked.items()} | {"ranked_knee_rps": ranked_knee}
        over = at(OVERLOAD * knee, seconds)
        after = at(knee / 2, 5)["seconds"]
        good = [second for second, row in enumerate(after, start=1) if (row["p99_ms"] or np.inf) <= KNEE_P99_MS]
    return figures | {
        "knee_rps": knee,
        "overload_rps": over["sent_rps"],
        "overload_bids": over["bids_rps"] / knee_bids_rps,
        "overload_inside_tmax": over["inside"],
        "overload_5xx": over["status_5xx"] + over["errors"],
        "recovered_s": min(good, default=np.inf),
    }


def rounds_and_knee(
    at: Callable[[float, int], dict[str, Any]], seconds: int, *, quick: bool
) -> tuple[dict[str, float], float, float]:
    """(medians of the rounds at the fixed rate, the knee, bids a second at the knee)."""
    time.sleep(SETTLE_S)  # until the writer has the catalogue and the worker has leased budgets
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
    figures = {name: statistics.median(round_[key] for round_ in rounds) for name, key in stored.items()}
    figures["stored_5xx"] = sum(round_["status_5xx"] + round_["errors"] for round_ in rounds)
    return figures, *knee_of(at, 2 if quick else 5, within=0.15 if quick else 0.05)


def knee_of(at: Callable[[float, int], dict[str, Any]], seconds: int, *, within: float) -> tuple[float, float]:
    """(knee, bids a second at the knee), by doubling the rate until it is too high, then by bisection."""
    low = bids_rps = 0.0
    high = np.inf
    rate = float(TARGET_RPS)
    while high > (1 + within) * low:
        result = at(rate, seconds)
        if result["p99_ms"] <= KNEE_P99_MS and result["answered"] >= KNEE_ANSWERED:
            low = rate
            bids_rps = result["bids_rps"]
        else:
            high = rate
        rate = min(2 * low, (low + high) / 2) if low else high / 2
        assert rate > 5, "the bidder hardly bids"
    return low, bids_rps


def from_model(work: Path, run: str, folder: Path, *, quick: bool) -> dict[str, float]:
    """Time to the first bids, and the share of users without a list that the model answers in time."""
    tables = artifact.read(work / run / "data", artifact.TABLES)
    bid_request = one_imp()
    first = json.dumps(bid_request | {"id": "first"})
    with serving(work, run, folder / "state", first=first) as server:
        figures = {"first_bid_s": server.first_bid_s}
    with serving(work, run, folder / "state", first=first) as server:
        figures["again_bid_s"] = server.first_bid_s
        users = remember(folder / "state", histories.load(tables), 50 if quick else 300)
        start_s = time.perf_counter()
        while "model" in server.ready()["away"]:
            time.sleep(0.05)
        figures["model_s"] = server.first_bid_s + time.perf_counter() - start_s
        alone(server, bid_request, users, 1000, 3)
        alone_ms = np.inf
        for tmax_ms in TMAX_MS:
            share, alone_ms = alone(server, bid_request, users, tmax_ms, 15 if quick else 100)
            figures[f"generated_inside_{tmax_ms}ms"] = share
        figures["generated_ms"] = alone_ms
        figures["busy_rps"] = max(1, round(1000 / alone_ms))
        for tmax_ms in TMAX_MS:
            before = generated(server)
            template = bid_request | {"id": "busy-@NUMBER@", "user": {"buyeruid": "@USER@"}, "tmax": tmax_ms}
            result = load(server, template, figures["busy_rps"], 5 if quick else 20, user_ids=users)
            say({name: value for name, value in result.items() if name != "seconds"})
            late = (1 - result["inside"]) * result["asked"]
            share = (generated(server) - before - late) / result["asked"]
            figures[f"generated_busy_inside_{tmax_ms}ms"] = max(0.0, share)
    return figures


def alone(
    server: Server, bid_request: dict[str, Any], users: Sequence[str], tmax_ms: int, count: int
) -> tuple[float, float]:
    """(share of requests, sent one after another, that the model answered before tmax; median milliseconds)."""
    before = generated(server)
    times_ms = []
    for number in range(count):
        user = users[number % len(users)]
        body = bid_request | {"id": f"alone-{tmax_ms}-{number}", "user": {"buyeruid": user}, "tmax": tmax_ms}
        status, _, took_ms = server.bid(json.dumps(body))
        assert status in (200, 204), status
        times_ms.append(took_ms)
    late = sum(took_ms > tmax_ms for took_ms in times_ms)
    return max(0.0, (generated(server) - before - late) / count), statistics.median(times_ms)


def generated(server: Server) -> float:
    """Bids so far from the model; a request has one imp."""
    return server.count('leadre_bids_total{source="generated"}')


def one_imp() -> dict[str, Any]:
    bid_request = market.request("", "", 1000)
    return bid_request | {"imp": bid_request["imp"][:1], "bcat": [], "badv": [], "user": {}}


def remember(state: Path, logs: histories.Logs, count: int) -> list[str]:
    """Write the profiles of ``count`` users with long histories; returns their IDs."""
    lengths = np.diff(logs.event_offsets)
    chosen = np.argsort(-lengths, kind="stable")[: 4 * count : 4]
    user_ids = logs.users["user_id"].to_list()
    object_ids = logs.objects["object_id"].to_list()
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
    """(work folder, run) with SmolLM2 at full depth, tuned for one step: as slow as a trained one."""
    for stage in STAGES[:2]:
        shutil.copytree(work / "demo" / stage, folder / "full" / stage)
    leadre(
        "tune", "--work", str(folder), "--run", "full", "--layers", "0", "--max-steps", "1", "--batch-tokens", "1024"
    )
    return folder, "full"


def leadre(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "leadre", *arguments], check=True, stdout=sys.stderr)


def say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
