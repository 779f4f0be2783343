"""Replay: decide logged requests again with `respond`, which served them, and report every difference.

From the log come the request, its time, the event counts that its prices used, how campaigns were paced, shaded prices,
and the verdicts that depended on other requests: budgets and frequency caps. The replay repeats the rest: consent,
targeting, the user's list or the language model, prices, selection and exploration. It compares candidates, scores,
verdicts, winner, prices and propensity, or the reason for no bid.

A request is compared only if the catalogue, lists, model and options that decided it are still in use. The report
counts the others by reason (`SKIPPED`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from leadre.auction.pacing.contract import Rate
from leadre.clock import ManualClock
from leadre.errors import ArtifactError, InputError, PeerError
from leadre.serve.bidding import record
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.context import LIMITS, Bidder, Market
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.pace import campaign_rates
from leadre.serve.bidding.ranking import RankingGuard
from leadre.serve.bidding.respond import respond
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import ad_prices
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, Record, RequestRecord
from leadre.serve.ipc.messages import GenerateReply, GenerateRequest
from leadre.serve.processes.event_counts import COUNT_COLUMNS
from leadre.serve.processes.model_server import ModelServer
from leadre.serve.protocol.openrtb import NoBid
from leadre.serve.rankers.published import PublishedRankers
from leadre.serve.settings import Settings
from leadre.store.contract import Profile, ProfileEvent, Store
from leadre.types import Verdict

if TYPE_CHECKING:
    from leadre.serve.rankers.served import CatalogueRanker

MAX_GAP = 1e-5  # allowed difference between logged and replayed log-probability
MAX_GAP_BFLOAT16 = 1e-2  # the same for a model that computes in bfloat16: its rounding depends on the batch
LATE = NoBid.INSUFFICIENT_TIME.name.lower()
GENERATE_S = 60.0  # deadline of a generation
SKIPPED = {  # reason -> its explanation
    "release": "the record holds no request: an older release wrote it",
    "user": "the record does not name the user: no consent, or erased",
    "late": "the deadline cut it short: the log does not hold the partial result",
    "store": "the store was down",
    "options": "leadre serve had other options",
    "book": "the catalogue has changed since",
    "lists": "the lists were of another version",
    "everybody": "the popular list was of another version",
    "model": "the language model was another, or is missing",
    "history": "the user's history of that time is no longer kept",
    "ranker": "the ranker was another and is no longer kept",
}
VERSIONED = ("options", "book", "lists", "everybody", "model")  # keys of `RequestRecord.versions` that must agree

Counts = dict[str, tuple[int, int, int]]  # ad ID -> (impressions, clicks, conversions)


@dataclass(frozen=True, kw_only=True)
class ReplayWorld:
    """The bidder's state to replay on. Without a ``model``, requests with generated candidates are skipped."""

    log: Path
    settings: Settings
    catalogue: CatalogueSnapshot
    store: Store
    draws: ExplorationDraws
    model: ModelServer | None
    rankers: PublishedRankers


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference in one aspect (``what``) of one decision, as text."""

    request_id: str
    what: str
    logged: str
    replayed: str


@dataclass(kw_only=True)
class ReplayReport:
    """Counts and differences of a replay. ``sources``: equal decisions by the source of their candidates."""

    logged: int = 0  # requests read
    alike: int = 0  # equal decisions
    bids: int = 0  # bids of equal decisions
    gaps: dict[str, float] = field(default_factory=dict)  # source -> largest gap between log-probabilities
    sources: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def compared(self) -> int:
        return self.logged - self.skipped.total()


class _PastUserStore(UserStore):
    """The current user store, but profiles end with the newest event that the replayed request used.

    ``history_us``: time of this event; None for a request that used no history.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store, ManualClock())
        self.history_us: int | None = None

    def read_profile(self, user_id: str) -> Profile | None:
        profile = super().read_profile(user_id)
        if profile is None or self.history_us is None:
            return profile
        return msgspec.structs.replace(profile, recent=_until(profile, self.history_us))


