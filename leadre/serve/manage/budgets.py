"""Routes of the management API for the money of a campaign: budget, cap in force, spend against its plan, cost of its
actions against its target.
"""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from leadre.auction.budget.sums import UsedBudget
from leadre.errors import MissingError
from leadre.serve.ipc.messages import GoalFigures
from leadre.serve.manage.access import BackendDep, Caller, CampaignStoreDep, is_own
from leadre.serve.manage.forms import problems
from leadre.serve.manage.parameters import Name
from leadre.types import Goal, GoalKind, PacerName, PlanName

router = APIRouter(responses=problems(401, 404, 422, 429), tags=["campaigns"])


class BudgetResponse(BaseModel):
    """A budget, in total or of a day. After a cut, bids that wait for their event hold the cap in force above it."""

    budget_nanos: int = Field(description="the budget of the campaign; 0 = no cap")
    cap_in_force_nanos: int = Field(
        description="charges end here: the budget, or what is charged and reserved if that is more; 0 = no cap"
    )
    charged_nanos: int
    reserved_nanos: int = Field(description="for bids that wait for their event, and for bids to come")
    written_off_nanos: int = Field(description="owed for events that no budget paid; never charged")

    @classmethod
    def of(cls, budget_nanos: int, used: UsedBudget) -> BudgetResponse:
        used_nanos = used.charged_nanos + used.reserved_nanos
        return cls(
            budget_nanos=budget_nanos,
            cap_in_force_nanos=max(budget_nanos, used_nanos) if budget_nanos else 0,
            charged_nanos=used.charged_nanos,
            reserved_nanos=used.reserved_nanos,
            written_off_nanos=used.written_off_nanos,
        )


class BudgetsResponse(BaseModel):
    """The budgets of a campaign, in total and of the present day of its zone."""

    campaign_id: str
    total: BudgetResponse
    today: BudgetResponse


class DayPacing(BaseModel):
    """Spend against plan as of the last tick, at most a minute ago; money is that of the day of the campaign's zone."""

    multiplier: float = Field(description="bids are the value times this")
    participate: float = Field(description="probability to take part in an auction; 0 = the campaign waits")
    budget_nanos: int
    planned_nanos: int = Field(description="to be spent by now")
    spent_nanos: int = Field(description="charged, or expected of bids that wait for their event")
    has_forecast: bool = Field(description="whether the traffic of a day is known, by which `traffic` plans")


class GoalProgress(BaseModel):
    """Realised cost of a campaign's actions against its target, since the goal was set."""

    kind: GoalKind
    target_nanos: int = Field(description="of one action; of `roas`: expected value of a conversion / target return")
    realised_nanos: int | None = Field(description="cost over actions; null before the first action")
    target_return: float | None = Field(description="of `roas`")
    realised_return: float | None = Field(description="of `roas`: value of conversions over cost; null before any cost")
    cost_nanos: int
    actions: int = Field(description="clicks of `cpc`, conversions of `cpa` and `roas`")
    value_nanos: int = Field(description="of conversions")
    expected_actions: float = Field(description="of impressions shown, still to come")
    correction: float = Field(description="actions of impressions shown over predicted ones")
    return_dual: float = Field(description="l: the bid is value x correction x (1 + l) / (m + l)")
    budget_dual: float = Field(description="m, 0 while no budget binds")

    @classmethod
    def of(cls, goal: Goal, figures: GoalFigures) -> GoalProgress:
        is_roas = goal.kind == "roas"
        return cls(
            kind=goal.kind,
            target_nanos=goal.worth_nanos,
            realised_nanos=figures.cost_of_action_nanos,
            target_return=goal.target_return if is_roas else None,
            realised_return=figures.return_on_cost if is_roas else None,
            cost_nanos=figures.cost_nanos,
            actions=figures.actions,
            value_nanos=figures.value_nanos,
            expected_actions=figures.expected_actions,
            **figures.factors._asdict(),
        )


class PacingResponse(BaseModel):
    """The pacing of a campaign."""

    campaign_id: str
    plan: PlanName
    pacer: PacerName
    multiplier: float | None = Field(description="bids are the value times this; null until the first tick")
    today: DayPacing | None = Field(description="null without a plan, and until the first tick of a new one")
    goal: GoalProgress | None = Field(description="null for the goal `bid`, and until the first tick of a new goal")


@router.get("/campaigns/{campaign_id}/pacing", responses=problems(503))
def get_pacing(key: Caller, store: CampaignStoreDep, backend: BackendDep, campaign_id: Name) -> PacingResponse:
    """Spend against the plan of a campaign, and cost of its actions against its target."""
    campaign = store.campaign(campaign_id)
    if campaign is None or not is_own(key, campaign.advertiser_id):
        raise MissingError("nothing has this ID")
    pacing = backend.pacing().get(campaign_id) if campaign.has_plan or campaign.has_goal else None
    today = goal = None
    if pacing is not None and campaign.has_plan:
        today = DayPacing.model_validate(pacing, from_attributes=True)
    if pacing is not None and campaign.has_goal and pacing.goal is not None:
        goal = GoalProgress.of(campaign.goal, pacing.goal)
    return PacingResponse(
        campaign_id=campaign_id,
        plan=campaign.plan,
        pacer=campaign.pacer,
        multiplier=None if pacing is None else pacing.multiplier,
        today=today,
        goal=goal,
    )


@router.get("/campaigns/{campaign_id}/budget")
def get_budget(key: Caller, store: CampaignStoreDep, backend: BackendDep, campaign_id: Name) -> BudgetsResponse:
    """Budgets and caps in force. A cut ends new bids at once, and its cap falls as bids are charged or expire."""
    campaign = store.campaign(campaign_id)
    if campaign is None or not is_own(key, campaign.advertiser_id):
        raise MissingError("nothing has this ID")
    total, today = backend.used_budget(campaign_id)
    return BudgetsResponse(
        campaign_id=campaign_id,
        total=BudgetResponse.of(campaign.total_nanos, total),
        today=BudgetResponse.of(campaign.daily_nanos, today),
    )
