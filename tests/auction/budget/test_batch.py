"""Orders of one commit see each other's changes, in their order."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Charge, LeaseRequest, LedgerOrder, LedgerResult, Release, Void
from leadre.units import US_PER_HOUR, US_PER_S

NOON = 1_773_144_000 * US_PER_S
NANOS = st.integers(0, 60)


@given(
    orders=st.lists(
        st.one_of(
            st.builds(
                Charge,
                event_id=st.sampled_from(["e1", "e2", "e3"]),
                campaign_id=st.sampled_from(["a", "b", "unknown"]),
                nanos=NANOS,
                at_us=st.sampled_from([NOON, NOON + 24 * US_PER_HOUR]),
                lease_id=st.integers(0, 4),
            ),
            st.builds(
                Void,
                event_id=st.sampled_from(["e1", "v1"]),
                campaign_id=st.just("a"),
                nanos=NANOS,
                lease_id=st.integers(0, 4),
            ),
            st.builds(Release, lease_id=st.integers(0, 4), reserved_nanos=NANOS),
            st.builds(LeaseRequest, worker=st.just("w"), campaign_id=st.sampled_from(["a", "b"]), max_nanos=st.just(9)),
        ),
        max_size=12,
    )
)
@settings(max_examples=40, deadline=None)
def test_orders_in_one_commit_have_the_results_of_single_commits(orders: list[LedgerOrder]) -> None:
    results: list[list[LedgerResult]] = []
    rows: list[object] = []
    for parts in ([orders], [[order] for order in orders]):
        with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.db") as ledger:
            ledger.set_budget("a", Budget(total_nanos=100, daily_nanos=70), NOON)
            ledger.set_budget("b", Budget(), NOON)
            results.append([result for part in parts for result in ledger.apply(part, NOON)])
            rows.append(
                [
                    ledger.connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                    for table in ("budgets", "days", "leases", "entries")
                ]
            )
            assert ledger.verify() == []
    assert results[0] == results[1]
    assert rows[0] == rows[1]
