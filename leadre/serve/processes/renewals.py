"""Background tasks of a bid worker: each keeps one part of the state current, off the path of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from leadre import telemetry
from leadre.serve.bidding.pace import campaign_rates
from leadre.serve.bidding.shade import Shading
from leadre.serve.bidding.value import ad_prices
from leadre.serve.catalogue import eligibility
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.catalogue.objects import ObjectIndex
from leadre.serve.manage import auth
from leadre.serve.processes.worker_state import WorkerState

if TYPE_CHECKING:  # LightGBM, which a bidder without a ranker does not load
    from leadre.serve.rankers.served import CatalogueRanker

# seconds between two renewals
CATALOGUE_S = 0.2
RANKER_S = 1.0
CALLERS_S = 0.5
POPULAR_LIST_S = 1.0
BUDGETS_S = 0.05
RECORDS_S = 0.02
CLICKS_S = 0.5
COUNTS_S = 5.0
PACING_S = 1.0
SHADING_S = 10.0
MODEL_S = 1.0
DEGRADED_S = 1.0
UNCAPPED_S = 0.5


class Renewals:
    """The background tasks of one `WorkerState`. A peer or a disk that is away is tried again at the next interval."""

    def __init__(self, state: WorkerState, writer_away_s: float) -> None:
        self._state = state
        self._writer_away_s = writer_away_s
        self._model_instance = ""
        self._binding = asyncio.Lock()  # catalogue and ranker change together

    def start(self) -> None:
        """Run every renewal now, and then again after each interval."""
        for name, interval_s, renew in (
            ("catalogue", CATALOGUE_S, self._refresh_catalogue),
            ("erased users", CATALOGUE_S, self._refresh_erased_users),
            ("ranker", RANKER_S, self.follow_ranker),
            ("callers", CALLERS_S, self._follow_callers),
            ("clock", CATALOGUE_S, self._follow_clock),
            ("token keys", CATALOGUE_S, self._follow_token_keys),
            ("popular list", POPULAR_LIST_S, self._refresh_popular_list),
            ("budgets", BUDGETS_S, self._renew_budgets),
            ("records", RECORDS_S, self._state.records.flush),
            ("clicks", CLICKS_S, self._state.clicks.flush),
            ("counts", COUNTS_S, self._refresh_counts),
            ("pacing", PACING_S, lambda: refresh_pacing(self._state)),
            ("shading", SHADING_S, lambda: refresh_shading(self._state)),
            ("model info", MODEL_S, self._refresh_model_info),
            ("degraded", DEGRADED_S, self._report_degraded),
            ("campaigns without a budget", UNCAPPED_S, self._bound_uncapped),
        ):
            self._state.tasks.start(name, interval_s, renew)

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        await self._state.tasks.stop()

    async def _refresh_catalogue(self) -> None:
        state = self._state
        known = state.bidder.market.catalogue
        catalogue = await state.database.read(lambda connection: eligibility.refresh(known, connection))
        if catalogue is known:
            return
        state.origins = await state.database.read(auth.read_origins)
        async with self._binding:
            self._replace_catalogue(catalogue, await self._ranker_over(catalogue))

    def _replace_catalogue(self, catalogue: CatalogueSnapshot, ranker: CatalogueRanker | None) -> None:
        state = self._state
        market = state.bidder.market  # other tasks may have replaced it meanwhile
        objects = market.objects
        if catalogue.ads is not market.catalogue.ads:
            objects = ObjectIndex(objects.ids, catalogue.ads, objects.version)
        state.bidder.budgets.pause(_paused(catalogue))
        prices = ad_prices(catalogue, state.counts)
        state.bidder.market = replace(
            market,
            catalogue=catalogue,
            **prices._asdict(),
            objects=objects,
            ranker=ranker,
            pacing=campaign_rates(catalogue, state.rates),
        )

    async def follow_ranker(self) -> None:
        """Load another current version of the published rankers."""
        state = self._state
        if state.ranker is None:
            return
        if await state.ranker.follow():
            async with self._binding:
                ranker = await self._ranker_over(state.bidder.market.catalogue)
                state.bidder.market = replace(state.bidder.market, ranker=ranker)
        state.ranker.drop_unused(state.clock.monotonic_s())

    async def _ranker_over(self, catalogue: CatalogueSnapshot) -> CatalogueRanker | None:
        """The ranker over a catalogue, in a thread: it takes a tenth of a second for 20,000 objects."""
        state = self._state
        if state.ranker is None:
            return None
        return await asyncio.to_thread(state.ranker.over, catalogue, state.bidder.market.ranker)

    async def _refresh_erased_users(self) -> None:
        if self._state.erased.follow() and self._state.ranker is not None:
            self._state.ranker.forget()

    async def _follow_callers(self) -> None:
        self._state.callers.follow()

    async def _follow_clock(self) -> None:
        self._state.clock.follow()

    async def _follow_token_keys(self) -> None:
        self._state.keys.follow()

    async def _refresh_popular_list(self) -> None:
        """Read the list for unknown users though no request needs it: `degraded` then notices a store that is down."""
        self._state.bidder.user_store.popular_list()

    async def _renew_budgets(self) -> None:
        await self._state.bidder.budgets.renew(self._state.clock.now_us())

    async def _refresh_counts(self) -> None:
        """Read the counts of ads from the writer, and price all ads by them."""
        state = self._state
        state.counts, log_position = await state.writer.counts()
        market = state.bidder.market
        prices = ad_prices(market.catalogue, state.counts)
        state.bidder.market = replace(
            market,
            **prices._asdict(),
            log_position=log_position,
        )

    async def _refresh_model_info(self) -> None:
        """Read which objects the model can generate: all for a new connection to a model server, else new ones."""
        state = self._state
        if not state.has_model:
            return
        known: Sequence[str] = ()
        if state.bidder.generate is not None and state.model.is_connected:
            known = state.bidder.market.objects.ids
        else:
            state.bidder.generate = None
        info = await state.model.info(len(known))
        if known and info.instance != self._model_instance:  # it was started again since
            state.bidder.generate = None
            known = ()
            info = await state.model.info()
        self._model_instance = info.instance
        market = state.bidder.market
        if info.object_ids or not known:
            objects = ObjectIndex([*known, *info.object_ids], market.catalogue.ads, info.version)
            state.bidder.market = replace(market, objects=objects)
        state.bidder.generate = state.model.generate

    async def _bound_uncapped(self) -> None:
        """Stop campaigns without a budget while the writer has been away too long: nothing bounds what they spend."""
        state = self._state
        away_s = state.clock.monotonic_s() - state.writer.replied_at_s
        pays = not state.writer.is_away or away_s < self._writer_away_s
        state.bidder.budgets.pays_uncapped = pays
        telemetry.UNCAPPED_STOPPED.set(not pays)

    async def _report_degraded(self) -> None:
        state = self._state
        now_us = state.clock.now_us()
        for name in state.callers.by_name:
            telemetry.OPEN_BIDS.labels(name).set(state.bidder.open_bids.count(name, now_us))
        away = state.degraded()
        for part in telemetry.PARTS:
            telemetry.DEGRADED.labels(part).set(part in away)


def _paused(catalogue: CatalogueSnapshot) -> Sequence[str]:
    """The campaigns that are not active, or beyond the limits of their account."""
    states = catalogue.states
    rows = np.flatnonzero(~(states.active_C & states.within_C)).tolist()
    return [catalogue.campaigns[row].campaign_id for row in rows]


async def refresh_pacing(state: WorkerState) -> None:
    """Read how paced campaigns bid. While the writer is away they bid as last read, within their leases."""
    if state.bidder.market.pacing is not None:
        changed = await state.writer.pacing()
        state.rates |= changed
        market = state.bidder.market
        if changed and market.pacing is not None:
            state.bidder.market = replace(market, pacing=market.pacing.changed(market.catalogue, changed))


async def refresh_shading(state: WorkerState) -> None:
    """Read the best bids of first-price auctions, if a campaign shades."""
    if state.bidder.market.catalogue.columns.any_shading:
        shading = Shading.of(await state.writer.shading())
        state.bidder.market = replace(state.bidder.market, shading=shading)
