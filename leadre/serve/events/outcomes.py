"""What an event does: counted once, charged by the campaign's bid type, and what the user's cap makes of it.

| kind | comes from | charges | cap |
|---|---|---|---|
| win | nurl | nothing, and it is no impression | |
| bill | burl | cpm: the price that was paid, at most the signed cap | kept |
| loss | lurl | nothing; what was reserved for the bid returns | released, unless the ad was shown |
| imp, view | the page | nothing | kept by imp |
| click | the page | cpc | |
| conv | page or server | cpa | |

A batch is one transaction of the ledger with one append to the event log inside: decide and book, log and sync, commit,
acknowledge. Killed before the log was synced, nothing happened; after it, `EventProcessor` finds the records beyond the
ledger's when it is made, and books them. So the log has each event once, and so have the books.
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

LATE_CONVERSION_US = 7 * US_PER_DAY  # how old a conversion may be, and how long its token is taken after its end
SAME_CONVERSION_US = 48 * US_PER_HOUR  # one event_id within this is one conversion

CHARGED_AT: dict[BidType, EventKind] = {"cpm": "bill", "cpc": "click", "cpa": "conv"}
Cap = Literal["", "keep", "release"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EventReport:
    """An event that came in. The token is checked, a conversion's with ``late_us=LATE_CONVERSION_US``."""

    kind: EventKind
    token: Token
    at_us: int  # when it happened; what an advertiser's server says is not trusted far
    price_nanos: int | None = None  # of win and bill: what was paid; None for a macro that nobody filled, or AUDIT
    value_nanos: int = 0  # of a conversion
    event_id: str = ""  # of a conversion: the advertiser's name for it


@dataclass(frozen=True, kw_only=True, slots=True)
class EventEffect:
    """What came of a report. ``cap``: what the store is to do with ``token.cap_id``, also when the event was known."""

    cap: Cap = ""
    is_new: bool = False  # False: known already, or of a kind that may not be counted
    charged_nanos: int = 0
    record: EventRecord | None = None  # what the log has of it


def decide(report: EventReport, now_us: int, was_shown: bool) -> tuple[EventRecord | None, Cap]:
    """(what to write down, the cap's fate); no record of what may not be counted.

    Pure: what is known already and what the budget allows is for `EventProcessor`. ``was_shown``: an impression or a
    bill of
    this bid is known. Without permission to measure only what moves money is recorded; without permission to profile it
    is recorded without its user.
    """
    kind, token = report.kind, report.token
    if kind == "bill" and report.price_nanos is None:
        return None, ""
    if kind == "conv" and now_us - report.at_us > LATE_CONVERSION_US:
        return None, ""
    cap = _cap(kind, token, was_shown)
    price = min(report.price_nanos or 0, token.price_cap_nanos) if kind in ("win", "bill") else 0
    owed = price if kind == "bill" else token.charge_nanos
    if kind != CHARGED_AT[token.charge_type] or token.is_test:
        owed = 0
    if not (token.may_measure or owed or kind in ("win", "bill", "loss")):
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
        price_nanos=price,
        value_nanos=report.value_nanos if kind == "conv" else 0,
    )
    key, known_until_us = _identity(report, now_us)
    record = EventRecord(
        key=key,
        outcome=outcome,
        lease_id=token.lease_id,
        owed_nanos=owed,
        void_nanos=token.reserved_nanos if kind == "loss" and not (was_shown or token.is_test) else 0,
        known_until_us=known_until_us,
        is_test=token.is_test,
        is_training=is_known_user and kind in ("imp", "click", "conv") and not token.is_test,
    )
    return record, cap


