"""The management API: campaigns, ads, keys, origins, users' rights, import, reports.

The API shares a port of its own with the status page (`leadre.serve.manage.status`).

Every endpoint but `/health` and `/docs` requires a key. An operator's key may do everything. An advertiser's key reads
and changes its own account; for all other accounts it gets the same 404 as for an ID that does not exist. Such a key
creates with POST, under a new random ID: a refusal of a chosen ID would reveal that another account uses it.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from leadre import __version__
from leadre.errors import ConflictError, InputError, MissingError, PeerError, StoreDown
from leadre.serve.catalogue import importer
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.validation import MAX_ID_CHARS
from leadre.serve.manage import auth, forms, reference, status
from leadre.serve.manage.access import (
    ApiKeysDep,
    Backend,
    BackendDep,
    Caller,
    CampaignStoreDep,
    DatabaseDep,
    Operator,
    Spend,
    caller,
)
from leadre.serve.manage.attempts import failed_logins
from leadre.serve.manage.auth import ApiKey, ApiKeys
from leadre.serve.manage.cookies import SessionCookieOnly
from leadre.types import Ad, Campaign, Status

T = TypeVar("T")
Owned = TypeVar("Owned", Ad, Campaign)

BODY_BYTES = 2 << 20
MAX_USER_CHARS = 512
AFTER: dict[str, Status] = {"pause": "paused", "resume": "active", "end": "ended"}


class Page(BaseModel, Generic[T]):
    """One page of items. Pass ``next`` as `after` to get the next page; it is null on the last page."""

    items: list[T]
    next: str | None


Name = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)]
UserId = Annotated[str, Query(min_length=1, max_length=MAX_USER_CHARS)]  # any text, also text that no path can hold
Filter = Annotated[str, Query(max_length=MAX_ID_CHARS, description="only this one; empty = all")]
StatusFilter = Annotated[Literal["", "active", "paused", "ended"], Query(description="empty = all")]
After = Annotated[str, Query(max_length=MAX_ID_CHARS, description="`next` of the previous page; empty = first page")]
Limit = Annotated[int, Query(ge=1, le=1000, description="items of a page")]
Action = Annotated[Literal["pause", "resume", "end"], Path(description="`end` is final")]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of error responses."""
    texts = {
        400: "The body cannot be read.",
        401: "No key, or none in force.",
        403: "Not with this key.",
        404: "Nothing has this ID, or it belongs to another account.",
        409: "Contradicts the stored state.",
        422: "A field is invalid; `detail` names it.",
        429: "Too many requests of this address without a key in force.",
        503: "Writer or store is away; send the request again.",
    }
    return {status: {"model": forms.Problem, "description": texts[status]} for status in statuses}


router = APIRouter(responses=problems(401, 429))
TOO_LARGE = {"description": "The body is too large.", "content": {"text/plain": {}}}
BODY = problems(400, 422) | {413: TOO_LARGE}


@router.get("/openapi.json", include_in_schema=False, dependencies=[Depends(caller)])
def schema(request: Request) -> dict[str, Any]:
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
) -> Page[forms.CampaignResponse]:
    """Sorted by ID."""
    if not _is_own(key, advertiser_id):
        return Page(items=[], next=None)
    account = key.advertiser_id or advertiser_id
    campaigns = store.campaigns(advertiser_id=account, status=status, after=after, limit=limit + 1)
    next_id = campaigns[limit - 1].campaign_id if len(campaigns) > limit else None
    return Page(items=[forms.CampaignResponse.of(campaign) for campaign in campaigns[:limit]], next=next_id)


@router.post("/campaigns", status_code=201, responses=BODY | problems(404), tags=["campaigns"])
def create_campaign(
    key: Caller, store: CampaignStoreDep, form: forms.CampaignForm, response: Response
) -> forms.CampaignResponse:
    """Create a campaign with a new ID. Bids include it within a second."""
    campaign = form.campaign(secrets.token_hex(8), _account(key, form.advertiser_id))
    store.put_campaign(campaign)
    response.headers["Location"] = f"/campaigns/{campaign.campaign_id}"
    return forms.CampaignResponse.of(_own(key, store.campaign(campaign.campaign_id)))


