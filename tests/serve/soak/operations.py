"""The operator's work beside the traffic: campaigns, pauses, erasures, reports, the status page."""

from __future__ import annotations

import json
import random
import re
import time
from functools import partial
from urllib.parse import urlencode

from .agenda import Agenda
from .campaigns import Group
from .connection import Connections, Unanswered
from .kept_bidder import KeptBidder
from .memory import Memory
from .traffic import Traffic

ERASE_S = 15.0
WORK_S = 2.0
SLOW_S = 90.0  # for a call that reads the whole log
PAUSED_S = 25.0


class Operations:
    """Periodic calls of the management port. A call that gets 503 or no response is repeated until it is accepted."""

    def __init__(self, bidder: KeptBidder, traffic: Traffic, memory: Memory, agenda: Agenda, seed: int) -> None:
        self._port = Connections(bidder.manage_port, 20.0)
        self._slow = Connections(bidder.manage_port, SLOW_S)
        self._bid_port = Connections(bidder.port, 10.0)
        self._key = {"authorization": f"Bearer {bidder.operator}"}
        self._operator = bidder.operator
        self._traffic = traffic
        self._memory = memory
        self._agenda = agenda
        self._rng = random.Random(seed)
        self.is_over = False

    def begin(self, paused: Group) -> None:
        """Plan the first call of each kind; each call plans the next one."""
        self._agenda.add(partial(self._pause, paused), 5.0)
        self._agenda.add(partial(self._erase, self._traffic.other_user()), 5.0)
        self._agenda.add(self._look, 1.0)
        self._agenda.add(partial(self._store, 0), 2.0)

    def close(self) -> None:
        """Close all connections."""
        for port in (self._port, self._slow, self._bid_port):
            port.close()

    def _accepted(self, method: str, path: str, body: object = None, *, is_slow: bool = False) -> bytes | None:
        """The response; None if the call has to be repeated."""
        port = self._slow if is_slow else self._port
        content = None if body is None else json.dumps(body).encode()
        headers = self._key | ({"content-type": "application/json"} if content else {})
        try:
            status, reply = port.send(method, path, content, headers)
        except Unanswered:
            self._memory.count("management calls without a response")
            return None
        if status == 503:
            self._memory.count("management calls refused for now")
            return None
        if not 200 <= status < 300:
            self._memory.complain(f"{method} {path.partition('?')[0]} got {status}: {reply[:200]!r}")
            return None
        self._memory.count("management calls")
        return reply

    def _again(self, job: partial[None], accepted: bytes | None, delay_s: float) -> None:
        if not self.is_over:
            self._agenda.add(job, delay_s if accepted is not None else 1.0)

    def _pause(self, group: Group) -> None:
        """Pause an ad for a while."""
        accepted = self._accepted("POST", f"/ads/{group.ad_id}/pause")
        if accepted is None:
            return self._again(partial(self._pause, group), None, 0)
        self._agenda.add(partial(self._resume, group, time.monotonic()), PAUSED_S)

    def _resume(self, group: Group, paused_s: float) -> None:
        sent_s = time.monotonic()
        accepted = self._accepted("POST", f"/ads/{group.ad_id}/resume")
        if paused_s:  # a resumption without a response may have happened
            self._traffic.pauses.append((paused_s, sent_s))
        if accepted is None:
            return self._again(partial(self._resume, group, 0.0), None, 0)
        self._again(partial(self._pause, group), accepted, 5.0)

    def _erase(self, user_id: str) -> None:
        """Erase a user who may be browsing, then another."""
        accepted = self._accepted("DELETE", f"/users?{urlencode({'user_id': user_id})}", is_slow=True)
        if accepted is not None:
            with self._memory.lock:
                self._memory.erased.add(user_id)
            user_id = self._traffic.other_user()
        self._again(partial(self._erase, user_id), accepted, ERASE_S)

    def _store(self, number: int) -> None:
        """Create or change one of ten campaigns of an account without traffic."""
        name = f"stored-{number % 10}"
        form = {"name": f"campaign {number}", "advertiser_id": "stored", "bid_type": "cpm", "bid_nanos": 1000 + number}
        accepted = self._accepted("PUT", f"/campaigns/{name}", form)
        if accepted is not None:
            with self._memory.lock:
                self._memory.stored[name] = form
            number += 1
        self._again(partial(self._store, number), accepted, 4.0)

    def _look(self) -> None:
        """Read something that an operator reads."""
        look = self._rng.choices((self._report, self._page, self._metrics, self._export), (8, 8, 8, 1))[0]
        look()
        self._again(partial(self._look), b"", WORK_S)

    def _report(self) -> None:
        span = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z", "limit": "100"}
        self._accepted("GET", f"/reports/campaigns?{urlencode(span)}")

    def _export(self) -> None:
        self._accepted("GET", f"/users?{urlencode({'user_id': self._traffic.user()})}", is_slow=True)

    def _page(self) -> None:
        """Log in to the status page and load it with its fragments."""
        try:
            body = urlencode({"key": self._operator}).encode()
            form = {"content-type": "application/x-www-form-urlencoded"}
            status, _, received = self._port.exchange("POST", "/status/login", body, form)
            session = re.match(r"[^;]+", received["set-cookie"] or "")
            if status not in (302, 303) or session is None:
                return self._memory.complain(f"a login to the status page got {status}")
            for path in ("/", "/status/now", "/status/campaigns", "/status/ads", "/status/request"):
                status, page = self._port.send("GET", path, None, {"cookie": session[0]})
                self._memory.count("pages")
                if status == 401:  # the process that held the session was killed
                    return self._memory.count("sessions that ended")
                if status != 200 or (path == "/" and b"</html>" not in page):
                    self._memory.complain(f"the status page {path} got {status}")
        except Unanswered:
            self._memory.count("pages without a response")

    def _metrics(self) -> None:
        try:
            for path in ("/metrics", "/readyz", "/healthz"):
                status, _ = self._bid_port.send("GET", path, None, self._key)
                if status != 200:
                    self._memory.complain(f"{path} got {status}")
        except Unanswered:
            self._memory.count("looks without a response")
