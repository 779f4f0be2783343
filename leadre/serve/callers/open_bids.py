"""Open bids of one worker, by sender and by campaign: the bids that were neither shown nor lost, within their time.

An open bid reserves budget, so a sender that requests bids and shows none could keep a budget from all others. Two
bounds prevent it. A sender has a number and a sum of open bids (`Bound`). And while several senders want one campaign,
each may reserve its share of the money that is left: the shares are in the ratio of the rates at which bids of the
senders were shown. One sender alone may reserve all of it.

Each worker has its part of a bound. The event of a bid may reach another worker than the bid came from: that worker
then ends an open bid of its own of the same sender. So the sum over the workers is right.
"""

from __future__ import annotations

from collections import defaultdict

from leadre.serve.callers.party import Party
from leadre.units import US_PER_S

ACTIVE_S = 120  # a sender wants a campaign for so long after its last bid, or its last one that was not permitted
PRIOR_SHOWN = 1.0  # of `PRIOR_BIDS`, as if seen before the first bid of a sender
PRIOR_BIDS = 20.0
MEMORY_BIDS = 2_000.0  # the rate of a sender is that of about its last bids
MAX_NANOS = 2**63 - 1  # no price is higher
MIN_SWEEP = 10_000  # keys, from which on those without open bids are dropped


class Account:
    """Open bids of one key: their number and the sum of their prices. Each ends by itself at a second."""

    __slots__ = ("_ends", "_swept_s", "count", "nanos")

    def __init__(self) -> None:
        self.count = 0
        self.nanos = 0
        self._ends: dict[int, list[int]] = {}  # second -> number and sum of the bids that end with it
        self._swept_s = 0

    def add(self, end_s: int, nanos: int) -> None:
        """Add a bid."""
        ends = self._ends.setdefault(end_s, [0, 0])
        ends[0] += 1
        ends[1] += nanos
        self.count += 1
        self.nanos += nanos

    def close(self, end_s: int, nanos: int) -> None:
        """End a bid of this second, else the one that ends first."""
        if end_s not in self._ends:
            end_s = min(self._ends, default=0)
        ends = self._ends.get(end_s)
        if ends is None:
            return
        nanos = min(nanos, ends[1]) if ends[0] > 1 else ends[1]
        ends[0] -= 1
        ends[1] -= nanos
        self.count -= 1
        self.nanos -= nanos
        if not ends[0]:
            del self._ends[end_s]

    def sweep(self, now_s: int) -> None:
        """End the bids whose time is over."""
        if now_s == self._swept_s:
            return
        self._swept_s = now_s
        for end_s in [end_s for end_s in self._ends if end_s <= now_s]:
            count, nanos = self._ends.pop(end_s)
            self.count -= count
            self.nanos -= nanos


class _Campaign:
    """A campaign: the open bids of each share, and the second of its last request."""

    __slots__ = ("accounts", "wanted_s")

    def __init__(self) -> None:
        self.accounts: defaultdict[str, Account] = defaultdict(Account)
        self.wanted_s: dict[str, int] = {}


