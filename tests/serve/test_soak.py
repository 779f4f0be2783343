"""Ten minutes at a steady rate, with erasures, pauses and a backup: memory is bounded, money and counts add up."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leadre.auction.budget.ledger import Ledger
from leadre.serve import backup
from leadre.serve.paths import StatePaths

from .bidder import Bidder, bids_in, event_urls
from .test_promises import holding, recount

pytestmark = pytest.mark.soak
RATE, TMAX_MS, PRICE_NANOS = 20, 2000, 3_000_000
GROWTH_MB = 20  # per process, after the first fifth of the run
KEPT_MB = 5 / 1024  # per request; the writer keeps the last 20,000, to explain them


class Traffic:
    """Users of one bidder; ``counts`` has bids and acknowledged events."""

    def __init__(self, bidder, ad_id):
        self.bidder = bidder
        self.ad_id = ad_id
        self.rng = random.Random(0)
        self.counts = Counter()
        self.latencies_s = []
        self.erased = []
        self.sizes_mb = defaultdict(list)
        self._lock = threading.Lock()

    def visit(self, number):
        """One request. Odd ones are of a user with a list. Each bid is shown and billed, every fifth is clicked."""
        user = "listed" if number % 2 else f"user-{self.rng.randrange(5000):04d}"
        start_s = time.monotonic()
        bids = bids_in(self.bidder.ask(user={"id": user}, tmax=TMAX_MS))
        with self._lock:
            self.latencies_s.append(time.monotonic() - start_s)
            self.counts["bids"] += len(bids)
        for bid in bids:
            urls = event_urls(bid)
            for kind in ("imp", "bill", *(["click"] if number % 5 == 0 else [])):
                self.report(kind, urls[kind], bid["crid"])

    def report(self, kind, url, ad_id):
        """Send an event until the writer takes it, as exchanges and pages do."""
        while (status := self.bidder.http.get(url).status_code) == 503:
            with self._lock:
                self.counts["retries"] += 1
            time.sleep(0.2)
        assert status in (200, 204, 302), (kind, status)
        with self._lock:
            self.counts[kind, ad_id] += 1

    def disturb(self, threads):
        """Erase a user who may be browsing; pause the ad for a moment."""
        self.erased.append(f"user-{self.rng.randrange(5000):04d}")
        for action in ("pause", "resume"):
            self.bidder.manage("POST", f"/ads/{self.ad_id}/{action}")
        return threads.submit(self.bidder.manage, "DELETE", "/users", user_id=self.erased[-1])

    def sample_memory(self, pids):
        """Record the resident memory of each process, in MiB."""
        for role, pid in pids:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.sizes_mb[role, pid].append(pages * 4096 / 2**20)

    def growth_mb(self):
        """(role, pid) -> growth of the resident memory from the first to the last quarter, in MiB."""
        quarters = {key: (mb[: len(mb) // 4 or 1], mb[-(len(mb) // 4 or 1) :]) for key, mb in self.sizes_mb.items()}
        return {key: statistics.mean(last) - statistics.mean(first) for key, (first, last) in quarters.items()}

    def summary(self, took_s):
        latencies_ms = sorted(1000 * latency_s for latency_s in self.latencies_s)
        p50, p99 = (latencies_ms[int(share * len(latencies_ms))] for share in (0.5, 0.99))
        rate = len(latencies_ms) / took_s
        return f"{rate:.1f} requests/s for {took_s:.0f} s: p50 {p50:.0f} ms, p99 {p99:.0f} ms, {dict(self.counts)}"


def processes(bidder):
    return [(role, pid) for role in ("worker", "writer", "management") for pid in bidder.pids(role)]


@pytest.mark.parametrize("seconds", [float(os.environ.get("LEADRE_SOAK_S", "600"))])
def test_steady_traffic_leaves_memory_bounded_and_the_ledger_in_order(work, tmp_path, seconds):
    """With erasures, pauses, a backup during the run, and a budget that is exhausted."""
    state = tmp_path / "state"
    count = int(RATE * seconds)
    budget_nanos = count // 4 * PRICE_NANOS
    with Bidder(work, state, "--workers", "2", "--generate", "false") as bidder, ThreadPoolExecutor(16) as threads:
        campaign_id, ad_id = bidder.campaign(bid_nanos=PRICE_NANOS, total_nanos=budget_nanos)
        bidder.list_for("listed", ad_id)
        traffic = Traffic(bidder, ad_id)
        pids = processes(bidder)
        started_s = time.monotonic()
        futures = []
        for number in range(count):
            time.sleep(max(0.0, started_s + number / RATE - time.monotonic()))
            futures.append(threads.submit(traffic.visit, number))
            if number % (RATE * 30) == RATE * 15:
                futures.append(traffic.disturb(threads))
            if number > count // 5 and number % RATE == 0:
                traffic.sample_memory(pids)
            if number == count // 2:
                artifact = backup.write(StatePaths(folder=state, store=bidder.store_spec), tmp_path / "backup")
        for future in futures:
            future.result()
        counts = traffic.counts
        growth = traffic.growth_mb()
        print(f"\n{traffic.summary(time.monotonic() - started_s)}; growth in MiB {list(growth.values())}")
        report = bidder.report(campaign_id)
        assert report == recount(state / "events", campaign_id)
        assert (report["impressions"], report["clicks"]) == (counts["imp", ad_id], counts["click", ad_id])
        assert report["charged_nanos"] == counts["bill", ad_id] * PRICE_NANOS <= budget_nanos
        assert [user for user in traffic.erased if holding(state, user)] == []
        assert pids == processes(bidder), "no process died"
        kept_mb = {"writer": 0.6 * count * KEPT_MB}  # requests between the middles of the first and the last quarter
        assert all(mb < GROWTH_MB + kept_mb.get(role, 0) for (role, _), mb in growth.items()), growth
    restored = StatePaths(folder=tmp_path / "restored", store=f"lmdb:{tmp_path / 'restored' / 'lists'}")
    backup.restore(artifact.path, restored)
    with Ledger(restored.ledger) as ledger:
        assert ledger.verify() == [] and 0 < ledger.spent(campaign_id) <= budget_nanos
