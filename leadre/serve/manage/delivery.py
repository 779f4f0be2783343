"""Plan and goal of a campaign as text of the status page."""

from __future__ import annotations

from leadre.serve.ipc.messages import CampaignPacing
from leadre.serve.manage.figures import NO_VALUE, amount, figure, money, percent
from leadre.types import Campaign


def plan_view(campaign: Campaign, pacing: CampaignPacing | None) -> dict[str, str]:
    """The plan of a campaign: spend and plan as shares of the day's money, and how it bids."""
    if not campaign.has_plan or pacing is None:
        return {"plan": "", "pace": "", "spent_share": "", "planned_share": ""}
    budget_nanos = max(pacing.budget_nanos, 1)
    share = pacing.multiplier * pacing.participate
    pace = "waits" if not share else f"bids x {figure(pacing.multiplier)}"
    if 0 < pacing.participate < 1:
        pace += f" in {percent(pacing.participate, 1.0)} of auctions"
    return {
        "plan": f"{campaign.plan.replace('_', ' ')}{'' if campaign.pacer != 'off' else ', not followed'}",
        "pace": pace,
        "spent": percent(pacing.spent_nanos, budget_nanos),
        "planned": percent(pacing.planned_nanos, budget_nanos),
        "spent_share": f"{min(1.0, pacing.spent_nanos / budget_nanos):.4f}",
        "planned_share": f"{min(1.0, pacing.planned_nanos / budget_nanos):.4f}",
    }


def goal_text(campaign: Campaign, pacing: CampaignPacing | None) -> str:
    """The goal of a campaign, and the realised cost of its actions."""
    goal = campaign.goal
    if not campaign.has_goal or pacing is None or pacing.goal is None:
        return ""
    figures = pacing.goal
    if goal.kind == "roas":
        realised = figures.return_on_cost
        text = f"return {NO_VALUE if realised is None else figure(realised)} of target {figure(goal.target_return)}"
    else:
        nanos = figures.cost_of_action_nanos
        cost = NO_VALUE if nanos is None else money(nanos, campaign.currency)
        text = f"{goal.kind.upper()} {cost} of target {amount(goal.target_nanos)}"
    return f"{text} · {figures.actions:,} actions · bids x {figure(pacing.multiplier)}"
