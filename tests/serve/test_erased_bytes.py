"""Real processes: after an erasure, no file of the state and of a restored backup has a byte of the user's ID.

The ID is in each text that a caller chooses, and traffic with it continues. Only the list of keyed hashes remains.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import polars as pl
import pytest

from leadre.store.erased import read, user_hash

from .bidder import bid_request, bids_in, click_id, event_urls, until

pytestmark = pytest.mark.slow

USER = "find-me-3f1c9a7e-4711"


def forms(user):
    """The ID, its usual encodings and its plain hashes, in bytes and text, in lower and upper case."""
    text = user.encode()
    whole = [
        text,
        base64.b64encode(text).rstrip(b"="),
        base64.urlsafe_b64encode(text).rstrip(b"="),
        text.hex().encode(),
    ]
    for name in ("md5", "sha1", "sha256", "sha512", "blake2b"):
        digest = hashlib.new(name, text).digest()
        whole += [digest, digest.hex().encode(), base64.b64encode(digest).rstrip(b"=")]
    return {form for text in whole for form in (text, text.lower(), text.upper())}


def naming(folder):
    """Files below a folder that have a form of the ID; a table is read too, as its bytes are packed."""
    names = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # a running bidder replaces files
            data = path.read_bytes() if path.is_file() else b""
            if path.suffix == ".parquet":
                data += pl.read_parquet(path).write_ndjson().encode()
            names += [path.name] if any(form in data for form in forms(USER)) else []
    return names


def request(number, **fields):
    """A request with the ID in each text that a caller chooses: users, request ID, imp ID, place, site."""
    eids = [{"source": "id5-sync.com", "uids": [{"id": USER}]}]
    user = {"id": USER, "eids": eids} if number % 2 else {"eids": eids}
    imp = {"id": f"imp-{USER}", "tagid": f"place-{USER}", "banner": {"w": 300, "h": 250}}
    digest = hashlib.sha256(USER.encode()).hexdigest()
    usual = {"id": f"{number}-{USER}-{digest}", "user": user, "imp": [imp], "site": {"domain": f"{USER}.example"}}
    return bid_request(**usual | fields)


def test_no_byte_of_an_erased_user_is_left_while_traffic_continues(bidder, tmp_path):
    _, ad_id = bidder.campaign(cap_per_day=1000)
    for name in (USER, f"id5-sync.com:{USER}"):
        bidder.list_for(name, ad_id)

    def browse(number, **fields):
        return bids_in(bidder.http.post(f"{bidder.url}/openrtb2/bid", json=request(number, **fields)))

    urls = [event_urls(bid) for number in range(20) for bid in browse(number)]

    for number, events in enumerate(urls[:10]):
        report(bidder, events, number)
    browse(0, regs={"gdpr": 1})  # no consent: the user may not be stored, and nothing else may name the user
    browse(0, id="without-user", user={})
    until(
        lambda: {"profiles", "lists"} <= {name.split(".")[0] for name in naming(bidder.state)}, "store and log name it"
    )
    run = ["--work", str(bidder.work), "--run", "served", "--state", str(bidder.state), "--threads", "1"]
    backups = tmp_path / "backups"
    command(bidder, "backup", *run, "--to", str(backups / "before"))
    assert naming(backups / "before")
    is_over = threading.Event()

    def keep_browsing():
        number = 100
        while not is_over.is_set():
            number += 1
            browse(number)

    with ThreadPoolExecutor(2) as threads:
        browsing = [threads.submit(keep_browsing) for _ in range(2)]
        try:
            with contextlib.suppress(httpx.TimeoutException):  # on a busy machine the erasure outlasts the client
                bidder.manage("DELETE", "/users", user_id=USER)
            for number, events in enumerate(urls[10:]):  # these tokens still name the user
                report(bidder, events, 50 + number)
        finally:
            time.sleep(1.0)
            is_over.set()
        for future in browsing:
            future.result()
    until(lambda: naming(bidder.state) == [], "erased", lambda: str(naming(bidder.state)))
    key, hashes = read(bidder.state / "erased")
    assert user_hash(key, USER) in hashes

    restored = tmp_path / "restored"
    flags = [flag if flag != str(bidder.state) else str(restored) for flag in run]
    command(bidder, "restore", *flags, "--backup", str(backups / "before"))
    assert naming(restored) == [] and user_hash(key, USER) in read(restored / "erased")[1]


def report(bidder, events, number):
    """Report the events of a bid; the order of the conversion has the ID."""
    for kind in ("imp", "bill"):
        bidder.http.get(events[kind])
    landing_url = bidder.http.get(events["click"]).headers["location"]
    conversion = {"click_id": click_id(landing_url), "event_id": f"order-{number}-{USER}", "value_nanos": 5}
    headers = {"authorization": f"Bearer {bidder.operator}"}

    def is_accepted():  # a busy writer wants it again
        answer = bidder.http.post(f"{bidder.url}/v1/conversions", json=conversion, headers=headers)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200

    until(is_accepted, "accepted")


def command(bidder, verb, *flags):
    """Run a command on the bidder's state, as an operator does."""
    words = [sys.executable, "-m", "leadre", "serve", verb, *flags]
    result = subprocess.run(words, env=bidder.environment(), capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stderr
