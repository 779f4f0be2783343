"""Measures of simulated days: each campaign against its plan, prices, and regret asked as questions. Pure.

Letters: C campaigns, D days, H hours, M minutes, N requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.auction.pacing.plan import HOURS, Plan
from leadre.evaluate.simulation.exchange import NOBODY, DayLog
from leadre.evaluate.simulation.world import MINUTES, START_US
from leadre.serve.bidding.select import VERDICTS
from leadre.types import BidType, Campaign
from leadre.units import NANOS_PER_CPM, US_PER_DAY

Floats = NDArray[np.float64]

MARGIN = 1.05  # a budget is feasible if the demand of each hour is this multiple of the hour's share of the plan
MIN_CHARGES = 100  # a budget of fewer charges follows a plan by chance alone
SPENT, OFF_PLAN = 0.95, 0.05  # a campaign is on plan if it spends this share at least, never further off than that
BID_TOO_LOW = "bid below the price"


class Charge(NamedTuple):
    """A charge of the event log: the rows of its campaign and of the day of its bid, and its time."""

    campaign: int
    day: int
    at_us: int
    nanos: int


@dataclass(frozen=True, kw_only=True)
class CampaignDay:
    """A campaign on one day. ``spent`` and ``off_plan`` are shares of the budget: charged, and the largest difference
    from the plan in any minute. ``demand``: money it would have spent without pacing and budget, over the budget.

    ``charges_of_budget``: how many charges of the usual price the budget pays. ``spent_M``: share spent by the end of
    each minute, ``planned_M``: to be spent.
    """

    campaign_id: str
    bid_type: BidType
    budget_nanos: int
    spent: float
    off_plan: float
    demand: float
    is_feasible: bool
    charges_of_budget: float
    eligible: int
    bids: int
    wins: int
    spent_M: Floats = field(repr=False)
    planned_M: Floats = field(repr=False)

    @property
    def is_judged(self) -> bool:
        """Whether the campaign could follow its plan: enough demand in every hour, and enough charges."""
        return self.is_feasible and self.charges_of_budget >= MIN_CHARGES

    @property
    def is_on_plan(self) -> bool:
        return self.spent >= SPENT and self.off_plan <= OFF_PLAN


class Regret(NamedTuple):
    """Answers to questions about the auctions of a day; money in nanos.

    Overpaid: how far was the price above the lowest one that would have won? Lost: how far was it above the true value?
    Missed, by reason: how much value above that price had an ad whose auction was not won?
    """

    overpaid_nanos: int
    overpaid: int
    lost_nanos: float
    lost: int
    missed_nanos: Mapping[str, float]
    missed: Mapping[str, int]


def campaign_days(
    campaigns: Sequence[Campaign], plans: Sequence[Plan], log: DayLog, charges: Iterable[Charge], day: int
) -> list[CampaignDay]:
    """Each campaign on a day, by the charges of the bids of this day."""
    spent_CM = np.zeros((len(campaigns), MINUTES))
    start_us = START_US + day * US_PER_DAY
    for charge in charges:
        if charge.day == day:
            minute = (charge.at_us - start_us) * MINUTES // US_PER_DAY
            spent_CM[charge.campaign, min(minute, MINUTES - 1)] += charge.nanos
    spent_CM = spent_CM.cumsum(1)
    has_won_N = log.paid_nanos_N > 0
    size = len(campaigns)
    bids_C = np.bincount(log.campaign_N[log.campaign_N != NOBODY], minlength=size)
    wins_C = np.bincount(log.campaign_N[has_won_N], minlength=size)
    paid_C = np.bincount(log.campaign_N[has_won_N], log.paid_nanos_N[has_won_N], size)
    position_M = np.arange(1, MINUTES + 1) / MINUTES
    days = []
    for row, (campaign, plan) in enumerate(zip(campaigns, plans, strict=True)):
        budget_nanos = campaign.daily_nanos
        planned_M = np.array([plan.by(position) for position in position_M])
        spent_M = spent_CM[row] / budget_nanos
        planned_H = np.diff([plan.by(hour / HOURS) for hour in range(HOURS + 1)])
        demand_H = log.demand_nanos_HC[:, row] / budget_nanos
        price_nanos = campaign.bid_nanos if campaign.bid_type != "cpm" else paid_C[row] / max(wins_C[row], 1)
        days.append(
            CampaignDay(
                campaign_id=campaign.campaign_id,
                bid_type=campaign.bid_type,
                budget_nanos=budget_nanos,
                spent=float(spent_M[-1]),
                off_plan=float(np.abs(spent_M - planned_M).max()),
                demand=float(demand_H.sum()),
                is_feasible=bool((demand_H >= MARGIN * planned_H).all()),
                charges_of_budget=budget_nanos / price_nanos if price_nanos else 0.0,
                eligible=int(log.eligible_QC[:, row].sum()),
                bids=int(bids_C[row]),
                wins=int(wins_C[row]),
                spent_M=spent_M,
                planned_M=planned_M,
            )
        )
    return days


def regret(log: DayLog) -> Regret:
    """The answers for all auctions of a day."""
    price_nanos_N = log.auctions.price_nanos_N
    has_won_N = log.paid_nanos_N > 0
    over_N = np.where(has_won_N, log.paid_nanos_N - price_nanos_N, 0)
    lost_N = np.where(has_won_N, log.paid_nanos_N - log.value_nanos_N, 0.0)
    missed_N = np.where(has_won_N | (log.best_N == NOBODY), 0.0, log.best_value_nanos_N - price_nanos_N)
    reason_N = np.array([verdict.value for verdict in VERDICTS], object)[log.verdict_N]
    reason_N[(log.campaign_N != NOBODY) & (log.bid_nanos_N < price_nanos_N)] = BID_TOO_LOW
    reasons = sorted(set(reason_N[missed_N > 0]))
    return Regret(
        overpaid_nanos=int(over_N.sum()),
        overpaid=int((over_N > 0).sum()),
        lost_nanos=float(np.maximum(lost_N, 0).sum()),
        lost=int((lost_N > 0).sum()),
        missed_nanos={reason: float(missed_N[(reason_N == reason) & (missed_N > 0)].sum()) for reason in reasons},
        missed={reason: int(((reason_N == reason) & (missed_N > 0)).sum()) for reason in reasons},
    )


def figures(log: DayLog, campaigns: Sequence[CampaignDay]) -> dict[str, object]:
    """The figures of a day, as plain data. Money is in units of the currency, prices are CPMs."""
    has_won_N = log.paid_nanos_N > 0
    has_bid_N = log.campaign_N != NOBODY
    judged = [campaign for campaign in campaigns if campaign.is_judged]
    answers = regret(log)
    paid_nanos = int(log.paid_nanos_N.sum())
    return {
        "requests": len(has_bid_N),
        "bids": int(has_bid_N.sum()),
        "wins": int(has_won_N.sum()),
        "win_rate": _ratio(has_won_N.sum(), has_bid_N.sum()),
        "paid_cpm": _ratio(paid_nanos, has_won_N.sum()) / NANOS_PER_CPM,
        "market_cpm": float(log.auctions.price_nanos_N.mean()) / NANOS_PER_CPM,
        "value_of_paid": _ratio(log.value_nanos_N[has_won_N].sum(), paid_nanos),
        "campaigns": len(campaigns),
        "feasible": sum(campaign.is_feasible for campaign in campaigns),
        "judged": len(judged),
        "on_plan": _ratio(sum(campaign.is_on_plan for campaign in judged), len(judged)),
        "spent_min": min((campaign.spent for campaign in judged), default=0.0),
        "spent_max": max((campaign.spent for campaign in campaigns), default=0.0),
        "off_plan_max": max((campaign.off_plan for campaign in judged), default=0.0),
        "spent_95": _ratio(sum(campaign.spent >= SPENT for campaign in judged), len(judged)),
        "within_05": _ratio(sum(campaign.off_plan <= OFF_PLAN for campaign in judged), len(judged)),
        "overpaid": {"auctions": answers.overpaid, "of_paid": _ratio(answers.overpaid_nanos, paid_nanos)},
        "paid_above_value": {"auctions": answers.lost, "of_paid": _ratio(answers.lost_nanos, paid_nanos)},
        "missed": {
            reason: {"auctions": answers.missed[reason], "of_paid": _ratio(nanos, paid_nanos)}
            for reason, nanos in answers.missed_nanos.items()
        },
    }


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0
