"""A published ranker over one catalogue snapshot: stored profile + candidates -> calibrated rates.

The features come from `rank/inputs.py`, as in training. The parts that depend on the catalogue alone (object of each
ad, live objects, spread of their scores) are computed once per snapshot, those of the profile alone once per profile.

Letters: A ads, K candidates, O objects of the ranker.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.data.collaborative import Spread, spread_of
from leadre.data.histories import AD, CONTENT
from leadre.data.moment import LiveInventory, Moment, history_of
from leadre.rank import calibrate
from leadre.rank.calibrate import Calibration
from leadre.rank.inputs import of_objects
from leadre.rank.ranker import TrainedRanker
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.rankers.rates import Rates
from leadre.serve.rankers.user_states import UserState, UserStates
from leadre.store.contract import Profile, ProfileEvent

NO_PLACEMENT = -1


MAX_SCORED = 200  # candidates of a request, best by their source first; a caller cannot make a request cost more


class ServedRanker:
    """A published version in memory, with the states of the users whom it ranked lately."""

    def __init__(self, version: str, model: TrainedRanker, calibration: Calibration) -> None:
        self.version = version
        self.model = model
        self.calibration = calibration
        self.states = UserStates()
        self.number_of = {object_id: number for number, object_id in enumerate(model.object_ids)}
        self.placement_of = {name: number for number, name in enumerate(model.known.placements)}
        self._nobody = self._state_of((), 0)

    def state(self, profile: Profile | None, now_us: int, now_s: float) -> UserState:
        """The user as of ``now_us``; None is a user without a history. Events of unknown objects are left out."""
        if profile is None:
            return self._nobody
        state = self.states.get(profile, now_s)
        if state is None or state.last_us >= now_us:
            state = self._state_of(profile.recent, now_us)
            if state.last_us < now_us:  # else it depends on the time
                self.states.put(profile, state, now_s)
        return state

    def placement(self, name: str) -> int:
        """The number of a placement, as `Moment.placement`. A log has its first one where a request names none."""
        return self.placement_of.get(name, NO_PLACEMENT) if name else 0

    def _state_of(self, recent: Sequence[ProfileEvent], before_us: int) -> UserState:
        rows = [
            (number, event.at_us, AD if event.domain == "ad" else CONTENT, event.value_nanos, NO_PLACEMENT)
            for event in recent
            if (number := self.number_of.get(event.object_id)) is not None
        ]
        history = history_of(rows, before_us)
        return UserState(
            history=history,
            fits=self.model.tables.collaborative.user(history),
            last_us=max((event.at_us for event in recent), default=-1),
        )


class CatalogueRanker:
    """A `ServedRanker` over a snapshot. ``before``: that over the snapshot before, whose parts are used again."""

    def __init__(
        self, served: ServedRanker, catalogue: CatalogueSnapshot, before: CatalogueRanker | None = None
    ) -> None:
        self.served = served
        self._columns = catalogue.columns
        self.object_A: NDArray[np.int64]  # -1: an object that the ranker does not know
        self.live: LiveInventory
        self._spread: Spread
        before = before if before is not None and before.served is served else None
        if before is not None and before._columns is catalogue.columns:  # statuses alone have changed
            self.object_A = before.object_A
        else:
            self.object_A = np.array([served.number_of.get(ad.object_id, -1) for ad in catalogue.ads], np.int64)
        shown_A = self.object_A[catalogue.live_A]
        live = np.unique(shown_A[shown_A >= 0])
        if before is not None and np.array_equal(before.live.objects, live):
            self.live = before.live
            self._spread = before._spread
        else:
            no_ads = np.zeros(0, np.int32)  # candidates are given as objects
            self.live = LiveInventory(objects=live, ads=no_ads, ad_object=no_ads)
            self._spread = spread_of(served.model.tables.collaborative.factors_OD, live)

    def rates(
        self,
        profile: Profile | None,
        rows_K: NDArray[np.int64],
        is_open_K: NDArray[np.bool_],
        *,
        placement: str,
        now_us: int,
        now_s: float,
    ) -> Rates:
        """The rates of ads by their rows, for a user at a time; ``is_open_K``: whether an ad may be bid at all.

        Ads of objects that the ranker does not know, and those beyond `MAX_SCORED`, have none.
        """
        model = self.served.model
        spec = model.spec
        object_K = self.object_A[rows_K]
        scored = np.flatnonzero(is_open_K & (object_K >= 0))[:MAX_SCORED]
        p_K, log_odds_K = np.full((2, len(rows_K)), np.nan)
        is_new_K = np.zeros(len(rows_K), np.bool_)
        if len(scored):
            state = self.served.state(profile, now_us, now_s)
            moment = Moment(
                user=-1,
                profile=profile.attributes if profile is not None else {},
                at_us=now_us,
                placement=self.served.placement(placement),
                history=state.history,
                inventory=self.live,
            )
            objects = object_K[scored]
            inputs = of_objects(
                moment, objects, model.input_spec, model.known, model.tables, user=state.fits, spread=self._spread
            )
            log_odds_K[scored] = model.logits(inputs)[:, 0]
            is_new_K[scored] = inputs.is_new_C
            p_K[scored] = self.served.calibration.apply(log_odds_K[scored], calibrate.slices(inputs.is_new_C))
        recent = profile.recent if profile is not None else ()
        return Rates(
            version=self.served.version,
            event=spec.labels[0],
            is_price=spec.rows == "shown",
            p_K=p_K,
            log_odds_K=log_odds_K,
            is_new_K=is_new_K,
            history=(len(recent), recent[-1].at_us if recent else 0),
        )
