"""The management API: campaigns, ads and reports here, keys and the rest in `leadre.serve.manage.administration`.

The API shares a port of its own with the status page (`leadre.serve.manage.status`).

Every endpoint but `/health` and `/docs` requires a key with the scope of the endpoint. An operator's key opens all
accounts. An account's key reads and changes its own account; for all others it gets the same 404 as for an ID that does
not exist. Such a key creates with POST, under a new random ID: a refusal of a chosen ID would reveal that another
account uses it.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from leadre import __version__
from leadre.errors import ConflictError, InputError, MissingError, PeerError, StorageError, StoreDown
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.manage import accounts, administration, budgets, forms, objects, reference, status
from leadre.serve.manage.access import AnyKey, Backend, BackendDep, Caller, CampaignStoreDep, Spend, is_own
from leadre.serve.manage.attempts import failed_logins
from leadre.serve.manage.auth import ApiKey, ApiKeys
from leadre.serve.manage.campaign_forms import CampaignForm, CampaignResponse
from leadre.serve.manage.cookies import SessionCookieOnly
from leadre.serve.manage.forms import problems
from leadre.serve.manage.parameters import BODY, After, Filter, Limit, Name, Page, ReviewFilter, StatusFilter
from leadre.types import Ad, Campaign, Status

Owned = TypeVar("Owned", Ad, Campaign)

BODY_BYTES = 2 << 20
AFTER: dict[str, Status] = {"pause": "paused", "resume": "active", "end": "ended"}
Action = Annotated[Literal["pause", "resume", "end"], Path(description="`end` is final")]


router = APIRouter(responses=problems(401, 403, 429))


@router.get("/openapi.json", include_in_schema=False)
def schema(_: AnyKey, request: Request) -> dict[str, Any]:
    """The OpenAPI description of this API, for any key."""
    described: dict[str, Any] = request.app.openapi()
    return described


@router.get("/campaigns", responses=problems(422), tags=["campaigns"])
def list_campaigns(
    key: Caller,
    store: CampaignStoreDep,
    advertiser_id: Filter = "",
    status: StatusFilter = "",
    after: After = "",
    limit: Limit = 100,
) -> Page[CampaignResponse]:
    """Sorted by ID."""
    if not is_own(key, advertiser_id):
        return Page(items=[], next=None)
    account = key.advertiser_id or advertiser_id
    campaigns = store.campaigns(advertiser_id=account, status=status, after=after, limit=limit + 1)
    next_id = campaigns[limit - 1].campaign_id if len(campaigns) > limit else None
    return Page(items=[CampaignResponse.of(campaign) for campaign in campaigns[:limit]], next=next_id)


@router.post("/campaigns", status_code=201, responses=BODY | problems(404, 409), tags=["campaigns"])
def create_campaign(key: Caller, store: CampaignStoreDep, form: CampaignForm, response: Response) -> CampaignResponse:
    """Create a campaign with a new ID. Bids include it within a second."""
    campaign = form.campaign(secrets.token_hex(8), _account(key, form.advertiser_id))
    store.put_campaign(campaign)
    response.headers["Location"] = f"/campaigns/{campaign.campaign_id}"
    return CampaignResponse.of(_own(key, store.campaign(campaign.campaign_id)))


@router.get("/campaigns/{campaign_id}", responses=problems(404, 422), tags=["campaigns"])
def get_campaign(key: Caller, store: CampaignStoreDep, campaign_id: Name) -> CampaignResponse:
    """One campaign."""
    return CampaignResponse.of(_own(key, store.campaign(campaign_id)))


@router.put(
    "/campaigns/{campaign_id}",
    responses=BODY | problems(404, 409) | {201: {"model": CampaignResponse, "description": "Created (operators)."}},
    tags=["campaigns"],
)
def put_campaign(
    key: Caller, store: CampaignStoreDep, campaign_id: Name, form: CampaignForm, response: Response
) -> CampaignResponse:
    """Replace a campaign; an operator's key also creates one with this ID. Idempotent."""
    before = store.campaign(campaign_id)
    if before is not None or not key.is_operator:
        before = _own(key, before)
    account = form.advertiser_id or (before.advertiser_id if before else None)
    if store.put_campaign(form.campaign(campaign_id, _account(key, account))):
        response.status_code = 201
    return CampaignResponse.of(_own(key, store.campaign(campaign_id)))


