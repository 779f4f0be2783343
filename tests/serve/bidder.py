"""`leadre serve` as a subprocess, driven over HTTP as its users and its operator do."""

from __future__ import annotations

import contextlib
import html
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import httpx

from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events.caller_ids import CallerIds
from leadre.serve.manage.auth import ApiKeys
from leadre.store import open_store
from leadre.store.contract import Store, StoredList

PAGE = "https://page.example"  # the origin that every bidder of the tests registers
PATIENCE_S = 150.0  # guards against a hang; a quiet machine needs a second, a busy one a minute


class BidderProcess:
    """The process group of a bidder: the supervisor, its children and its stderr."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def spawn(self, command: list[str]) -> None:
        """Start the supervisor, and collect its stderr in a thread."""
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env=self.environment(), text=True, errors="replace"
        )
        threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True).start()

    def environment(self) -> dict[str, str]:
        """The environment of a command on this bidder's state."""
        return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
        status = self._process.wait(PATIENCE_S)
        self._process = None
        return status

    def terminate(self) -> None:
        """Send SIGTERM without waiting."""
        assert self._process is not None
        self._process.terminate()

    @property
    def pid(self) -> int:
        """The supervisor's process."""
        assert self._process is not None
        return self._process.pid

    def said(self) -> str:
        """All lines that the bidder wrote to stderr."""
        return "".join(self._said)

    def pids(self, role: str) -> list[int]:
        """The processes of a role: `writer`, `worker`, `management`, `model`."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [int(pid) for pid in children if _name(pid).startswith(f"leadre {role}"[:15])]

    def signal(self, role: str, number: signal.Signals) -> None:
        for pid in self.pids(role):
            os.kill(pid, number)

    def kill(self, role: str) -> None:
        """Kill a role's processes, and wait until the supervisor has replaced them."""
        old = self.pids(role)
        self.signal(role, signal.SIGKILL)
        until(lambda: len(self.pids(role)) == len(old) and not set(old) & set(self.pids(role)), f"a new {role}")

    def _read_stderr(self, stderr: IO[str]) -> None:
        with stderr:
            self._said.extend(stderr)

    def is_up(self, url: str) -> bool:
        """Whether a GET succeeds. AssertionError with the lines of stderr if the process has ended."""
        assert self._process is not None
        assert self._process.poll() is None, self.said()
        try:
            return httpx.get(url, timeout=5.0).is_success
        except httpx.TransportError:
            return False


