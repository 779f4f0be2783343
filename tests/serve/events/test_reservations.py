"""Reservations of bids: each event of a bid frees its own part of the lease, once, in any order and across kills."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.auction.budget.messages import Budget, Lease, LeaseRequest
from leadre.serve.events.outcomes import EventProcessor
from leadre.types import EventKind
from leadre.units import US_PER_HOUR

from .test_outcomes import NOW, Killed, opened, report


@pytest.fixture
def processor(tmp_path: Path) -> Iterator[EventProcessor]:
    with opened(tmp_path) as processor:
        yield processor


def leased(processor: EventProcessor, nanos: int) -> int:
    """ID of a lease of so many nanos, all that the budget has."""
    processor.ledger.set_budget("c", Budget(total_nanos=nanos), NOW)
    order = LeaseRequest(worker="w", campaign_id="c", max_nanos=nanos, min_nanos=nanos)
    (lease,) = processor.ledger.apply([order], NOW)
    assert isinstance(lease, Lease) and lease.nanos == nanos
    return lease.lease_id


def test_bill_below_the_bid_frees_the_whole_reservation(processor: EventProcessor) -> None:
    lease_id = leased(processor, 300)
    for _ in range(2):
        processor.process([report("bill", 1, lease_id=lease_id)], NOW)
        assert (processor.ledger.spent("c"), processor.ledger.reserved("c")) == (60, 200)
        assert processor.ledger.left("c", NOW) == 40
    assert processor.process([report("bill", 2, lease_id=lease_id, charge_type="cpc")], NOW)[0].is_new
    assert processor.ledger.reserved("c") == 200, "the price of an impression is no charge of a click"


def test_bill_of_a_lost_bid_takes_no_reservation_of_another(processor: EventProcessor) -> None:
    lease_id = leased(processor, 400)
    processor.process([report("loss", 1, lease_id=lease_id)], NOW)
    assert processor.ledger.reserved("c") == 300
    for number, charged in ((1, 60), (2, 60), (3, 60), (4, 60)):
        (effect,) = processor.process([report("bill", number, lease_id=lease_id)], NOW)
        assert effect.charged_nanos == charged
        assert processor.ledger.reserved("c") == 400 - 100 * number, "the lost bid is paid from the free budget"


def test_bill_of_a_bid_that_was_shown_before_its_loss_has_its_reservation(processor: EventProcessor) -> None:
    lease_id = leased(processor, 100)
    for kind in ("imp", "loss", "bill"):
        (effect,) = processor.process([report(kind, 1, lease_id=lease_id)], NOW)
        assert effect.is_new
    assert effect.charged_nanos == 60
    assert (processor.ledger.reserved("c"), processor.ledger.written_off("c")) == (0, 0)


def test_bill_that_the_ledger_lacks_frees_its_reservation_at_the_next_start(tmp_path: Path) -> None:
    def sync(file: int) -> None:
        os.fsync(file)
        if is_killed:
            raise Killed

    is_killed = False
    with opened(tmp_path, sync=sync) as processor:
        lease_id = leased(processor, 200)
        processor.process([report("imp", 1, lease_id=lease_id), report("loss", 1, lease_id=lease_id)], NOW)
        is_killed = True
        with pytest.raises(Killed):
            processor.process([report("bill", 1, lease_id=lease_id)], NOW)
    with opened(tmp_path) as processor:
        assert (processor.ledger.spent("c"), processor.ledger.reserved("c")) == (60, 100)


ORDERS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["imp", "loss", "bill", "win"])), max_size=30)


@settings(max_examples=30, deadline=None)
@given(events=ORDERS, restarts=st.sets(st.integers(0, 29)), expires_at=st.integers(0, 60), price=st.integers(1, 120))
def test_reservations_of_a_lease_are_those_of_its_open_bids_in_any_order_of_events(
    events: list[tuple[int, EventKind]], restarts: set[int], expires_at: int, price: int
) -> None:
    """Five bids of 100 reserve all of a budget of 500. A bid that was not lost before it was shown is paid in full."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen: dict[int, set[str]] = {number: set() for number in range(5)}
        voided: set[int] = set()
        spent = 0
        is_expired = False
        with opened(folder) as processor:
            lease_id = leased(processor, 500)
        batches = itertools.groupby(enumerate(events), lambda entry: sum(entry[0] >= step for step in restarts))
        for _, batch in batches:
            with opened(folder) as processor:
                for step, (number, kind) in batch:
                    if step >= expires_at and not is_expired:
                        is_expired = True
                        processor.ledger.expire(NOW + US_PER_HOUR)
                    (effect,) = processor.process([report(kind, number, lease_id=lease_id, price_nanos=price)], NOW)
                    assert effect.is_new == (kind not in seen[number])
                    if effect.is_new:
                        if kind == "loss" and not seen[number] & {"imp", "bill"}:
                            voided.add(number)
                        if kind == "bill" and number not in voided and not is_expired:
                            assert effect.charged_nanos == min(price, 100)
                    seen[number].add(kind)
                    spent += effect.charged_nanos
                    open_bids = [n for n in seen if n not in voided and "bill" not in seen[n]]
                    assert processor.ledger.reserved("c") == (0 if is_expired else 100 * len(open_bids))
                    assert processor.ledger.spent("c") == spent <= 500
