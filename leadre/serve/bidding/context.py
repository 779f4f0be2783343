"""What a request is answered from, and what comes of it on the way. Letters: A ads of the book, K candidates."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events.tokens import Token
from leadre.serve.ipc.messages import GenerateReply, GenerateRequest
from leadre.serve.protocol.openrtb import NoBid, Rendered
from leadre.serve.settings import Settings
from leadre.types import Bid, Impression, Permissions, Request, Source


@dataclass(frozen=True)
class Market:
    """What can be bought at one moment; a request keeps the one it began with.

    ``expected_nanos_A`` is what one impression of each ad is worth to its advertiser, and so its price: the bid times
    the observed rate of what it pays for, as the log has it up to record ``counted``. ``objects`` are those that the
    language model knows.
    """

    book: CatalogueSnapshot
    expected_nanos_A: NDArray[np.int64]
    objects: ObjectIndex
    counted: int = 0


@dataclass
class Bidder:
    """What requests are answered from. ``market`` is replaced as it changes; no ``generate``: no language model.

    ``held``: in a replay, what became of a bid (place, ad) that wanted budget and a place under its cap: "bid" or what
    was missing. It depended on all other requests of that moment, so the log has to say it.
    """

    settings: Settings
    market: Market
    memory: UserStore
    budgets: Budgets
    generate: Callable[[GenerateRequest], Awaitable[GenerateReply]] | None
    sign: Callable[[Token], str]
    new_id: Callable[[], str]
    draws: ExplorationDraws
    clock: Callable[[], float] = time.monotonic
    held: Callable[[str, str], str] | None = None


@dataclass(frozen=True)
class Candidates:
    """Rows of the book [K] and their log-probabilities by whoever named them, best first.

    ``history_us``: when the last thing happened that the language model was told of. ``is_cut``: its answer was cut
    short by the deadline.
    """

    source: Source
    rows_K: NDArray[np.int64]
    log_p_K: NDArray[np.float64]
    version: str = ""
    made_at_us: int = 0
    history_us: int = 0
    is_cut: bool = False


@dataclass
class ImpState:
    """An impression, which ads may be shown there, and what became of the candidates: row of the book -> verdict.

    ``considered``: the rows among which was drawn.
    """

    imp: Impression
    eligible_A: NDArray[np.bool_]
    verdicts: dict[int, str] = field(default_factory=dict)
    considered: Sequence[int] = ()
    bid: Bid | None = None
    lease_id: int = 0
    cap_id: str = ""


@dataclass(frozen=True, kw_only=True)
class BidDecision:
    """What is offered, or why nothing is, and what is to be remembered of how it came about.

    ``versions``: of what it was made from.
    """

    request_id: str  # ours, as callers may use theirs twice
    permitted: Permissions
    rendered: Sequence[Rendered] = ()
    reason: NoBid | None = None
    user_id: str = ""  # "" where it may not be kept
    places: Sequence[ImpState] = ()
    candidates: Candidates | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestContext:
    """A request and what it is answered from, as they were when it began; ``user_id`` is "" for a stranger."""

    request: Request
    request_id: str
    permitted: Permissions
    user_id: str
    market: Market
    bidder: Bidder
    now_us: int
