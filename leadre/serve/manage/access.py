"""Access to the management server: API keys as dependencies, and the backend that API and status page share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from leadre import telemetry
from leadre.auction.budget.sums import SpendToday, UsedBudget
from leadre.clock import Clock
from leadre.serve.bidding.explanation import Explanation
from leadre.serve.catalogue.audit import Author
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.ipc.messages import CampaignPacing, ClockReply
from leadre.serve.manage.attempts import RETRY_AFTER_S, AddressLimit
from leadre.serve.manage.auth import ApiKey, ApiKeys, missing_scope
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
class Ranker:
    """The current version of the published rankers, and when it was published; "" and 0 without one."""

    version: str
    published_at_us: int


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
    used_budget: Callable[[str], tuple[UsedBudget, UsedBudget]]  # of a campaign: in all, and today
    pacing: Callable[[], Mapping[str, CampaignPacing]]  # of the campaigns with a plan
    counts: Callable[[], Mapping[str, tuple[int, int, int]]]  # ad ID -> impressions, clicks, conversions
    explain: Callable[[str], Explanation | None]  # a recent request by its ID; "" is the newest
    lists: Callable[[], Lists]
    ranker: Callable[[], Ranker]  # InputError if its files are damaged
    time_state: Callable[[], ClockReply]  # the bidder's time, and whether the machine's is in doubt
    confirm_clock: Callable[[str], ClockReply]  # takes the machine's time as right; the text is who confirms
    reviews_accounts: bool = False  # whether an operator reviews the ads of accounts before they are shown


bearer = HTTPBearer(auto_error=False, description="A key of the management API; its scopes are those of an operation.")
OPERATOR = "operator"  # beside the scopes of an operation: no account's key may call it


def presented_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ApiKey:
    """The key of the request. Status 401 without a key in force, 429 after many such requests of one address."""
    key = database_keys(request).find(credentials.credentials) if credentials else None
    if key is None:
        count_failed_login(request)
        detail = "send a key that is in force as `Authorization: Bearer KEY`"
        raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
    return key


def allowed_key(needed: SecurityScopes, key: Annotated[ApiKey, Depends(presented_key)]) -> ApiKey:
    """The key of the request. Status 403 for an account's key where an operator's is needed, or without a scope."""
    if OPERATOR in needed.scopes and not key.is_operator:
        raise HTTPException(403, "this requires an operator's key")
    missing = [scope for scope in needed.scopes if scope not in (OPERATOR, *key.scopes)]
    if missing:
        raise HTTPException(403, missing_scope(key, missing[0]))
    return key


def is_own(key: ApiKey, advertiser_id: str) -> bool:
    """Whether the key may act for the account."""
    return key.is_operator or advertiser_id in ("", key.advertiser_id)


def count_failed_login(request: Request) -> None:
    """Count a request without a valid key. Status 429 if its address has exceeded the limit."""
    limit: AddressLimit = request.app.state.failed_logins
    if not limit.take(request.client.host if request.client else ""):
        telemetry.LIMITED.labels("key").inc()
        raise HTTPException(429, "too many requests without a valid key; wait", headers={"Retry-After": RETRY_AFTER_S})


def author_of(request: Request, key: Annotated[ApiKey, Depends(presented_key)]) -> Author:
    """The author of the request's changes in the audit trail."""
    backend = backend_of(request)
    is_reviewed = backend.reviews_accounts and not key.is_operator
    return Author(key_id=key.key_id, account=key.advertiser_id, is_reviewed=is_reviewed, clock=backend.clock)


AuthorDep = Annotated[Author, Depends(author_of)]


def campaign_store_of(request: Request, author: AuthorDep) -> CampaignStore:
    return CampaignStore(database_of(request), author)


def api_keys_of(request: Request, author: AuthorDep) -> ApiKeys:
    return ApiKeys(database_of(request), author)


def database_keys(request: Request) -> ApiKeys:
    """The keys for look-ups."""
    keys: ApiKeys = request.app.state.api_keys
    return keys


def database_of(request: Request) -> ManageDatabase:
    database: ManageDatabase = request.app.state.database
    return database


def backend_of(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


AnyKey = Annotated[ApiKey, Depends(presented_key)]
Caller = Annotated[ApiKey, Security(allowed_key, scopes=["campaigns"])]
KeyHolder = Annotated[ApiKey, Security(allowed_key, scopes=["keys"])]
CampaignOperator = Security(allowed_key, scopes=[OPERATOR, "campaigns"])
EraseOperator = Security(allowed_key, scopes=[OPERATOR, "erase"])
MetricsOperator = Security(allowed_key, scopes=[OPERATOR, "metrics"])
CampaignStoreDep = Annotated[CampaignStore, Depends(campaign_store_of)]
ApiKeysDep = Annotated[ApiKeys, Depends(api_keys_of)]
DatabaseDep = Annotated[ManageDatabase, Depends(database_of)]
BackendDep = Annotated[Backend, Depends(backend_of)]