class OpenBids:
    """The open bids of one worker. ``workers``: the processes that share the bounds of a sender."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._senders: dict[str, dict[str, Account]] = {}  # key of a bound -> currency -> account
        self._campaigns: defaultdict[str, _Campaign] = defaultdict(_Campaign)
        self._rates: dict[str, list[float]] = {}  # share -> bids, and those that were shown
        self._sweep_at = MIN_SWEEP

    def room_nanos(self, party: Party, currency: str, now_us: int) -> int:
        """The highest price of one more bid within the bounds of its sender; -1 if none is."""
        now_s = now_us // US_PER_S
        room_nanos = MAX_NANOS
        for bound in party.bounds:
            accounts = self._senders.get(bound.key, {})
            for account in accounts.values():
                account.sweep(now_s)
            count = sum(account.count for account in accounts.values())
            if (count + 1) * self._workers > max(bound.max_bids, self._workers):
                return -1
            open_nanos = accounts[currency].nanos if currency in accounts else 0
            room_nanos = min(room_nanos, bound.max_nanos // self._workers - open_nanos)
        return room_nanos

    def has_one_sender(self, party: Party) -> bool:
        """Whether no other sender has had a request for a campaign with a budget."""
        return len(self._rates) < 2 and party.share in self._rates

    def shares(self, party: Party, campaign_id: str, nanos: int, left_nanos: int, now_us: int) -> bool:
        """Whether one more bid is within the sender's share of a campaign's budget.

        ``left_nanos``: the part of the budget that no bid has reserved, as far as this worker knows.
        """
        campaign = self._campaigns.get(campaign_id)
        if campaign is None:
            return True
        now_s = now_us // US_PER_S
        active = {share for share, at_s in campaign.wanted_s.items() if now_s - at_s < ACTIVE_S} | {party.share}
        if len(active) < 2:
            return True
        for account in campaign.accounts.values():
            account.sweep(now_s)
        own_nanos = campaign.accounts[party.share].nanos if party.share in campaign.accounts else 0
        all_nanos = left_nanos + sum(account.nanos for account in campaign.accounts.values())
        rates = [self._rate(share) for share in active]
        own_rate = self._rate(party.share)
        is_within = own_nanos + nanos <= own_rate / sum(rates) * all_nanos
        # A share may be less than a bid. The last bids of a budget are of the sender that shows most.
        may_begin = left_nanos >= nanos * len(active) or own_rate == max(rates)
        return is_within or (own_nanos == 0 and may_begin)

    def add(self, party: Party, campaign_id: str, currency: str, nanos: int, until_us: int, now_us: int) -> None:
        """Add a bid that was made. ``campaign_id``: "" if the campaign has no budget."""
        end_s = -(-until_us // US_PER_S)
        for bound in party.bounds:
            self._senders.setdefault(bound.key, {}).setdefault(currency, Account()).add(end_s, nanos)
        if len(self._senders) >= self._sweep_at:
            self._drop_empty(now_us // US_PER_S)
        rate = self._rates.setdefault(party.share, [0.0, 0.0])
        rate[0] += 1
        if rate[0] > MEMORY_BIDS:
            rate[:] = [value / 2 for value in rate]
        if campaign_id:
            self.want(party.share, campaign_id, now_us)
            account = self._campaigns[campaign_id].accounts[party.share]
            account.sweep(now_us // US_PER_S)
            account.add(end_s, nanos)

    def want(self, share: str, campaign_id: str, now_us: int) -> None:
        """Note that a sender has a request for a campaign, whether its budget permits a bid or not."""
        self._rates.setdefault(share, [0.0, 0.0])
        self._campaigns[campaign_id].wanted_s[share] = now_us // US_PER_S

    def close(
        self,
        sender: str,
        campaign_id: str,
        currency: str,
        nanos: int,
        until_us: int,
        *,
        is_shown: bool,
    ) -> None:
        """End a bid that was shown or lost. ``sender``: `Party.sender`."""
        keys = sender.split(" ")
        share = keys[0]
        end_s = -(-until_us // US_PER_S)
        for key in keys:
            account = self._senders.get(key, {}).get(currency)
            if account is not None:
                account.close(end_s, nanos)
        if is_shown and share in self._rates:
            self._rates[share][1] += 1
        campaign = self._campaigns.get(campaign_id)
        if campaign is not None and share in campaign.accounts:
            campaign.accounts[share].close(end_s, nanos)

    def count(self, key: str, now_us: int) -> int:
        """The number of open bids of a key."""
        accounts = self._senders.get(key, {}).values()
        for account in accounts:
            account.sweep(now_us // US_PER_S)
        return sum(account.count for account in accounts)

    def _rate(self, share: str) -> float:
        """The smoothed rate at which bids of a share were shown."""
        bids, shown = self._rates.get(share, (0.0, 0.0))
        return (shown + PRIOR_SHOWN) / (bids + PRIOR_BIDS)

    def _drop_empty(self, now_s: int) -> None:
        """Drop the keys without open bids."""
        for accounts in self._senders.values():
            for account in accounts.values():
                account.sweep(now_s)
        self._senders = {
            key: accounts
            for key, accounts in self._senders.items()
            if any(account.count for account in accounts.values())
        }
        self._sweep_at = max(MIN_SWEEP, 2 * len(self._senders))
