"""Ten minutes at a steady rate, with everything that goes on beside it: memory stays, money and counts add up."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leadre.auction.ledger import Ledger
from leadre.serve import backup
from leadre.serve.paths import Paths

from .bidder import Bidder, bids_in, event_urls
from .test_promises import holding, recount

pytestmark = pytest.mark.soak
RATE, TMAX_MS, PRICE_NANOS = 20, 2000, 3_000_000
GROWTH_MB = 30  # of a process, from a fifth of the time on


def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.parametrize("seconds", [float(os.environ.get("LEADRE_SOAK_S", "600"))])
def test_a_steady_rate_leaves_memory_and_books_in_order(work, tmp_path, seconds):
    """Requests of 5,000 users, shown, billed and clicked; in mid-run a backup, erasures, pauses; a budget that ends."""
    rng, state, told = random.Random(0), tmp_path / "state", Counter()
    flags = ("--workers", "2", "--generate", "false")
    with Bidder(work, state, *flags) as bidder, ThreadPoolExecutor(16) as threads:
        budget_nanos = int(RATE * seconds / 4) * PRICE_NANOS  # for half of what would be bid on
        campaign_id, ad_id = bidder.campaign(bid_nanos=PRICE_NANOS, total_nanos=budget_nanos, cap_per_day=1000)
        bidder.list_for("listed", ad_id)
        late_s, gone, lock, growing = [], [], threading.Lock(), {}

        def visit(number):
            user = "listed" if number % 2 else f"user-{rng.randrange(5000):04d}"
            start_s = time.monotonic()
            answer = bidder.ask(user={"id": user}, tmax=TMAX_MS)
            took_s = time.monotonic() - start_s
            bids = bids_in(answer)
            with lock:
                late_s.append(took_s)
                told["bids"] += len(bids)
            for bid in bids:
                urls = event_urls(bid)
                for kind in ("imp", "bill", *(["click"] if number % 5 == 0 else [])):
                    status = bidder.http.get(urls[kind]).status_code
                    assert status in (200, 204, 302), (kind, status)
                    with lock:
                        told[kind, bid["crid"]] += 1

        pids = {role: bidder.pids(role) for role in ("worker", "writer", "management")}
        begun_s, visits, next_s = time.monotonic(), [], time.monotonic()
        for number in range(int(RATE * seconds)):
            time.sleep(max(0.0, next_s - time.monotonic()))
            next_s += 1 / RATE
            visits.append(threads.submit(visit, number))
            share = number / (RATE * seconds)
            if number % (RATE * 30) == RATE * 15:
                gone.append(f"user-{rng.randrange(5000):04d}")
                visits.append(threads.submit(bidder.manage, "DELETE", "/users", user_id=gone[-1]))
                for action in ("pause", "resume"):
                    bidder.manage("POST", f"/ads/{ad_id}/{action}")
            if share >= 0.2 and number % RATE == 0:
                sizes = {(role, pid): resident_mb(pid) for role, each in pids.items() for pid in each}
                for key, mb in sizes.items():
                    growing.setdefault(key, []).append(mb)
            if number == int(RATE * seconds / 2):
                paths = Paths(folder=state, store=bidder.store_spec)
                made = backup.write(paths, tmp_path / "backup")
        for each in visits:
            each.result()
        took_s = time.monotonic() - begun_s
        assert pids == {role: bidder.pids(role) for role in pids}, "none has died"
        report = bidder.report(campaign_id)
        assert report == recount(state / "events", campaign_id)
        assert (report["impressions"], report["clicks"]) == (told["imp", ad_id], told["click", ad_id])
        assert report["charged_nanos"] == told["bill", ad_id] * PRICE_NANOS <= budget_nanos
        assert [user for user in gone if holding(state, user)] == []
        quarter = {key: max(1, len(mb) // 4) for key, mb in growing.items()}
        grown = {
            key: statistics.mean(mb[-quarter[key] :]) - statistics.mean(mb[: quarter[key]])
            for key, mb in growing.items()
        }
        late_s.sort()
        print(
            f"{len(late_s) / took_s:.1f} requests/s for {took_s:.0f} s, p50 {1000 * late_s[len(late_s) // 2]:.0f} ms, "
            f"p99 {1000 * late_s[len(late_s) * 99 // 100]:.0f} ms, {told['bids']} bids, grown MiB "
            + ", ".join(f"{role} {mb:.1f}" for (role, _), mb in grown.items())
        )
        assert max(grown.values()) < GROWTH_MB, grown
    restored = Paths(folder=tmp_path / "restored", store=f"lmdb:{tmp_path / 'restored' / 'lists'}")
    backup.restore(made.path, restored)
    with Ledger(restored.ledger) as books:
        assert books.verify() == [] and 0 < books.spent(campaign_id) <= budget_nanos
