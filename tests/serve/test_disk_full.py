"""A full disk ends no process: bids go on, events are refused until there is room, and none is lost."""

from __future__ import annotations

import os
import time

import httpx
import lmdb
import pytest

from leadre.background import REPORT_S
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.processes import reserve
from leadre.serve.protocol.openrtb import NoBid
from leadre.store.contract import StoredList
from leadre.store.lmdb.mapped import LOCK_BYTES, MAX_READERS

from .bidder import Bidder, event_urls, until
from .disk import fill, fill_again, small_disk

SIZE_MB = 96


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request, tmp_path):
    """A file system of `SIZE_MB`, mounted for the test."""
    with small_disk(request.param, SIZE_MB, tmp_path) as mounted:
        yield mounted


@pytest.mark.slow
def test_whole_bidder_survives_a_full_disk(work, disk, monkeypatch):
    """State, lists, caps and metrics are on one disk. The caps were not touched before it was full."""
    (disk / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(disk / "tmp"))
    with Bidder(work, disk / "state", "--workers", "2", "--generate", "false") as bidder:
        campaign_id, ad_id = bidder.campaign()
        _, capped = bidder.campaign(cap_per_day=5)
        bidder.list_for("known", ad_id)
        events = [event_urls(bid) for _ in range(4) for bid in bidder.bids(user={"id": "known"})]
        store = bidder.store()
        version = store.versions().current
        store.put_lists(version, {"capped": StoredList(version, time.time_ns() // 1000, (capped,), (-0.5,))})
        store.close()
        key = {"authorization": f"Bearer {bidder.operator}"}
        processes = {role: bidder.pids(role) for role in ("writer", "worker", "management")}
        full_s = time.monotonic()
        filler = fill(disk)
        for number in range(40):
            user_id = "capped" if number % 2 else "known"
            answer = bidder.ask(route="bid?pretty=1", user={"id": user_id}, test=int(number % 4 == 3)).json()
            assert answer.get("seatbid") or answer["nbr"] == NoBid.DEGRADED, answer
            fill_again(filler)
        for event in events:
            assert bidder.http.get(event["imp"]).status_code == 503
            bidder.http.get(f"{bidder.url}/v1/explain/x", headers=key)  # the writer's reply needs no room
        until(lambda: "writer" in bidder.away(), "degraded")
        lines = bidder.said().count("the writer waits for its disk")
        assert 1 <= lines <= 1 + (time.monotonic() - full_s) / REPORT_S and "goes on" not in bidder.said()
        metrics = bidder.http.get(f"{bidder.url}/metrics", headers=key)
        assert metrics.is_success and "leadre_answers_total" in metrics.text
        assert {role: bidder.pids(role) for role in processes} == processes, bidder.said()
        _changes_are_refused_whole(bidder)
        filler.unlink()
        until(lambda: bidder.away() == [], "ready")
        until(lambda: bidder.said().count("the writer goes on") == 1, "reported")
        for event in events * 2:
            assert bidder.http.get(event["imp"]).status_code == 200
        assert bidder.report(campaign_id)["impressions"] == len(events) > 0
        assert {role: bidder.pids(role) for role in processes} == processes, bidder.said()
        assert bidder.stop() == 0
        ManageDatabase(disk / "state" / "manage.db").close()  # as `leadre serve key`: the last one deletes the index
        filler = fill(disk)
        bidder.start()
        assert "this start takes the 8 MiB that were reserved" in bidder.said()
        assert bidder.bids(user={"id": "known"})
        filler.unlink()
        until(lambda: bidder.away() == [], "ready")
        bidder.stop()


def _changes_are_refused_whole(bidder):
    """Campaigns, ads, keys and origins of a full disk: 503, and nothing of the change is there."""
    key = {"authorization": f"Bearer {bidder.operator}"}
    lists = ("/campaigns", "/ads", "/keys", "/origins", "/audit")
    before = [bidder.manage("GET", path) for path in lists]
    campaign = {"name": "New", "advertiser_id": "new", "bid_type": "cpm", "bid_nanos": 1}
    ad = {"campaign_id": before[0]["items"][0]["campaign_id"], "title": "Tea", "landing_url": "https://tea.example/"}
    changes = [("PUT", "/campaigns/new", campaign | {"name": "N" * 200}), ("POST", "/campaigns", campaign)]
    changes += [("POST", "/keys", {"name": "Ada"}), ("PUT", "/ads/new", ad)]
    changes += [("PUT", "/origins", {"origins": [f"https://{number}.example" for number in range(500)]})]
    for method, path, body in changes:
        with httpx.Client(timeout=30.0) as client:
            answer = client.request(method, f"http://127.0.0.1:{bidder.manage_port}{path}", json=body, headers=key)
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), (path, answer.text)
        assert "full" in answer.json()["detail"] or "disk" in answer.json()["detail"], answer.text
    assert [bidder.manage("GET", path) for path in lists] == before


def test_room_for_a_start_is_taken_on_a_full_disk_and_reserved_when_there_is_more(disk):
    path = disk / "run" / "reserve"
    path.parent.mkdir()
    reserve.fill(path)
    assert 512 * path.stat().st_blocks >= path.stat().st_size == reserve.RESERVE_BYTES
    reserve.free(path)
    assert path.exists(), "the disk has room"
    filler = fill(disk)
    reserve.free(path)
    assert not path.exists() and os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize >= reserve.ROOM_BYTES
    reserve.fill(path)
    assert list(path.parent.iterdir()) == [], "nothing takes the last room"
    filler.unlink()
    reserve.fill(path)
    assert list(path.parent.iterdir()) == [path]


def test_lock_file_of_the_store_has_all_its_blocks(tmp_path):
    """LMDB gives its lock file a size and no blocks; writing to it on a full disk would end the process."""
    from leadre.store import open_store

    store = open_store(f"lmdb:{tmp_path / 'lists'}")
    locks = list((tmp_path / "lists").glob("*-lock"))
    assert sorted(lock.name.partition(".")[0].partition("-")[0] for lock in locks) == ["caps", "lists", "profiles"]
    for lock in locks:
        assert lock.stat().st_size == LOCK_BYTES and 512 * lock.stat().st_blocks >= LOCK_BYTES
    store.retain(0, 0)  # replaces files
    for lock in (tmp_path / "lists").glob("*-lock"):
        assert 512 * lock.stat().st_blocks >= LOCK_BYTES
    store.close()
    env = lmdb.open(str(tmp_path / "plain"), subdir=False, max_readers=MAX_READERS)
    assert (tmp_path / "plain-lock").stat().st_size == LOCK_BYTES, "the size that LMDB itself chooses"
    env.close()
