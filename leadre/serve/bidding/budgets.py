"""Budgets of one worker: leases from the ledger, requested before bids need them, so that a bid waits for no message.

While a request waits, `can_pay` and `reserve` read leases in memory. Off the request's path, `renew` sends lease
requests and releases to the ledger and stores the leases that return.

A lease ends seconds after it was granted. So that a campaign with few auctions has one when the next auction comes,
`renew` keeps a standby lease of a few bids for each campaign that was a candidate lately.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from leadre.auction.budget.leases import LeasedBudget
from leadre.auction.budget.messages import Lease, LeaseRequest, LedgerOrder, Release
from leadre.types import Campaign
from leadre.units import US_PER_HOUR, US_PER_S

# Sends orders to the ledger; returns the replies to the lease requests among them, in their order.
Send = Callable[[Sequence[LedgerOrder]], Awaitable[Sequence[Lease | None]]]
MAX_RELEASES = 10_000  # of one `Budgets.renew`
SEARCH_US = US_PER_S  # between two searches for leases that have expired, as these are few of thousands
STANDBY_US = US_PER_HOUR  # from the last auction of a campaign to the end of its standby leases
MAX_STANDBY = 100  # requests of one search, latest auctions first: bids wait for the batches of the ledger
UNCAPPED = 0  # the lease ID of a campaign without a budget


class Budgets:
    """Leased budgets of one of the ``workers``, by campaign.

    ``pays_uncapped``: whether campaigns without a budget bid. No lease bounds what they spend while the writer is away,
    so the worker clears it after a while.
    """

    def __init__(self, worker: str, send: Send, workers: int = 1) -> None:
        self.worker = worker
        self._workers = workers
        self._send = send
        self._leased: dict[str, LeasedBudget] = {}
        self._needed_nanos: dict[str, int] = {}  # campaign -> highest price of a bid since the last `renew`
        self._releases: list[Release] = []  # not yet acknowledged by the ledger
        self._renewed: list[LeasedBudget] = []  # a new lease may have ended the one before
        self._searched_at_us = 0  # when leases that have expired were searched
        self._paused: frozenset[str] = frozenset()
        self.pays_uncapped = True

    def can_pay(self, campaign: Campaign, nanos: int, now_us: int) -> bool:
        """Whether `reserve` would succeed."""
        if not has_budget(campaign):
            return self.pays_uncapped
        leased = self._leased.get(campaign.campaign_id)
        return leased is not None and leased.can_pay(nanos, now_us)

    def left_nanos(self, campaign_id: str, now_us: int) -> int:
        """Nanos of a campaign that no bid has reserved: of its leases here, and a worker's part of the free budget."""
        leased = self._leased.get(campaign_id)
        return 0 if leased is None else leased.left_nanos(now_us) + leased.free_nanos // self._workers

    def want(self, campaign: Campaign, nanos: int, now_us: int) -> None:
        """Note that a bid of ``nanos`` was a candidate: `renew` keeps a lease for the next auction of its campaign."""
        if has_budget(campaign):
            self._of(campaign.campaign_id).standby.want(nanos, now_us)

    def pause(self, campaign_ids: Collection[str]) -> None:
        """End the leases of these campaigns, which cannot bid. All others may have standby leases."""
        self._paused = frozenset(campaign_ids)
        for campaign_id in self._leased.keys() & self._paused:
            self._releases += self._leased[campaign_id].close()

    def request_lease(self, campaign_id: str, nanos: int) -> None:
        """Let the next `renew` request a lease that pays for a bid of ``nanos``."""
        self._of(campaign_id)
        self._needed_nanos[campaign_id] = max(nanos, self._needed_nanos.get(campaign_id, 0))

    def _of(self, campaign_id: str) -> LeasedBudget:
        if campaign_id not in self._leased:
            self._leased[campaign_id] = LeasedBudget(self.worker, campaign_id)
        return self._leased[campaign_id]

    def reserve(self, campaign: Campaign, nanos: int, now_us: int) -> int | None:
        """ID of the lease that pays for a bid of ``nanos``; `UNCAPPED` without a budget, None if no lease can pay."""
        if not has_budget(campaign):
            return UNCAPPED if self.pays_uncapped else None
        self.request_lease(campaign.campaign_id, nanos)
        return self._leased[campaign.campaign_id].reserve(nanos, now_us) or None

    async def renew(self, now_us: int) -> None:
        """Send lease requests and releases to the ledger, and store the leases.

        PeerError if the ledger is away: the next `renew` sends the releases again, and the next bid of a campaign
        requests its lease again.
        """
        needed_nanos = self._needed_nanos
        self._needed_nanos = {}
        searches = not self._searched_at_us <= now_us < self._searched_at_us + SEARCH_US
        ending: Iterable[LeasedBudget] = self._leased.values() if searches else self._renewed
        self._releases += [release for leased in ending for release in leased.releases(now_us)]
        self._renewed = []
        releases = self._releases[:MAX_RELEASES]
        requests: list[tuple[LeasedBudget, LeaseRequest]] = []
        for campaign_id, nanos in needed_nanos.items():
            leased = self._leased[campaign_id]
            if (request := leased.lease_request(nanos, now_us)) is not None:
                requests.append((leased, request))
        if searches:
            self._searched_at_us = now_us
            requests += self._standby_requests(now_us)
        leases: Sequence[Lease | None] = [None] * len(requests)
        try:
            if requests or releases:
                leases = await self._send([*(request for _, request in requests), *releases])
                del self._releases[: len(releases)]
        finally:
            for (leased, _), lease in zip(requests, leases, strict=True):
                leased.accept(lease, now_us)
                self._renewed.append(leased)

    def _standby_requests(self, now_us: int) -> Sequence[tuple[LeasedBudget, LeaseRequest]]:
        """Requests of campaigns that were candidates lately and have no lease for their next auction."""
        lacking = [
            leased
            for leased in self._leased.values()
            if abs(now_us - leased.standby.wanted_at_us) < STANDBY_US
            and leased.lacks_standby(now_us)
            and leased.campaign_id not in self._paused
        ]
        latest = heapq.nlargest(MAX_STANDBY, lacking, key=lambda leased: leased.standby.wanted_at_us)
        return [(leased, leased.standby_request(self._workers - 1, now_us)) for leased in latest]

    async def close(self) -> None:
        """Release all leases."""
        self._releases += [release for leased in self._leased.values() for release in leased.close()]
        if self._releases:
            await self._send(self._releases)
            self._releases = []


def has_budget(campaign: Campaign) -> bool:
    """Whether leases pay for the campaign's bids."""
    return bool(campaign.total_nanos or campaign.daily_nanos)
