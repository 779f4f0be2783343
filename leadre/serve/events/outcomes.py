"""Event processing: each event is counted once and charged by the campaign's bid type; frequency caps follow.

| kind | source | charge | frequency cap |
|---|---|---|---|
| win | nurl | none, and it is no impression | |
| bill | burl | cpm: the price paid, at most the signed price | posted |
| loss | lurl | none; the bid's reservation is voided | voided, unless the ad was shown |
| imp, view | the page | none | posted by imp |
| click | the page | cpc | |
| conv | page or server | cpa, once a click | |

An impression after a loss is counted again. Its bill is paid from the free budget, as others may have the reservation.
A loss after an impression voids nothing: the bill is paid from the reservation. A bill below the bid frees the rest.

A conversion that the page has reported may be sent by the server too, with its value: the record has a field for it, so
that goals count it once.

A batch is one transaction of the ledger around one append to the event log: post, append and sync, commit, acknowledge.
A crash before the sync leaves no trace. After a crash between sync and commit the next `EventProcessor` finds records
behind the ledger's last number and posts them. So log and ledger both have each event once.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from leadre import database
from leadre.auction.budget import transfers
from leadre.auction.budget.balances import Balances, KnownEvent
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Charge, ChargeResult, Void
from leadre.errors import InputError, StorageError
from leadre.serve.events import event_log
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import AssumedRate, EventRecord
from leadre.serve.events.tokens import Token
from leadre.types import BidType, EventKind, Outcome
from leadre.units import US_PER_DAY, US_PER_HOUR

CONVERSION_US = 7 * US_PER_DAY  # from a click to the last conversion
SAME_CONVERSION_US = 48 * US_PER_HOUR  # conversions with the same event_id within this time are one
# A key is known this much longer than its token is valid: a start accepts a clock that is an hour ahead, and a
# repeated event is not new when that clock is set back. `leadre.serve.processes.steady_clock` stops larger errors.
CLOCK_ERROR_US = 2 * US_PER_HOUR

CHARGED_AT: dict[BidType, EventKind] = {"cpm": "bill", "cpc": "click", "cpa": "conv"}
SHOWN: tuple[EventKind, ...] = ("imp", "bill")  # a bid with one of these events was shown
# "sale": the first conversion of a click that a server has sent; "kept": a loss that voids nothing, of an ad shown.
KeyKind = EventKind | Literal["sale", "kept"]
# Kind -> the kinds of earlier events of the bid that decide its effect.
NEEDED: dict[EventKind, tuple[KeyKind, ...]] = {
    "loss": SHOWN,
    "imp": ("bill",),
    "bill": ("loss", "kept", "imp"),
    "click": ("loss", "kept"),
    "conv": ("loss", "kept", "conv", "sale", *SHOWN),
}
SERVER_SCOPE, TEST_SCOPE = "conv", "test"  # first parts of the keys of conversions that a server sends
CATCH_UP = 1_000  # records that are posted at once
CapAction = Literal["", "post", "void"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EventReport:
    """A received event with its token checked.

    ``event_id``: the advertiser's own ID of a conversion that a server has sent; "" for one from a page.
    """

    kind: EventKind
    token: Token
    at_us: int  # bounded by the time of arrival
    price_nanos: int = 0  # paid, for win and bill
    value_nanos: int = 0  # of a conversion
    event_id: str = ""
    min_to_win_nanos: int = 0
    loss_reason: int = 0
    needs_impression: bool = False  # a conversion without a click: it counts if the ad was shown


@dataclass(frozen=True, kw_only=True, slots=True)
class EventEffect:
    """The effect of a report. ``cap``: the action on the reservation ``token.cap_id``, also for a repetition."""

    cap: CapAction = ""
    is_new: bool = False  # False: repeated, or of a kind that may not be counted
    charged_nanos: int = 0
    record: EventRecord | None = None  # as it is in the log


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierEvents:
    """Known events of a bid: whether it was shown (imp or bill) and was lost before, and who has sent a conversion.

    ``was_lost``: its reservation is void. ``converted_by`` is read for a conversion from a server.
    """

    was_shown: bool = False
    was_lost: bool = False
    converted_by: Literal["", "page", "server"] = ""


NOTHING = EarlierEvents()


def decide(report: EventReport, now_us: int, earlier: EarlierEvents) -> tuple[EventRecord | None, CapAction]:
    """(record for the log, action on the frequency cap); no record for an event that may not be counted.

    Pure: `EventProcessor` checks for repetitions and budget. Without permission to measure, only events that move money
    are recorded; without permission to profile, the record has no user.
    """
    kind = report.kind
    token = report.token
    if kind == "bill" and report.price_nanos <= 0:
        return None, ""
    if report.needs_impression and not earlier.was_shown:
        return None, ""
    cap = _cap_action(kind, token, earlier.was_shown)
    price_nanos = min(report.price_nanos, token.price_cap_nanos) if kind in ("win", "bill") else 0
    owed_nanos = 0 if earlier.converted_by else _owed_nanos(kind, token, price_nanos)
    if not (token.may_measure or owed_nanos or kind in ("win", "bill", "loss")):
        return None, cap
    is_known_user = token.may_measure and token.may_profile and token.user_id != ""
    outcome = Outcome(
        kind=kind,
        at_us=max(min(report.at_us, now_us), token.issued_at_us),  # never before its request
        bid_id=token.bid_id,
        request_id=token.request_id,
        ad_id=token.ad_id,
        campaign_id=token.campaign_id,
        user_id=token.user_id if is_known_user else "",
        price_nanos=price_nanos,
        value_nanos=report.value_nanos if kind == "conv" else 0,
    )
    key, known_until_us = _identity(report, now_us)
    record = EventRecord(
        key=key,
        outcome=outcome,
        lease_id=0 if earlier.was_lost else token.lease_id,
        owed_nanos=owed_nanos,
        void_nanos=token.reserved_nanos if kind == "loss" and not (earlier.was_shown or token.is_test) else 0,
        reserved_nanos=token.reserved_nanos if owed_nanos else 0,
        known_until_us=known_until_us,
        is_test=token.is_test,
        min_to_win_nanos=report.min_to_win_nanos,
        loss_reason=report.loss_reason,
        bid_at_us=token.issued_at_us if kind in ("click", "conv", *SHOWN) else 0,
        rate=_assumed_rate(kind, token, was_shown=earlier.was_shown),
        earlier_conversion=earlier.converted_by,
        is_training=is_known_user and kind in ("imp", "click", "conv") and not token.is_test,
        click_key=_key(token, "conv") if report.event_id and not earlier.converted_by else "",
        sale_key=_key(token, "sale") if report.event_id and earlier.converted_by != "server" else "",
    )
    return record, cap


class EventProcessor:
    """Posts events to the ledger and appends them to the log, in the process that writes both.

    The constructor posts records that a crash left in the log alone. ``is_erased`` returns whether a user was erased:
    tokens signed before the erasure still carry the user's ID.
    """

    def __init__(self, ledger: Ledger, log: EventLog, is_erased: Callable[[str], bool] = lambda user_id: False) -> None:
        self.ledger = ledger
        self.log = log
        self._is_erased = is_erased
        if ledger.log_number > log.last:
            raise InputError(
                f"{log.folder}: ends at record {log.last}, but the ledger has posted {ledger.log_number};"
                " restore the log and the ledger from the same backup"
            )
        self._is_behind = True
        self._catch_up()

    def process(self, reports: Sequence[EventReport], now_us: int, certain_us: int | None = None) -> list[EventEffect]:
        """Post and log a batch. On return it is on the disk and may be acknowledged.

        An event is a repetition if its key is known beyond ``certain_us`` (default ``now_us``).

        StorageError: no event of the batch may be acknowledged; events that are sent again are posted once.
        """
        certain_us = now_us if certain_us is None else certain_us
        self._catch_up()
        self._is_behind = True  # until the commit, as the log may get ahead
        effects = []
        try:
            with database.transaction(self.ledger.connection):
                balances = Balances(self.ledger.connection)
                balances.read_events(key for report in reports for key in _keys(report, now_us))
                effects = [self._process_one(balances, report, now_us, certain_us) for report in reports]
                balances.store()  # before the log has what the schema might refuse
                records = [effect.record for effect in effects if effect.record is not None]
                if records:
                    self.ledger.log_number = self.log.append(records, now_us)
        except sqlite3.OperationalError as error:
            raise StorageError(f"the ledger cannot be written ({error}); free or repair the disk") from error
        self._is_behind = False
        return effects

    def _process_one(self, balances: Balances, report: EventReport, now_us: int, certain_us: int) -> EventEffect:
        token = report.token
        if token.user_id and self._is_erased(token.user_id):
            report = replace(report, token=msgspec.structs.replace(token, user_id=""))

        def is_known(kind: KeyKind) -> bool:
            return kind in NEEDED.get(report.kind, ()) and balances.event(_key(token, kind), certain_us) is not None

        was_lost = is_known("loss") and not is_known("kept")
        earlier = EarlierEvents(was_shown=any(map(is_known, SHOWN)), was_lost=was_lost)
        if report.event_id and is_known("conv"):
            earlier = replace(earlier, converted_by="server" if is_known("sale") else "page")
        record, cap = decide(report, now_us, earlier)
        if record is None:
            return EventEffect(cap=cap)
        charged = _post(balances, record, certain_us)
        if not charged.is_new:
            return EventEffect(cap=cap)
        if charged.nanos:
            outcome = replace(record.outcome, charge_nanos=charged.nanos)
            record = msgspec.structs.replace(record, outcome=outcome)
        return EventEffect(cap=cap, is_new=True, charged_nanos=charged.nanos, record=record)

    def _catch_up(self) -> None:
        """Post the log's records that the ledger lacks: a crash or a full disk came between the sync and the commit."""
        if not self._is_behind:
            return
        with database.transaction(self.ledger.connection):
            number = self.ledger.log_number
            entries = event_log.read(self.log.folder, number) if number < self.log.last else iter(())
            while part := list(itertools.islice(entries, CATCH_UP)):
                balances = Balances(self.ledger.connection)
                for entry in part:
                    if isinstance(entry.record, EventRecord):
                        _post(balances, entry.record, entry.written_at_us)
                balances.store()
            self.ledger.log_number = self.log.last
        self._is_behind = False


