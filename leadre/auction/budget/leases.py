"""The worker's side of budget leases: bids reserve from leases in memory, without a call to the ledger.

The worker calls `LeasedBudget.reserve` for each bid. Between bid requests it sends `lease_request` to the ledger,
passes the reply to `accept`, and sends the messages that `releases` returns.
"""

from __future__ import annotations

from leadre.auction.budget.messages import FOREVER, MAX_LEASE_NANOS, Lease, LeaseRequest, Release
from leadre.auction.budget.standby import Standby
from leadre.units import US_PER_S

FIRST_BIDS = 4  # number of bids that the first lease pays for
RETRY_US = US_PER_S // 2  # wait after the ledger granted no lease; leases of other workers may end meanwhile
DRAINED_US = US_PER_S  # a lease that another follows sooner than this was too small: the size of the next doubles
BACK_US = 60 * US_PER_S  # a clock that is set back by less ends no lease


class _OpenLease:
    """A lease that has not ended, and its nanos that no bid has reserved."""

    __slots__ = ("accepted_at_us", "lease", "left_nanos")

    def __init__(self, lease: Lease, now_us: int) -> None:
        self.lease = lease
        self.left_nanos = lease.nanos
        self.accepted_at_us = now_us

    def release(self) -> Release:
        return Release(lease_id=self.lease.lease_id, reserved_nanos=self.lease.nanos - self.left_nanos)


class LeasedBudget:
    """The leases of one worker for one campaign. Not thread-safe.

    ``lease_nanos`` is the size of the next lease to request. ``free_nanos``: the rest of the budget after
    the last one.
    """

    def __init__(self, worker: str, campaign_id: str) -> None:
        self.worker = worker
        self.campaign_id = campaign_id
        self.lease_nanos = 0
        self.free_nanos = 0
        self._open: list[_OpenLease] = []
        self._ended: list[Release] = []
        self._awaited: LeaseRequest | None = None
        self._retry_at_us = 0
        self.standby = Standby()
        self._next_end_us = FOREVER  # the earliest end of an open lease
        self._began_us = 0  # when the newest open lease was accepted, less `BACK_US`

    def left_nanos(self, now_us: int) -> int:
        """Nanos that bids can still reserve, from all leases together."""
        self._drop_expired(now_us)
        return sum(entry.left_nanos for entry in self._open)

    def can_pay(self, nanos: int, now_us: int) -> bool:
        """Whether a single lease has at least ``nanos`` left."""
        return self._lease_with(nanos, now_us) is not None

    def reserve(self, nanos: int, now_us: int) -> int:
        """Reserve ``nanos``, the highest cost of one bid. Returns the lease's ID, 0 if no lease can pay."""
        assert nanos > 0, nanos
        entry = self._lease_with(nanos, now_us)
        if entry is None:
            return 0
        entry.left_nanos -= nanos
        return entry.lease.lease_id

    def _lease_with(self, nanos: int, now_us: int) -> _OpenLease | None:
        """The oldest lease that has at least ``nanos`` left."""
        self._drop_expired(now_us)
        for entry in self._open:
            if entry.left_nanos >= nanos:
                return entry
        return None

    def lease_request(self, bid_nanos: int, now_us: int) -> LeaseRequest | None:
        """A request for the ledger, if no lease can pay ``bid_nanos`` or little is left; else None.

        Little: all leases together have less than half of the newest one. None also while a reply is awaited, for
        `RETRY_US` after the ledger granted no lease, and for a bid above `MAX_LEASE_NANOS`.
        """
        has_bid = self.can_pay(bid_nanos, now_us)
        has_half = has_bid and 2 * self.left_nanos(now_us) >= self._open[-1].lease.nanos
        must_wait = self._retry_at_us - RETRY_US <= now_us < self._retry_at_us  # not since before a clock was set back
        if self._awaited or must_wait or has_half:
            return None
        if bid_nanos > MAX_LEASE_NANOS:
            return None
        self.lease_nanos = min(max(self.lease_nanos, FIRST_BIDS * bid_nanos), MAX_LEASE_NANOS)
        self._awaited = LeaseRequest(
            worker=self.worker, campaign_id=self.campaign_id, max_nanos=self.lease_nanos, min_nanos=bid_nanos
        )
        return self._awaited

    def lacks_standby(self, now_us: int) -> bool:
        """Whether `standby_request` may be called: no lease can pay a candidate's bid, and no reply is awaited."""
        standby = self.standby
        return not self._awaited and standby.may_request(now_us) and not self.can_pay(standby.bid_nanos, now_us)

    def standby_request(self, spared_bids: int, now_us: int) -> LeaseRequest:
        """A request for a standby lease, which leaves ``spared_bids`` free."""
        bid_nanos = self.standby.requested(now_us)
        self._awaited = LeaseRequest(
            worker=self.worker,
            campaign_id=self.campaign_id,
            max_nanos=min(FIRST_BIDS * bid_nanos, MAX_LEASE_NANOS),
            min_nanos=bid_nanos,
            is_standby=True,
            spared_nanos=spared_bids * bid_nanos,
        )
        return self._awaited

    def accept(self, lease: Lease | None, now_us: int) -> None:
        """Store the lease that the ledger granted; None if it granted none.

        If the previous lease was granted less than `DRAINED_US` ago, and this one has the requested size, the size of
        the next one doubles: so it never exceeds twice the largest lease that the budget had room for.
        """
        is_standby = self._awaited is not None and self._awaited.is_standby
        self._awaited = None
        if is_standby:
            self.standby.replied(is_granted=lease is not None)
        if lease is None:
            if not is_standby:  # a bid may have money that none should wait with
                self.free_nanos = 0
                self._retry_at_us = now_us + RETRY_US
            return
        self.free_nanos = lease.free_nanos
        is_full = lease.nanos >= self.lease_nanos  # a smaller lease is all that the budget has left for one worker
        if is_full and not is_standby and self._open and now_us - self._open[-1].accepted_at_us < DRAINED_US:
            self.lease_nanos = min(2 * self.lease_nanos, MAX_LEASE_NANOS)
        # End leases with a small remainder: no bid could use it, and it would block budget until the lease expires.
        self._end([entry for entry in self._open if entry.left_nanos * FIRST_BIDS < lease.nanos])
        self._open.append(_OpenLease(lease, now_us))
        self._began_us = max(self._began_us, now_us - BACK_US)
        self._next_end_us = min(self._next_end_us, lease.expires_at_us)

    def releases(self, now_us: int) -> list[Release]:
        """A `Release` for each lease that ended with a remainder since the last call."""
        self._drop_expired(now_us)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> list[Release]:
        """End all leases, because the campaign is paused or the worker stops. Returns the releases to send."""
        self._end(self._open)
        ended, self._ended = self._ended, []
        return ended

    def _drop_expired(self, now_us: int) -> None:
        if self._began_us <= now_us < self._next_end_us:
            return
        # A lease of a time to come was granted before the clock was set back: it belongs to another day.
        expired = [
            entry for entry in self._open if not entry.accepted_at_us - BACK_US <= now_us < entry.lease.expires_at_us
        ]
        if any(2 * entry.left_nanos > entry.lease.nanos for entry in expired):
            self.lease_nanos //= 2
        if expired:
            self._end(expired)

    def _end(self, entries: list[_OpenLease]) -> None:
        self._ended += [entry.release() for entry in entries if entry.left_nanos]
        self._open = [entry for entry in self._open if entry not in entries]
        self._next_end_us = min((entry.lease.expires_at_us for entry in self._open), default=FOREVER)
        self._began_us = max((entry.accepted_at_us - BACK_US for entry in self._open), default=0)
