"""The states of paced campaigns in the snapshot of the counters, of this release and of the one before.

The release before counted auctions by hour, with a forecast by hour. Its counts are spread over the quarters of each
hour, and a day that it began keeps its plan. Its goals forgot late actions wrongly: their duals and totals are kept,
and their correction as far as it lowers bids. A campaign whose state cannot be read starts without a past.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import msgspec

from leadre.auction import goal
from leadre.auction.budget.days import quarters_of_day
from leadre.auction.goal import GoalState
from leadre.auction.pacing.day import CampaignDay
from leadre.auction.pacing.plan import QUARTERS_OF_HOUR
from leadre.serve.processes.open_money import OpenSums
from leadre.types import Campaign

Traffic = dict[str, list[int]]  # day -> auctions of each quarter of an hour of the clock


class EarlierGoalState(msgspec.Struct, frozen=True):
    """`GoalState` of the release before."""

    kind: str
    unit_nanos: int
    return_dual: float
    shown_H: tuple[tuple[int, float], ...]
    old_shown: float
    actions: float
    cost_nanos: int
    events: int
    value_nanos: int

    def state(self, at_us: int) -> GoalState:
        """The state at a time. Its correction is the lower bound of what was learned: all actions count as due."""
        shown = self.old_shown + sum(predicted for _, predicted in self.shown_H)
        state = GoalState(
            kind=self.kind,
            unit_nanos=self.unit_nanos,
            learns_from_us=at_us,
            return_dual=self.return_dual,
            cost_nanos=self.cost_nanos,
            events=self.events,
            value_nanos=self.value_nanos,
        )
        return goal.with_past(state, self.actions, shown)


class PacedSnapshot(msgspec.Struct, frozen=True):
    """One campaign in the snapshot."""

    campaign_id: str
    day: CampaignDay | None
    traffic_Q: Traffic
    sums: OpenSums
    goal: EarlierGoalState | None = None  # of the release before
    goal_state: GoalState | None = None


def pack(last_us: int, campaigns: Sequence[PacedSnapshot]) -> bytes:
    """The bytes of the states as of the newest request, ``last_us``."""
    return msgspec.msgpack.encode((last_us, campaigns))


def unpack(packed: bytes, campaigns: Mapping[str, Campaign]) -> tuple[int, list[PacedSnapshot]]:
    """(time of the newest request, states of those of the campaigns that can be read) of `pack`."""
    try:
        last_us, states = msgspec.msgpack.decode(packed, type=tuple[int, list[dict[str, Any]]])
    except msgspec.DecodeError:
        return 0, []
    readable = []
    for state in states:
        campaign = campaigns.get(state.get("campaign_id", ""))
        if campaign is not None:
            with contextlib.suppress(msgspec.ValidationError):
                readable.append(msgspec.convert(_by_quarter(state, campaign.zone), PacedSnapshot))
    return last_us, [_with_goal_state(state, last_us) for state in readable]


def _with_goal_state(paced: PacedSnapshot, last_us: int) -> PacedSnapshot:
    """The snapshot with the goal of the release before in the form of this one."""
    if paced.goal is None:
        return paced
    return msgspec.structs.replace(paced, goal=None, goal_state=paced.goal.state(last_us))


def _by_quarter(state: dict[str, Any], zone: str) -> dict[str, Any]:
    """The state of a campaign with counts and forecast by quarter; one that has them already is returned as it is."""
    if "traffic_Q" in state:
        return state
    traffic_Q = {day: _spread_counts(count_H) for day, count_H in state.get("traffic", {}).items()}
    day = state.get("day")
    if day is not None:
        day = day | {
            "forecast_Q": [
                mean / QUARTERS_OF_HOUR for mean in day.get("forecast_H", ()) for _ in range(QUARTERS_OF_HOUR)
            ],
            "quarter_S": quarters_of_day(date.fromisoformat(day["day"]), zone),
        }
    return state | {"traffic_Q": traffic_Q, "day": day}


def _spread_counts(count_H: Sequence[int]) -> list[int]:
    """[Q] counts that have the sums of [H] counts."""
    return [(count + quarter) // QUARTERS_OF_HOUR for count in count_H for quarter in range(QUARTERS_OF_HOUR)]
