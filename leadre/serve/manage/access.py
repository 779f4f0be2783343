"""Who calls the management server and what it reaches: what the API and the status page share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from leadre.auction.budget.sums import SpendToday
from leadre.clock import Clock
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events.records import RequestRecord
from leadre.serve.manage.auth import ApiKey, ApiKeys
from leadre.serve.manage.history import MetricHistory

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Spend:
    """A campaign's day, in its own time zone. ``charged_nanos`` is what the advertiser owes for it."""

    campaign_id: str
    day: str  # ISO 8601, without a time
    impressions: int
    clicks: int
    conversions: int
    charged_nanos: int


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The lists that bids are answered from. ``made_at_us`` is that of the list for strangers, 0 without one."""

    version: str
    made_at_us: int


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What the server reaches beyond ``manage.db``. Each function may be called from several threads.

    StoreDown from what asks the store, PeerError from what asks the writer.
    """

    clock: Clock
    erase: Callable[[str], Mapping[str, int]]  # a user's ID -> store -> records removed; returns when they are gone
    export: Callable[[str], Mapping[str, object]]  # a user's ID -> store -> what it holds, ready for JSON
    spend: Callable[[Sequence[str], int, int], Sequence[Spend]]  # campaigns, from_us, until before to_us
    catalogue: Callable[[], pl.DataFrame]  # the table of ads that an import reads
    history: Callable[[], MetricHistory]  # what the bidder counted, up to this moment
    charged_today: Callable[[], Sequence[SpendToday]]  # the most first
    counts: Callable[[], Mapping[str, tuple[int, int, int]]]  # ad -> impressions, clicks, conversions
    explain: Callable[[str], RequestRecord | None]  # one of the last requests by its ID, "" = the newest
    lists: Callable[[], Lists]


bearer = HTTPBearer(auto_error=False, description="A key of the management API.")


def caller(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> ApiKey:
    keys: ApiKeys = request.app.state.keys
    key = keys.find(credentials.credentials) if credentials else None
    if key is None:
        detail = "send a key that is in force as `Authorization: Bearer KEY`"
        raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
    return key


def operator(key: Annotated[ApiKey, Depends(caller)]) -> ApiKey:
    if not key.is_operator:
        raise HTTPException(403, "this wants an operator's key")
    return key


def book_of(request: Request) -> CampaignStore:
    book: CampaignStore = request.app.state.book
    return book


def keys_of(request: Request) -> ApiKeys:
    keys: ApiKeys = request.app.state.keys
    return keys


def records_of(request: Request) -> ManageDatabase:
    records: ManageDatabase = request.app.state.records
    return records


def outside_of(request: Request) -> Backend:
    outside: Backend = request.app.state.outside
    return outside


Caller = Annotated[ApiKey, Depends(caller)]
Operator = Depends(operator)
TheBook = Annotated[CampaignStore, Depends(book_of)]
TheKeys = Annotated[ApiKeys, Depends(keys_of)]
TheRecords = Annotated[ManageDatabase, Depends(records_of)]
TheOutside = Annotated[Backend, Depends(outside_of)]
