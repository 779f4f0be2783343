"""Goals of campaigns in the writer: impressions, charges and actions from the event log, and the multiplier of each.

An event has the time of its bid and the rate that the bid predicted, so no bid is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from leadre.auction import goal
from leadre.auction.goal import GoalState
from leadre.auction.pacing.contract import MIN_MULTIPLIER, GoalFactors, Rate
from leadre.serve.catalogue.columns import worth_nanos
from leadre.serve.events.outcomes import SHOWN, is_from_server
from leadre.serve.events.records import EventRecord
from leadre.serve.ipc.messages import GoalFigures
from leadre.types import Campaign, EventKind
from leadre.units import US_PER_S

ACTIONS: Mapping[str, EventKind] = {"cpc": "click", "cpa": "conv", "roas": "conv"}  # by kind of goal
# Without ticks, as when a start reads the log, events credit the impressions before them.
CREDIT_US = 600 * US_PER_S


class _Action(NamedTuple):
    """The actions that an event adds to a campaign; ``weight``: as in `goal.with_action`."""

    events: int
    value_nanos: int
    weight: float


class GoalTracking:
    """The states of campaigns with a goal."""

    def __init__(self) -> None:
        self._states: dict[str, GoalState] = {}

    def follow(self, campaigns: Mapping[str, Campaign]) -> set[str]:
        """Follow the campaigns with a goal, and forget others. Returns those whose goal has begun or ended.

        Another kind of goal has another state, another target has the same.
        """
        states = {name: _new_state(campaign) for name, campaign in campaigns.items()}
        changed = self._states.keys() - states.keys()
        for name, state in states.items():
            before = self._states.get(name)
            if before is not None and _is_alike(before, state):
                states[name] = before
            else:
                changed.add(name)
        self._states = states
        return changed

    def add_event(self, campaign: Campaign, record: EventRecord) -> None:
        """Add the impression, charge or action of an event of a bid that was made under the goal."""
        outcome = record.outcome
        state = self._states[campaign.campaign_id]
        bid_at_us = record.bid_at_us or outcome.at_us  # records of the first release have it of clicks and conversions
        if bid_at_us < min(state.since_us, state.learns_from_us):
            return
        if outcome.at_us - state.credited_us > CREDIT_US:
            state = goal.credited(state, outcome.at_us)
        kind = ACTIONS[campaign.goal.kind]
        is_predicted = record.rate is not None and record.rate.event == kind
        is_learned = is_predicted and bid_at_us >= state.learns_from_us
        if outcome.charge_nanos:
            state = goal.with_charge(state, outcome.charge_nanos, moves_dual=is_predicted)
        if outcome.kind in SHOWN and record.rate is not None and is_learned:
            state = goal.with_impression(state, record.rate.p, bid_at_us)
        if outcome.kind == kind:
            action = _action(state.unit_nanos, record)
            state = goal.with_totals(state, action.events, action.value_nanos)
            if is_learned:
                state = goal.with_action(state, outcome.at_us - bid_at_us, action.weight)
        self._states[campaign.campaign_id] = state

    def tick(self, campaign: Campaign, now_us: int) -> None:
        """Learn from the impressions, charges and actions since the last tick."""
        name = campaign.campaign_id
        self._states[name] = goal.advance(self._states[name], worth_nanos(campaign), now_us)

    def factors(self, campaign_id: str, paced: Rate) -> GoalFactors:
        """The parts of a campaign's multiplier. That of a pacer is 1 / (1 + m), and m is the dual of its budget."""
        state = self._states[campaign_id]
        budget_dual = 1 / max(paced.multiplier, MIN_MULTIPLIER) - 1
        return GoalFactors(state.correction, state.return_dual, budget_dual)

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

    def restore(self, campaign: Campaign, state: GoalState) -> bool:
        """Take over a state of a snapshot, if it is of the campaign's goal. Returns whether it is."""
        is_alike = _is_alike(state, self._states[campaign.campaign_id])
        if is_alike:
            self._states[campaign.campaign_id] = state
        return is_alike


def _new_state(campaign: Campaign) -> GoalState:
    aim = campaign.goal
    return GoalState(aim.kind, aim.conversion_nanos, since_us=aim.since_us, learns_from_us=aim.since_us)


def _is_alike(state: GoalState, other: GoalState) -> bool:
    """Whether two states are of one goal: of one kind, set at one time, with actions that count alike."""
    return (state.kind, state.unit_nanos, state.since_us) == (other.kind, other.unit_nanos, other.since_us)


def _action(unit_nanos: int, record: EventRecord) -> _Action:
    """The action of a click or conversion. A click has one conversion; a target return adds the value of further sales.

    Anyone may send the value of a page's conversion, so it counts as the expected one. That of a server comes with the
    advertiser's key; it replaces the one of the page.
    """
    value_nanos = record.outcome.value_nanos if is_from_server(record) else unit_nanos
    weight = goal.weight_of(value_nanos, unit_nanos)
    if record.earlier_conversion == "page":
        return _Action(0, value_nanos - unit_nanos, weight - 1.0)
    if record.earlier_conversion == "server" and not unit_nanos:
        return _Action(0, 0, 0.0)
    return _Action(1, value_nanos, weight)
