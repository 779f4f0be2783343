"""The sender of a bid request, as a bid decision knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Bound(NamedTuple):
    """Bounds of the open bids of one caller, origin or network. ``max_nanos`` holds in each currency on its own.

    A bid is open until it is shown or lost, at most for the time in which it may be shown.
    """

    key: str
    max_bids: int
    max_nanos: int


@dataclass(frozen=True, kw_only=True)
class Party:
    """The sender of a bid request.

    ``share``: the key by which the budget of a campaign is divided among senders. ``cap_holder``: the key whose
    reservations under a user's frequency cap count against it; those of other keys count once they are shown.
    ``exp_s``: the time in which its bids may be shown; 0 = that of the settings. ``sends_no_price``: it fills no
    clearing price into a URL, so the signed price is billed. ``may_test``: its test requests get a user's own ads.
    ``has_fixed_price``: the bidder alone sets the price of its impressions, so a price in a bill is ignored.
    """

    name: str = ""  # of a configured caller; "" is any other sender
    bounds: tuple[Bound, ...] = ()
    share: str = ""
    cap_holder: str = ""
    exp_s: int = 0
    sends_no_price: bool = False
    may_test: bool = False
    has_fixed_price: bool = False

    @property
    def sender(self) -> str:
        """The keys under which its bids are open, as a token has them; the share is the first."""
        return " ".join(bound.key for bound in self.bounds) or self.share


ANYBODY = Party()
OPERATOR = Party(share="operator", may_test=True)
RECOMMEND = Party(share="recommend", has_fixed_price=True)  # a site's own server, which has a key