class Bidder(BidderProcess):
    """A bidder over the run ``served`` below ``work``, for a ``with``. ``operator`` is an operator's key."""

    def __init__(self, work: Path, state: Path, *flags: str, store: str = "") -> None:
        self.work = work
        self.state = state
        self.flags = flags
        self.store_spec = store or f"lmdb:{state / 'lists'}"
        self.port = free_port()
        self.manage_port = free_port()
        super().__init__()
        database = ManageDatabase(state / "manage.db")
        self.operator = ApiKeys(database).create("the tests", 1)[1]
        database.close()
        self.http = httpx.Client(timeout=30.0, limits=httpx.Limits(max_connections=64))

    def __enter__(self) -> Bidder:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.http.close()
        print(self.said())  # for pytest, which shows it beside a failure

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the bidder and wait until all of its processes respond. It sheds nothing: the machine may be busy."""
        command = [sys.executable, "-m", "leadre", "serve", "--work", str(self.work), "--run", "served"]
        command += ["--state", str(self.state), "--store", self.store_spec, "--exploration", "0", "--shed-ms", "60000"]
        command += ["--origins", PAGE]
        command += ["--port", str(self.port), "--manage-port", str(self.manage_port), *self.flags]
        self.spawn(command)
        until(lambda: self.is_up(f"{self.url}/readyz") and "writer" not in self.away(), "ready", self.said)
        until(lambda: self.is_up(f"http://127.0.0.1:{self.manage_port}/health"), "managed", self.said)

    def ask(self, *, route: str = "bid", **fields: Any) -> httpx.Response:
        """A bid request for one banner; ``fields`` replace or extend it. A test is the operator's."""
        return self.http.post(f"{self.url}/openrtb2/{route}", json=bid_request(**fields), headers=self._headers(fields))

    def bids(self, **fields: Any) -> list[dict[str, Any]]:
        """The bids of the response; none for a no-bid."""
        return bids_in(self.ask(**fields))

    def manage(self, method: str, path: str, body: object = None, key: str | None = None, **query: str) -> Any:
        """The JSON that the management API returns, to the operator by default. AssertionError for an error status."""
        answer = self.http.request(
            method,
            f"http://127.0.0.1:{self.manage_port}{path}",
            json=body,
            params=query,
            headers={"authorization": f"Bearer {key or self.operator}"},
        )
        assert answer.is_success, (answer.status_code, answer.text)
        return answer.json()

    def campaign(self, **fields: Any) -> tuple[str, str]:
        """Create a campaign with one ad in an account of its own: (campaign ID, ad ID)."""
        name = os.urandom(6).hex()
        usual = {"name": name, "advertiser_id": name, "bid_type": "cpm", "bid_nanos": 2_000_000}
        self.manage("PUT", f"/campaigns/{name}", usual | fields)
        ad = {"campaign_id": name, "title": "Shoes", "landing_url": f"https://{name}.example/shoes"}
        self.manage("PUT", f"/ads/ad-{name}", ad)
        return name, f"ad-{name}"

    def list_for(self, user_id: str, *ad_ids: str) -> None:
        """Put a list of these ads, best first, into the store, and wait until every worker bids the first of them."""
        store = self.store()
        version = store.versions().current
        assert version is not None
        log_p = tuple(-float(place) for place, _ in enumerate(ad_ids))
        store.put_lists(version, {user_id: StoredList(version, time.time_ns() // 1000, ad_ids, log_p)})
        store.close()
        workers = set(map(str, self.pids("worker")))
        until(lambda: workers <= self.bidding(user_id, ad_ids[0]), f"bids for {user_id!r}")

    def bidding(self, user_id: str, ad_id: str) -> set[str]:
        """The workers that bid an ad for a user, among eight test requests, which count nowhere."""
        responses = [self.fresh(user={"id": user_id}, test=1) for _ in range(8)]
        return {worker_of(bids[0]) for bids in responses if bids and bids[0]["crid"] == ad_id}

    def fresh(self, **fields: Any) -> list[dict[str, Any]]:
        """Bids over a new connection, which any worker may take."""
        body = bid_request(**fields)
        headers = self._headers(fields)
        return bids_in(httpx.post(f"{self.url}/openrtb2/bid", json=body, headers=headers, timeout=30.0))

    def _headers(self, fields: dict[str, Any]) -> dict[str, str]:
        return {"origin": PAGE} | ({"authorization": f"Bearer {self.operator}"} if fields.get("test") else {})

    def report(self, campaign_id: str) -> dict[str, int]:
        """Impressions, clicks, conversions and charged_nanos of a campaign, all its days together."""
        span = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z", "limit": "1000"}
        days = self.manage("GET", "/reports/campaigns", advertiser_id=campaign_id, **span)["items"]
        names = ("impressions", "clicks", "conversions", "charged_nanos")
        return {name: sum(day[name] for day in days if day["campaign_id"] == campaign_id) for name in names}

    def refused(self, kind: str, reason: str) -> float:
        """Events of a kind that were refused for a reason."""
        headers = {"authorization": f"Bearer {self.operator}"}
        line = f'leadre_refused_events_total{{kind="{kind}",reason="{reason}"}} '
        rows = self.http.get(f"{self.url}/metrics", headers=headers).text.splitlines()
        return sum(float(row.removeprefix(line)) for row in rows if row.startswith(line))

    def away(self) -> list[str]:
        """The parts that `/readyz` reports as away."""
        away: list[str] = self.http.get(f"{self.url}/readyz").json()["away"]
        return away

    def logged_id(self, caller_request_id: str) -> str:
        """The hash by which the log stores a caller's request ID."""
        return CallerIds.open(self.state / "ids.key").hash("request", caller_request_id)

    def store(self) -> Store:
        """The bidder's store, for the caller to close."""
        return open_store(self.store_spec)


def bid_request(**fields: Any) -> dict[str, Any]:
    """An exchange's request for one banner of any ad's currency."""
    usual: dict[str, Any] = {"id": os.urandom(6).hex(), "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}]}
    return usual | {"cur": ["USD"], "tmax": 5000, "site": {"domain": "news.example"}} | fields


def bids_in(answer: httpx.Response) -> list[dict[str, Any]]:
    """The bids of a response. AssertionError for an error status."""
    assert answer.status_code in (200, 204), (answer.status_code, answer.text)
    seats = answer.json().get("seatbid", []) if answer.content else []
    return [bid for seat in seats for bid in seat["bid"]]


def worker_of(bid: dict[str, Any]) -> str:
    """The worker that made the bid."""
    return str(bid["id"]).split("-")[0]


def event_urls(bid: dict[str, Any]) -> dict[str, str]:
    """URLs at which the page and the exchange report events of a bid, by kind."""
    urls_in_ad = [html.unescape(url) for url in re.findall(r"http://127[^\"'\s<>)]+", bid["adm"])]
    urls = {url.split("/e/")[1].split("?")[0]: url for url in urls_in_ad}
    notices = {"win": "nurl", "bill": "burl", "loss": "lurl"}
    sent = {kind: bid[field] for kind, field in notices.items() if field in bid}
    return urls | {kind: url.replace("${AUCTION_PRICE}", str(bid["price"])) for kind, url in sent.items()}


def click_id(landing_url: str) -> str:
    """The click ID in the address of a landing page."""
    return parse_qs(urlsplit(landing_url).query)["leadre_click"][0]


def until(condition: Any, what: str, details: Any = str, within_s: float = PATIENCE_S) -> float:
    """Wait until ``condition()`` is true; returns the seconds that it took. ``details()`` is shown if it never is."""
    start_s = time.monotonic()
    while not condition():
        if time.monotonic() - start_s > within_s:
            raise AssertionError(f"not {what} within {within_s:.0f} s\n{details()}")  # a guard against hanging
        time.sleep(0.02)
    return time.monotonic() - start_s


_taken = set[int]()  # by tests of this process, which may bind them later


def free_port() -> int:
    """A port that nothing listens on, below those that the kernel gives to connections, so it stays free.

    No port is returned twice.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        if port in _taken:
            continue
        _taken.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""
