"""The management API: campaigns, ads, keys, origins, users' rights, import, reports.

It listens on a port of its own, which it shares with the status page (`leadre.serve.manage.status`).

Every endpoint but `/health` wants a key. An operator's key may do everything; an advertiser's sees and changes its own
account, and for all else gets the same 404 as for what does not exist. Such a key cannot choose the ID of what it makes
(POST does), as a taken one would tell.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from leadre import __version__
from leadre.errors import ConflictError, InputError, MissingError, PeerError, StoreDown
from leadre.serve.catalogue import importer
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.validation import MAX_ID_CHARS
from leadre.serve.manage import auth, forms, status
from leadre.serve.manage.access import (
    Backend,
    Caller,
    Operator,
    Spend,
    TheBook,
    TheKeys,
    TheOutside,
    TheRecords,
    caller,
)
from leadre.serve.manage.auth import ApiKey, ApiKeys
from leadre.types import Ad, Campaign, Status

T = TypeVar("T")
Owned = TypeVar("Owned", Ad, Campaign)

BODY_BYTES = 2 << 20
MAX_USER_CHARS = 512
AFTER: dict[str, Status] = {"pause": "paused", "resume": "active", "end": "ended"}


class Page(BaseModel, Generic[T]):
    """Some of many. ``next`` goes into `after` to get more; null on the last page."""

    items: list[T]
    next: str | None


Name = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)]
UserId = Annotated[str, Query(min_length=1, max_length=MAX_USER_CHARS)]  # any text, also what no path can hold
Filter = Annotated[str, Query(max_length=MAX_ID_CHARS, description="only of this one; empty = all")]
StatusFilter = Annotated[Literal["", "active", "paused", "ended"], Query(description="empty = all")]
After = Annotated[str, Query(max_length=MAX_ID_CHARS, description="`next` of the page before; empty = the first")]
Limit = Annotated[int, Query(ge=1, le=1000, description="items of a page")]
Action = Annotated[Literal["pause", "resume", "end"], Path(description="an end is final")]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        400: "The body cannot be read.",
        401: "No key, or none in force.",
        403: "Not with this key.",
        404: "Nothing has this ID, or it belongs to another account.",
        409: "Contradicts what is there.",
        422: "A field is wrong; `detail` names it.",
        503: "Writer or store is away; ask again.",
    }
    return {status: {"model": forms.Problem, "description": texts[status]} for status in statuses}


router = APIRouter(responses=problems(401))
TOO_LARGE = {"description": "The body is too large.", "content": {"text/plain": {}}}
BODY = problems(400, 422) | {413: TOO_LARGE}


@router.get("/openapi.json", include_in_schema=False, dependencies=[Depends(caller)])
def schema(request: Request) -> dict[str, Any]:
    """This API's description, for any key."""
    described: dict[str, Any] = request.app.openapi()
    return described


@router.get("/campaigns", responses=problems(422), tags=["campaigns"])
def list_campaigns(
    key: Caller,
    book: TheBook,
    advertiser_id: Filter = "",
    status: StatusFilter = "",
    after: After = "",
    limit: Limit = 100,
) -> Page[forms.CampaignShown]:
    """In the order of their IDs."""
    if not _is_own(key, advertiser_id):
        return Page(items=[], next=None)
    account = key.advertiser_id or advertiser_id
    found = book.campaigns(advertiser_id=account, status=status, after=after, limit=limit + 1)
    next_id = found[limit - 1].campaign_id if len(found) > limit else None
    return Page(items=[forms.CampaignShown.of(campaign) for campaign in found[:limit]], next=next_id)


@router.post("/campaigns", status_code=201, responses=BODY | problems(404), tags=["campaigns"])
def create_campaign(key: Caller, book: TheBook, form: forms.CampaignForm, response: Response) -> forms.CampaignShown:
    """Make a campaign with a new ID. It is in the bids a second later."""
    made = form.campaign(secrets.token_hex(8), _account(key, form.advertiser_id))
    book.put_campaign(made)
    response.headers["Location"] = f"/campaigns/{made.campaign_id}"
    return forms.CampaignShown.of(_own(key, book.campaign(made.campaign_id)))


@router.get("/campaigns/{campaign_id}", responses=problems(404, 422), tags=["campaigns"])
def get_campaign(key: Caller, book: TheBook, campaign_id: Name) -> forms.CampaignShown:
    """One campaign."""
    return forms.CampaignShown.of(_own(key, book.campaign(campaign_id)))


@router.put(
    "/campaigns/{campaign_id}",
    responses=BODY | problems(404, 409) | {201: {"model": forms.CampaignShown, "description": "Made (operators)."}},
    tags=["campaigns"],
)
def put_campaign(
    key: Caller, book: TheBook, campaign_id: Name, form: forms.CampaignForm, response: Response
) -> forms.CampaignShown:
    """Replace a campaign; an operator's key also makes one with this ID. Repeating it changes nothing."""
    before = book.campaign(campaign_id)
    if before is not None or not key.is_operator:
        before = _own(key, before)
    account = form.advertiser_id or (before.advertiser_id if before else None)
    if book.put_campaign(form.campaign(campaign_id, _account(key, account))):
        response.status_code = 201
    return forms.CampaignShown.of(_own(key, book.campaign(campaign_id)))