class EventProcessor:
    """Books events, in the process that writes ledger and log. Making it books what a kill left unbooked.

    ``is_erased`` tells whether a user was erased: tokens that are about still name them.
    """

    def __init__(self, ledger: Ledger, log: EventLog, is_erased: Callable[[str], bool] = lambda user_id: False) -> None:
        self.ledger, self.log, self._is_erased = ledger, log, is_erased
        if ledger.log_number > log.last:
            raise InputError(
                f"{log.folder}: ends at record {log.last}, but the ledger has booked {ledger.log_number};"
                " restore the log and the ledger from the same backup"
            )
        self._is_behind = True
        self._catch_up()

    def take(self, reports: Sequence[EventReport], now_us: int) -> list[EventEffect]:
        """Book a batch; what is returned may be acknowledged: it is on the disk.

        StorageError: none of it may be acknowledged; when it is sent again it is booked once.
        """
        self._catch_up()
        self._is_behind = True  # until the commit: the log may get ahead
        effects, records = [], []
        try:
            with database.transaction(self.ledger.connection):
                for report in reports:
                    effect, record = self._book(report, now_us)
                    effects.append(effect)
                    records += [record] if record else []
                if records:
                    self.ledger.log_number = self.log.append(records, now_us)
        except sqlite3.OperationalError as error:
            raise StorageError(f"the ledger cannot be written ({error}); free or repair the disk") from error
        self._is_behind = False
        return effects

    def _book(self, report: EventReport, now_us: int) -> tuple[EventEffect, EventRecord | None]:
        token = report.token
        if token.user_id and self._is_erased(token.user_id):
            report = replace(report, token=msgspec.structs.replace(token, user_id=""))
        was_shown = report.kind == "loss" and any(
            self.ledger.knows(_key(token, kind), now_us) for kind in ("imp", "bill")
        )
        record, cap = decide(report, now_us, was_shown)
        if record is None:
            return EventEffect(cap=cap), None
        charged = self._enter(record, now_us)
        if not charged.is_new:
            return EventEffect(cap=cap), None
        outcome = replace(record.outcome, charge_nanos=charged.nanos)
        record = msgspec.structs.replace(record, outcome=outcome)
        return EventEffect(cap=cap, is_new=True, charged_nanos=charged.nanos, record=record), record

    def _enter(self, record: EventRecord, now_us: int) -> ChargeResult:
        campaign_id, at_us = record.outcome.campaign_id, record.outcome.at_us
        key, lease_id, until_us = record.key, record.lease_id, record.known_until_us
        order: Charge | Void = Charge(
            event_id=key,
            campaign_id=campaign_id,
            nanos=record.owed_nanos,
            at_us=at_us,
            lease_id=lease_id,
            known_until_us=until_us,
        )
        if record.void_nanos:
            order = Void(
                event_id=key,
                campaign_id=campaign_id,
                nanos=record.void_nanos,
                lease_id=lease_id,
                known_until_us=until_us,
            )
        charged = self.ledger.execute(order, now_us)
        assert isinstance(charged, ChargeResult)
        return charged

    def _catch_up(self) -> None:
        """Book the records that the log has beyond the ledger: a kill, or a full disk, came between the two."""
        if not self._is_behind:
            return
        with database.transaction(self.ledger.connection):
            for entry in event_log.read(self.log.folder, self.ledger.log_number):
                if isinstance(entry.record, EventRecord):
                    self._enter(entry.record, entry.written_at_us)
            self.ledger.log_number = self.log.last
        self._is_behind = False


def _identity(report: EventReport, now_us: int) -> tuple[str, int]:
    """(key, until when it is known)."""
    token = report.token
    if report.kind == "conv" and report.event_id:
        scope = "test" if token.is_test else "conv"
        return f"{scope}/{token.campaign_id}/{report.event_id}", now_us + SAME_CONVERSION_US
    return _key(token, report.kind), max(now_us, token.expires_at_us + LATE_CONVERSION_US) + US_PER_HOUR


def _key(token: Token, kind: EventKind) -> str:
    return f"{token.nonce.hex()}/{kind}"


def _cap(kind: EventKind, token: Token, was_shown: bool) -> Cap:
    if token.is_test or not token.cap_id:
        return ""
    if kind in ("imp", "bill"):
        return "keep"
    return "release" if kind == "loss" and not was_shown else ""
