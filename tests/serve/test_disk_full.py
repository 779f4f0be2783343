"""A full disk ends no process: bids go on, events are refused until there is room, and none is lost."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

from leadre.serve.protocol.openrtb import NoBid
from leadre.store.contract import StoredList
from leadre.store.lmdb.mapped import LOCK_BYTES, MAX_READERS

from .bidder import Bidder, event_urls, until

SIZE_MB = 96


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request, tmp_path):
    """A file system of `SIZE_MB`, mounted for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", str(folder)]
    if request.param == "ext4":
        image = tmp_path / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE_MB << 20)
        command = ["mount", "-o", "loop", str(image), str(folder)]
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"a {request.param} cannot be mounted here: it wants root and a mount namespace that permits it")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all room of its disk, to the last byte."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return path


@pytest.mark.slow
def test_whole_bidder_survives_a_full_disk(work, small_disk, monkeypatch):
    """State, lists, caps and metrics are on one disk. The caps were not touched before it was full."""
    (small_disk / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(small_disk / "tmp"))
    with Bidder(work, small_disk / "state", "--workers", "2", "--generate", "false") as bidder:
        campaign_id, ad_id = bidder.campaign()
        _, capped = bidder.campaign(cap_per_day=5)
        bidder.list_for("known", ad_id)
        events = [event_urls(bid) for _ in range(4) for bid in bidder.bids(user={"id": "known"})]
        store = bidder.store()
        version = store.versions().current
        store.put_lists(version, {"capped": StoredList(version, time.time_ns() // 1000, (capped,), (-0.5,))})
        store.close()
        processes = {role: bidder.pids(role) for role in ("writer", "worker", "management")}
        filler = fill(small_disk)
        for number in range(40):
            user_id = "capped" if number % 2 else "known"
            answer = bidder.ask(route="bid?pretty=1", user={"id": user_id}, test=int(number % 4 == 3)).json()
            assert answer.get("seatbid") or answer["nbr"] == NoBid.DEGRADED, answer
            fill_again(filler)
        assert [bidder.http.get(event["imp"]).status_code for event in events] == [503] * len(events)
        until(lambda: "writer" in bidder.away(), "degraded")
        metrics = bidder.http.get(f"{bidder.url}/metrics", headers={"authorization": f"Bearer {bidder.operator}"})
        assert metrics.is_success and "leadre_answers_total" in metrics.text
        assert {role: bidder.pids(role) for role in processes} == processes, bidder.said()
        filler.unlink()
        until(lambda: bidder.away() == [], "ready")
        for event in events * 2:
            assert bidder.http.get(event["imp"]).status_code == 200
        assert bidder.report(campaign_id)["impressions"] == len(events) > 0
        assert {role: bidder.pids(role) for role in processes} == processes, bidder.said()
        bidder.stop()


def fill_again(filler: Path) -> None:
    """Take the room that was freed meanwhile."""
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


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