@router.get("/campaigns/{campaign_id}", responses=problems(404, 422), tags=["campaigns"])
def get_campaign(key: Caller, store: CampaignStoreDep, campaign_id: Name) -> forms.CampaignResponse:
    """One campaign."""
    return forms.CampaignResponse.of(_own(key, store.campaign(campaign_id)))


@router.put(
    "/campaigns/{campaign_id}",
    responses=BODY
    | problems(404, 409)
    | {201: {"model": forms.CampaignResponse, "description": "Created (operators)."}},
    tags=["campaigns"],
)
def put_campaign(
    key: Caller, store: CampaignStoreDep, campaign_id: Name, form: forms.CampaignForm, response: Response
) -> forms.CampaignResponse:
    """Replace a campaign; an operator's key also creates one with this ID. Idempotent."""
    before = store.campaign(campaign_id)
    if before is not None or not key.is_operator:
        before = _own(key, before)
    account = form.advertiser_id or (before.advertiser_id if before else None)
    if store.put_campaign(form.campaign(campaign_id, _account(key, account))):
        response.status_code = 201
    return forms.CampaignResponse.of(_own(key, store.campaign(campaign_id)))


@router.post("/campaigns/{campaign_id}/{action}", responses=problems(404, 409, 422), tags=["campaigns"])
def act_on_campaign(key: Caller, store: CampaignStoreDep, campaign_id: Name, action: Action) -> forms.CampaignResponse:
    """Pause, resume or end; bids follow within a second. Idempotent."""
    _own(key, store.campaign(campaign_id))
    return forms.CampaignResponse.of(store.set_campaign_status(campaign_id, AFTER[action]))


@router.get("/ads", responses=problems(422), tags=["ads"])
def list_ads(
    key: Caller,
    store: CampaignStoreDep,
    advertiser_id: Filter = "",
    campaign_id: Filter = "",
    status: StatusFilter = "",
    after: After = "",
    limit: Limit = 100,
) -> Page[forms.AdResponse]:
    """Sorted by ID."""
    if not _is_own(key, advertiser_id):
        return Page(items=[], next=None)
    account = key.advertiser_id or advertiser_id
    ads = store.ads(advertiser_id=account, campaign_id=campaign_id, status=status, after=after, limit=limit + 1)
    next_id = ads[limit - 1].ad_id if len(ads) > limit else None
    return Page(items=[forms.AdResponse.of(ad) for ad in ads[:limit]], next=next_id)


@router.post("/ads", status_code=201, responses=BODY | problems(404), tags=["ads"])
def create_ad(key: Caller, store: CampaignStoreDep, form: forms.AdForm, response: Response) -> forms.AdResponse:
    """Create an ad with a new ID. The models know it from the next run of `leadre semid` on."""
    campaign = _own(key, store.campaign(form.campaign_id))
    ad = form.ad(secrets.token_hex(8), campaign.advertiser_id)
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
    key: Caller, store: CampaignStoreDep, ad_id: Name, form: forms.AdForm, response: Response
) -> forms.AdResponse:
    """Replace an ad; an operator's key also creates one with this ID. Idempotent."""
    if not key.is_operator:
        _own(key, store.ad(ad_id))
    campaign = _own(key, store.campaign(form.campaign_id))
    if store.put_ad(form.ad(ad_id, campaign.advertiser_id)):
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


@router.get("/keys", responses=problems(403), dependencies=[Operator], tags=["keys"])
def list_keys(keys: ApiKeysDep) -> list[forms.KeyResponse]:
    """All keys, revoked ones included, without their secrets."""
    return [forms.KeyResponse.of(key) for key in keys.all()]


@router.post("/keys", status_code=201, responses=BODY | problems(403), dependencies=[Operator], tags=["keys"])
def create_key(
    keys: ApiKeysDep, backend: BackendDep, form: forms.KeyForm, response: Response
) -> forms.CreatedKeyResponse:
    """Create a key. This response alone contains it."""
    about, key = keys.create(form.name, backend.clock.now_us(), form.advertiser_id or "")
    response.headers["Cache-Control"] = "no-store"
    return forms.CreatedKeyResponse(key=key, about=forms.KeyResponse.of(about))


