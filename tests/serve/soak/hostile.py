"""Hostile and extreme clients: silence, slow heads, huge cookies, garbage, forged tokens, wild amounts, wrong keys."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from urllib.parse import urlencode

from ..bidder import bid_request
from .connection import Connections, Unanswered
from .memory import Memory

HOLD_S = 8.0
REFUSALS = {400, 401, 403, 404, 405, 408, 413, 414, 415, 422, 429, 431}
MAX_BODY = 256 << 10


class Hostile:
    """Bursts against a bidder's two ports. ``operator``: a key in force, for refusals that come after the key."""

    def __init__(self, port: int, manage_port: int, operator: str, memory: Memory) -> None:
        self._operator = operator
        self._ports = (port, manage_port)
        self._bids = Connections(port, 10.0)
        self._manage = Connections(manage_port, 20.0)
        self._memory = memory
        self.bursts: dict[str, Callable[[random.Random], None]] = {
            "silent": self.silent,
            "slow heads": self.slow_heads,
            "cookies": self.cookies,
            "garbage": self.garbage,
            "forged": self.forged,
            "amounts": self.amounts,
            "logins": self.logins,
        }

    def close(self) -> None:
        """Close the connections of requests."""
        self._bids.close()
        self._manage.close()

    def silent(self, rng: random.Random) -> None:
        """Connections that send nothing."""
        with ExitStack() as open_:
            for _ in range(300):
                self._open(open_, rng.choice(self._ports))
            time.sleep(HOLD_S)

    def slow_heads(self, rng: random.Random) -> None:
        """Heads that come byte by byte."""
        head = b"POST /openrtb2/bid HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n"
        with ExitStack() as open_:
            connections = [self._open(open_, rng.choice(self._ports)) for _ in range(50)]
            for number in range(int(HOLD_S / 0.5)):
                for connection in filter(None, connections):
                    with suppress(OSError):
                        connection.send(head[number : number + 1])
                time.sleep(0.5)

    def cookies(self, rng: random.Random) -> None:
        """Cookies of 1 to 80 kB."""
        for _ in range(20):
            cookie = "a=" + '\\"' * rng.randrange(500, 40_000)
            port = rng.choice((self._bids, self._manage))
            self._expect(port, "GET", "/", None, {"cookie": cookie}, {200, *REFUSALS})

    def garbage(self, rng: random.Random) -> None:
        """Bytes that are no HTTP, and bodies that are no requests."""
        with ExitStack() as open_:
            for _ in range(50):
                connection = self._open(open_, rng.choice(self._ports))
                if connection is not None:
                    with suppress(OSError):
                        connection.sendall(rng.randbytes(rng.randrange(1, 5000)))
        for _ in range(50):
            self._expect(self._bids, "POST", "/openrtb2/bid", rng.randbytes(rng.randrange(5000)), {}, REFUSALS)

    def forged(self, rng: random.Random) -> None:
        """Event tokens that the bidder did not sign."""
        for _ in range(200):
            token = f"1.{rng.randbytes(150).hex()}.{rng.randbytes(20).hex()}abc"
            kind = rng.choice(("imp", "bill", "click", "conv"))
            self._expect(self._bids, "GET", f"/e/{kind}?t={token}", None, {}, {403, 429})

    def amounts(self, rng: random.Random) -> None:
        """Amounts beyond all limits, at the management port and in requests."""
        key = {"content-type": "application/json", "authorization": f"Bearer {self._operator}"}
        for _ in range(10):
            amount = rng.choice((10**18, 2**63, 10**30, -1))
            form = {"name": "x", "advertiser_id": "wild", "bid_type": "cpm", "bid_nanos": amount, "total_nanos": amount}
            self._expect(self._manage, "PUT", "/campaigns/wild", json.dumps(form).encode(), key, {422, 503})
            imps = [{"id": "1", "bidfloor": rng.choice((1e300, 1e18, -5.0)), "banner": {"w": 300, "h": 250}}]
            body = json.dumps(bid_request(imp=imps, tmax=rng.choice((0, 2**63, 10**9)))).encode()
            self._expect(self._bids, "POST", "/openrtb2/bid", body, {}, {200, 204, 400})

    def logins(self, rng: random.Random) -> None:
        """Wrong keys at both ports."""
        for _ in range(50):
            key = {"authorization": f"Bearer {rng.randbytes(20).hex()}"}
            self._expect(self._bids, "GET", "/metrics", None, key, {401, 429})
            self._expect(self._manage, "GET", "/campaigns", None, key, {401, 429})
            body = urlencode({"key": rng.randbytes(20).hex()}).encode()
            self._expect(self._manage, "POST", "/status/login", body, {}, {403, 429})

    def large(self, rng: random.Random) -> None:
        """Requests of 44 kB to the largest body, each with as many blocked domains."""
        for size in rng.choices((44_000, 130_000, MAX_BODY), (6, 1, 1), k=60):
            request = bid_request(id=f"large-{rng.randrange(10**9)}", badv=[])
            while len(body := json.dumps(request).encode()) < size - 8000:
                request["badv"] += [f"{rng.randrange(10**8):08d}-{'x' * 24}.example" for _ in range(150)]
            body += b" " * (size - len(body))
            with self._memory.lock:
                self._memory.large_bytes += len(body)
            self._expect(self._bids, "POST", "/openrtb2/bid", body, {}, {200, 204})

    def _open(self, open_: ExitStack, port: int) -> socket.socket | None:
        try:
            return open_.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2.0))
        except OSError:
            return None

    def _expect(
        self,
        port: Connections,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        statuses: set[int],
    ) -> None:
        """Send a request; a response of another status is a problem, none at all is not."""
        try:
            status, _ = port.send(method, path, body, headers)
        except Unanswered:
            return self._memory.count("hostile requests without a response")
        self._memory.count("hostile requests")
        if status not in statuses:
            self._memory.complain(f"a hostile {method} {path.partition('?')[0]} got {status}")
