"""While the writer is away, campaigns without a budget stop after ``writer_away_s`` and resume when it is back."""

from __future__ import annotations

import signal

import pytest

from .bidder import Bidder, until

pytestmark = pytest.mark.slow


def test_campaigns_without_a_budget_stop_without_the_writer_and_resume_with_it(work, tmp_path):
    with Bidder(work, tmp_path / "state", "--generate", "false", "--writer-away-s", "3") as bidder:
        _, ad_id = bidder.campaign()
        bidder.list_for("u", ad_id)

        def bids():
            return any(bid["crid"] == ad_id for bid in bidder.bids(user={"id": "u"}))

        def ready():
            return bidder.http.get(f"{bidder.url}/readyz").json()

        until(bids, "bids")
        assert ready()["stopped"] == []
        bidder.signal("writer", signal.SIGSTOP)
        try:
            until(lambda: "writer" in bidder.away(), "degraded")
            until(lambda: ready()["stopped"] == ["campaigns without a budget"], "stopped")
            assert bidder.ask(user={"id": "u"}).status_code == 204
            metrics = bidder.http.get(f"{bidder.url}/metrics", headers={"authorization": f"Bearer {bidder.operator}"})
            assert "leadre_uncapped_stopped 1.0" in metrics.text
        finally:
            bidder.signal("writer", signal.SIGCONT)
        until(bids, "bids again")
        assert ready()["stopped"] == []
