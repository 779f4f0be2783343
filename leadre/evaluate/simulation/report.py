"""The report of a simulation: one self-contained HTML page with figures, plots and a table of all campaigns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from leadre.auction.pacing.plan import HOURS
from leadre.evaluate import plots, report
from leadre.evaluate.simulation.exchange import NOBODY, DayLog
from leadre.evaluate.simulation.measure import OFF_PLAN, SPENT, CampaignDay
from leadre.evaluate.simulation.world import MINUTES
from leadre.units import NANOS_PER_CPM, US_PER_DAY, US_PER_HOUR

PAYS_FOR = {"cpm": "impressions", "cpc": "clicks", "cpa": "conversions"}
COLOURS = {"cpm": plots.OURS, "cpc": plots.ACCENT, "cpa": "#009E73"}
EVERY = 5  # minutes between two points of a curve


def page(run: str, figures: Mapping[str, Any], log: DayLog, campaigns: Sequence[CampaignDay]) -> str:
    """The page of the last day."""
    text: str = report.template("leadre.evaluate.simulation", "simulation.html.j2").render(
        run=run,
        figures=figures,
        spend=plots.svg(spend_figure(campaigns)),
        market=plots.svg(market_figure(log)),
        campaigns_plot=plots.svg(campaigns_figure(campaigns)),
        missed=plots.svg(missed_figure(figures["missed"])) if figures["missed"] else "",
        campaigns=sorted(
            campaigns, key=lambda campaign: (not campaign.is_judged, campaign.is_on_plan, -campaign.off_plan)
        ),
        spent=SPENT,
        off_plan=OFF_PLAN,
    )
    return text


def spend_figure(campaigns: Sequence[CampaignDay]) -> Figure:
    """Spend less plan over the day, as shares of the budget: one line for each campaign that could follow its plan."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        ax: Axes = figure.subplots()
        hours = np.arange(1, MINUTES + 1)[::EVERY] * HOURS / MINUTES
        judged = [campaign for campaign in campaigns if campaign.is_judged]
        ax.axhspan(-OFF_PLAN, OFF_PLAN, color=plots.OURS, alpha=0.10, lw=0, label=f"within {OFF_PLAN:.0%}")
        labels = set()
        for campaign in sorted(judged, key=lambda campaign: not campaign.is_on_plan):
            off = (campaign.spent_M - campaign.planned_M)[::EVERY]
            label = f"on plan, pays for {PAYS_FOR[campaign.bid_type]}" if campaign.is_on_plan else "not on plan"
            ax.plot(
                hours,
                off,
                color=COLOURS[campaign.bid_type] if campaign.is_on_plan else plots.INK,
                lw=0.8,
                alpha=0.45 if campaign.is_on_plan else 0.8,
                label=label if label not in labels else None,
            )
            labels.add(label)
        ax.set_xlim(0, HOURS)
        ax.set_xticks(range(0, HOURS + 1, 4))
        ax.set_xlabel("hour of the campaign's day")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylabel("spend less plan, in % of the budget")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
        ax.grid(color=plots.FAINT, lw=0.8)
        ax.set_axisbelow(True)
    return figure


def market_figure(log: DayLog) -> Figure:
    """Two panels by hour: requests, bids and wins; mean market price, price paid and bid."""
    auctions = log.auctions
    hour_N = (auctions.at_us_N % US_PER_DAY) // US_PER_HOUR
    has_bid_N = log.campaign_N != NOBODY
    has_won_N = log.paid_nanos_N > 0
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for label, is_of_N, colour in (
            ("requests", np.ones(len(hour_N), bool), plots.RIVAL),
            ("bids", has_bid_N, plots.KIN),
            ("wins", has_won_N, plots.OURS),
        ):
            count_H = np.bincount(hour_N[is_of_N], minlength=HOURS)
            if label == "requests":  # an area, since bids may hide a line
                left.stairs(count_H, color=colour, alpha=0.25, fill=True, label=label)
            else:
                left.stairs(count_H, color=colour, lw=1.8, label=label)
        for label, is_of_N, nanos_N, colour in (
            ("lowest winning bid, all requests", np.ones(len(hour_N), bool), auctions.price_nanos_N, plots.RIVAL),
            ("bid", has_bid_N, log.bid_nanos_N, plots.KIN),
            ("price paid", has_won_N, log.paid_nanos_N, plots.OURS),
        ):
            count_H = np.bincount(hour_N[is_of_N], minlength=HOURS)
            sum_H = np.bincount(hour_N[is_of_N], nanos_N[is_of_N], HOURS)
            mean_H = np.divide(sum_H, count_H, out=np.full(HOURS, np.nan), where=count_H > 0) / NANOS_PER_CPM
            right.plot(np.arange(HOURS) + 0.5, mean_H, color=colour, lw=1.8, label=label)
        left.set_ylabel("per hour")
        left.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        right.set_ylabel("mean price per 1,000 impressions")
        for ax in (left, right):
            ax.set_xlim(0, HOURS)
            ax.set_ylim(0, None)
            ax.set_xticks(range(0, HOURS + 1, 4))
            ax.set_xlabel("hour (UTC)")
            ax.grid(color=plots.FAINT, lw=0.8)
            ax.set_axisbelow(True)
            ax.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def campaigns_figure(campaigns: Sequence[CampaignDay]) -> Figure:
    """Share of the budget spent against the demand over the budget; filled: the campaign could follow its plan."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        ax: Axes = figure.subplots()
        for bid_type, colour in COLOURS.items():
            for is_judged in (True, False):
                of_kind = [c for c in campaigns if c.bid_type == bid_type and c.is_judged == is_judged]
                if of_kind:
                    ax.plot(
                        [max(campaign.demand, 0.01) for campaign in of_kind],
                        [campaign.spent for campaign in of_kind],
                        "o",
                        ms=4.5,
                        mec=colour,
                        mfc=colour if is_judged else "white",
                        label=f"{PAYS_FOR[bid_type]}{'' if is_judged else ', not judged'}",
                    )
        ax.axhline(1.0, color=plots.INK, lw=0.8)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set_ylim(0, None)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("demand over budget")
        ax.set_ylabel("spent, in % of the budget")
        ax.grid(color=plots.FAINT, lw=0.8)
        ax.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def missed_figure(missed: Mapping[str, Mapping[str, float]]) -> Figure:
    """Value above the price in auctions that were not won, by reason, over the money paid."""
    reasons = sorted(missed, key=lambda reason: missed[reason]["of_paid"])
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.6, 0.34 * len(reasons) + 0.8), layout="constrained")
        ax: Axes = figure.subplots()
        ax.barh(reasons, [missed[reason]["of_paid"] for reason in reasons], color=plots.OURS, height=0.6)
        ax.set_xlabel("value missed, over the money paid")
        ax.grid(axis="x", color=plots.FAINT, lw=0.8)
        ax.set_axisbelow(True)
    return figure
