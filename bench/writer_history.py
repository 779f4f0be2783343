"""The history of `bench/writer.py`: a state folder with a log as serving writes it, and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec

from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import Budget
from leadre.clock import SystemClock
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events import training
from leadre.serve.events.log_writer import EventLog
from leadre.serve.events.outcomes import EventProcessor, EventReport, decide
from leadre.serve.events.records import Record, RequestRecord
from leadre.serve.events.tokens import Token, nonce
from leadre.serve.paths import StatePaths
from leadre.types import Ad, Bid, Campaign, Candidate, EventKind, Verdict
from leadre.units import US_PER_DAY, US_PER_S

ADS = 1_000
CAMPAIGNS = 50
USERS = 100_000
ERASED = "user-with-requests-of-all-days"
ERASED_REQUESTS = 300
KINDS: tuple[EventKind, ...] = ("bill", "imp", "click")  # of each request
FLUSHED = 1_000  # requests behind the tables in the measurement of a flush
CHUNK = 500  # requests appended at once
COMPACTED = 50_000  # requests between two compactions while the history is built
PRICE_NANOS = 1_500_000


def paths_of(folder: Path) -> StatePaths:
    return StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")


def ads() -> list[Ad]:
    return [
        Ad(
            ad_id=f"a{number}",
            object_id=f"o{number}",
            campaign_id=f"c{number % CAMPAIGNS}",
            advertiser_id="acme",
            title="Shoes",
            landing_url="https://www.acme.test/shoes",
            sizes=((300, 250),),
        )
        for number in range(ADS)
    ]


def fill_catalogue(paths: StatePaths) -> None:
    campaigns = [
        Campaign(campaign_id=f"c{number}", advertiser_id="acme", name="Autumn", bid_type="cpm", bid_nanos=PRICE_NANOS)
        for number in range(CAMPAIGNS)
    ]
    database = ManageDatabase(paths.manage_database)
    CampaignStore(database).add(campaigns, ads())
    database.close()
    with Ledger(paths.ledger) as ledger:
        ledger.set_budgets({campaign.campaign_id: Budget() for campaign in campaigns}, SystemClock().now_us())


def token_of(number: int, user_id: str, at_us: int) -> Token:
    ad = number * 7919 % ADS
    return Token(
        bid_id=f"bid-{number:016d}",
        request_id=f"request-{number:016d}",
        imp_id="1",
        ad_id=f"a{ad}",
        campaign_id=f"c{ad % CAMPAIGNS}",
        user_id=user_id,
        charge_type="cpm",
        price_cap_nanos=PRICE_NANOS,
        charge_nanos=0,
        currency="USD",
        lease_id=0,
        reserved_nanos=0,
        cap_id="",
        issued_at_us=at_us,
        expires_at_us=at_us + 600 * US_PER_S,
        nonce=nonce(),
        is_test=False,
        may_measure=True,
        may_profile=True,
    )


def request_of(number: int, user_id: str, at_us: int) -> RequestRecord:
    """A request of 20 candidates with a bid, as large as those of serving."""
    first = number * 7919 % ADS
    bid = Bid(
        bid_id=f"bid-{number:016d}",
        imp_id="1",
        ad_id=f"a{first}",
        campaign_id=f"c{first % CAMPAIGNS}",
        advertiser_id="acme",
        price_nanos=PRICE_NANOS,
        currency="USD",
        size=(300, 250),
        source="stored",
        propensity=0.95,
    )
    return RequestRecord(
        request_id=f"request-{number:016d}",
        at_us=at_us,
        user_id=user_id,
        placements={"1": "top"},
        candidates=tuple(
            Candidate(ad_id=f"a{(first + rank) % ADS}", source="stored", log_p=-0.125 * rank) for rank in range(20)
        ),
        verdicts={"1": (Verdict.BID, *(Verdict.OUTRANKED,) * 19)},
        bids=(bid,),
        caller_request_id=f"caller-{number:016d}",
        request={"imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "device": {"geo": {"country": "USA"}}},
        is_known=True,
        versions={"model": "sha256-0123456789abcdef", "lists": "lists-1"},
    )


def records_of(number: int, count: int, at_us: int) -> Iterator[Record]:
    """A request and its events."""
    user_id = ERASED if number % max(1, count // ERASED_REQUESTS) == 0 else f"user-{number * 31 % USERS:08d}"
    token = token_of(number, user_id, at_us)
    yield request_of(number, user_id, at_us)
    for kind in KINDS:
        price_nanos = PRICE_NANOS if kind == "bill" else None
        record, _ = decide(EventReport(kind=kind, token=token, at_us=at_us, price_nanos=price_nanos), at_us, False)
        assert record is not None
        charged = dataclasses.replace(record.outcome, charge_nanos=record.owed_nanos)
        yield msgspec.structs.replace(record, outcome=charged)


def grow(paths: StatePaths, count: int, days: float, *, spread: int) -> None:
    """Append requests and events until the log has ``count`` requests; ``spread`` of them end now, the rest behind."""
    if not paths.manage_database.exists():
        fill_catalogue(paths)
    now_us = SystemClock().now_us()
    began = paths.folder / "began"  # the first moment of the history, so that a second run continues it
    if not began.exists():
        began.write_text(str(now_us - round(days * US_PER_DAY)))
    began_us = int(began.read_text())
    step_us = (now_us - began_us) / spread
    per_request = 1 + len(KINDS)
    with EventLog(paths.events, sync=lambda file: None) as log, Ledger(paths.ledger) as ledger:
        for start in range(log.last // per_request, count, CHUNK):
            at_us = min(now_us, began_us + round(start * step_us))
            numbers = range(start, min(start + CHUNK, count))
            log.append([record for number in numbers for record in records_of(number, spread, at_us)], at_us)
            if start % COMPACTED == 0:
                EventProcessor(ledger, log)
                ledger.forget(at_us)
        EventProcessor(ledger, log)


def requests_in(paths: StatePaths) -> int:
    """The number of requests in the log."""
    with EventLog(paths.events) as log:
        return log.last // (1 + len(KINDS))


def build(folder: Path, count: int, days: float) -> StatePaths:
    """The state folder of a history, with tables up to its end."""
    paths = paths_of(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for target in (*range(COMPACTED, count, COMPACTED), count):
        grow(paths, target, days, spread=count)
        training.compact(paths.events, paths.tables, ads())
    return paths
