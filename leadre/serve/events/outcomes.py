"""Event processing: each event is counted once and charged by the campaign's bid type; frequency caps follow.

| kind | source | charge | frequency cap |
|---|---|---|---|
| win | nurl | none, and it is no impression | |
| bill | burl | cpm: the price paid, at most the signed price | posted |
| loss | lurl | none; the bid's reservation is voided | voided, unless the ad was shown |
| imp, view | the page | none | posted by imp |
| click | the page | cpc | |
| conv | page or server | cpa | |

A batch is one transaction of the ledger around one append to the event log: post, append and sync, commit, acknowledge.
A crash before the sync leaves no trace. After a crash between sync and commit the next `EventProcessor` finds records
behind the ledger's last number and posts them. So log and ledger both have each event once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from leadre import database
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Charge, ChargeResult, Void
from leadre.errors import InputError, StorageError
from leadre.serve.events import event_log
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.records import EventRecord
from leadre.serve.events.tokens import Token
from leadre.types import BidType, EventKind, Outcome
from leadre.units import US_PER_DAY, US_PER_HOUR

LATE_CONVERSION_US = 7 * US_PER_DAY  # the greatest age of a conversion, and the time its token outlives its end
SAME_CONVERSION_US = 48 * US_PER_HOUR  # conversions with the same event_id within this time are one
# A key is known this much longer than its token is valid: a clock that is set forward and back by hours, as between
# two time zones, does not make a repeated event new.
CLOCK_ERROR_US = US_PER_DAY

CHARGED_AT: dict[BidType, EventKind] = {"cpm": "bill", "cpc": "click", "cpa": "conv"}
CapAction = Literal["", "post", "void"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EventReport:
    """A received event with its token checked; the token of a conversion with ``late_us=LATE_CONVERSION_US``."""

    kind: EventKind
    token: Token
    at_us: int  # of the event; bounded by the time of arrival, as an advertiser's server may send any time
    price_nanos: int | None = None  # paid, for win and bill; None for an unexpanded macro or AUDIT
    value_nanos: int = 0  # of a conversion
    event_id: str = ""  # of a conversion: the advertiser's own ID


@dataclass(frozen=True, kw_only=True, slots=True)
class EventEffect:
    """The effect of a report. ``cap``: the action on the reservation ``token.cap_id``, also for a repetition."""

    cap: CapAction = ""
    is_new: bool = False  # False: repeated, or of a kind that may not be counted
    charged_nanos: int = 0
    record: EventRecord | None = None  # as it is in the log


def decide(report: EventReport, now_us: int, was_shown: bool) -> tuple[EventRecord | None, CapAction]:
    """(record for the log, action on the frequency cap); no record for an event that may not be counted.

    Pure: `EventProcessor` checks for repetitions and budget. ``was_shown``: an impression or a bill of this bid is
    known. Without permission to measure, only events that move money are recorded; without permission to profile, the
    record has no user.
    """
    kind = report.kind
    token = report.token
    if kind == "bill" and report.price_nanos is None:
        return None, ""
    if kind == "conv" and now_us - report.at_us > LATE_CONVERSION_US:
        return None, ""
    cap = _cap_action(kind, token, was_shown)
    price_nanos = min(report.price_nanos or 0, token.price_cap_nanos) if kind in ("win", "bill") else 0
    owed_nanos = _owed_nanos(kind, token, price_nanos)
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
        lease_id=token.lease_id,
        owed_nanos=owed_nanos,
        void_nanos=token.reserved_nanos if kind == "loss" and not (was_shown or token.is_test) else 0,
        known_until_us=known_until_us,
        is_test=token.is_test,
        is_training=is_known_user and kind in ("imp", "click", "conv") and not token.is_test,
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

    def process(self, reports: Sequence[EventReport], now_us: int) -> list[EventEffect]:
        """Post and log a batch. On return it is on the disk and may be acknowledged.

        StorageError: no event of the batch may be acknowledged; events that are sent again are posted once.
        """
        self._catch_up()
        self._is_behind = True  # until the commit, as the log may get ahead
        effects = []
        try:
            with database.transaction(self.ledger.connection):
                effects = [self._process_one(report, now_us) for report in reports]
                records = [effect.record for effect in effects if effect.record is not None]
                if records:
                    self.ledger.log_number = self.log.append(records, now_us)
        except sqlite3.OperationalError as error:
            raise StorageError(f"the ledger cannot be written ({error}); free or repair the disk") from error
        self._is_behind = False
        return effects

    def _process_one(self, report: EventReport, now_us: int) -> EventEffect:
        token = report.token
        if token.user_id and self._is_erased(token.user_id):
            report = replace(report, token=msgspec.structs.replace(token, user_id=""))
        was_shown = report.kind == "loss" and any(
            self.ledger.knows(_key(token, kind), now_us) for kind in ("imp", "bill")
        )
        record, cap = decide(report, now_us, was_shown)
        if record is None:
            return EventEffect(cap=cap)
        charged = self._post(record, now_us)
        if not charged.is_new:
            return EventEffect(cap=cap)
        outcome = replace(record.outcome, charge_nanos=charged.nanos)
        record = msgspec.structs.replace(record, outcome=outcome)
        return EventEffect(cap=cap, is_new=True, charged_nanos=charged.nanos, record=record)

    def _post(self, record: EventRecord, now_us: int) -> ChargeResult:
        """Post a record's charge, of 0 for most kinds, or void a lost bid's reservation."""
        order: Charge | Void = Charge(
            event_id=record.key,
            campaign_id=record.outcome.campaign_id,
            nanos=record.owed_nanos,
            at_us=record.outcome.at_us,
            lease_id=record.lease_id,
            known_until_us=record.known_until_us,
        )
        if record.void_nanos:
            order = Void(
                event_id=record.key,
                campaign_id=record.outcome.campaign_id,
                nanos=record.void_nanos,
                lease_id=record.lease_id,
                known_until_us=record.known_until_us,
            )
        charged = self.ledger.execute(order, now_us)
        assert isinstance(charged, ChargeResult)
        return charged

    def _catch_up(self) -> None:
        """Post the log's records that the ledger lacks: a crash or a full disk came between the sync and the commit."""
        if not self._is_behind:
            return
        with database.transaction(self.ledger.connection):
            number = self.ledger.log_number
            for entry in event_log.read(self.log.folder, number) if number < self.log.last else ():
                if isinstance(entry.record, EventRecord):
                    self._post(entry.record, entry.written_at_us)
            self.ledger.log_number = self.log.last
        self._is_behind = False


def _owed_nanos(kind: EventKind, token: Token, price_nanos: int) -> int:
    """The advertiser's price of an event: 0 for a test and for a kind that the bid type does not charge."""
    if kind != CHARGED_AT[token.charge_type] or token.is_test:
        return 0
    return price_nanos if kind == "bill" else token.charge_nanos


def _identity(report: EventReport, now_us: int) -> tuple[str, int]:
    """(key, time until which the key is known)."""
    token = report.token
    if report.kind == "conv" and report.event_id:
        scope = "test" if token.is_test else "conv"
        return f"{scope}/{token.campaign_id}/{report.event_id}", now_us + SAME_CONVERSION_US
    late_us = LATE_CONVERSION_US if report.kind == "conv" else 0  # as the token is checked
    return _key(token, report.kind), max(now_us, token.expires_at_us + late_us) + CLOCK_ERROR_US


def _key(token: Token, kind: EventKind) -> str:
    return f"{token.nonce.hex()}/{kind}"


def _cap_action(kind: EventKind, token: Token, was_shown: bool) -> CapAction:
    if token.is_test or not token.cap_id:
        return ""
    if kind in ("imp", "bill"):
        return "post"
    return "void" if kind == "loss" and not was_shown else ""