@router.post("/campaigns/{campaign_id}/{action}", responses=problems(404, 409, 422), tags=["campaigns"])
def act_on_campaign(key: Caller, book: TheBook, campaign_id: Name, action: Action) -> forms.CampaignShown:
    """Pause, resume or end; no bid shows it a second later. Repeating it changes nothing."""
    _own(key, book.campaign(campaign_id))
    return forms.CampaignShown.of(book.set_campaign_status(campaign_id, AFTER[action]))


@router.get("/ads", responses=problems(422), tags=["ads"])
def list_ads(
    key: Caller,
    book: TheBook,
    advertiser_id: Filter = "",
    campaign_id: Filter = "",
    status: StatusFilter = "",
    after: After = "",
    limit: Limit = 100,
) -> Page[forms.AdShown]:
    """In the order of their IDs."""
    if not _is_own(key, advertiser_id):
        return Page(items=[], next=None)
    account = key.advertiser_id or advertiser_id
    found = book.ads(advertiser_id=account, campaign_id=campaign_id, status=status, after=after, limit=limit + 1)
    next_id = found[limit - 1].ad_id if len(found) > limit else None
    return Page(items=[forms.AdShown.of(ad) for ad in found[:limit]], next=next_id)


@router.post("/ads", status_code=201, responses=BODY | problems(404), tags=["ads"])
def create_ad(key: Caller, book: TheBook, form: forms.AdForm, response: Response) -> forms.AdShown:
    """Make an ad with a new ID. What the models know of it begins with the next semantic IDs."""
    campaign = _own(key, book.campaign(form.campaign_id))
    made = form.ad(secrets.token_hex(8), campaign.advertiser_id)
    book.put_ad(made)
    response.headers["Location"] = f"/ads/{made.ad_id}"
    return forms.AdShown.of(_own(key, book.ad(made.ad_id)))


@router.get("/ads/{ad_id}", responses=problems(404, 422), tags=["ads"])
def get_ad(key: Caller, book: TheBook, ad_id: Name) -> forms.AdShown:
    """One ad."""
    return forms.AdShown.of(_own(key, book.ad(ad_id)))


@router.put(
    "/ads/{ad_id}",
    responses=BODY | problems(404, 409) | {201: {"model": forms.AdShown, "description": "Made (operators)."}},
    tags=["ads"],
)
def put_ad(key: Caller, book: TheBook, ad_id: Name, form: forms.AdForm, response: Response) -> forms.AdShown:
    """Replace an ad; an operator's key also makes one with this ID. Repeating it changes nothing."""
    if not key.is_operator:
        _own(key, book.ad(ad_id))
    campaign = _own(key, book.campaign(form.campaign_id))
    if book.put_ad(form.ad(ad_id, campaign.advertiser_id)):
        response.status_code = 201
    return forms.AdShown.of(_own(key, book.ad(ad_id)))


@router.post("/ads/{ad_id}/{action}", responses=problems(404, 409, 422), tags=["ads"])
def act_on_ad(key: Caller, book: TheBook, ad_id: Name, action: Action) -> forms.AdShown:
    """Pause, resume or end; no bid shows it a second later. Repeating it changes nothing."""
    _own(key, book.ad(ad_id))
    return forms.AdShown.of(book.set_ad_status(ad_id, AFTER[action]))


@router.get("/reports/campaigns", responses=problems(422, 503), tags=["reports"])
def report(
    key: Caller,
    book: TheBook,
    outside: TheOutside,
    since: Annotated[forms.When, Query(description="first moment")],
    until: Annotated[forms.When, Query(description="first moment that is left out")],
    advertiser_id: Filter = "",
    after: After = "",
    limit: Limit = 100,
) -> Page[Spend]:
    """What campaigns did and cost, by day. A page is of campaigns, in the order of their IDs."""
    page = list_campaigns(key, book, advertiser_id, "", after, limit)
    names = [campaign.campaign_id for campaign in page.items]
    rows = outside.spend(names, forms.micros_of(since), forms.micros_of(until)) if names else []
    assert {row.campaign_id for row in rows} <= set(names), "a report of campaigns that nobody asked for"
    return Page(items=list(rows), next=page.next)


@router.get("/keys", responses=problems(403), dependencies=[Operator], tags=["keys"])
def list_keys(keys: TheKeys) -> list[forms.KeyShown]:
    """All keys, revoked ones too; never the secrets."""
    return [forms.KeyShown.of(key) for key in keys.all()]


