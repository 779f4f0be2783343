"""Logged requests answered again, by the function that answered them: online is offline, or the difference is named.

Out of the log come the request, the moment, the counts behind the prices of that moment, and what became of each bid
that wanted budget or a place under a cap, as that depended on all other requests. Everything else is done anew:
consent, targeting, the user's list or the language model, the choice among the best, the draws of exploration, prices.
Compared are candidates, their scores, what became of each, winner, price and propensity, or the reason for no bid.

A request is compared if what answered it is still there: the same book, lists, model and options. Of the others it is
told why not (`SKIPPED`), and how many.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from leadre.errors import PeerError
from leadre.serve.bidding import record
from leadre.serve.bidding.budgets import Budgets
from leadre.serve.bidding.context import Bidder, Market
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.bidding.respond import respond
from leadre.serve.bidding.user_store import UserStore
from leadre.serve.bidding.value import expected_nanos
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, Record, RequestRecord
from leadre.serve.ipc.messages import GenerateReply, GenerateRequest
from leadre.serve.processes.event_counts import COUNT_COLUMNS
from leadre.serve.processes.model_server import ModelServer
from leadre.serve.protocol.openrtb import NoBid
from leadre.serve.settings import Settings
from leadre.store.contract import Profile, Store

CLOSE = 1e-5  # of two log-probabilities
CLOSE_BFLOAT16 = 1e-2  # of a model that computes in it: its rounding depends on which requests are answered together
HELD = ("cap", "budget")
LATE = NoBid.INSUFFICIENT_TIME.name.lower()
PATIENCE_S = 60.0  # for the language model, which has no deadline here
SKIPPED = {
    "release": "the record holds no request: an older release wrote it",
    "user": "its user may not be remembered, or was erased",
    "late": "the deadline cut it short: what was there in time is not known",
    "store": "the store was down",
    "options": "leadre serve had other options",
    "book": "the book has changed since",
    "lists": "the lists were of another version",
    "everybody": "the list for everybody was another",
    "model": "the language model was another, or is not there",
    "history": "the user's history as it was is no longer kept",
}
VERSIONED = ("options", "book", "lists", "everybody", "model")

Counts = dict[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class ReplayWorld:
    """What was there when the log was written, and still is. No ``model``: what one answered is left out."""

    log: Path
    settings: Settings
    book: CatalogueSnapshot
    store: Store
    draws: ExplorationDraws
    model: ModelServer | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing in which one request was answered otherwise, in words that can be read."""

    request_id: str
    what: str
    logged: str
    replayed: str


@dataclass(kw_only=True)
class ReplayReport:
    """What came of it. ``sources``: of the requests that were alike, by where their candidates came from."""

    logged: int = 0
    alike: int = 0
    bids: int = 0
    gaps: dict[str, float] = field(default_factory=dict)  # largest one between log-probabilities, by their source
    sources: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def compared(self) -> int:
        return self.logged - self.skipped.total()


