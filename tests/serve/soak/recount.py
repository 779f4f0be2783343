"""The recount at the end: memory of the clients against log, tables, ledger and reports of the bidder."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from contextlib import closing
from datetime import date
from pathlib import Path

import polars as pl

from leadre import database
from leadre.auction.budget import schema
from leadre.auction.budget.ledger import Ledger
from leadre.serve.events import event_log
from leadre.serve.events.records import EventRecord, RequestRecord

from ..test_promises import holding
from .campaigns import Group
from .kept_bidder import KeptBidder
from .memory import Memory

USER = re.compile(rb"soak-[a-z]+-\d{4}")
DEEP = 2  # erased users whose encodings and hashes are searched too
TABLES = {"imp": "impression", "click": "click", "conv": "conversion"}


class Recount:
    """Compares what is on the disk of a stopped bidder with ``memory``; faults are problems of it."""

    def __init__(self, state: Path, memory: Memory, groups: dict[str, Group]) -> None:
        self._state = state
        self._memory = memory
        self._groups = groups
        self._events: dict[tuple[str, str], int] = {}  # (bid, kind) -> nanos charged, as in the log
        self._numbers: dict[int, tuple[str, str]] = {}  # number of a record -> (request, action) in the tables
        self._requests: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()  # campaign -> nanos
        self.owed: Counter[str] = Counter()
        # No acknowledgement was made for either: a killed worker had not sent the record of a request, and a click is
        # redirected though the writer is away.
        self.lost = {"requests": 0, "clicks": 0}

    def log(self) -> None:
        """Every acknowledged event is in the log once, no other event is, and each is charged by its bid's terms."""
        counts: Counter[tuple[str, str]] = Counter()
        named: set[str] = set()
        for entry in event_log.read(self._state / "events"):
            record = entry.record
            if isinstance(record, RequestRecord):
                self._requests[record.request_id] += not record.is_test
            elif isinstance(record, EventRecord):
                outcome = record.outcome
                counts[outcome.bid_id, outcome.kind] += 1
                named.add(outcome.request_id)
                self._check_price(record)
                if record.is_training and outcome.user_id:
                    self._numbers[entry.number] = outcome.request_id, TABLES[outcome.kind]
        sent = self._memory.events
        self.lost["requests"] = len(named - self._requests.keys())
        self.lost["clicks"] = sum(kind == "click" and not counts[bid, kind] for bid, kind in sent)
        missing = Counter(
            kind for (bid, kind), event in sent.items() if event.is_acknowledged and not counts[bid, kind]
        )
        for kind, number in missing.items():
            self._memory.complain(f"{number} acknowledged events {kind} are not in the log")
        unknown = Counter(kind for (bid, kind) in counts if (bid, kind) not in sent)
        for kind, number in unknown.items():
            self._memory.complain(f"{number} events {kind} of the log were never sent")
        for what, several in (("events", counts), ("requests", self._requests)):
            if repeated := sum(number > 1 for number in several.values()):
                self._memory.complain(f"{repeated} {what} are in the log more than once")

    def _check_price(self, record: EventRecord) -> None:
        outcome = record.outcome
        sent = self._memory.events.get((outcome.bid_id, outcome.kind))
        self.charged[outcome.campaign_id] += outcome.charge_nanos
        if sent is None:
            return
        self.owed[outcome.campaign_id] += sent.owed_nanos
        if record.owed_nanos != sent.owed_nanos or not 0 <= outcome.charge_nanos <= record.owed_nanos:
            self._memory.complain(f"a {outcome.kind} was charged by other terms than those of its bid")

    def tables(self) -> None:
        """Every event and request of the log that may be trained on is in the tables once."""
        tables = self._state / "tables"
        rows = [pl.read_parquet(path, columns=["number", "request_id", "action"]) for path in _parts(tables / "events")]
        found_rows = Counter(row for frame in rows for row in frame.iter_rows())
        expected = Counter((number, *row) for number, row in self._numbers.items())
        if found_rows != expected:
            lost = len(expected - found_rows)
            self._memory.complain(f"the table of events lacks {lost} rows and has {len(found_rows - expected)} others")
        answers: Counter[str] = Counter()
        for path in _parts(tables / "answers"):
            answers.update(pl.read_parquet(path, columns=["request_id"])["request_id"].to_list())
        if answers != Counter(dict.fromkeys(+self._requests, 1)):
            lost = len((+self._requests).keys() - answers.keys())
            repeated = sum(number > 1 for number in answers.values())
            self._memory.complain(f"the table of answers lacks {lost} requests and has {repeated} several times")

    def money(self) -> None:
        """The ledger adds up; each campaign is charged as the log has it, within its budget, and nothing is lost."""
        path = self._state / "ledger.db"
        with closing(database.connect(path, schema.MIGRATIONS, read_only=True)) as reader:
            days = reader.execute("SELECT campaign_id, day, charged_nanos FROM days").fetchall()
        with Ledger(path) as ledger:
            for line in ledger.verify():
                self._memory.complain(f"the ledger: {line}")
            for name, group in self._groups.items():
                charged = ledger.spent(group.campaign_id)
                if charged != self.charged[group.campaign_id]:
                    self._memory.complain(
                        f"{name}: the ledger charged {charged}, the log {self.charged[group.campaign_id]}"
                    )
                written_off = ledger.written_off(group.campaign_id)
                if name != "greedy" and charged + written_off != self.owed[group.campaign_id]:
                    self._memory.complain(
                        f"{name}: owed {self.owed[group.campaign_id]}, {charged} + {written_off} booked"
                    )
                if group.bid_type == "cpm" and name != "greedy" and written_off:
                    self._memory.complain(f"{name}: {written_off} written off, though each bid has a reservation")
                if group.total_nanos and charged > group.total_nanos:
                    self._memory.complain(f"{name}: {charged} charged above the budget")
        limits = {group.campaign_id: group.daily_nanos for group in self._groups.values() if group.daily_nanos}
        for campaign_id, day, charged in days:
            if charged > limits.get(campaign_id, charged):
                self._memory.complain(f"{charged} charged on {date.fromisoformat(day)}, above the budget of a day")

    def caps(self) -> None:
        """No user saw a capped campaign more often in a day than its cap."""
        limits = {group.campaign_id: group.cap_per_day for group in self._groups.values() if group.cap_per_day}
        shown = ((key, len(bids)) for key, bids in self._memory.shown.items())
        over = [(key, number) for key, number in shown if number > limits.get(key[0], number)]
        if over:
            self._memory.complain(f"{len(over)} users saw more than the cap, one {max(n for _, n in over)} times")

    def erased(self) -> None:
        """No file names an erased user."""
        names: defaultdict[str, set[str]] = defaultdict(set)
        for path in self._state.rglob("*"):
            if path.is_file():
                names[path.name] |= {match.decode() for match in USER.findall(path.read_bytes())}
        for part in (self._state / "tables").rglob("*.parquet"):
            if "user_id" in pl.read_parquet_schema(part):
                names[part.name] |= set(pl.read_parquet(part, columns=["user_id"])["user_id"].drop_nulls().to_list())
        for name, users in names.items():
            if users & self._memory.erased:
                self._memory.complain(f"{len(users & self._memory.erased)} erased users are in {name}")
        for user_id in sorted(self._memory.erased)[:DEEP]:
            if files := holding(self._state, user_id):
                self._memory.complain(f"a form of an erased user is in {files}")


def compare_reports(bidder: KeptBidder, memory: Memory, groups: dict[str, Group]) -> dict[str, int]:
    """Compare reports with acknowledged events, and stored campaigns with their forms; (campaign -> nanos charged)."""
    charged = {}
    kinds = {"impressions": "imp", "conversions": "conv"}
    for name, group in groups.items():
        report = bidder.report(group.campaign_id)
        charged[group.campaign_id] = report["charged_nanos"]
        for field, kind in kinds.items():
            events = [event for (_, k), event in memory.events.items() if k == kind]
            ours = [event for event in events if event.campaign_id == group.campaign_id]
            acknowledged = sum(event.is_acknowledged for event in ours)
            if not acknowledged <= report[field] <= len(ours):
                memory.complain(f"{name}: {report[field]} {field} reported, {acknowledged} to {len(ours)} were")
    for name, form in memory.stored.items():
        stored = bidder.manage("GET", f"/campaigns/{name}")
        if any(stored[field] != value for field, value in form.items()):
            memory.complain(f"campaign {name} is not stored as it was acknowledged")
    return charged


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))