@router.delete("/keys/{key_id}", responses=problems(403, 404, 422), dependencies=[Operator], tags=["keys"])
def revoke_key(keys: ApiKeysDep, backend: BackendDep, key_id: Name) -> forms.KeyResponse:
    """Revoke a key at once."""
    return forms.KeyResponse.of(keys.revoke(key_id, backend.clock.now_us()))


@router.get("/origins", responses=problems(403), dependencies=[Operator], tags=["origins"])
def get_origins(database: DatabaseDep) -> forms.OriginsForm:
    """The web origins whose pages may request bids."""
    with database.lock:
        return forms.OriginsForm(origins=sorted(auth.read_origins(database.connection)))


@router.put("/origins", responses=BODY | problems(403), dependencies=[Operator], tags=["origins"])
def put_origins(database: DatabaseDep, form: forms.OriginsForm) -> forms.OriginsForm:
    """Replace the registered origins by these. Idempotent."""
    return forms.OriginsForm(origins=auth.put_origins(database, form.origins))


@router.get("/users", responses=problems(403, 422, 503), dependencies=[Operator], tags=["users"])
def export_user(backend: BackendDep, user_id: UserId) -> dict[str, Any]:
    """All data about a user, by store."""
    return dict(backend.export(user_id))


@router.delete("/users", responses=problems(403, 422, 503), dependencies=[Operator], tags=["users"])
def erase_user(backend: BackendDep, user_id: UserId) -> forms.EraseResponse:
    """Remove a user from every store. A repetition removes data that arrived since."""
    return forms.EraseResponse(user_id=user_id, removed=dict(backend.erase(user_id)))


@router.post("/import", responses=BODY | problems(403), dependencies=[Operator], tags=["import"])
def import_ads(store: CampaignStoreDep, backend: BackendDep, form: forms.ImportForm) -> forms.ImportResponse:
    """Add the ads of the server's data artifact, with campaigns for them."""
    added = store.add(*importer.read(backend.catalogue(), importer.ImportDefaults(**form.model_dump())))
    return forms.ImportResponse(
        campaigns=added.campaigns,
        ads=added.ads,
        known_ads=added.known_ads,
        refused_ads=len(added.refused),
        refused=[forms.RefusedAd(ad_id=ad_id, why=why) for ad_id, why in added.refused[:100]],
    )


async def health() -> dict[str, str]:
    """Whether the API responds. Requires no key."""
    return {"status": "ok", "version": __version__}


def routes() -> FastAPI:
    """The API without its state; its ``openapi()`` is the description."""
    app = FastAPI(
        title="LEADRE management",
        version=__version__,
        description="Times are ISO 8601 with an offset; money is whole billionths of the currency (`_nanos`).",
        routes=[*router.routes, *status.router.routes, *reference.router.routes],
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
    app.state.campaign_store = CampaignStore(database)
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
        (sqlite3.OperationalError, 503),  # manage.db is locked by another program, or its disk is full
    ):
        app.add_exception_handler(kind, _refusal(code))
    return app


def _is_own(key: ApiKey, advertiser_id: str) -> bool:
    """Whether the key may act for the account."""
    return key.is_operator or advertiser_id in ("", key.advertiser_id)


def _own(key: ApiKey, item: Owned | None) -> Owned:
    """The item. MissingError if there is none, or it belongs to another account."""
    if item is None or not _is_own(key, item.advertiser_id):
        raise MissingError("nothing has this ID")
    return item


def _account(key: ApiKey, advertiser_id: str | None) -> str:
    """The account to act for. InputError if an operator names none, MissingError for another advertiser's."""
    if advertiser_id is None and key.is_operator:
        raise InputError("advertiser_id: is missing; with an operator's key, name the account")
    if not _is_own(key, advertiser_id or ""):
        raise MissingError("nothing has this ID")
    return advertiser_id or key.advertiser_id


def _problem(status: int, detail: str) -> Response:
    # JSON as ASCII: a detail may quote half of a surrogate pair, which UTF-8 cannot encode
    return Response(json.dumps({"detail": detail}), status, media_type="application/json")


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
