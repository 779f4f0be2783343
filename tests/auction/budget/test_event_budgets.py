"""Budgets of clicks and conversions over the real ledger and leases, replayed by `bench/event_budgets.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

import event_budgets


def test_budget_pays_every_click_whole_and_is_charged_to_its_end(tmp_path: Path) -> None:
    market = event_budgets.Market(step_s=10, shown=1.0)
    budgets = event_budgets.budgets_of(16, 20, 40)
    figures = event_budgets.figures(event_budgets.replay(tmp_path, budgets, market))
    assert figures["written_off"] <= 0.01 and figures["charged"] >= 0.99
    assert figures["over"] == figures["unspent"] == 0


def test_conversions_that_come_after_hours_are_paid_from_the_budget_of_their_bids(tmp_path: Path) -> None:
    day_s = 24 * 3_600
    market = event_budgets.Market(
        rate=0.02, delay_s=day_s / 4, pending_s=7 * day_s, spend_s=7 * day_s, step_s=14_400, end_s=360 * day_s
    )
    campaigns = event_budgets.replay(tmp_path, event_budgets.budgets_of(12, 20, 100), market)
    figures = event_budgets.figures(campaigns)
    assert figures["written_off"] <= 0.01 and figures["charged"] >= 0.99
    assert figures["over"] == figures["unspent"] == 0
