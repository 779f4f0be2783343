"""The pacing step of a bid decision: the multiplier of each campaign, and the price that follows from a value.

The writer computes how each campaign bids (`leadre.auction.pacing`); a worker reads it and applies it here.

Letters: C campaigns, K candidates, P candidates of campaigns with a plan or a goal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from leadre.auction.pacing.contract import UNPACED, WAITING, Rate
from leadre.serve.bidding.exploration import ExplorationDraws
from leadre.serve.catalogue.columns import Bools, Ints
from leadre.serve.catalogue.eligibility import CatalogueSnapshot
from leadre.serve.events.records import PacedCampaign
from leadre.types import Campaign, Verdict

Floats = NDArray[np.float64]


def _codes(verdicts: Collection[Verdict]) -> Bools:
    """[codes] whether a `Verdict.code` is that of one of the verdicts."""
    return np.array([verdict in verdicts for verdict in Verdict], np.bool_)


# A campaign could have bid in an auction with one of these verdicts, if it had wanted to.
ELIGIBLE = (Verdict.BID, Verdict.NOT_SELECTED, Verdict.OUTRANKED, Verdict.PACED, Verdict.NO_BUDGET)
_IS_ELIGIBLE = _codes(ELIGIBLE)
_IS_RANKED = _codes((*ELIGIBLE, Verdict.UNKNOWN_USER_CAP, Verdict.FREQUENCY_CAP, Verdict.OPEN_BIDS))


@dataclass(frozen=True, eq=False)
class CampaignRates:
    """How each campaign bids, [C]: the probability to take part in an auction, and the factor of the value."""

    is_paced_C: Bools  # whether it has a plan or a goal
    participate_C: Floats
    multiplier_C: Floats
    logged_C: Sequence[PacedCampaign | None]  # its part of a record, of one auction; None if it is not paced

    def changed(self, catalogue: CatalogueSnapshot, rates: Mapping[str, Rate]) -> CampaignRates:
        """The rates after some have changed, for the same catalogue. A request keeps the rates that it started with."""
        participate_C = self.participate_C.copy()
        multiplier_C = self.multiplier_C.copy()
        logged_C = list(self.logged_C)
        for campaign_id, read in rates.items():
            row = catalogue.row_of_campaign.get(campaign_id)
            if row is not None and self.is_paced_C[row]:
                rate = _rate(catalogue.campaigns[row], read)
                participate_C[row] = rate.participate
                multiplier_C[row] = rate.multiplier
                logged_C[row] = PacedCampaign(campaign_id, rate.participate, rate.multiplier, 1, rate.goal)
        return CampaignRates(self.is_paced_C, participate_C, multiplier_C, logged_C)


def campaign_rates(catalogue: CatalogueSnapshot, rates: Mapping[str, Rate]) -> CampaignRates | None:
    """The rates of a catalogue's campaigns; None if none has a plan or a goal.

    A campaign with a pacer or a goal waits while its rate is unknown: it might spend the budget in the first minutes.
    """
    is_paced_C = catalogue.columns.is_paced_C
    if not is_paced_C.any():
        return None
    size = len(is_paced_C)
    unpaced = CampaignRates(is_paced_C, np.ones(size), np.ones(size), [None] * size)
    campaigns = [catalogue.campaigns[row] for row in np.flatnonzero(is_paced_C).tolist()]
    return unpaced.changed(catalogue, {c.campaign_id: _rate(c, rates.get(c.campaign_id)) for c in campaigns})


def _rate(campaign: Campaign, rate: Rate | None) -> Rate:
    """The rate that was read for a campaign, unless there is none, or one from before its goal was set or ended."""
    if rate is None or (rate.goal is not None) != campaign.has_goal:
        return WAITING if campaign.has_goal or campaign.pacer != "off" else UNPACED
    return rate


def paced_nanos(worth_nanos_K: Ints, multiplier_K: Floats, most_nanos_K: Ints | None = None) -> Ints:
    """[K] price of each candidate: its value times the multiplier, in whole nanos; the value itself if that is 1.

    ``most_nanos_K``: the highest price of each.
    """
    product_K = np.floor(worth_nanos_K * multiplier_K)
    if most_nanos_K is not None:
        product_K = np.minimum(product_K, most_nanos_K)
        worth_nanos_K = np.minimum(worth_nanos_K, most_nanos_K)
    return np.where(multiplier_K == 1.0, worth_nanos_K, product_K.astype(np.int64))


class RequestPacing:
    """The pacing of a request's candidates. A campaign takes part in all imps of a request, or in none."""

    def __init__(self, rates: CampaignRates, campaign_K: Ints, draws: ExplorationDraws, request_id: str) -> None:
        self._rates = rates
        self.multiplier_K = rates.multiplier_C[campaign_K]
        self._paced_P = np.flatnonzero(rates.is_paced_C[campaign_K])
        self._campaign_P = campaign_K[self._paced_P]
        skips_P = rates.participate_C[self._campaign_P] < 1.0
        self._absent: set[int] = set()
        for row in set(self._campaign_P[skips_P].tolist()) if skips_P.any() else ():
            share = rates.participate_C[row]
            if share <= 0.0 or draws.participation(request_id, self._rate(row).campaign_id) >= share:
                self._absent.add(row)
                self.multiplier_K[campaign_K == row] = 0.0

    def logged(self, verdict_IK: Sequence[NDArray[np.uint8]]) -> tuple[PacedCampaign, ...]:
        """The campaigns with a plan or a goal that passed the filter of an imp, or would have without pacing.

        ``verdict_IK``: `Verdict.code` of each candidate, by imp.
        """
        auctions: dict[int, int] = {}
        for verdict_K in verdict_IK:
            verdict_P = verdict_K[self._paced_P]
            for row in self._campaign_P[_IS_RANKED[verdict_P]].tolist():
                auctions.setdefault(row, 0)
            for row in set(self._campaign_P[_IS_ELIGIBLE[verdict_P]].tolist()):
                auctions[row] += 1
        return tuple(self._logged(row, count) for row, count in auctions.items())

    def _rate(self, row: int) -> PacedCampaign:
        paced = self._rates.logged_C[row]
        assert paced is not None, row
        return paced

    def _logged(self, row: int, eligible: int) -> PacedCampaign:
        rate = self._rate(row)
        if eligible == rate.eligible and row not in self._absent:
            return rate
        return msgspec.structs.replace(rate, eligible=eligible, is_absent=row in self._absent)
