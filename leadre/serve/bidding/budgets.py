"""A worker's budgets: slices leased from the ledger ahead of need, so that a bid asks nobody.

`reserve` is called while a request waits and only looks at what is there; `renew` goes round afterwards, off the
request's path, sends what the slices want and hands them the answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from leadre.auction.budget.leases import LeasedBudget
from leadre.auction.budget.messages import Lease, LedgerOrder, Release
from leadre.types import Campaign

# answers to the asks among the orders
Send = Callable[[Sequence[LedgerOrder]], Awaitable[Sequence[Lease | None]]]
UNCAPPED = 0  # the lease of a campaign without a budget


class Budgets:
    """Slices by campaign of one worker."""

    def __init__(self, worker: str, send: Send) -> None:
        self.worker, self._send = worker, send
        self._slices: dict[str, LeasedBudget] = {}
        self._wanted: dict[str, int] = {}  # what one bid of these costs at most, since the last round

    def can_pay(self, campaign: Campaign, nanos: int, now_us: int, *, asks: bool) -> bool:
        """Whether `reserve` would find a lease. Where not and ``asks``, the next round asks for one."""
        if not _is_capped(campaign):
            return True
        mine = self._slices.get(campaign.campaign_id)
        has_lease = mine is not None and mine.can_pay(nanos, now_us)
        if asks and not has_lease:
            self._want(campaign.campaign_id, nanos)
        return has_lease

    def reserve(self, campaign: Campaign, nanos: int, now_us: int) -> int | None:
        """The lease that pays for a bid of ``nanos``, `UNCAPPED` where nothing is capped, None where none can."""
        if not _is_capped(campaign):
            return UNCAPPED
        return self._want(campaign.campaign_id, nanos).reserve(nanos, now_us) or None

    def _want(self, name: str, nanos: int) -> LeasedBudget:
        if name not in self._slices:
            self._slices[name] = LeasedBudget(self.worker, name)
        self._wanted[name] = max(nanos, self._wanted.get(name, 0))
        return self._slices[name]

    async def renew(self, now_us: int) -> None:
        """One round with the ledger. PeerError where it is not there; what was asked is asked again later."""
        wanted, self._wanted = self._wanted, {}
        releases = [order for each in self._slices.values() for order in each.releases(now_us)]
        asks = [
            (each, ask) for name in wanted if (ask := (each := self._slices[name]).lease_request(wanted[name], now_us))
        ]
        leases: Sequence[Lease | None] = [None] * len(asks)
        try:
            if asks or releases:
                leases = await self._send([*(ask for _, ask in asks), *releases])
        finally:
            for (each, _), lease in zip(asks, leases, strict=True):
                each.accept(lease, now_us)

    async def close(self) -> None:
        """Give back all that is left."""
        orders: list[Release] = [order for each in self._slices.values() for order in each.close()]
        if orders:
            await self._send(orders)


def _is_capped(campaign: Campaign) -> bool:
    return bool(campaign.total_nanos or campaign.daily_nanos)
