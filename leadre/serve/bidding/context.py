"""Input and result of a bid decision. Letters: A ads of the catalogue, K candidates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leadre.clock import Clock
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.pace import CampaignRates
from leadre.serve.bidding.ranking import RankingGuard
from leadre.serve.bidding.shade import NO_SHADING, Shading
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import BidRate, Values
from leadre.serve.callers.open_bids import OpenBids
from leadre.serve.callers.party import Party
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events.records import PacedCampaign
from leadre.serve.events.tokens import Token
from leadre.serve.ipc.messages import GenerateReply, GenerateRequest
from leadre.serve.protocol.openrtb import NoBid, Rendered
from leadre.serve.rankers.rates import Rates
from leadre.serve.settings import Settings
from leadre.types import Bid, EventKind, Impression, Permissions, Request, Source, Verdict
from leadre.units import US_PER_S

if TYPE_CHECKING:  # LightGBM, which a bidder without a ranker does not load
    from leadre.serve.rankers.served import CatalogueRanker


@dataclass(frozen=True)
class Market:
    """All that can be bought at one moment; a request keeps the market that it started with.

    ``ranker`` gives candidates rates of their own; None without one. ``pacing``: how campaigns bid; None if none has a
    plan or a goal.

    ``expected_nanos_A`` is the expected value of one impression of each ad to its advertiser, and so the price of a
    bid: the campaign's bid or target times the observed rate of the event that it is for. ``most_nanos_A``: the highest
    price of a bid, for campaigns with a goal; None if there is none. ``objects`` are the objects that the language
    model can generate. ``log_position`` is the number of the last log record whose counts are in the rates.
    """

    catalogue: CatalogueSnapshot
    expected_nanos_A: NDArray[np.int64]
    objects: ObjectIndex
    log_position: int = 0
    ranker: CatalogueRanker | None = None
    pacing: CampaignRates | None = None
    shading: Shading = NO_SHADING
    most_nanos_A: NDArray[np.int64] | None = None


# Verdicts that depend on the other requests of the moment.
LIMITS = (Verdict.FREQUENCY_CAP, Verdict.NO_BUDGET, Verdict.OPEN_BIDS)


@dataclass
class Bidder:
    """The state that requests are answered from.

    ``market`` is replaced when the catalogue, the rates or the model change. ``generate`` is None without a language
    model. ``logged_verdict`` is set in a replay: (imp ID, ad ID) -> `Verdict.BID` or the verdict of `LIMITS`
    as logged. Budgets and caps depended on all other requests of that moment, so a replay reads their
    outcome from the log. So does ``logged_bid`` with the shaded price of a bid. ``has_old_rules``: in a
    replay of a release up to November 2026, whose equal candidates kept the order of their source, and whose
    mechanism let ads of one advertiser price each other.
    """

    settings: Settings
    market: Market
    user_store: UserStore
    budgets: Budgets
    generate: Callable[[GenerateRequest], Awaitable[GenerateReply]] | None
    encrypt: Callable[[Token, Sequence[EventKind]], Mapping[EventKind, str]]  # `TokenKeys.encrypt_each`
    new_id: Callable[[], str]
    draws: ExplorationDraws
    clock: Clock
    ranking: RankingGuard
    logged_verdict: Callable[[str, str], Verdict] | None = None
    logged_bid: Callable[[str, str], Bid | None] = lambda imp_id, ad_id: None
    open_bids: OpenBids = field(default_factory=OpenBids)
    has_old_rules: bool = False


@dataclass(frozen=True)
class Candidates:
    """Ads, as their IDs and their rows of the catalogue [K], with the log-probabilities of their source, best first.

    ``history_us``: time of the last event of the history that the language model was given. ``is_cut``: the deadline
    ended the beam search early. ``api_ads``: the number of last candidates that `api_ads` added;
    ``explores_api_ads``: they are bid by exploration alone, as an imp may show another candidate.
    """

    source: Source
    ad_ids: Sequence[str]
    rows_K: NDArray[np.int64]
    log_p_K: NDArray[np.float64]
    version: str = ""
    made_at_us: int = 0
    history_us: int = 0
    is_cut: bool = False
    api_ads: int = 0
    explores_api_ads: bool = False

    @property
    def first_api_ad(self) -> int:
        """The position of the first of the ``api_ads`` candidates."""
        return len(self.rows_K) - self.api_ads

    def source_of(self, position: int) -> Source:
        """The source of one candidate."""
        return "contextual" if position >= self.first_api_ad else self.source


@dataclass
class ImpState:
    """An imp while it is being filled.

    ``verdict_K``: `Verdict.code` of each candidate.
    ``considered``: positions of the candidates whose budgets and caps were checked. ``lease_id`` and ``cap_id`` are
    the reservations of the bid; 0 and "" if it needs none. ``reserved_nanos``: of the lease. ``open_nanos``:
    of the sender's open bids. ``cap_day``: day of the cap, since 1970. ``rate``: that of the bid, for
    `leadre.serve.events.calibration`; None if its outcome is no event of one.
    """

    imp: Impression
    verdict_K: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    considered: Sequence[int] = ()
    bid: Bid | None = None
    lease_id: int = 0
    reserved_nanos: int = 0
    open_nanos: int = 0
    cap_id: str = ""
    cap_day: int = 0
    rate: BidRate | None = None


@dataclass(frozen=True, kw_only=True)
class BidDecision:
    """The bids of a request or the reason for none, and the details that its log record keeps.

    ``request_id`` is the bidder's own, as exchanges may reuse theirs. ``user_id`` is "" for an unknown user.
    ``versions``: artifact -> version of all that the decision used. ``squashing``: power of the rates in the order.
    """

    request_id: str
    permissions: Permissions
    rendered: Sequence[Rendered] = ()
    reason: NoBid | None = None
    user_id: str = ""
    imps: Sequence[ImpState] = ()
    candidates: Candidates | None = None
    rates: Rates | None = None
    values: Values | None = None
    paced: tuple[PacedCampaign, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    squashing: float = 1.0


@dataclass(frozen=True)
class RequestContext:
    """A request and the state that it is answered from, as it was at the start; ``user_id`` "" is an unknown user."""

    request: Request
    request_id: str
    permissions: Permissions
    user_id: str
    market: Market
    bidder: Bidder
    now_us: int
    party: Party

    def exp_s(self, imp: Impression) -> int:
        """Seconds in which a bid for the imp may be shown; its budget and frequency cap are reserved for as long."""
        default_s = self.bidder.settings.exp_s
        if self.party.exp_s:
            default_s = min(default_s, self.party.exp_s)
        return min(imp.exp_s, default_s) if imp.exp_s else default_s

    def until_us(self, imp: Impression) -> int:
        """The end of `exp_s`."""
        return self.now_us + self.exp_s(imp) * US_PER_S
