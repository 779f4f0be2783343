"""Access to the management server: API keys as dependencies, and the backend that API and status page share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from leadre import telemetry
from leadre.auction.budget.sums import SpendToday
from leadre.clock import Clock
from leadre.serve.bidding.explanation import Explanation
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.manage.attempts import RETRY_AFTER_S, AddressLimit
from leadre.serve.manage.auth import ApiKey, ApiKeys
from leadre.serve.manage.history import MetricHistory

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Spend:
    """A campaign's day in its own time zone. ``charged_nanos`` is what the advertiser owes for it."""

    campaign_id: str
    day: str  # ISO 8601 date
    impressions: int
    clicks: int
    conversions: int
    charged_nanos: int


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The current stored lists. ``made_at_us`` is that of the list for unknown users, 0 without one."""

    version: str
    made_at_us: int


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Dependencies of the server beyond ``manage.db``. Each function is thread-safe.

    Functions that read the store raise StoreDown, those that send a request to the writer raise PeerError.
    """

    clock: Clock
    erase: Callable[[str], Mapping[str, int]]  # user ID -> store -> number of records removed
    export: Callable[[str], Mapping[str, object]]  # user ID -> store -> the user's data, ready for JSON
    spend: Callable[[Sequence[str], int, int], Sequence[Spend]]  # campaigns, from_us, to_us (exclusive)
    catalogue: Callable[[], pl.DataFrame]  # the table of ads that an import reads
    history: Callable[[], MetricHistory]  # metrics of the last hour, up to now
    charged_today: Callable[[], Sequence[SpendToday]]  # highest charge first
    counts: Callable[[], Mapping[str, tuple[int, int, int]]]  # ad ID -> impressions, clicks, conversions
    explain: Callable[[str], Explanation | None]  # a recent request by its ID; "" is the newest
    lists: Callable[[], Lists]


bearer = HTTPBearer(auto_error=False, description="A key of the management API.")


def caller(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> ApiKey:
    """The key of the request. Status 401 without a key in force, 429 after many such requests of one address."""
    key = api_keys_of(request).find(credentials.credentials) if credentials else None
    if key is None:
        count_failed_login(request)
        detail = "send a key that is in force as `Authorization: Bearer KEY`"
        raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
    return key


def operator(key: Annotated[ApiKey, Depends(caller)]) -> ApiKey:
    """The operator's key of the request. Status 403 for an advertiser's key."""
    if not key.is_operator:
        raise HTTPException(403, "this requires an operator's key")
    return key


def count_failed_login(request: Request) -> None:
    """Count a request without a valid key. Status 429 if its address has exceeded the limit."""
    limit: AddressLimit = request.app.state.failed_logins
    if not limit.take(request.client.host if request.client else ""):
        telemetry.LIMITED.labels("key").inc()
        raise HTTPException(429, "too many requests without a valid key; wait", headers={"Retry-After": RETRY_AFTER_S})


def campaign_store_of(request: Request) -> CampaignStore:
    store: CampaignStore = request.app.state.campaign_store
    return store


def api_keys_of(request: Request) -> ApiKeys:
    keys: ApiKeys = request.app.state.api_keys
    return keys


def database_of(request: Request) -> ManageDatabase:
    database: ManageDatabase = request.app.state.database
    return database


def backend_of(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


Caller = Annotated[ApiKey, Depends(caller)]
Operator = Depends(operator)
CampaignStoreDep = Annotated[CampaignStore, Depends(campaign_store_of)]
ApiKeysDep = Annotated[ApiKeys, Depends(api_keys_of)]
DatabaseDep = Annotated[ManageDatabase, Depends(database_of)]
BackendDep = Annotated[Backend, Depends(backend_of)]