class _Remembered(UserStore):
    """The store as it stands, with the history of a user as it was at one request."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.history_us = 0

    def profile(self, user_id: str) -> Profile | None:
        found = super().profile(user_id)
        if found is None or not self.history_us:
            return found
        return Profile(user_id, tuple(seen for seen in found.recent if seen.at_us <= self.history_us), found.segments)


async def replay(world: ReplayWorld, last: int) -> ReplayReport:
    """Answer the last so many requests of the log again. StorageError where the log is damaged."""
    report = ReplayReport()
    model = world.model
    objects = ObjectIndex(list(model.objects) if model else (), world.book.ads, model.version if model else "")
    bidder, rounds = _bidder(world, objects), model is not None and model.is_bfloat16
    for answered, market in _in_their_markets(world, objects, last):
        report.logged += 1
        why = _cannot(answered, world)
        if why:
            report.skipped[why] += 1
            continue
        bidder.market = market
        _compare(answered, await _again(answered, bidder, world), report, rounds)
    return report


def _bidder(world: ReplayWorld, objects: ObjectIndex) -> Bidder:
    """A bidder without budgets, caps and a way to sign; `_again` gives it what each request needs."""
    return Bidder(
        settings=world.settings,
        market=Market(world.book, np.zeros(len(world.book.ads), np.int64), objects),
        memory=_Remembered(world.store),
        budgets=Budgets("replay", _nobody),
        generate=None,
        sign=lambda token: "replayed",
        new_id=lambda: "",
        draws=world.draws,
        clock=lambda: 0.0,
    )


def _in_their_markets(world: ReplayWorld, objects: ObjectIndex, last: int) -> Iterator[tuple[RequestRecord, Market]]:
    """The last requests, each with the prices of its moment, in the order of the counts that these came from."""
    asked = deque((e.record for e in event_log.read(world.log) if isinstance(e.record, RequestRecord)), maxlen=last)
    by_counted: dict[int, list[RequestRecord]] = defaultdict(list)
    for answered in asked:
        by_counted[int(answered.versions.get("counts", 0))].append(answered)
    counts: Counts = {}
    entries, number = event_log.read(world.log), 0
    for counted in sorted(by_counted):
        while number < counted and (entry := next(entries, None)) is not None:
            number = entry.number
            _count(entry.record, counts)
        market = Market(world.book, expected_nanos(world.book, counts), objects, counted)
        yield from ((answered, market) for answered in by_counted[counted])


def _count(entry: Record, counts: Counts) -> None:
    if not isinstance(entry, EventRecord) or entry.is_test:
        return
    column = COUNT_COLUMNS.get(entry.outcome.kind)
    if column is not None:
        three = list(counts.get(entry.outcome.ad_id, (0, 0, 0)))
        three[column] += 1
        counts[entry.outcome.ad_id] = three[0], three[1], three[2]


def _cannot(answered: RequestRecord, world: ReplayWorld) -> str:
    """Why a request cannot be compared (`SKIPPED`), as far as the log alone says it; "" where it can."""
    if "options" not in answered.versions:
        return "release"
    if answered.versions["options"] != record.digest(world.settings):
        return "options"
    if answered.is_known and not answered.user_id:
        return "user"
    if answered.reason == LATE or answered.is_cut:
        return "late"
    if answered.is_degraded:
        return "store"
    if "model" in answered.versions and world.model is None:
        return "model"
    if "history" in answered.versions:
        profile, history_us = world.store.read_profile(answered.user_id), int(answered.versions["history"])
        if profile is None or not any(seen.at_us == history_us for seen in profile.recent):
            return "history"
    return ""


async def _again(answered: RequestRecord, bidder: Bidder, world: ReplayWorld) -> RequestRecord:
    """The record that would be written now."""
    verdicts = {
        (imp_id, candidate.ad_id): verdict
        for imp_id, told in answered.verdicts.items()
        for candidate, verdict in zip(answered.candidates, told, strict=True)
    }

    async def generate(wanted: GenerateRequest) -> GenerateReply:
        if world.model is None or "model" not in answered.versions:
            raise PeerError("it did not answer in time then, or was not asked")
        generated = await world.model.answer(msgspec.structs.replace(wanted, until_s=time.monotonic() + PATIENCE_S))
        assert isinstance(generated, GenerateReply)
        return generated

    def held(imp_id: str, ad_id: str) -> str:
        verdict = verdicts.get((imp_id, ad_id), "")
        return verdict if verdict in HELD else "bid"

    assert isinstance(bidder.memory, _Remembered)
    bidder.memory.history_us = int(answered.versions.get("history", 0))
    bidder.generate, bidder.held, bidder.new_id = generate, held, lambda: answered.request_id
    request = record.request_of(answered)
    answer = await respond(request, bidder, answered.at_us, until_s=1.0)
    return record.record(request, answer, answered.at_us, world.book, record.digest(world.settings), is_degraded=False)


def _compare(logged: RequestRecord, replayed: RequestRecord, report: ReplayReport, rounds: bool) -> None:
    """Add what came of one request to the report. ``rounds``: the language model computes in bfloat16."""
    for name in VERSIONED:
        before, now = logged.versions.get(name), replayed.versions.get(name)
        # A source that was not asked, or had nothing, has no version: that is a difference, and told as one.
        if before != now and (name == "lists" or (before is not None and now is not None)):
            report.skipped[name] += 1
            return
    scores, others = ({one.ad_id: one.log_p for one in each.candidates} for each in (logged, replayed))
    gap = max((abs(scores[ad_id] - others[ad_id]) for ad_id in scores.keys() & others.keys()), default=0.0)
    source = logged.candidates[0].source if logged.candidates else "none"
    report.gaps[source] = max(report.gaps.get(source, 0.0), gap)
    found = [
        Difference(request_id=logged.request_id, what=what, logged=str(before), replayed=str(now))
        for what, before, now in _aspects(logged, replayed)
        if before != now
    ]
    if gap > (CLOSE_BFLOAT16 if rounds and source == "generated" else CLOSE):
        found.append(Difference(request_id=logged.request_id, what="scores", logged=str(scores), replayed=str(others)))
    report.differences += found
    if not found:
        report.alike += 1
        report.bids += len(logged.bids)
        report.sources[source] += 1


def _aspects(logged: RequestRecord, replayed: RequestRecord) -> Iterator[tuple[str, object, object]]:
    """(what, as it was, as it is now) of everything but the scores."""
    yield "candidates", _candidates(logged), _candidates(replayed)
    yield "verdicts", _verdicts(logged), _verdicts(replayed)
    yield "reason", logged.reason, replayed.reason
    for what, name in (
        ("winner", "ad_id"),
        ("price", "price_nanos"),
        ("currency", "currency"),
        ("size", "size"),
        ("propensity", "propensity"),
    ):
        yield what, _bids(logged, name), _bids(replayed, name)


def _candidates(answered: RequestRecord) -> list[tuple[str, str]]:
    return sorted((one.ad_id, one.source) for one in answered.candidates)


def _verdicts(answered: RequestRecord) -> dict[tuple[str, str], str]:
    ads = [one.ad_id for one in answered.candidates]
    return {(imp, ad): said for imp, told in answered.verdicts.items() for ad, said in zip(ads, told, strict=True)}


def _bids(answered: RequestRecord, name: str) -> dict[str, object]:
    return {bid.imp_id: getattr(bid, name) for bid in answered.bids}


async def _nobody(orders: Sequence[object]) -> Sequence[None]:
    raise AssertionError(f"a replay leases no budget: {orders}")
