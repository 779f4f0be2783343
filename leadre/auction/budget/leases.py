"""A worker's side of the ledger: one campaign's leases in memory, spent without asking anybody.

The worker drives it: `reserve` before each bid; `ask` now and then, its order sent to the ledger off the request's path
and the answer handed to `take`; what `releases` returns sent too.
"""

from __future__ import annotations

from leadre.auction.budget.messages import FOREVER, Lease, LeaseRequest, Release

FIRST_BIDS = 4  # the first lease pays for so many bids
RETRY_US = 500_000  # a budget that is used up is asked for again: leases return
DRAINED_US = 1_000_000  # a lease used up faster than this doubles the next one


class _Open:
    """A lease that is being spent."""

    __slots__ = ("lease", "left_nanos", "taken_at_us")

    def __init__(self, lease: Lease, now_us: int) -> None:
        self.lease, self.left_nanos, self.taken_at_us = lease, lease.nanos, now_us

    def release(self) -> Release:
        return Release(lease_id=self.lease.lease_id, reserved_nanos=self.lease.nanos - self.left_nanos)


class LeasedBudget:
    """What a worker may spend for one campaign. Not for several threads. ``want_nanos``: the size of the next lease."""

    def __init__(self, worker: str, campaign_id: str) -> None:
        self.worker, self.campaign_id = worker, campaign_id
        self.want_nanos = 0
        self._open: list[_Open] = []
        self._ended: list[Release] = []
        self._is_asking = False
        self._retry_at_us = 0
        self._soonest_us = FOREVER  # before it no lease ends

    def left_nanos(self, now_us: int) -> int:
        """What can still be reserved, from all leases together."""
        self._drop_expired(now_us)
        return sum(entry.left_nanos for entry in self._open)

    def can_pay(self, nanos: int, now_us: int) -> bool:
        """Whether a lease has so much left."""
        self._drop_expired(now_us)
        return any(entry.left_nanos >= nanos for entry in self._open)

    def reserve(self, nanos: int, now_us: int) -> int:
        """Set aside what one bid can cost at most; the lease's number for its token, 0 where no lease can pay."""
        assert nanos > 0, nanos
        self._drop_expired(now_us)
        for entry in self._open:
            if entry.left_nanos >= nanos:
                entry.left_nanos -= nanos
                return entry.lease.lease_id
        return 0

    def ask(self, bid_nanos: int, now_us: int) -> LeaseRequest | None:
        """What to ask the ledger for, None while there is enough, an answer is due or the budget was used up just now.

        ``bid_nanos``: what one bid reserves. A lease half spent is the time to ask for the next.
        """
        has_bid = self.can_pay(bid_nanos, now_us)
        has_half = has_bid and 2 * self.left_nanos(now_us) >= self._open[-1].lease.nanos
        if self._is_asking or now_us < self._retry_at_us or has_half:
            return None
        self.want_nanos = max(self.want_nanos, FIRST_BIDS * bid_nanos)
        self._is_asking = True
        return LeaseRequest(
            worker=self.worker, campaign_id=self.campaign_id, want_nanos=self.want_nanos, least_nanos=bid_nanos
        )

    def take(self, lease: Lease | None, now_us: int) -> None:
        """The ledger's answer. The next lease is twice as large if the last one was soon used up."""
        self._is_asking = False
        if lease is None:
            self._retry_at_us = now_us + RETRY_US
            return
        if self._open and now_us - self._open[-1].taken_at_us < DRAINED_US:
            self.want_nanos *= 2
        # A remainder that pays for no bid would be stranded until its lease ends.
        self._end([entry for entry in self._open if entry.left_nanos * FIRST_BIDS < lease.nanos])
        self._open.append(_Open(lease, now_us))
        self._soonest_us = min(self._soonest_us, lease.expires_at_us)

    def releases(self, now_us: int) -> list[Release]:
        """Orders for leases that ended with something left, each once."""
        self._drop_expired(now_us)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> list[Release]:
        """Give everything back: the campaign is paused, or the worker stops."""
        self._end(self._open)
        ended, self._ended = self._ended, []
        return ended

    def _drop_expired(self, now_us: int) -> None:
        if now_us < self._soonest_us:  # a worker goes through all its slices many times a second
            return
        expired = [entry for entry in self._open if entry.lease.expires_at_us <= now_us]
        if any(2 * entry.left_nanos > entry.lease.nanos for entry in expired):
            self.want_nanos //= 2
        self._end(expired)

    def _end(self, entries: list[_Open]) -> None:
        self._ended += [entry.release() for entry in entries if entry.left_nanos]
        self._open = [entry for entry in self._open if entry not in entries]
        self._soonest_us = min((entry.lease.expires_at_us for entry in self._open), default=FOREVER)