@router.post("/campaigns/{campaign_id}/{action}", responses=problems(404, 409, 422), tags=["campaigns"])
def act_on_campaign(key: Caller, store: CampaignStoreDep, campaign_id: Name, action: Action) -> CampaignResponse:
    """Pause, resume or end; bids follow within a second. Idempotent."""
    _own(key, store.campaign(campaign_id))
    return CampaignResponse.of(store.set_campaign_status(campaign_id, AFTER[action]))


@router.get("/ads", responses=problems(422), tags=["ads"])
def list_ads(
    key: Caller,
    store: CampaignStoreDep,
    advertiser_id: Filter = "",
    campaign_id: Filter = "",
    status: StatusFilter = "",
    review: ReviewFilter = "",
    after: After = "",
    limit: Limit = 100,
) -> Page[forms.AdResponse]:
    """Sorted by ID."""
    if not is_own(key, advertiser_id):
        return Page(items=[], next=None)
    account = key.advertiser_id or advertiser_id
    filters = {"advertiser_id": account, "campaign_id": campaign_id, "status": status, "review": review}
    ads = store.ads(**filters, after=after, limit=limit + 1)
    next_id = ads[limit - 1].ad_id if len(ads) > limit else None
    return Page(items=[forms.AdResponse.of(ad) for ad in ads[:limit]], next=next_id)


@router.post("/ads", status_code=201, responses=BODY | problems(404, 409), tags=["ads"])
def create_ad(
    key: Caller, store: CampaignStoreDep, backend: BackendDep, form: forms.AdForm, response: Response
) -> forms.AdResponse:
    """Create an ad with a new ID, for bids within a second; an account's waits for a review. The next lists have it."""
    campaign = _own(key, store.campaign(form.campaign_id))
    ad = form.ad(secrets.token_hex(8), campaign.advertiser_id, backend.clock.now_us())
    store.put_ad(ad)
    response.headers["Location"] = f"/ads/{ad.ad_id}"
    return forms.AdResponse.of(_own(key, store.ad(ad.ad_id)))


@router.get("/ads/{ad_id}", responses=problems(404, 422), tags=["ads"])
def get_ad(key: Caller, store: CampaignStoreDep, ad_id: Name) -> forms.AdResponse:
    """One ad."""
    return forms.AdResponse.of(_own(key, store.ad(ad_id)))


@router.put(
    "/ads/{ad_id}",
    responses=BODY | problems(404, 409) | {201: {"model": forms.AdResponse, "description": "Created (operators)."}},
    tags=["ads"],
)
def put_ad(
    key: Caller, store: CampaignStoreDep, backend: BackendDep, ad_id: Name, form: forms.AdForm, response: Response
) -> forms.AdResponse:
    """Replace an ad; an operator's key also creates one with this ID. Idempotent."""
    if not key.is_operator:
        _own(key, store.ad(ad_id))
    campaign = _own(key, store.campaign(form.campaign_id))
    before = store.ad(ad_id)
    created_at_us = before.created_at_us if before else backend.clock.now_us()
    if store.put_ad(form.ad(ad_id, campaign.advertiser_id, created_at_us)):
        response.status_code = 201
    return forms.AdResponse.of(_own(key, store.ad(ad_id)))


@router.post("/ads/{ad_id}/{action}", responses=problems(404, 409, 422), tags=["ads"])
def act_on_ad(key: Caller, store: CampaignStoreDep, ad_id: Name, action: Action) -> forms.AdResponse:
    """Pause, resume or end; bids follow within a second. Idempotent."""
    _own(key, store.ad(ad_id))
    return forms.AdResponse.of(store.set_ad_status(ad_id, AFTER[action]))


