"""Routes of the management API for the running of a bidder: keys, origins, users' rights, clock, import."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Response

from leadre.errors import MissingError
from leadre.serve.catalogue import importer
from leadre.serve.manage import auth, forms
from leadre.serve.manage.access import (
    AnyKey,
    ApiKeysDep,
    AuthorDep,
    BackendDep,
    CampaignOperator,
    CampaignStoreDep,
    DatabaseDep,
    EraseOperator,
    KeyHolder,
    MetricsOperator,
    is_own,
)
from leadre.serve.manage.forms import problems
from leadre.serve.manage.parameters import BODY, Name, UserId

router = APIRouter(responses=problems(401, 403, 429))


@router.get("/keys", tags=["keys"])
def list_keys(holder: KeyHolder, keys: ApiKeysDep) -> list[forms.KeyResponse]:
    """All keys, or those of the account, revoked ones included, without their secrets."""
    return [forms.KeyResponse.of(key) for key in keys.all(holder.advertiser_id)]


@router.post("/keys", status_code=201, responses=BODY | problems(404), tags=["keys"])
def create_key(
    holder: KeyHolder, keys: ApiKeysDep, backend: BackendDep, form: forms.KeyForm, response: Response
) -> forms.CreatedKeyResponse:
    """Create a key with scopes that the caller's key has. This response alone contains it."""
    account = form.advertiser_id or holder.advertiser_id
    if not is_own(holder, account):
        raise MissingError("nothing has this ID")
    missing = [scope for scope in auth.checked_scopes(form.scopes, account) if scope not in holder.scopes]
    if missing:
        raise HTTPException(403, f"scopes: {auth.missing_scope(holder, missing[0])}")
    about, key = keys.create(form.name, backend.clock.now_us(), account, form.scopes)
    response.headers["Cache-Control"] = "no-store"
    return forms.CreatedKeyResponse(key=key, about=forms.KeyResponse.of(about))


@router.delete("/keys/{key_id}", responses=problems(404, 422), tags=["keys"])
def revoke_key(holder: KeyHolder, keys: ApiKeysDep, backend: BackendDep, key_id: Name) -> forms.KeyResponse:
    """Revoke a key at once."""
    return forms.KeyResponse.of(keys.revoke(key_id, backend.clock.now_us(), holder.advertiser_id))


@router.get("/origins", dependencies=[CampaignOperator], tags=["origins"])
def get_origins(database: DatabaseDep) -> forms.OriginsForm:
    """The web origins whose pages may request bids."""
    with database.lock:
        return forms.OriginsForm(origins=sorted(auth.read_origins(database.connection)))


@router.put("/origins", responses=BODY, dependencies=[CampaignOperator], tags=["origins"])
def put_origins(database: DatabaseDep, author: AuthorDep, form: forms.OriginsForm) -> forms.OriginsForm:
    """Replace the registered origins by these. Idempotent."""
    return forms.OriginsForm(origins=auth.put_origins(database, form.origins, author))


@router.get("/users", responses=problems(422, 503), dependencies=[EraseOperator], tags=["users"])
def export_user(backend: BackendDep, user_id: UserId) -> dict[str, Any]:
    """All data about a user, by store."""
    return dict(backend.export(user_id))


@router.delete("/users", responses=problems(422, 503), dependencies=[EraseOperator], tags=["users"])
def erase_user(backend: BackendDep, user_id: UserId) -> forms.EraseResponse:
    """Remove a user from every store. A repetition removes data that arrived since."""
    return forms.EraseResponse(user_id=user_id, removed=dict(backend.erase(user_id)))


@router.get("/clock", dependencies=[MetricsOperator], tags=["clock"])
def get_clock(backend: BackendDep) -> forms.ClockResponse:
    """The bidder's time, and whether the machine's time is in doubt."""
    return forms.ClockResponse.of(backend.time_state())


@router.post("/clock/confirm", responses=problems(503), dependencies=[EraseOperator], tags=["clock"])
def confirm_clock(key: AnyKey, backend: BackendDep) -> forms.ClockResponse:
    """Confirm that the machine's time is right. Data that is too old by it is deleted. Idempotent."""
    return forms.ClockResponse.of(backend.confirm_clock(f"key {key.key_id} ({key.name})"))


@router.post("/import", responses=BODY, dependencies=[CampaignOperator], tags=["import"])
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