def _until(profile: Profile, history_us: int) -> tuple[ProfileEvent, ...]:
    return tuple(event for event in profile.recent if event.at_us <= history_us)


class _Rankers:
    """The kept rankers over the catalogue, each loaded once."""

    def __init__(self, rankers: PublishedRankers, catalogue: CatalogueSnapshot) -> None:
        self._rankers = rankers
        self._catalogue = catalogue
        self._loaded: dict[str, CatalogueRanker | None] = {}

    def get(self, version: str) -> CatalogueRanker | None:
        """A version; None if it is no longer kept, or damaged."""
        if version not in self._loaded:
            from leadre.serve.rankers.served import CatalogueRanker, ServedRanker  # LightGBM

            try:
                served = ServedRanker(version, *self._rankers.load(version))
                self._loaded[version] = CatalogueRanker(served, self._catalogue)
            except (ArtifactError, InputError):
                self._loaded[version] = None
        return self._loaded[version]


async def replay(world: ReplayWorld, last: int) -> ReplayReport:
    """Replay the last ``last`` requests of the log. StorageError if the log is damaged."""
    report = ReplayReport()
    model = world.model
    if model:
        model.add_ads(world.catalogue.ads)
    objects = ObjectIndex(model.object_ids if model else (), world.catalogue.ads, model.version if model else "")
    is_bfloat16 = model is not None and model.is_bfloat16
    user_store = _PastUserStore(world.store)
    rankers = _Rankers(world.rankers, world.catalogue)
    bidder = _bidder(world, objects, user_store)
    for logged, market in _with_markets(world, objects, last):
        report.logged += 1
        ranker = rankers.get(logged.versions["ranker"]) if "ranker" in logged.versions else None
        skip_reason = _skip_reason(logged, world, has_ranker=ranker is not None)
        if skip_reason:
            report.skipped[skip_reason] += 1
            continue
        rates = {p.campaign_id: Rate(p.participate, p.multiplier, p.goal) for p in logged.paced}
        bidder.market = dataclasses.replace(market, ranker=ranker, pacing=campaign_rates(world.catalogue, rates))
        user_store.history_us = int(logged.versions["history"]) if "history" in logged.versions else None
        _compare(logged, await _decide_again(logged, bidder, world), report, is_bfloat16)
    return report


def _bidder(world: ReplayWorld, objects: ObjectIndex, user_store: UserStore) -> Bidder:
    """A bidder without leases, model and real signatures; `_decide_again` sets the parts that depend on the request."""
    return Bidder(
        settings=world.settings,
        market=Market(world.catalogue, np.zeros(len(world.catalogue.ads), np.int64), objects),
        user_store=user_store,
        budgets=Budgets("replay", _refuse_orders),
        generate=None,
        encrypt=lambda token, kinds: dict.fromkeys(kinds, "replayed"),
        new_id=lambda: "",
        draws=world.draws,
        clock=ManualClock(),
        ranking=RankingGuard(ManualClock()),
    )


def _with_markets(world: ReplayWorld, objects: ObjectIndex, last: int) -> Iterator[tuple[RequestRecord, Market]]:
    """The last ``last`` requests, each with its market: prices from the event counts that it used. Sorted by counts."""
    requests = deque((e.record for e in event_log.read(world.log) if isinstance(e.record, RequestRecord)), maxlen=last)
    by_position: dict[int, list[RequestRecord]] = defaultdict(list)
    for logged in requests:
        by_position[int(logged.versions.get("counts", 0))].append(logged)
    counts: Counts = {}
    entries = event_log.read(world.log)
    number = 0
    for position in sorted(by_position):
        while number < position and (entry := next(entries, None)) is not None:
            number = entry.number
            _count(entry.record, counts)
        prices = ad_prices(world.catalogue, counts)
        market = Market(
            world.catalogue,
            prices.expected_nanos_A,
            objects,
            position,
            most_nanos_A=prices.most_nanos_A,
        )
        yield from ((logged, market) for logged in by_position[position])


