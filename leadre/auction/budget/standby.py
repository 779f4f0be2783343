"""When a campaign has a standby lease: a few bids in a worker, which wait for its next auction.

A lease ends seconds after it was granted. A campaign with few auctions would have none when the next one comes, so the
worker requests a standby lease off the path of requests whenever the last one has ended, while the campaign is a
candidate now and then. The last money of a budget should wait in no worker: the ledger grants such a lease only if a
bid for each other worker stays free.
"""

from __future__ import annotations

from leadre.auction.budget.messages import MAX_LEASE_NANOS
from leadre.units import US_PER_S

RETRY_US = 10 * US_PER_S  # between two requests of a campaign
REFUSED_US = 60 * US_PER_S  # the same after one that the ledger did not grant


class Standby:
    """The candidates of one campaign in one worker. ``wanted_at_us``: time of the last one.

    ``bid_nanos``: the highest price of the candidates since the last request, or those before it if there is none.
    """

    def __init__(self) -> None:
        self.wanted_at_us = 0
        self.bid_nanos = 0
        self._requested_at_us = -RETRY_US
        self._wait_us = RETRY_US

    def want(self, bid_nanos: int, now_us: int) -> None:
        """Note a candidate."""
        if self.wanted_at_us <= self._requested_at_us:
            self.bid_nanos = 0
        self.wanted_at_us = now_us
        self.bid_nanos = max(self.bid_nanos, bid_nanos)

    def may_request(self, now_us: int) -> bool:
        """Whether there was a candidate that a lease can pay, and the last request is long ago."""
        must_wait = self._requested_at_us <= now_us < self._requested_at_us + self._wait_us
        return not must_wait and 0 < self.bid_nanos <= MAX_LEASE_NANOS

    def requested(self, now_us: int) -> int:
        """Note a request. Returns the price of the bid that its lease should pay."""
        self._requested_at_us = now_us
        return self.bid_nanos

    def replied(self, *, is_granted: bool) -> None:
        """Note the reply of the ledger."""
        self._wait_us = RETRY_US if is_granted else REFUSED_US
