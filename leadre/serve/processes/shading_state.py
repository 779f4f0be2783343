"""Learning of first-price shading, in the writer: one state for all workers.

A bid in a first-price auction of an exchange teaches where the lowest price lay that would have won: below a bid that
won, above one that lost, or exactly where a notice reports it. An impression, a bill or a win notice is a win. A loss
notice with a reason other than the price teaches nothing, and a bid without an event by its end is lost. Each
configured caller and currency is a market with a law of its own, of its last `MAX_AUCTIONS`: a caller that reports
false prices moves its own market alone. Senders without a name have none, as anyone can send under no name.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import defaultdict, deque
from typing import NamedTuple

import msgspec
import numpy as np

from leadre.auction.shading import Feedback, WinCurves, fit_by_value, fit_histogram
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.ipc.messages import MarketShading
from leadre.serve.processes.catalogue_sync import CatalogueSync
from leadre.types import Outcome
from leadre.units import US_PER_S

MAX_AUCTIONS = 4_000  # of a market that are remembered, the newest
MIN_AUCTIONS = 300  # of a market, from which on its bids are shaded
NEW_AUCTIONS = 100  # between two fits of a market
AUCTIONS_A_GROUP = 500
MAX_GROUPS = 8
WAIT_S = 30  # after the end of `exp_s`, until a bid without an event counts as lost
PRICE_LOSSES = (0, 100, 101, 102, 103)  # OpenRTB: below a floor, or to a higher bid; 0 = no reason is named
WON = ("win", "bill", "imp")

Market = tuple[str, str]  # caller, currency


class Auction(msgspec.Struct, frozen=True, array_like=True):
    """One auction: the value of the impression, the bid, and the bounds of the price; ``high_nanos`` 0 = none."""

    worth_nanos: int
    bid_nanos: int
    low_nanos: int
    high_nanos: int
    is_won: bool


class _Snapshot(msgspec.Struct, frozen=True):
    """The auctions of each market, and the laws that were fitted to them."""

    auctions: list[tuple[str, str, list[Auction]]]
    laws: list[MarketShading]


class _OpenBid(NamedTuple):
    market: Market
    worth_nanos: int
    bid_nanos: int


class ShadingState:
    """Auctions and laws of prices by market. ``exp_s``: `Settings.exp_s`. It is idle while no campaign shades."""

    def __init__(self, catalogue_sync: CatalogueSync, exp_s: int) -> None:
        self._sync = catalogue_sync
        self._catalogue: object = None
        self._is_used = False
        self._open_us = (exp_s + WAIT_S) * US_PER_S
        self._bids: dict[str, _OpenBid] = {}
        self._ends: list[tuple[int, str]] = []  # a heap
        self._auctions: defaultdict[Market, deque[Auction]] = defaultdict(lambda: deque(maxlen=MAX_AUCTIONS))
        self._unfitted: defaultdict[Market, int] = defaultdict(int)
        self._fitted: dict[Market, MarketShading] = {}

    def add(self, record: RequestRecord | EventRecord) -> None:
        """Add a record of the log: the bids of a first-price auction, or the event of such a bid."""
        if record.is_test or not self._follow():
            return
        if isinstance(record, EventRecord):
            if record.outcome.kind in WON or record.outcome.kind == "loss":
                self._close(record, record.outcome)
        elif record.caller and record.request.get("is_first_price"):
            for bid in record.bids:
                market = (record.caller, bid.currency)
                self._bids[bid.bid_id] = _OpenBid(market, bid.worth_nanos, bid.price_nanos)
                heapq.heappush(self._ends, (record.at_us + self._open_us, bid.bid_id))

    def tick(self, now_us: int) -> None:
        """Count bids without an event as lost, and fit one market that has seen enough new auctions."""
        while self._ends and self._ends[0][0] <= now_us:
            bid = self._bids.pop(heapq.heappop(self._ends)[1], None)
            if bid is not None:
                self._learn(bid, low_nanos=bid.bid_nanos, high_nanos=0, is_won=False)
        due = [market for market, count in self._unfitted.items() if count >= NEW_AUCTIONS]
        due = [market for market in due if len(self._auctions[market]) >= MIN_AUCTIONS]
        if due:
            market = max(due, key=self._unfitted.__getitem__)
            self._unfitted[market] = 0
            self._fitted[market] = _shown(market, fit(list(self._auctions[market])))

    def markets(self) -> list[MarketShading]:
        """All markets with a law."""
        return list(self._fitted.values())

    def snapshot(self) -> bytes:
        """Auctions and laws, for `restore`. Bids whose event is still to come teach nothing after a start."""
        auctions = [(*market, list(auctions)) for market, auctions in self._auctions.items()]
        return msgspec.msgpack.encode(_Snapshot(auctions, self.markets()))

    def restore(self, packed: bytes) -> None:
        """Take over a snapshot; one of another release is forgotten.

        The laws are part of it: new fits of many markets take minutes, in which callers would be bid the full value.
        """
        with contextlib.suppress(msgspec.DecodeError):
            stored = msgspec.msgpack.decode(packed, type=_Snapshot | list[tuple[str, str, list[Auction]]])
            if isinstance(stored, list):  # of November 2026: without laws, with a market of all callers without a name
                stored = _Snapshot([market for market in stored if market[0]], [])
            self._fitted = {(law.caller, law.currency): law for law in stored.laws}
            for caller, currency, auctions in stored.auctions:
                market = (caller, currency)
                self._auctions[market].extend(auctions)
                self._unfitted[market] = 0 if market in self._fitted else len(auctions)

    def _follow(self) -> bool:
        """Whether a campaign of the loaded catalogue shades."""
        catalogue = self._sync.catalogue
        if catalogue is not self._catalogue:
            self._catalogue = catalogue
            self._is_used = any(campaign.shading for campaign in catalogue.campaigns)
        return self._is_used

    def _close(self, record: EventRecord, outcome: Outcome) -> None:
        bid = self._bids.pop(outcome.bid_id, None)
        if bid is None or (outcome.kind == "loss" and record.loss_reason not in PRICE_LOSSES):
            return
        is_won = outcome.kind in WON
        price_nanos = record.min_to_win_nanos
        if price_nanos and (price_nanos <= bid.bid_nanos) == is_won:
            self._learn(bid, low_nanos=price_nanos, high_nanos=price_nanos, is_won=is_won)
        elif is_won:
            self._learn(bid, low_nanos=0, high_nanos=bid.bid_nanos, is_won=True)
        else:
            self._learn(bid, low_nanos=bid.bid_nanos, high_nanos=0, is_won=False)

    def _learn(self, bid: _OpenBid, *, low_nanos: int, high_nanos: int, is_won: bool) -> None:
        worth_nanos = bid.worth_nanos or bid.bid_nanos
        self._auctions[bid.market].append(Auction(worth_nanos, bid.bid_nanos, low_nanos, high_nanos, is_won))
        self._unfitted[bid.market] += 1


def fit(auctions: list[Auction]) -> WinCurves:
    """The laws of the price by groups of values: the more auctions, the more groups."""
    array = np.array([(a.worth_nanos, a.bid_nanos, a.low_nanos, a.high_nanos, a.is_won) for a in auctions], float)
    worth_N, bid_N, low_N, high_N, won_N = array.T
    feedback = Feedback(low_N, np.where(high_N > 0, high_N, np.inf), bid_N, won_N > 0)
    groups = min(max(len(auctions) // AUCTIONS_A_GROUP, 1), MAX_GROUPS)
    return fit_by_value(fit_histogram, feedback, worth_N, groups)


def _shown(market: Market, curves: WinCurves) -> MarketShading:
    hulls = [curve.hull for curve in curves.curves]
    return MarketShading(
        caller=market[0],
        currency=market[1],
        edges=curves.edges.tolist(),
        breaks=[breaks.tolist() for breaks, _ in hulls],
        bids=[bids.tolist() for _, bids in hulls],
    )
