"""Money of bids that wait for their event, by campaign and day, at the amount that is expected to be charged.

Charges arrive late: an impression is billed seconds after its bid, a click follows minutes later, and a lost bid may
never be reported. A bid counts until its event, its loss, or the time in which the event usually comes. Its amount is
what it reserved times the share of reserved money that was charged lately: most bids lose, and some callers render few.

A conversion comes days later. So an impression that was shown counts at its expected value, as the ledger reserves it,
until the charges of the day exceed the sum.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from leadre.serve.events.outcomes import CHARGED_AT, SHOWN
from leadre.types import Bid, BidType, Campaign, Outcome
from leadre.units import US_PER_S

# Seconds after the end of `exp_s` in which the event that a bid waits for usually comes.
WAIT_S: Mapping[BidType, int] = {"cpm": 30, "cpc": 300, "cpa": 30}
PRIOR_BIDS = 10.0  # as if charged in full, before the first bid of a campaign
MEMORY_BIDS = 1_000.0  # the share that is charged is that of about the last bids


class OpenSums(msgspec.Struct, frozen=True, array_like=True):
    """One campaign in a snapshot. ``open``: nanos of its open bids, by day."""

    open: dict[str, int] = {}
    shown: dict[str, int] = {}
    bids: float = 0.0
    reserved_nanos: float = 0.0
    realised_nanos: float = 0.0


class _OpenBid(NamedTuple):
    campaign_id: str
    day: str
    nanos: int
    until_us: int


class _Campaign:
    """Sums of one campaign; ``reserved_nanos`` and ``realised_nanos`` are those of ``bids`` that are no longer open."""

    __slots__ = ("bids", "open_nanos", "realised_nanos", "reserved_nanos", "shown_nanos")

    def __init__(self) -> None:
        self.open_nanos: defaultdict[str, int] = defaultdict(int)  # by day
        self.shown_nanos: defaultdict[str, int] = defaultdict(int)
        self.bids = 0.0
        self.reserved_nanos = 0.0
        self.realised_nanos = 0.0

    def closed(self, bid: _OpenBid) -> None:
        """Close a bid."""
        self.open_nanos[bid.day] -= bid.nanos
        self.bids += 1
        self.reserved_nanos += bid.nanos
        if self.bids > MEMORY_BIDS:
            self.bids /= 2
            self.reserved_nanos /= 2
            self.realised_nanos /= 2

    @property
    def charged_share(self) -> float:
        """The share of reserved money that is charged."""
        if not self.reserved_nanos:
            return 1.0
        prior_nanos = PRIOR_BIDS * self.reserved_nanos / self.bids
        return min(1.0, (prior_nanos + self.realised_nanos) / (prior_nanos + self.reserved_nanos))


class OpenMoney:
    """The open bids of campaigns. ``exp_s``: the time in which a bid may be shown."""

    def __init__(self, exp_s: int) -> None:
        self._exp_us = exp_s * US_PER_S
        self._bids: dict[str, _OpenBid] = {}
        self._ends: list[tuple[int, str]] = []  # a heap: by end, as a clock that is set back may disorder them
        self._campaigns: defaultdict[str, _Campaign] = defaultdict(_Campaign)

    def add(self, campaign: Campaign, day: str, bid: Bid, at_us: int) -> None:
        """Open a bid of a day."""
        nanos = bid.reserved_nanos or bid.price_nanos
        until_us = at_us + self._exp_us + WAIT_S[campaign.bid_type] * US_PER_S
        self._open(bid.bid_id, _OpenBid(campaign.campaign_id, day, nanos, until_us))

    def close(self, campaign: Campaign, outcome: Outcome) -> None:
        """Close the bid of an event that charges or loses it; an impression of a bid for a conversion is its end."""
        sums = self._campaigns[campaign.campaign_id]
        is_shown = campaign.bid_type == "cpa" and outcome.kind in SHOWN
        if is_shown or outcome.kind in ("loss", CHARGED_AT[campaign.bid_type]):
            bid = self._bids.pop(outcome.bid_id, None)
            if bid is not None:
                sums.closed(bid)
                if is_shown:
                    sums.shown_nanos[bid.day] += bid.nanos
                    sums.realised_nanos += bid.nanos
        if campaign.bid_type != "cpa":
            sums.realised_nanos += outcome.charge_nanos

    def expire(self, now_us: int) -> None:
        """Close the bids whose time is over."""
        while self._ends and self._ends[0][0] <= now_us:
            bid = self._bids.pop(heapq.heappop(self._ends)[1], None)
            if bid is not None:
                self._campaigns[bid.campaign_id].closed(bid)

    def spent_nanos(self, campaign: Campaign, day: str, charged_nanos: int) -> float:
        """Nanos of a day that are charged, or expected of its open bids. Forgets earlier days that have none."""
        sums = self._campaigns[campaign.campaign_id]
        for earlier in [name for name in sums.open_nanos if name < day and not sums.open_nanos[name]]:
            del sums.open_nanos[earlier]
        for earlier in [name for name in sums.shown_nanos if name < day]:
            del sums.shown_nanos[earlier]
        if campaign.bid_type == "cpa":
            charged_nanos = max(charged_nanos, sums.shown_nanos.get(day, 0))
        return charged_nanos + sums.open_nanos.get(day, 0) * sums.charged_share

    def keep(self, campaign_ids: Collection[str]) -> None:
        """Forget all other campaigns."""
        for campaign_id in self._campaigns.keys() - campaign_ids:
            del self._campaigns[campaign_id]
        self._bids = {bid_id: bid for bid_id, bid in self._bids.items() if bid.campaign_id in campaign_ids}

    def sums(self, campaign_id: str) -> OpenSums:
        """The sums of a campaign, for `restore`."""
        sums = self._campaigns[campaign_id]
        return OpenSums(
            {day: nanos for day, nanos in sums.open_nanos.items() if nanos},
            dict(sums.shown_nanos),
            sums.bids,
            sums.reserved_nanos,
            sums.realised_nanos,
        )

    def restore(self, campaign: Campaign, stored: OpenSums, at_us: int) -> None:
        """Take over sums of a snapshot of ``at_us``. Its open bids end together, by their time: a start knows none."""
        sums = self._campaigns[campaign.campaign_id]
        sums.bids = stored.bids
        sums.reserved_nanos = stored.reserved_nanos
        sums.realised_nanos = stored.realised_nanos
        sums.shown_nanos.update(stored.shown)
        until_us = at_us + self._exp_us + WAIT_S[campaign.bid_type] * US_PER_S
        for day, nanos in stored.open.items():
            self._open(f"\0{campaign.campaign_id}\0{day}", _OpenBid(campaign.campaign_id, day, nanos, until_us))

    def _open(self, bid_id: str, bid: _OpenBid) -> None:
        self._bids[bid_id] = bid
        heapq.heappush(self._ends, (bid.until_us, bid_id))
        self._campaigns[bid.campaign_id].open_nanos[bid.day] += bid.nanos