@router.post("/keys", status_code=201, responses=BODY | problems(403), dependencies=[Operator], tags=["keys"])
def create_key(keys: TheKeys, outside: TheOutside, form: forms.KeyForm, response: Response) -> forms.KeyMade:
    """Make a key. This answer is the only place where it is shown."""
    about, key = keys.create(form.name, outside.clock.now_us(), form.advertiser_id or "")
    response.headers["Cache-Control"] = "no-store"
    return forms.KeyMade(key=key, about=forms.KeyShown.of(about))


@router.delete("/keys/{key_id}", responses=problems(403, 404, 422), dependencies=[Operator], tags=["keys"])
def revoke_key(keys: TheKeys, outside: TheOutside, key_id: Name) -> forms.KeyShown:
    """From now on it opens nothing."""
    return forms.KeyShown.of(keys.revoke(key_id, outside.clock.now_us()))


@router.get("/origins", responses=problems(403), dependencies=[Operator], tags=["origins"])
def get_origins(records: TheRecords) -> forms.OriginsForm:
    """The web origins whose pages may ask for bids."""
    with records.lock:
        return forms.OriginsForm(origins=sorted(auth.read_origins(records.connection)))


@router.put("/origins", responses=BODY | problems(403), dependencies=[Operator], tags=["origins"])
def put_origins(records: TheRecords, form: forms.OriginsForm) -> forms.OriginsForm:
    """Register exactly these. Repeating it changes nothing."""
    return forms.OriginsForm(origins=auth.put_origins(records, form.origins))


@router.get("/users", responses=problems(403, 422, 503), dependencies=[Operator], tags=["users"])
def export_user(outside: TheOutside, user_id: UserId) -> dict[str, Any]:
    """All that the stores hold of a user, by store."""
    return dict(outside.export(user_id))


@router.delete("/users", responses=problems(403, 422, 503), dependencies=[Operator], tags=["users"])
def erase_user(outside: TheOutside, user_id: UserId) -> forms.Erased:
    """Remove a user from every store. Repeating it removes what came since."""
    return forms.Erased(user_id=user_id, removed=dict(outside.erase(user_id)))


@router.post("/import", responses=BODY | problems(403), dependencies=[Operator], tags=["import"])
def import_ads(book: TheBook, outside: TheOutside, form: forms.ImportForm) -> forms.Imported:
    """Add the ads of the data artifact that the server was started with, and campaigns for them."""
    added = book.add(*importer.read(outside.catalogue(), importer.ImportDefaults(**form.model_dump())))
    return forms.Imported(
        campaigns=added.campaigns,
        ads=added.ads,
        known_ads=added.known_ads,
        refused_ads=len(added.refused),
        refused=[forms.Refused(ad_id=ad_id, why=why) for ad_id, why in added.refused[:100]],
    )


async def health() -> dict[str, str]:
    """Whether the API answers. The one endpoint that wants no key."""
    return {"status": "ok", "version": __version__}


def manage_app(records: ManageDatabase, outside: Backend) -> FastAPI:
    """The API over an open ``manage.db``. It holds nothing else, and may be made anew at any time."""
    app = FastAPI(
        title="LEADRE management",
        version=__version__,
        description="Times are ISO 8601 with an offset; money is whole billionths of the currency (`_nanos`).",
        routes=[*router.routes, *status.router.routes],
        openapi_url=None,  # ours wants a key
        docs_url=None,
        redoc_url=None,
        max_body_size=BODY_BYTES,
    )
    app.get("/health", tags=["health"])(health)
    app.state.records, app.state.book, app.state.keys = records, CampaignStore(records), ApiKeys(records)
    app.state.outside = outside
    status.install(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind, code in (
        (InputError, 422),
        (MissingError, 404),
        (ConflictError, 409),
        (PeerError, 503),
        (StoreDown, 503),
    ):
        app.add_exception_handler(kind, _refusal(code))
    return app


def _is_own(key: ApiKey, advertiser_id: str) -> bool:
    return key.is_operator or advertiser_id in ("", key.advertiser_id)


def _own(key: ApiKey, item: Owned | None) -> Owned:
    """The item, where there is one and the key may see it."""
    if item is None or not _is_own(key, item.advertiser_id):
        raise MissingError("nothing has this ID")
    return item


def _account(key: ApiKey, advertiser_id: str | None) -> str:
    """The account to act for."""
    if advertiser_id is None and key.is_operator:
        raise InputError("advertiser_id: is missing; an operator's key has to say for whom")
    if not _is_own(key, advertiser_id or ""):
        raise MissingError("nothing has this ID")
    return advertiser_id or key.advertiser_id


def _problem(status: int, detail: str) -> Response:
    # as ASCII: a detail may quote half of a surrogate pair, which has no UTF-8
    return Response(json.dumps({"detail": detail}), status, media_type="application/json")


def _refusal(status: int) -> Callable[[Request, Exception], Response]:
    return lambda _request, error: _problem(status, str(error))


def _invalid(_request: Request, error: Exception) -> Response:
    """Names fields and faults, without the values: what was sent by mistake may be a secret."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:20]]
    return _problem(422, "; ".join(faults))