def _post(balances: Balances, record: EventRecord, now_us: int) -> ChargeResult:
    """Post a record's charge, of 0 for most kinds, or void a lost bid's reservation."""
    if record.void_nanos:
        void = Void(
            event_id=record.key,
            campaign_id=record.outcome.campaign_id,
            nanos=record.void_nanos,
            lease_id=record.lease_id,
            known_until_us=record.known_until_us,
        )
        return transfers.void(balances, void, now_us)
    charge = Charge(
        event_id=record.key,
        campaign_id=record.outcome.campaign_id,
        nanos=record.owed_nanos,
        at_us=record.outcome.at_us,
        lease_id=record.lease_id,
        known_until_us=record.known_until_us,
        reserved_nanos=record.reserved_nanos,
    )
    result = transfers.post(balances, charge, now_us)
    if result.is_new:
        until_us = record.outcome.at_us + 2 * CONVERSION_US + CLOCK_ERROR_US  # as `_identity`
        kept_key = f"{record.key.removesuffix('loss')}kept" if record.outcome.kind == "loss" and record.lease_id else ""
        for key in filter(None, (record.click_key, record.sale_key, kept_key)):
            balances.add_event(KnownEvent(key, record.outcome.campaign_id, "", until_us))
    return result


def _owed_nanos(kind: EventKind, token: Token, price_nanos: int) -> int:
    """The advertiser's price of an event: 0 for a test and for a kind that the bid type does not charge."""
    if kind != CHARGED_AT[token.charge_type] or token.is_test:
        return 0
    return price_nanos if kind == "bill" else token.charge_nanos


