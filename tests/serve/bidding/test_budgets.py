"""Leases and releases of a worker reach the ledger, also if a message is lost."""

import asyncio

import pytest

from leadre.auction.budget.messages import Lease, LeaseRequest, Release
from leadre.errors import PeerError
from leadre.serve.bidding.budgets import Budgets
from leadre.units import US_PER_S

from ..conftest import make_campaign


def test_release_is_sent_again_until_the_ledger_has_it():
    sent = []
    is_away = False

    async def send(orders):
        if is_away:
            raise PeerError("away")
        sent.extend(order for order in orders if isinstance(order, Release))
        requests = [order for order in orders if isinstance(order, LeaseRequest)]
        return [
            Lease(lease_id=1, campaign_id="c1", nanos=order.max_nanos, expires_at_us=US_PER_S) for order in requests
        ]

    async def main():
        nonlocal is_away
        budgets = Budgets("w", send)
        campaign = make_campaign(total_nanos=1_000)
        assert budgets.reserve(campaign, 10, 0) is None
        await budgets.renew(0)
        assert budgets.reserve(campaign, 10, 0) == 1
        is_away = True
        for _ in range(3):
            with pytest.raises(PeerError):
                await budgets.renew(2 * US_PER_S)  # the lease has expired with a remainder
        is_away = False
        await budgets.renew(2 * US_PER_S)
        assert sent == [Release(lease_id=1, reserved_nanos=10)]
        await budgets.renew(3 * US_PER_S)
        await budgets.close()
        assert len(sent) == 1

    asyncio.run(main())
