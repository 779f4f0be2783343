"""Everything that the clients of the soak remember: bids, events and their acknowledgements, erasures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

S_PER_DAY = 86_400
GAP_S = 0.5  # shorter ones are not remembered


@dataclass(slots=True)
class SentEvent:
    """An event that was sent at least once. ``owed_nanos``: its price by the terms of the bid."""

    campaign_id: str
    owed_nanos: int
    is_acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class PlacedBid:
    """A bid with the monotonic times between which it was made."""

    bid_id: str
    campaign_id: str
    ad_id: str
    user_id: str
    price_nanos: int
    start_s: float
    end_s: float


@dataclass
class Memory:
    """Thread-safe. ``problems``: observations that break a promise; the soak fails with them."""

    counts: Counter[str] = field(default_factory=Counter)
    events: dict[tuple[str, str], SentEvent] = field(default_factory=dict)  # (bid, kind)
    shown: dict[tuple[str, str, int], set[str]] = field(default_factory=dict)  # (campaign, user, day) -> bids
    bids_of: Counter[str] = field(default_factory=Counter)  # campaign -> bids
    erased: set[str] = field(default_factory=set)
    stored: dict[str, dict[str, object]] = field(default_factory=dict)  # campaign -> the form that was acknowledged
    gaps: list[tuple[float, float]] = field(default_factory=list)  # monotonic times without an answered bid
    per_minute: Counter[int] = field(default_factory=Counter)
    large_bytes: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    started_s: float = field(default_factory=time.monotonic)
    answered_s: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, number: int = 1) -> None:
        with self.lock:
            self.counts[name] += number

    def complain(self, problem: str) -> None:
        with self.lock:
            self.problems[problem] += 1

    def note_bids(self, campaigns: list[str]) -> None:
        """A request was answered with bids of these campaigns."""
        now_s = time.monotonic()
        with self.lock:
            self.counts["bids"] += len(campaigns)
            self.bids_of.update(campaigns)
            self.per_minute[int((now_s - self.started_s) // 60)] += 1
            self._end_gap(now_s)

    def end_gap(self) -> None:
        """Remember the time since the last bid as a gap, if it is long."""
        with self.lock:
            self._end_gap(time.monotonic())

    def _end_gap(self, now_s: float) -> None:
        if now_s - self.answered_s > GAP_S:
            self.gaps.append((self.answered_s, now_s))
        self.answered_s = max(now_s, self.answered_s)

    def send(self, bid: PlacedBid, kind: str, owed_nanos: int) -> SentEvent:
        """Remember an event before it is sent."""
        with self.lock:
            key = bid.bid_id, kind
            if key in self.events:
                self.counts["sent again"] += 1
            return self.events.setdefault(key, SentEvent(bid.campaign_id, owed_nanos))

    def acknowledge(self, bid: PlacedBid, kind: str) -> None:
        """Remember that an event was acknowledged."""
        with self.lock:
            event = self.events[bid.bid_id, kind]
            self.counts["acknowledged"] += not event.is_acknowledged
            event.is_acknowledged = True
            days = {self._day(bid.start_s), self._day(bid.end_s)}
            if kind in ("imp", "bill") and len(days) == 1:  # else the day of the bid is unknown
                self.shown.setdefault((bid.campaign_id, bid.user_id, days.pop()), set()).add(bid.bid_id)

    def may_be_late(self, bid: PlacedBid, end_s: float, valid_s: int) -> bool:
        """Whether the bid's token may have expired by ``end_s``. A clock that is set ends no token."""
        return end_s - bid.start_s > valid_s - 1

    def _day(self, at_s: float) -> int:
        """The day (UTC) of a monotonic time. A clock that is set opens no day."""
        return int((datetime.now(UTC).timestamp() - time.monotonic() + at_s) // S_PER_DAY)