@router.get("/reports/campaigns", responses=problems(422, 503), tags=["reports"])
def report(
    key: Caller,
    store: CampaignStoreDep,
    backend: BackendDep,
    since: Annotated[forms.When, Query(description="first moment")],
    until: Annotated[forms.When, Query(description="first moment that is excluded")],
    advertiser_id: Filter = "",
    after: After = "",
    limit: Limit = 100,
) -> Page[Spend]:
    """Events and charges of campaigns, by day. A page covers `limit` campaigns, sorted by ID."""
    page = list_campaigns(key, store, advertiser_id, "", after, limit)
    campaign_ids = [campaign.campaign_id for campaign in page.items]
    rows = backend.spend(campaign_ids, forms.micros_of(since), forms.micros_of(until)) if campaign_ids else []
    assert {row.campaign_id for row in rows} <= set(campaign_ids), "the report has campaigns of other accounts"
    return Page(items=list(rows), next=page.next)


async def health() -> dict[str, str]:
    """Whether the API responds. Requires no key."""
    return {"status": "ok", "version": __version__}


def routes() -> FastAPI:
    """The API without its state; its ``openapi()`` is the description."""
    app = FastAPI(
        title="LEADRE management",
        version=__version__,
        description="Times are ISO 8601 with an offset; money is whole billionths of the currency (`_nanos`).",
        routes=[
            *router.routes,
            *accounts.router.routes,
            *administration.router.routes,
            *budgets.router.routes,
            *objects.router.routes,
            *status.router.routes,
            *reference.router.routes,
        ],
        openapi_url=None,  # `schema` serves it, for callers with a key
        docs_url=None,
        redoc_url=None,
        max_body_size=BODY_BYTES,
    )
    app.get("/health", tags=["health"])(health)
    app.head("/health", include_in_schema=False)(health)
    return app


def manage_app(database: ManageDatabase, backend: Backend) -> FastAPI:
    """The API over an open ``manage.db``. Only sessions of the status page live in memory."""
    app = routes()
    app.state.database = database
    app.state.api_keys = ApiKeys(database)
    app.state.backend = backend
    app.state.failed_logins = failed_logins(backend.clock)
    app.add_middleware(SessionCookieOnly)
    status.install(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(404, _unknown)
    for kind, code in (
        (InputError, 422),
        (MissingError, 404),
        (ConflictError, 409),
        (PeerError, 503),
        (StoreDown, 503),
        (StorageError, 503),  # the disk refuses, as to an erasure that replaces files
    ):
        app.add_exception_handler(kind, _refusal(code))
    app.add_exception_handler(sqlite3.DatabaseError, _no_database)
    return app


def _own(key: ApiKey, item: Owned | None) -> Owned:
    """The item. MissingError if there is none, or it belongs to another account."""
    if item is None or not is_own(key, item.advertiser_id):
        raise MissingError("nothing has this ID")
    return item


def _account(key: ApiKey, advertiser_id: str | None) -> str:
    """The account to act for. InputError if an operator names none, MissingError for another advertiser's."""
    if advertiser_id is None and key.is_operator:
        raise InputError("advertiser_id: is missing; with an operator's key, name the account")
    if not is_own(key, advertiser_id or ""):
        raise MissingError("nothing has this ID")
    return advertiser_id or key.advertiser_id


def _problem(status: int, detail: str) -> Response:
    # JSON as ASCII: a detail may quote half of a surrogate pair, which UTF-8 cannot encode
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(json.dumps({"detail": detail}), status, headers, "application/json")


def _no_database(_request: Request, error: Exception) -> Response:
    """A database that is locked by another program, damaged, or on a full disk. Other errors of SQL are ours."""
    if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
        raise error
    why = f"database: {error}; close the program that has it open, or free its disk, and send the request again"
    return _problem(503, why)


def _refusal(status: int) -> Callable[[Request, Exception], Response]:
    return lambda _request, error: _problem(status, str(error))


def _unknown(_request: Request, error: Exception) -> Response:
    """A 404; for a path without a route, with the pages that lead on."""
    assert isinstance(error, HTTPException)
    is_ours = error.detail != HTTPStatus.NOT_FOUND.phrase
    return _problem(404, error.detail if is_ours else "no such route: / is the status page, /docs the API reference")


def _invalid(_request: Request, error: Exception) -> Response:
    """Name fields and faults without the values: a value sent by mistake may be a secret."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:20]]
    return _problem(422, "; ".join(faults))