def _count(log_record: Record, counts: Counts) -> None:
    """Add an event of the log to the counts, as `EventCounts` did when it served."""
    if not isinstance(log_record, EventRecord) or log_record.is_test:
        return
    outcome = log_record.outcome
    column = COUNT_COLUMNS.get(outcome.kind)
    if column is not None:
        ad_counts = list(counts.get(outcome.ad_id, (0, 0, 0)))
        ad_counts[column] += 1
        counts[outcome.ad_id] = ad_counts[0], ad_counts[1], ad_counts[2]


def _skip_reason(logged: RequestRecord, world: ReplayWorld, *, has_ranker: bool) -> str:
    """Why a request cannot be compared, as a key of `SKIPPED`; "" if nothing speaks against it before its replay."""
    if "options" not in logged.versions:
        return "release"
    if logged.versions["options"] not in (record.digest(world.settings), _old_digest(world)):
        return "options"
    if logged.is_known and not logged.user_id:
        return "user"
    if logged.reason == LATE or logged.is_cut or _has_late_imp(logged):
        return "late"
    if logged.is_degraded:
        return "store"
    if "model" in logged.versions and world.model is None:
        return "model"
    if "ranker" in logged.versions and not has_ranker:
        return "ranker"
    return "" if _has_history(logged, world.store) else "history"


def _old_digest(world: ReplayWorld) -> str:
    return record.digest(world.settings, has_old_rules=True)


def _has_late_imp(logged: RequestRecord) -> bool:
    """Whether the deadline ended the request before one of its imps."""
    return any(set(verdicts) == {Verdict.NOT_EVALUATED} for verdicts in logged.verdicts.values())


def _has_history(logged: RequestRecord, store: Store) -> bool:
    """Whether the store still has the history that the request used, complete up to its last event."""
    if "history" not in logged.versions:
        return True
    history_us = int(logged.versions["history"])
    profile = store.read_profile(logged.user_id) if logged.user_id else None
    recent = _until(profile, history_us) if profile is not None else ()
    if "events" in logged.versions:
        return len(recent) == int(logged.versions["events"])
    return any(event.at_us == history_us for event in recent)


async def _decide_again(logged: RequestRecord, bidder: Bidder, world: ReplayWorld) -> RequestRecord:
    """The record that the bidder would write for the request today."""
    verdicts = _verdicts(logged)

    async def generate(request: GenerateRequest) -> GenerateReply:
        if world.model is None or "model" not in logged.versions:
            raise PeerError("the model server gave no reply in time, or had no request")
        until_s = time.monotonic() + GENERATE_S
        reply = await world.model.answer(msgspec.structs.replace(request, until_s=until_s))
        assert isinstance(reply, GenerateReply)
        return reply

    def logged_verdict(imp_id: str, ad_id: str) -> Verdict:
        verdict = verdicts.get((imp_id, ad_id))
        return verdict if verdict in LIMITS else Verdict.BID

    bids = {(bid.imp_id, bid.ad_id): bid for bid in logged.bids}
    bidder.logged_bid = lambda imp_id, ad_id: bids.get((imp_id, ad_id))
    bidder.generate = generate
    bidder.logged_verdict = logged_verdict
    bidder.has_old_rules = logged.versions["options"] == _old_digest(world)
    bidder.new_id = lambda: logged.request_id
    request = record.request_of(logged)
    decision = await respond(request, bidder, logged.at_us, until_s=1.0)
    return record.record(request, decision, logged.at_us, logged.versions["options"], is_degraded=False)


