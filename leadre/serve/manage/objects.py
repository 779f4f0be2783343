"""Routes of the management API for the accounts of objects. An operator lets several accounts show one object."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel

from leadre.serve.catalogue import audit, ownership
from leadre.serve.catalogue.audit import Change
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.validation import MAX_ID_CHARS
from leadre.serve.manage.access import AuthorDep, CampaignOperator, DatabaseDep
from leadre.serve.manage.forms import problems
from leadre.serve.manage.parameters import Name

ObjectId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, examples=["shoe-1"])]
router = APIRouter(
    prefix="/objects", responses=problems(401, 403, 422, 429), dependencies=[CampaignOperator], tags=["objects"]
)


class ObjectAccounts(BaseModel):
    """The accounts whose ads may show an object: the first that named it, those of imported ads, those granted."""

    object_id: str
    advertiser_ids: list[str]


@router.get("/{object_id}/accounts")
def get_accounts(database: DatabaseDep, object_id: ObjectId) -> ObjectAccounts:
    """The accounts that may show an object; none for an unknown one."""
    return _accounts(database, object_id)


@router.put("/{object_id}/accounts/{advertiser_id}")
def grant(database: DatabaseDep, author: AuthorDep, object_id: ObjectId, advertiser_id: Name) -> ObjectAccounts:
    """Let an account show an object of another account. Idempotent."""
    with database.writing():
        if ownership.grant_checked(database.connection, object_id, advertiser_id):
            change = Change(kind="object", item_id=object_id, advertiser_id=advertiser_id, before="", after="granted")
            audit.append(database.connection, author, [change])
    return _accounts(database, object_id)


def _accounts(database: ManageDatabase, object_id: str) -> ObjectAccounts:
    with database.lock:
        accounts = ownership.accounts_of(database.connection, object_id)
    return ObjectAccounts(object_id=object_id, advertiser_ids=accounts)
