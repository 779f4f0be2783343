"""Goals of campaigns in the writer: impressions, charges and actions from the event log, and the multiplier of each.

A bid is remembered until its impression may come. Actions come later, and need no memory of their bid.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from leadre.auction import goal
from leadre.auction.goal import GoalState
from leadre.auction.pacing.contract import MIN_MULTIPLIER, GoalFactors, Rate
from leadre.serve.catalogue.columns import worth_nanos
from leadre.serve.events.outcomes import SHOWN, is_from_server
from leadre.serve.events.records import EventRecord
from leadre.serve.ipc.messages import GoalFigures
from leadre.types import Bid, Campaign, EventKind
from leadre.units import US_PER_S

ACTIONS: Mapping[str, EventKind] = {"cpc": "click", "cpa": "conv", "roas": "conv"}  # by kind of goal
WAIT_S = 300  # after the end of `exp_s`, in which the event of an impression usually comes


@dataclass
class _Bid:
    campaign_id: str
    predicted: float
    is_shown: bool = False


class GoalTracking:
    """The states of campaigns with a goal. ``exp_s``: `Settings.exp_s`."""

    def __init__(self, exp_s: int) -> None:
        self._open_us = (exp_s + WAIT_S) * US_PER_S
        self._bids: dict[str, _Bid] = {}
        self._ends: list[tuple[int, str]] = []  # a heap
        self._states: dict[str, GoalState] = {}

    def follow(self, campaigns: Mapping[str, Campaign]) -> set[str]:
        """Follow the campaigns with a goal, and forget others. Returns those whose goal has begun or ended.

        Another kind of goal has another state, another target has the same.
        """
        states = {name: GoalState(c.goal.kind, c.goal.conversion_nanos) for name, c in campaigns.items()}
        changed = self._states.keys() - states.keys()
        for name, state in states.items():
            before = self._states.get(name)
            if before is not None and _is_alike(before, state):
                states[name] = before
            else:
                changed.add(name)
        self._states = states
        self._bids = {bid_id: bid for bid_id, bid in self._bids.items() if bid.campaign_id in states}
        return changed

    def add_bid(self, campaign: Campaign, bid: Bid, at_us: int) -> None:
        """Remember the predicted actions of a bid."""
        predicted = bid.worth_nanos / max(worth_nanos(campaign), 1)
        self._bids[bid.bid_id] = _Bid(campaign.campaign_id, predicted)
        heapq.heappush(self._ends, (at_us + self._open_us, bid.bid_id))

    def add_event(self, campaign: Campaign, record: EventRecord) -> None:
        """Add the impression, charge or action of an event."""
        outcome = record.outcome
        state = self._states[campaign.campaign_id]
        if outcome.kind == "loss":
            bid = self._bids.get(outcome.bid_id)
            if bid is not None and not bid.is_shown:
                del self._bids[outcome.bid_id]
        elif outcome.kind in SHOWN:
            state = self._with_impression(state, campaign, record)
        if outcome.charge_nanos:
            state = goal.with_charge(state, outcome.charge_nanos)
        if outcome.kind == ACTIONS[campaign.goal.kind]:
            # Anyone may send the value of a page's conversion; that of a server comes with the advertiser's key.
            value_nanos = outcome.value_nanos if is_from_server(record) else state.unit_nanos
            weight = value_nanos / state.unit_nanos if state.unit_nanos else 1.0
            delay_us = outcome.at_us - record.bid_at_us if record.bid_at_us else 0
            state = goal.with_action(state, delay_us, value_nanos, weight)
        self._states[campaign.campaign_id] = state

    def expire(self, now_us: int) -> None:
        """Forget bids whose impression comes no more."""
        while self._ends and self._ends[0][0] <= now_us:
            self._bids.pop(heapq.heappop(self._ends)[1], None)

    def tick(self, campaign: Campaign, now_us: int) -> None:
        """Learn from the impressions and charges since the last tick."""
        name = campaign.campaign_id
        self._states[name] = goal.advance(self._states[name], worth_nanos(campaign), now_us)

    def factors(self, campaign_id: str, paced: Rate, now_us: int) -> GoalFactors:
        """The parts of a campaign's multiplier. That of a pacer is 1 / (1 + m), and m is the dual of its budget."""
        state = self._states[campaign_id]
        budget_dual = 1 / max(paced.multiplier, MIN_MULTIPLIER) - 1
        return GoalFactors(goal.correction(state, now_us), state.return_dual, budget_dual)

    def figures(self, campaign_id: str, factors: GoalFactors, now_us: int) -> GoalFigures:
        """Cost and actions of a campaign since its goal was set."""
        state = self._states[campaign_id]
        return GoalFigures(
            cost_nanos=state.cost_nanos,
            actions=state.events,
            value_nanos=state.value_nanos,
            expected_actions=goal.expected(state, now_us),
            factors=factors,
        )

    def with_totals(self, campaign_id: str, figures: GoalFigures) -> GoalFigures:
        """Figures of the last tick, with the totals as they are now."""
        state = self._states[campaign_id]
        return msgspec.structs.replace(
            figures, cost_nanos=state.cost_nanos, actions=state.events, value_nanos=state.value_nanos
        )

    def state(self, campaign_id: str) -> GoalState | None:
        """The state of a campaign, for `restore`."""
        return self._states.get(campaign_id)

    def restore(self, campaign: Campaign, state: GoalState) -> None:
        """Take over a state of a snapshot, if it is of the campaign's goal. Bids that were open then are unknown."""
        if _is_alike(state, self._states[campaign.campaign_id]):
            self._states[campaign.campaign_id] = state

    def _with_impression(self, state: GoalState, campaign: Campaign, record: EventRecord) -> GoalState:
        outcome = record.outcome
        bid = self._bids.get(outcome.bid_id)
        if bid is None:
            # Of a bid before a start: as many actions as its price is worth, so that the dual learns nothing from it.
            worth = worth_nanos(campaign) * goal.correction(state, outcome.at_us)
            return replace(state, new_shown=state.new_shown + outcome.charge_nanos / max(worth, 1.0))
        if bid.is_shown:
            return state
        bid.is_shown = True
        return goal.with_impression(state, bid.predicted, outcome.at_us)


def _is_alike(state: GoalState, other: GoalState) -> bool:
    """Whether two states are of one kind of goal, and count actions alike."""
    return (state.kind, state.unit_nanos) == (other.kind, other.unit_nanos)
