"""Routes of the management API for accounts: limits, reviews, audit trail."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated

from fastapi import APIRouter, Query

from leadre.errors import MissingError
from leadre.serve.catalogue import audit, limits
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.catalogue.review_store import ReviewStore
from leadre.serve.catalogue.reviews import rejected_pages
from leadre.serve.manage.access import AuthorDep, Caller, CampaignOperator, DatabaseDep, is_own
from leadre.serve.manage.account_forms import (
    AccountResponse,
    AuditResponse,
    LimitsForm,
    PageForm,
    PagesResponse,
    ReviewForm,
)
from leadre.serve.manage.forms import AdResponse, problems
from leadre.serve.manage.parameters import BODY, Filter, Limit, Name, Page

MAX_STOPPED_ADS = 100
MAX_NUMBER = (1 << 63) - 1  # that SQLite stores
router = APIRouter(responses=problems(401, 403, 429))
AfterNumber = Annotated[int, Query(ge=0, le=MAX_NUMBER, description="`next` of the previous page; 0 = first page")]


@router.get("/audit", responses=problems(422), tags=["audit"])
def read_audit(
    key: Caller,
    database: DatabaseDep,
    advertiser_id: Filter = "",
    item_id: Annotated[str, Query(max_length=128, description="a campaign, ad or key; empty = all")] = "",
    after: AfterNumber = 0,
    limit: Limit = 100,
) -> Page[AuditResponse]:
    """Changes in the order in which they were made: who, when, what, before and after. Nothing removes an entry."""
    if not is_own(key, advertiser_id):
        return Page(items=[], next=None)
    account = key.advertiser_id or advertiser_id
    with database.lock:
        entries = audit.read(database.connection, advertiser_id=account, item_id=item_id, after=after, limit=limit + 1)
    next_number = str(entries[limit - 1].number) if len(entries) > limit else None
    return Page(items=[AuditResponse.of(entry, key) for entry in entries[:limit]], next=next_number)


@router.get("/accounts/{advertiser_id}", responses=problems(404, 422), tags=["accounts"])
def get_account(key: Caller, database: DatabaseDep, advertiser_id: Name) -> AccountResponse:
    """The limits of an account, and the campaigns and ads that they stop."""
    if not is_own(key, advertiser_id):
        raise MissingError("nothing has this ID")
    return _account(database, advertiser_id)


@router.put("/accounts/{advertiser_id}", responses=BODY, dependencies=[CampaignOperator], tags=["accounts"])
def put_account(database: DatabaseDep, author: AuthorDep, advertiser_id: Name, form: LimitsForm) -> AccountResponse:
    """Replace the limits of an account; what exceeds them stops bidding within a second. Idempotent."""
    limits.put(database, advertiser_id, form.limits(), author)
    return _account(database, advertiser_id)


@router.put(
    "/ads/{ad_id}/review", responses=BODY | problems(404, 409), dependencies=[CampaignOperator], tags=["reviews"]
)
def review_ad(database: DatabaseDep, author: AuthorDep, ad_id: Name, form: ReviewForm) -> AdResponse:
    """Approve or reject an ad; bids follow within a second. `GET /ads?review=pending` lists those that wait."""
    return AdResponse.of(ReviewStore(database, author).review_ad(ad_id, form.review, form.reason, form.content_hash))


@router.get("/pages", dependencies=[CampaignOperator], tags=["reviews"])
def get_pages(database: DatabaseDep) -> PagesResponse:
    """The rejected landing pages."""
    with database.lock:
        return PagesResponse(rejected=rejected_pages(database.connection))


@router.put("/pages", responses=BODY, dependencies=[CampaignOperator], tags=["reviews"])
def review_page(database: DatabaseDep, author: AuthorDep, form: PageForm) -> PagesResponse:
    """Reject a landing page with all ads that lead to it, or permit it: then they wait for a review. Idempotent."""
    ReviewStore(database, author).review_page(form.landing_url, form.reason.strip())
    return get_pages(database)


def _account(database: ManageDatabase, advertiser_id: str) -> AccountResponse:
    with database.lock:
        own = limits.of_account(database.connection, advertiser_id)
        campaigns, ads = limits.stopped_of(database.connection, advertiser_id)
    return AccountResponse(
        advertiser_id=advertiser_id,
        limits=LimitsForm(**dataclasses.asdict(own)),
        stopped_campaigns=campaigns,
        stopped_ads=dict(itertools.islice(ads.items(), MAX_STOPPED_ADS)),
    )
