"""Each event is counted and charged once, also when it is repeated or the writer is killed."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import database
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
    usual: dict[str, Any] = {
        "bid_id": f"b{number}",
        "request_id": f"r{number}",
        "ad_id": "a",
        "campaign_id": "c",
        "user_id": "u",
        "charge_nanos": 7000,
        "currency": "EUR",
        "cap_id": f"cap{number}",
        "expires_at_us": NOW + US_PER_HOUR,
        "nonce": number.to_bytes(12, "big"),
    }
    return make_token(NOW, 100, **usual | change)


def report(kind: EventKind, number: int = 0, at_us: int = NOW, **change: Any) -> EventReport:
    own = {name: change.pop(name) for name in ("event_id", "value_nanos", "price_nanos") if name in change}
    if kind in ("win", "bill"):
        own = {"price_nanos": 60} | own
    return EventReport(kind=kind, token=token(number, **change), at_us=at_us, **own)


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[EventProcessor]:
    with Ledger(folder / "ledger.db") as ledger, EventLog(folder / "events", **options) as log:
        processor = EventProcessor(ledger, log)
        if not ledger.left("c", NOW):
            ledger.set_budget("c", Budget(total_nanos=1_000_000), NOW)
        yield processor
        assert ledger.verify() == []


@pytest.fixture
def processor(tmp_path: Path) -> Iterator[EventProcessor]:
    with opened(tmp_path) as processor:
        yield processor


def logged(processor: EventProcessor) -> list[EventRecord]:
    return [entry.record for entry in event_log.read(processor.log.folder) if isinstance(entry.record, EventRecord)]


@pytest.mark.parametrize(
    ("charge_type", "costs"), [("cpm", {"bill": 60}), ("cpc", {"click": 7000}), ("cpa", {"conv": 7000})]
)
def test_bid_type_decides_which_event_is_charged(
    processor: EventProcessor, charge_type: str, costs: dict[str, int]
) -> None:
    for kind in KINDS:
        for is_new in (True, False, False):
            (effect,) = processor.process([report(kind, charge_type=charge_type)], NOW)
            assert effect.is_new == is_new
            assert effect.charged_nanos == (costs.get(kind, 0) if is_new else 0)
    assert processor.ledger.spent("c") == sum(costs.values())
    assert [(record.outcome.kind, record.outcome.charge_nanos) for record in logged(processor)] == [
        (kind, costs.get(kind, 0)) for kind in KINDS
    ]
    assert [record.outcome.kind for record in logged(processor) if record.is_training] == ["imp", "click", "conv"], (
        "a win notice is not trained on"
    )


def test_bill_is_at_most_the_signed_price_and_ignored_without_a_price(processor: EventProcessor) -> None:
    effects = processor.process(
        [report("bill", n, price_nanos=price) for n, price in enumerate((60, 100, 101, 10**15))], NOW
    )
    assert [effect.charged_nanos for effect in effects] == [60, 100, 100, 100]
    assert [record.outcome.price_nanos for record in logged(processor)] == [60, 100, 100, 100]
    assert processor.process([report("bill", 9, price_nanos=0)], NOW) == [EventEffect()], "no price"
    assert processor.process([report("bill", 9)], NOW)[0].charged_nanos == 60, (
        "the bill without a price does not block it"
    )
    (effect,) = processor.process([report("bill", 10, charge_type="cpc")], NOW)
    assert (effect.charged_nanos, logged(processor)[-1].outcome.price_nanos) == (0, 60), "the media cost is logged"


def test_charge_above_the_budget_is_written_off(processor: EventProcessor) -> None:
    processor.ledger.set_budget("c", Budget(total_nanos=100), NOW)
    assert [effect.charged_nanos for effect in processor.process([report("bill", n) for n in range(3)], NOW)] == [
        60,
        40,
        0,
    ]
    assert [(record.owed_nanos, record.outcome.charge_nanos) for record in logged(processor)] == [
        (60, 60),
        (60, 40),
        (60, 0),
    ]
    assert processor.ledger.written_off("c") == 80


def test_loss_voids_the_reservation_once(processor: EventProcessor) -> None:
    (lease,) = processor.ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=400)], NOW)
    assert isinstance(lease, Lease)
    for _ in range(2):
        processor.process([report("loss", 1, lease_id=lease.lease_id)], NOW)
        assert processor.ledger.reserved("c") == 300
    processor.process([report("bill", 2, lease_id=lease.lease_id), report("loss", 2, lease_id=lease.lease_id)], NOW)
    assert processor.ledger.reserved("c") == 200, "a billed bid is not lost"


def test_frequency_cap_reservation_is_posted_or_voided(processor: EventProcessor) -> None:
    def caps(*kinds: EventKind, **change: Any) -> list[str]:
        caps.number += 1
        return [
            effect.cap for effect in processor.process([report(kind, caps.number, **change) for kind in kinds], NOW)
        ]

    caps.number = 0
    assert caps("win", "view", "click", "conv") == ["", "", "", ""]
    assert caps("loss", "loss") == ["void", "void"], "repeated, as the store may have missed it"
    assert caps("imp", "bill", "loss") == ["post", "post", ""]
    assert caps("loss", "imp") == ["void", "post"]
    assert caps("imp", "loss", cap_id="") == caps("imp", "loss", is_test=True) == ["", ""]
    assert caps("imp", may_measure=False) == ["post"], "a cap counts without permission to measure"


def test_tests_are_neither_charged_nor_trained_on(processor: EventProcessor) -> None:
    (lease,) = processor.ledger.apply([LeaseRequest(worker="w", campaign_id="c", max_nanos=400)], NOW)
    assert isinstance(lease, Lease)
    for charge_type in ("cpm", "cpc", "cpa"):
        number = {"cpm": 1, "cpc": 2, "cpa": 3}[charge_type]
        change = {"charge_type": charge_type, "is_test": True, "lease_id": lease.lease_id}
        effects = processor.process([report(kind, number, event_id="order-1", **change) for kind in KINDS], NOW)
        assert {(effect.charged_nanos, effect.cap) for effect in effects} == {(0, "")}
    assert processor.ledger.spent("c") == 0 and processor.ledger.reserved("c") == 400
    assert {(record.is_test, record.is_training, record.owed_nanos) for record in logged(processor)} == {
        (True, False, 0)
    }
    assert processor.process([report("conv", 4, event_id="order-1")], NOW)[0].is_new, (
        "a test does not block a real conversion"
    )


def test_without_permission_only_events_that_move_money_are_logged(processor: EventProcessor) -> None:
    processor.process([report(kind, 1, may_measure=False) for kind in KINDS], NOW)
    processor.process([report(kind, 2, may_measure=False, charge_type="cpc") for kind in KINDS], NOW)
    processor.process([report(kind, 3, may_profile=False) for kind in ("imp", "click")], NOW)
    events = [(record.outcome.bid_id, record.outcome.kind) for record in logged(processor)]
    money = ("win", "bill", "loss")
    assert events == [
        *(("b1", kind) for kind in money),
        *(("b2", kind) for kind in (*money, "click")),
        ("b3", "imp"),
        ("b3", "click"),
    ]
    assert {(record.outcome.user_id, record.is_training) for record in logged(processor)} == {("", False)}
    assert processor.ledger.spent("c") == 60 + 7000


def test_token_of_an_erased_user_is_logged_without_the_user(tmp_path: Path) -> None:
    with opened(tmp_path) as processor:
        erasing = EventProcessor(processor.ledger, processor.log, is_erased=lambda user_id: user_id == "u")
        erasing.process([report("imp"), report("imp", 1, user_id="v")], NOW)
        assert [(record.outcome.user_id, record.is_training) for record in logged(processor)] == [
            ("", False),
            ("v", True),
        ]


def conversion(
    processor: EventProcessor, event_id: str, number: int = 0, hours: float = 0, **change: Any
) -> EventEffect:
    """The effect of a conversion of the bid's click; with an ``event_id`` it comes from the advertiser's server."""
    now_us = NOW + round(hours * US_PER_HOUR)
    reported = report("conv", number, at_us=now_us, event_id=event_id, **{"charge_type": "cpa"} | change)
    return processor.process([reported], now_us)[0]


def test_conversion_of_a_page_counts_once_a_click(processor: EventProcessor) -> None:
    assert conversion(processor, "").charged_nanos == 7000
    assert not conversion(processor, "", hours=160).is_new
    assert conversion(processor, "", number=1).charged_nanos == 7000


def test_conversions_of_a_server_count_once_an_event_id_and_are_charged_once_a_click(processor: EventProcessor) -> None:
    charges = [conversion(processor, f"order-{number}").charged_nanos for number in range(5)]
    assert charges == [7000, 0, 0, 0, 0] and processor.ledger.spent("c") == 7000, "further ones are recorded"
    assert [record.owed_nanos for record in logged(processor)] == [7000, 0, 0, 0, 0]
    assert not conversion(processor, "order-1", number=1, hours=47.9).is_new, "by another click too"
    assert conversion(processor, "order-1", campaign_id="other").is_new, "an event_id belongs to one campaign"
    assert conversion(processor, "order-1", hours=48).is_new, "after 48 hours the event_id is new again"
    assert not conversion(processor, "").is_new, "the page of a click that a server has reported"
    assert conversion(processor, "", number=2).charged_nanos == 7000
    assert conversion(processor, "order-9", number=2).charged_nanos == 0, (
        "the server of a click that a page has reported"
    )


def test_conversion_is_charged_once_though_the_ledger_catches_up(tmp_path: Path) -> None:
    with opened(tmp_path) as processor:
        conversion(processor, "order-1")
        database.backup(processor.ledger.connection, tmp_path / "older.db")
        conversion(processor, "order-2", number=1)
    os.replace(tmp_path / "older.db", tmp_path / "ledger.db")
    with opened(tmp_path) as processor:
        assert processor.ledger.spent("c") == 14_000
        assert conversion(processor, "order-3", number=1).charged_nanos == 0, "the click is known to be charged"


def test_conversion_without_a_click_needs_an_impression(processor: EventProcessor) -> None:
    seen = EventReport(kind="conv", token=token(7, charge_type="cpa"), at_us=NOW, needs_impression=True)
    assert processor.process([seen], NOW) == [EventEffect()]
    processor.process([report("imp", 7, charge_type="cpa")], NOW)
    assert processor.process([seen, seen], NOW)[0].charged_nanos == 7000
    assert processor.ledger.spent("c") == 7000


def test_conversion_with_the_click_of_a_test_charges_nothing(processor: EventProcessor) -> None:
    assert conversion(processor, "order-1", is_test=True).charged_nanos == 0
    assert conversion(processor, "order-1", number=1).charged_nanos == 7000


def test_keys_are_known_longer_than_tokens_are_valid(processor: EventProcessor) -> None:
    processor.process([report(kind) for kind in KINDS], NOW)
    end_us = {kind: token().ends_at_us(kind) + outcomes.CLOCK_ERROR_US - 1 for kind in KINDS}
    end_us["conv"] += outcomes.CONVERSION_US
    for last_us in sorted(set(end_us.values())):
        processor.ledger.forget(last_us)
        for kind in KINDS:
            assert processor.ledger.knows(outcomes._key(token(), kind), NOW) == (end_us[kind] >= last_us)
            if end_us[kind] == last_us:
                assert not processor.process([report(kind, at_us=last_us)], last_us)[0].is_new
    processor.ledger.forget(last_us + 2)
    assert not processor.ledger.knows(outcomes._key(token(), "conv"), NOW)


def test_event_refused_by_a_full_disk_is_posted_when_it_is_sent_again(tmp_path: Path) -> None:
    is_full = [False]

    def sync(file: int) -> None:
        if is_full[0]:
            raise OSError(28, "No space left on device")
        os.fsync(file)

    with opened(tmp_path, sync=sync) as processor:
        processor.process([report("bill", 1)], NOW)
        is_full[0] = True
        with pytest.raises(StorageError):
            processor.process([report("bill", 2)], NOW)
        assert processor.ledger.spent("c") == 60 and len(logged(processor)) == 1
    with opened(tmp_path) as processor:
        assert processor.process([report("bill", 2)], NOW)[0].is_new
        assert processor.ledger.spent("c") == 120


def test_log_behind_the_ledger_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as processor:
        processor.process([report("imp")], NOW)
    with (
        Ledger(tmp_path / "ledger.db") as ledger,
        EventLog(tmp_path / "other") as log,
        pytest.raises(InputError, match="ends at record 0, but the ledger has posted 1"),
    ):
        EventProcessor(ledger, log)


class Killed(BaseException):
    """A simulated SIGKILL: no code after it runs, and no file is cleaned up."""


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
    """(count of each kind and test flag, charged nanos), computed from the table of the module."""
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
def test_counts_and_charges_are_exact_after_repeats_shuffles_and_kills(
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
            with opened(folder, sync=sync, segment_bytes=2000) as processor:
                while events:
                    batch = [events.pop() for _ in range(min(len(events), rng.randint(1, 5)))]
                    size = processor.log._size
                    fate[0] = rng.choice(["before", "after", "unacknowledged"]) if rng.random() < kill_share else ""
                    try:
                        processor.process(batch, NOW)
                    except Killed:
                        path = processor.log._path
                        if fate[0] == "before" and processor.log._size == size:  # only a part is on the disk
                            os.truncate(path, rng.randint(size, max(size, path.stat().st_size)))
                    if fate[0]:  # posted or not, it was not acknowledged
                        events += batch
                        rng.shuffle(events)
                        kill_share *= 0.8
                        break
        with opened(folder) as processor:
            counts, cost = truth(bids)
            assert Counter((record.outcome.kind, record.is_test) for record in logged(processor)) == counts
            assert (
                processor.ledger.spent("c") == sum(record.outcome.charge_nanos for record in logged(processor)) == cost
            )