def _assumed_rate(kind: EventKind, token: Token, *, was_shown: bool) -> AssumedRate | None:
    """`EventRecord.rate`. A bid for impressions counts its impression with the charge, by the bill: one that is never
    billed would look like one for nothing. Another bid counts it once, by imp or bill.
    """
    is_impression = kind == CHARGED_AT["cpm"] if token.charge_type == "cpm" else kind in SHOWN and not was_shown
    return token.rate if is_impression or kind in ("click", "conv") else None


def is_from_server(record: EventRecord) -> bool:
    """Whether a conversion was sent by the advertiser's server, with its key."""
    return record.key.startswith((f"{SERVER_SCOPE}/", f"{TEST_SCOPE}/"))


def _identity(report: EventReport, now_us: int) -> tuple[str, int]:
    """(key, time until which the key is known)."""
    token = report.token
    if report.event_id:
        scope = TEST_SCOPE if token.is_test else SERVER_SCOPE
        return f"{scope}/{token.campaign_id}/{report.event_id}", now_us + SAME_CONVERSION_US
    late_us = CONVERSION_US if report.kind == "conv" else 0  # later clicks of the bid have click IDs too
    return _key(token, report.kind), max(now_us, token.ends_at_us(report.kind)) + late_us + CLOCK_ERROR_US


def _keys(report: EventReport, now_us: int) -> list[str]:
    """The keys of the events that decide the effect of a report: its own, and those of earlier events."""
    own, _ = _identity(report, now_us)
    return [own, *(_key(report.token, kind) for kind in NEEDED.get(report.kind, ()))]


def _key(token: Token, kind: KeyKind) -> str:
    return f"{token.nonce.hex()}/{kind}"


def _cap_action(kind: EventKind, token: Token, was_shown: bool) -> CapAction:
    if token.is_test or not token.cap_id:
        return ""
    if kind in ("imp", "bill"):
        return "post"
    return "void" if kind == "loss" and not was_shown else ""
