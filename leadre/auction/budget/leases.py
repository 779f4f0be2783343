"""A worker's side of the ledger: the leases of one campaign, from which bids reserve in memory without a call.

The worker calls `LeasedBudget.reserve` before each bid. Off the request's path it sends `lease_request` to the ledger,
gives the reply to `accept`, and sends what `releases` returns.
"""

from __future__ import annotations

from leadre.auction.budget.messages import FOREVER, Lease, LeaseRequest, Release
from leadre.units import US_PER_S

FIRST_BIDS = 4  # the first lease pays for so many bids
RETRY_US = US_PER_S // 2  # until the next request for a budget that is used up: leases of other workers end
DRAINED_US = US_PER_S  # a lease used up faster than this doubles the next one


class _OpenLease:
    """A lease that bids still reserve from."""

    __slots__ = ("accepted_at_us", "lease", "left_nanos")

    def __init__(self, lease: Lease, now_us: int) -> None:
        self.lease = lease
        self.left_nanos = lease.nanos
        self.accepted_at_us = now_us

    def release(self) -> Release:
        return Release(lease_id=self.lease.lease_id, reserved_nanos=self.lease.nanos - self.left_nanos)


class LeasedBudget:
    """The part of one campaign's budget that one worker may bid from. Not thread-safe.

    ``lease_nanos`` is the size of the next lease.
    """

    def __init__(self, worker: str, campaign_id: str) -> None:
        self.worker = worker
        self.campaign_id = campaign_id
        self.lease_nanos = 0
        self._open: list[_OpenLease] = []
        self._ended: list[Release] = []
        self._awaits_reply = False
        self._retry_at_us = 0
        self._next_end_us = FOREVER  # the earliest end of an open lease

    def left_nanos(self, now_us: int) -> int:
        """Nanos that bids can still reserve, from all leases together."""
        self._drop_expired(now_us)
        return sum(entry.left_nanos for entry in self._open)

    def can_pay(self, nanos: int, now_us: int) -> bool:
        """Whether a single lease has so much left."""
        self._drop_expired(now_us)
        return any(entry.left_nanos >= nanos for entry in self._open)

    def reserve(self, nanos: int, now_us: int) -> int:
        """Reserve the most that one bid can cost; the lease's ID for the bid's token, 0 if no lease can pay."""
        assert nanos > 0, nanos
        self._drop_expired(now_us)
        for entry in self._open:
            if entry.left_nanos >= nanos:
                entry.left_nanos -= nanos
                return entry.lease.lease_id
        return 0

    def lease_request(self, bid_nanos: int, now_us: int) -> LeaseRequest | None:
        """A request for the ledger if the newest lease is half spent or cannot pay a bid of ``bid_nanos``.

        None also while a reply is awaited, and for `RETRY_US` after the budget was used up.
        """
        has_bid = self.can_pay(bid_nanos, now_us)
        has_half = has_bid and 2 * self.left_nanos(now_us) >= self._open[-1].lease.nanos
        if self._awaits_reply or now_us < self._retry_at_us or has_half:
            return None
        self.lease_nanos = max(self.lease_nanos, FIRST_BIDS * bid_nanos)
        self._awaits_reply = True
        return LeaseRequest(
            worker=self.worker, campaign_id=self.campaign_id, max_nanos=self.lease_nanos, min_nanos=bid_nanos
        )

    def accept(self, lease: Lease | None, now_us: int) -> None:
        """The ledger's reply. The next lease is twice as large if the last one was used up within `DRAINED_US`."""
        self._awaits_reply = False
        if lease is None:
            self._retry_at_us = now_us + RETRY_US
            return
        if self._open and now_us - self._open[-1].accepted_at_us < DRAINED_US:
            self.lease_nanos *= 2
        # A remainder too small for a bid would be of no use to any worker until its lease ends.
        self._end([entry for entry in self._open if entry.left_nanos * FIRST_BIDS < lease.nanos])
        self._open.append(_OpenLease(lease, now_us))
        self._next_end_us = min(self._next_end_us, lease.expires_at_us)

    def releases(self, now_us: int) -> list[Release]:
        """A `Release` for each lease that ended with a remainder; each is returned once."""
        self._drop_expired(now_us)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> list[Release]:
        """End all leases, because the campaign is paused or the worker stops; the releases to send."""
        self._end(self._open)
        ended, self._ended = self._ended, []
        return ended

    def _drop_expired(self, now_us: int) -> None:
        if now_us < self._next_end_us:  # the usual case, checked many times a second for every campaign
            return
        expired = [entry for entry in self._open if entry.lease.expires_at_us <= now_us]
        if any(2 * entry.left_nanos > entry.lease.nanos for entry in expired):
            self.lease_nanos //= 2
        self._end(expired)

    def _end(self, entries: list[_OpenLease]) -> None:
        self._ended += [entry.release() for entry in entries if entry.left_nanos]
        self._open = [entry for entry in self._open if entry not in entries]
        self._next_end_us = min((entry.lease.expires_at_us for entry in self._open), default=FOREVER)
