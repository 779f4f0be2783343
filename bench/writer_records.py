"""Records of the history of `bench/writer.py`: requests, events and the catalogue, as large as those of serving."""

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
from leadre.serve.events.outcomes import NOTHING, EventReport, decide
from leadre.serve.events.records import EventRecord, Record, RequestRecord
from leadre.serve.events.tokens import NONCE_BYTES, Token
from leadre.serve.paths import StatePaths
from leadre.types import Ad, Bid, Campaign, Candidate, EventKind, Verdict
from leadre.units import US_PER_S

ADS = 1_000
CAMPAIGNS = 50
USERS = 100_000
USER_STEP = 31  # between the users of two requests
NONCE_FACTOR = 0x9E3779B97F4A7C15  # of Fibonacci hashing; odd, so that no two products are equal
ERASED = "user-all-days"  # as long as the IDs of other users
ERASED_REQUESTS = 300
KINDS: tuple[EventKind, ...] = ("bill", "imp", "click")  # of each request
PER_REQUEST = 1 + len(KINDS)  # records
PRICE_NANOS = 1_500_000


def paths_of(folder: Path) -> StatePaths:
    return StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")


def ads() -> list[Ad]:
    return [
        Ad(
            ad_id=f"a{number:03d}",
            object_id=f"o{number:03d}",
            campaign_id=campaign_of(number),
            advertiser_id="acme",
            title="Shoes",
            landing_url="https://www.acme.test/shoes",
            sizes=((300, 250),),
        )
        for number in range(ADS)
    ]


def campaign_of(ad: int) -> str:
    return f"c{ad % CAMPAIGNS:02d}"


def fill_catalogue(paths: StatePaths) -> None:
    campaigns = [
        Campaign(
            campaign_id=campaign_of(number),
            advertiser_id="acme",
            name="Autumn",
            bid_type="cpm",
            bid_nanos=PRICE_NANOS,
        )
        for number in range(CAMPAIGNS)
    ]
    database = ManageDatabase(paths.manage_database)
    CampaignStore(database).add(campaigns, ads())
    database.close()
    with Ledger(paths.ledger) as ledger:
        ledger.set_budgets({campaign.campaign_id: Budget() for campaign in campaigns}, SystemClock().now_us())


def user_period(count: int) -> int:
    """The distance of two requests of `ERASED` in a history of ``count`` requests, so that all days have some."""
    return max(1, count // ERASED_REQUESTS)


def user_of(number: int, count: int) -> str:
    """The user of a request in a history of ``count`` requests."""
    return ERASED if number % user_period(count) == 0 else f"user-{number * USER_STEP % USERS:08d}"


def nonce_of(number: int) -> bytes:
    """The nonce of a request's token, unique and spread over all values as a random one, so that it can be repeated."""
    spread = number * NONCE_FACTOR % (1 << 64)
    return spread.to_bytes(8, "big") + (number % (1 << 32)).to_bytes(NONCE_BYTES - 8, "big")


def token_of(number: int, user_id: str, at_us: int) -> Token:
    ad = number * 7919 % ADS
    return Token(
        bid_id=f"bid-{number:016d}",
        request_id=f"request-{number:016d}",
        imp_id="1",
        ad_id=f"a{ad:03d}",
        campaign_id=campaign_of(ad),
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
        nonce=nonce_of(number),
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
        ad_id=f"a{first:03d}",
        campaign_id=campaign_of(first),
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
            Candidate(ad_id=f"a{(first + rank) % ADS:03d}", source="stored", log_p=-0.125 * rank) for rank in range(20)
        ),
        verdicts={"1": (Verdict.BID, *(Verdict.OUTRANKED,) * 19)},
        bids=(bid,),
        caller_request_id=f"caller-{number:016d}",
        request={"imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "device": {"geo": {"country": "USA"}}},
        is_known=True,
        versions={"model": "sha256-0123456789abcdef", "lists": "lists-1"},
    )


def events_of(number: int, user_id: str, at_us: int) -> Iterator[EventRecord]:
    """The events of a request, charged in full."""
    token = token_of(number, user_id, at_us)
    for kind in KINDS:
        price_nanos = PRICE_NANOS if kind == "bill" else 0
        record, _ = decide(EventReport(kind=kind, token=token, at_us=at_us, price_nanos=price_nanos), at_us, NOTHING)
        assert record is not None
        charged = dataclasses.replace(record.outcome, charge_nanos=record.owed_nanos)
        yield msgspec.structs.replace(record, outcome=charged)


def records_of(number: int, user_id: str, at_us: int) -> Iterator[Record]:
    """A request and its events."""
    yield request_of(number, user_id, at_us)
    yield from events_of(number, user_id, at_us)