def _compare(logged: RequestRecord, replayed: RequestRecord, report: ReplayReport, is_bfloat16: bool) -> None:
    """Compare one request and add the result to the report. ``is_bfloat16``: the model computes in bfloat16."""
    for name in VERSIONED:
        before = logged.versions.get(name)
        now = replayed.versions.get(name)
        # A source without a request or result has no version. Except for lists, that is no skip but a difference.
        if before != now and (name == "lists" or (before is not None and now is not None)):
            report.skipped[name] += 1
            return
    logged_scores = {candidate.ad_id: candidate.log_p for candidate in logged.candidates}
    scores = {candidate.ad_id: candidate.log_p for candidate in replayed.candidates}
    common = logged_scores.keys() & scores.keys()
    gap = max((abs(logged_scores[ad_id] - scores[ad_id]) for ad_id in common), default=0.0)
    source = logged.candidates[0].source if logged.candidates else "none"
    report.gaps[source] = max(report.gaps.get(source, 0.0), gap)
    pairs = [pair for pair in _aspects(logged, replayed) if pair[1] != pair[2]]
    rates_gap = _rates_gap(logged, replayed)
    if logged.ranked is not None:
        report.gaps["ranker"] = max(report.gaps.get("ranker", 0.0), rates_gap)
    if rates_gap > MAX_GAP:
        pairs.append(("rates", logged.scores, replayed.scores))
    if gap > (MAX_GAP_BFLOAT16 if is_bfloat16 and source == "generated" else MAX_GAP):
        pairs.append(("scores", logged_scores, scores))
    report.differences += [
        Difference(request_id=logged.request_id, what=what, logged=str(before), replayed=str(now))
        for what, before, now in pairs
    ]
    if not pairs:
        report.alike += 1
        report.bids += len(logged.bids)
        report.sources[source] += 1


def _rates_gap(logged: RequestRecord, replayed: RequestRecord) -> float:
    """The largest difference between logged and replayed rates; infinite if one of them lacks a rate of the other."""
    if len(logged.scores) != len(replayed.scores):
        return math.inf
    pairs = [pair for pair in zip(logged.scores, replayed.scores, strict=True) if pair != (None, None)]
    return max((math.inf if a is None or b is None else abs(a - b) for a, b in pairs), default=0.0)


def _aspects(logged: RequestRecord, replayed: RequestRecord) -> Iterator[tuple[str, object, object]]:
    """(aspect, logged value, replayed value) of everything that is compared, except scores."""
    yield "candidates", _candidates(logged), _candidates(replayed)
    yield "verdicts", _verdict_words(logged), _verdict_words(replayed, has_outranked=_has_outranked(logged))
    yield "reason", logged.reason, replayed.reason
    for what, name in (
        ("winner", "ad_id"),
        ("price", "price_nanos"),
        ("currency", "currency"),
        ("size", "size"),
        ("propensity", "propensity"),
    ):
        yield what, _bids(logged, name), _bids(replayed, name)
    for what, name in (("ranked price", "ranked_nanos"), ("charge of the event", "action_nanos")):
        known = {imp_id: nanos for imp_id, nanos in _bids(logged, name).items() if nanos}  # older logs lack it
        again = _bids(replayed, name)
        yield what, known, {imp_id: again.get(imp_id) for imp_id in known}


def _candidates(decided: RequestRecord) -> list[tuple[str, str]]:
    return sorted((candidate.ad_id, candidate.source) for candidate in decided.candidates)


def _verdicts(decided: RequestRecord) -> dict[tuple[str, str], Verdict]:
    """(imp ID, ad ID) -> verdict."""
    return {
        (imp_id, candidate.ad_id): verdict
        for imp_id, verdicts in decided.verdicts.items()
        for candidate, verdict in zip(decided.candidates, verdicts, strict=True)
    }


def _has_outranked(logged: RequestRecord) -> bool:
    """Whether the record distinguishes outranked candidates; releases up to November 2026 logged them as unselected."""
    return any(Verdict.OUTRANKED in verdicts for verdicts in logged.verdicts.values())


def _verdict_words(decided: RequestRecord, *, has_outranked: bool = True) -> dict[tuple[str, str], str]:
    """(imp ID, ad ID) -> word of the verdict; without ``has_outranked`` in the words of older releases."""
    older = {} if has_outranked else {Verdict.OUTRANKED: Verdict.NOT_SELECTED}
    return {key: older.get(verdict, verdict).value for key, verdict in _verdicts(decided).items()}


def _bids(decided: RequestRecord, name: str) -> dict[str, object]:
    return {bid.imp_id: getattr(bid, name) for bid in decided.bids}


async def _refuse_orders(orders: Sequence[object]) -> Sequence[None]:
    raise AssertionError(f"a replay leases no budget, but sent {orders}")
