"""Each event counts once and costs what it may, whoever repeats it and whenever the writer is killed."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget, Lease, LeaseRequest
from leadre.errors import InputError, StorageError
from leadre.serve.events import event_log, outcomes
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.outcomes import EventEffect, EventProcessor, EventReport
from leadre.serve.events.records import EventRecord
from leadre.serve.events.tokens import Token
from leadre.types import EventKind
from leadre.units import US_PER_HOUR

from ..conftest import make_token

NOW = 1_790_000_000_000_000
KINDS: tuple[EventKind, ...] = ("win", "bill", "loss", "imp", "view", "click", "conv")


def token(number: int = 0, **change: Any) -> Token:
    made = make_token(
        NOW,
        100,
        bid_id=f"b{number}",
        request_id=f"r{number}",
        ad_id="a",
        campaign_id="c",
        user_id="u",
        charge_nanos=7000,
        currency="EUR",
        cap_id=f"cap{number}",
        expires_at_us=NOW + US_PER_HOUR,
        nonce=number.to_bytes(12, "big"),
    )
    return msgspec.structs.replace(made, **change)


def report(kind: EventKind, number: int = 0, at_us: int = NOW, **change: Any) -> EventReport:
    own = {name: change.pop(name) for name in ("event_id", "value_nanos", "price_nanos") if name in change}
    if kind in ("win", "bill"):
        own = {"price_nanos": 60} | own
    return EventReport(kind=kind, token=token(number, **change), at_us=at_us, **own)


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[EventProcessor]:
    with Ledger(folder / "ledger.db") as ledger, EventLog(folder / "events", **options) as log:
        made = EventProcessor(ledger, log)
        if not ledger.left("c", NOW):
            ledger.set_budget("c", Budget(total_nanos=1_000_000), NOW)
        yield made
        assert ledger.verify() == []


@pytest.fixture
def books(tmp_path: Path) -> Iterator[EventProcessor]:
    with opened(tmp_path) as made:
        yield made


def logged(books: EventProcessor) -> list[EventRecord]:
    return [entry.record for entry in event_log.read(books.log.folder) if isinstance(entry.record, EventRecord)]


@pytest.mark.parametrize(
    ("charge_type", "costs"), [("cpm", {"bill": 60}), ("cpc", {"click": 7000}), ("cpa", {"conv": 7000})]
)
def test_the_bid_type_says_which_event_costs(books: EventProcessor, charge_type: str, costs: dict[str, int]) -> None:
    for kind in KINDS:
        for is_new in (True, False, False):
            (effect,) = books.take([report(kind, charge_type=charge_type)], NOW)
            assert effect.is_new == is_new
            assert effect.charged_nanos == (costs.get(kind, 0) if is_new else 0)
    assert books.ledger.spent("c") == sum(costs.values())
    assert [(one.outcome.kind, one.outcome.charge_nanos) for one in logged(books)] == [
        (kind, costs.get(kind, 0)) for kind in KINDS
    ]
    assert [one.outcome.kind for one in logged(books) if one.is_training] == ["imp", "click", "conv"], "never a nurl"


def test_a_bill_is_at_most_the_signed_cap_and_none_without_a_price(books: EventProcessor) -> None:
    effects = books.take([report("bill", n, price_nanos=price) for n, price in enumerate((60, 100, 101, 10**15))], NOW)
    assert [effect.charged_nanos for effect in effects] == [60, 100, 100, 100]
    assert [one.outcome.price_nanos for one in logged(books)] == [60, 100, 100, 100]
    assert books.take([report("bill", 9, price_nanos=None)], NOW) == [EventEffect()], "AUDIT, or a macro nobody filled"
    assert books.take([report("bill", 9)], NOW)[0].charged_nanos == 60, "which does not stand in the way of a bill"
    (effect,) = books.take([report("bill", 10, charge_type="cpc")], NOW)
    assert (effect.charged_nanos, logged(books)[-1].outcome.price_nanos) == (0, 60), "the media cost is booked"


def test_what_the_budget_cannot_pay_is_written_off(books: EventProcessor) -> None:
    books.ledger.set_budget("c", Budget(total_nanos=100), NOW)
    assert [effect.charged_nanos for effect in books.take([report("bill", n) for n in range(3)], NOW)] == [60, 40, 0]
    assert [(one.owed_nanos, one.outcome.charge_nanos) for one in logged(books)] == [(60, 60), (60, 40), (60, 0)]
    assert books.ledger.written_off("c") == 80


def test_a_lost_bid_gives_back_what_was_reserved(books: EventProcessor) -> None:
    (lease,) = books.ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=400)], NOW)
    assert isinstance(lease, Lease)
    for _ in range(2):
        books.take([report("loss", 1, lease_id=lease.lease_id)], NOW)
        assert books.ledger.reserved("c") == 300
    books.take([report("bill", 2, lease_id=lease.lease_id), report("loss", 2, lease_id=lease.lease_id)], NOW)
    assert books.ledger.reserved("c") == 240, "what was billed was not lost"


def test_what_becomes_of_the_cap(books: EventProcessor) -> None:
    def caps(*kinds: EventKind, **change: Any) -> list[str]:
        caps.number += 1
        return [effect.cap for effect in books.take([report(kind, caps.number, **change) for kind in kinds], NOW)]

    caps.number = 0
    assert caps("win", "view", "click", "conv") == ["", "", "", ""]
    assert caps("loss", "loss") == ["release", "release"], "said again, as the store may have missed it"
    assert caps("imp", "bill", "loss") == ["keep", "keep", ""]
    assert caps("loss", "imp") == ["release", "keep"]
    assert caps("imp", "loss", cap_id="") == caps("imp", "loss", is_test=True) == ["", ""]
    assert caps("imp", may_measure=False) == ["keep"], "a cap protects the user, whatever may be measured"


def test_tests_cost_nothing_and_teach_nothing(books: EventProcessor) -> None:
    (lease,) = books.ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=400)], NOW)
    assert isinstance(lease, Lease)
    for charge_type in ("cpm", "cpc", "cpa"):
        number = {"cpm": 1, "cpc": 2, "cpa": 3}[charge_type]
        change = {"charge_type": charge_type, "is_test": True, "lease_id": lease.lease_id}
        effects = books.take([report(kind, number, event_id="order-1", **change) for kind in KINDS], NOW)
        assert {(effect.charged_nanos, effect.cap) for effect in effects} == {(0, "")}
    assert books.ledger.spent("c") == 0 and books.ledger.reserved("c") == 400
    assert {(one.is_test, one.is_training, one.owed_nanos) for one in logged(books)} == {(True, False, 0)}
    assert books.take([report("conv", 4, event_id="order-1")], NOW)[0].is_new, "nor do they stand in a real one's way"


def test_without_permission_only_what_moves_money_is_written_down(books: EventProcessor) -> None:
    books.take([report(kind, 1, may_measure=False) for kind in KINDS], NOW)
    books.take([report(kind, 2, may_measure=False, charge_type="cpc") for kind in KINDS], NOW)
    books.take([report(kind, 3, may_profile=False) for kind in ("imp", "click")], NOW)
    found = [(one.outcome.bid_id, one.outcome.kind) for one in logged(books)]
    money = ("win", "bill", "loss")
    assert found == [
        *(("b1", kind) for kind in money),
        *(("b2", kind) for kind in (*money, "click")),
        ("b3", "imp"),
        ("b3", "click"),
    ]
    assert {(one.outcome.user_id, one.is_training) for one in logged(books)} == {("", False)}
    assert books.ledger.spent("c") == 60 + 7000


def test_an_erased_user_does_not_come_back_with_an_old_token(tmp_path: Path) -> None:
    with opened(tmp_path) as books:
        erasing = EventProcessor(books.ledger, books.log, is_erased=lambda user_id: user_id == "u")
        erasing.take([report("imp"), report("imp", 1, user_id="v")], NOW)
        assert [(one.outcome.user_id, one.is_training) for one in logged(books)] == [("", False), ("v", True)]


def test_conversions_have_names_and_may_come_late(books: EventProcessor) -> None:
    def conv(event_id: str, number: int = 0, hours: float = 0, ago: float = 0, **change: Any) -> bool:
        now_us = NOW + round(hours * US_PER_HOUR)
        made = report("conv", number, at_us=now_us - round(ago * US_PER_HOUR), event_id=event_id, **change)
        return books.take([made], now_us)[0].is_new

    assert conv("order-1") and conv("order-2") and not conv("order-1")
    assert not conv("order-1", number=1, hours=47.9), "by another token too"
    assert conv("order-1", campaign_id="other"), "names are the advertiser's own"
    assert conv("order-1", hours=48), "after 48 hours the name is free again"
    assert conv("order-3", hours=168, ago=168) and not conv("order-4", hours=168, ago=168.1)
    assert conv("", number=5) and not conv("", number=5, hours=160), "without a name it is one for each bid"
    assert all(one.outcome.at_us >= NOW for one in logged(books)), "not before its request"
    assert conv("order-9", hours=1, ago=-5) and logged(books)[-1].outcome.at_us == NOW + US_PER_HOUR, (
        "nor in the future"
    )


def test_nonces_are_remembered_longer_than_tokens_live(books: EventProcessor) -> None:
    books.take([report(kind) for kind in KINDS], NOW)
    last_us = NOW + US_PER_HOUR + outcomes.LATE_CONVERSION_US
    books.ledger.forget(last_us)
    assert not any(effect.is_new for effect in books.take([report(kind, at_us=last_us) for kind in KINDS], last_us))
    books.ledger.forget(last_us + 2 * US_PER_HOUR)
    assert not books.ledger.knows(outcomes._key(token(), "imp"), NOW)


def test_a_full_disk_is_not_acknowledged_and_the_event_is_booked_when_it_comes_again(tmp_path: Path) -> None:
    is_full = [False]

    def sync(file: int) -> None:
        if is_full[0]:
            raise OSError(28, "No space left on device")
        os.fsync(file)

    with opened(tmp_path, sync=sync) as books:
        books.take([report("bill", 1)], NOW)
        is_full[0] = True
        with pytest.raises(StorageError):
            books.take([report("bill", 2)], NOW)
        assert books.ledger.spent("c") == 60 and len(logged(books)) == 1
    with opened(tmp_path) as books:
        assert books.take([report("bill", 2)], NOW)[0].is_new
        assert books.ledger.spent("c") == 120


def test_a_log_that_is_behind_the_ledger_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as books:
        books.take([report("imp")], NOW)
    with (
        Ledger(tmp_path / "ledger.db") as ledger,
        EventLog(tmp_path / "other") as log,
        pytest.raises(InputError, match="ends at record 0, but the ledger has booked 1"),
    ):
        EventProcessor(ledger, log)


class Killed(BaseException):
    """What a SIGKILL at this point amounts to: nothing after it runs, and no file is cleaned up."""


BIDS = st.lists(
    st.fixed_dictionaries(
        {
            "charge_type": st.sampled_from(["cpm", "cpc", "cpa"]),
            "is_test": st.booleans(),
            "may_measure": st.booleans(),
            "kinds": st.sets(st.sampled_from(KINDS), min_size=1),
        }
    ),
    min_size=1,
    max_size=6,
)


def truth(bids: list[dict[str, Any]]) -> tuple[Counter[tuple[str, bool]], int]:
    """(how often each kind happened, by whether it is a test; what it cost), by the rules of the table."""
    counts: Counter[tuple[str, bool]] = Counter()
    cost = 0
    for bid in bids:
        paid = {"cpm": ("bill", 60), "cpc": ("click", 7000), "cpa": ("conv", 7000)}[bid["charge_type"]]
        for kind in bid["kinds"]:
            costs = kind == paid[0] and not bid["is_test"]
            cost += paid[1] if costs else 0
            counts[kind, bid["is_test"]] += bid["may_measure"] or costs or kind in ("win", "bill", "loss")
    return +counts, cost


@settings(max_examples=15, deadline=None)
@given(bids=BIDS, seed=st.integers(0, 1 << 30), kill_share=st.sampled_from([0.0, 0.3, 0.8]))
def test_repeated_shuffled_and_killed_the_counts_are_the_truth(
    bids: list[dict[str, Any]], seed: int, kill_share: float
) -> None:
    rng = random.Random(seed)
    events = [
        report(kind, n, **{name: bid[name] for name in ("charge_type", "is_test", "may_measure")})
        for n, bid in enumerate(bids)
        for kind in sorted(bid["kinds"])
        for _ in range(rng.randint(1, 5))
    ]
    rng.shuffle(events)
    fate = [""]

    def sync(file: int) -> None:
        if fate[0] == "before":
            raise Killed
        os.fsync(file)
        if fate[0] == "after":
            raise Killed

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while events:
            fate[0] = ""
            with opened(folder, sync=sync, segment_bytes=2000) as books:
                while events:
                    batch = [events.pop() for _ in range(min(len(events), rng.randint(1, 5)))]
                    size = books.log._size
                    fate[0] = rng.choice(["before", "after", "unheard"]) if rng.random() < kill_share else ""
                    try:
                        books.take(batch, NOW)
                    except Killed:
                        path = books.log._path
                        if fate[0] == "before" and books.log._size == size:  # only a part had reached the disk
                            os.truncate(path, rng.randint(size, max(size, path.stat().st_size)))
                    if fate[0]:  # nobody heard that it was booked, if it was
                        events += batch
                        rng.shuffle(events)
                        kill_share *= 0.8
                        break
        with opened(folder) as books:
            counts, cost = truth(bids)
            assert Counter((one.outcome.kind, one.is_test) for one in logged(books)) == counts
            assert books.ledger.spent("c") == sum(one.outcome.charge_nanos for one in logged(books)) == cost
