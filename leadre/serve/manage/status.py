"""The status page of operators: server-rendered, refreshed in fragments, with buttons to pause and resume.

The page shows all accounts, so only an operator's key opens it. The operator enters the key once; then a session cookie
replaces it, which scripts cannot read and other sites cannot send. Changes are POSTs with the session's CSRF token. The
content security policy lets the browser load our own assets only: no inline script or style.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import mimetypes
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from leadre import __version__
from leadre.creative import banner as creatives
from leadre.errors import ConflictError, InputError, MissingError
from leadre.serve.catalogue.audit import Author
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.review_store import MAX_REASON_CHARS, ReviewStore
from leadre.serve.catalogue.validation import MAX_ID_CHARS
from leadre.serve.manage import views
from leadre.serve.manage.access import Backend, BackendDep, count_failed_login, database_of
from leadre.serve.manage.cookies import SESSION_COOKIE as COOKIE
from leadre.serve.manage.sessions import LASTS_US, NEEDED_SCOPES, Session, Sessions, is_own_form
from leadre.types import Review, Status
from leadre.units import US_PER_S

MAX_FIELDS = 20  # of a form
STATUS_AFTER: dict[str, Status] = {"pause": "paused", "resume": "active"}
SOURCES = "script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'"
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; {SOURCES}; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CACHED_FOR_A_YEAR = {"Cache-Control": "max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
Form = dict[str, str]
View = views.View


class LoggedOut(Exception):
    """The request has no session: the response is the login form."""


def sessions_of(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def current_session(request: Request, backend: BackendDep) -> Session:
    """The session of a request. LoggedOut without one."""
    session = sessions_of(request).find(request.cookies.get(COOKIE, ""), backend.clock.now_us())
    if session is None:
        raise LoggedOut
    return session


async def form_fields(request: Request) -> Form:
    """The fields of a submitted form. Status 400 for more than `MAX_FIELDS`, as no form of ours has them."""
    try:
        return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), max_num_fields=MAX_FIELDS))
    except ValueError as error:
        raise HTTPException(400, f"the form has more than {MAX_FIELDS} fields") from error


SessionDep = Annotated[Session, Depends(current_session)]
FormDep = Annotated[Form, Depends(form_fields)]


def campaign_store_of(request: Request, session: SessionDep, backend: BackendDep) -> CampaignStore:
    """The campaigns and ads; the session's key is the author of changes."""
    return CampaignStore(database_of(request), author_of_session(session, backend))


def author_of_session(session: Session, backend: Backend) -> Author:
    """The author of the changes that the page makes."""
    return Author(key_id=session.key_id, clock=backend.clock)


CampaignStoreDep = Annotated[CampaignStore, Depends(campaign_store_of)]


def own_form(session: SessionDep, form: FormDep) -> Form:
    """The fields of a form of our own page. Status 403 for a form of another site."""
    if not is_own_form(session, form.get("csrf", "")):
        raise HTTPException(403, "the form has no valid CSRF token: load the status page again")
    return form


OwnFormDep = Annotated[Form, Depends(own_form)]
IdQuery = Annotated[str, Query(max_length=MAX_ID_CHARS)]
router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/status")
def show(
    session: SessionDep,
    store: CampaignStoreDep,
    backend: BackendDep,
    campaign: IdQuery = "",
    ad: IdQuery = "",
    id: IdQuery = "",
) -> Response:
    """The whole page."""
    fragments = {
        "now": views.now(backend),
        "campaigns": views.campaigns(store, backend, campaign.strip()),
        "ads": views.ads(store, backend, ad.strip()),
        "reviews": views.reviews(store),
        "request": views.request(backend, id.strip()),
    }
    return _page("page", {"csrf": session.csrf, **fragments})


@router.get("/status/now")
def show_now(session: SessionDep, backend: BackendDep) -> Response:
    return _page("now", {"now": views.now(backend)})


@router.get("/status/campaigns")
def show_campaigns(
    session: SessionDep, store: CampaignStoreDep, backend: BackendDep, campaign: IdQuery = ""
) -> Response:
    return _page("campaigns", {"csrf": session.csrf, "campaigns": views.campaigns(store, backend, campaign.strip())})


@router.get("/status/ads")
def show_ads(session: SessionDep, store: CampaignStoreDep, backend: BackendDep, ad: IdQuery = "") -> Response:
    return _page("ads", {"csrf": session.csrf, "ads": views.ads(store, backend, ad.strip())})


@router.get("/status/reviews")
def show_reviews(session: SessionDep, store: CampaignStoreDep) -> Response:
    return _page("reviews", {"csrf": session.csrf, "reviews": views.reviews(store)})


@router.get("/status/request")
def show_request(session: SessionDep, backend: BackendDep, id: IdQuery = "") -> Response:
    return _page("request", {"request": views.request(backend, id.strip())})


@router.post("/status/campaigns")
def act_on_campaign(
    request: Request, session: SessionDep, form: OwnFormDep, store: CampaignStoreDep, backend: BackendDep
) -> Response:
    """Pause or resume a campaign."""
    problem = _act(form, store.set_campaign_status)
    view = views.campaigns(store, backend, form.get("campaign", ""))
    return _changed(request, "campaigns", session, view, problem)


@router.post("/status/ads")
def act_on_ad(
    request: Request, session: SessionDep, form: OwnFormDep, store: CampaignStoreDep, backend: BackendDep
) -> Response:
    """Pause or resume an ad."""
    problem = _act(form, store.set_ad_status)
    return _changed(request, "ads", session, views.ads(store, backend, form.get("ad", "")), problem)


@router.post("/status/reviews")
def review_ad(
    request: Request, session: SessionDep, form: OwnFormDep, store: CampaignStoreDep, backend: BackendDep
) -> Response:
    """Approve or reject an ad that waits for a review."""
    problem = "action: expects approved or rejected"
    if (decision := form.get("action", "")) in ("approved", "rejected"):
        decide = ReviewStore(database_of(request), author_of_session(session, backend)).review_ad
        review: Review = "approved" if decision == "approved" else "rejected"
        reason = form.get("reason", "")[:MAX_REASON_CHARS]
        seen = form.get("content_hash", "")
        problem = _problem_of(lambda: decide(form.get("id", ""), review, reason, seen))
    return _changed(request, "reviews", session, views.reviews(store), problem)


@router.post("/status/login")
def log_in(request: Request, form: FormDep, backend: BackendDep) -> Response:
    """Start a session with an operator's key."""
    session_id = sessions_of(request).start(form.get("key", "").strip(), backend.clock.now_us())
    if session_id is None:
        count_failed_login(request)
        problem = f"This is not an operator's key in force with the scopes {', '.join(NEEDED_SCOPES)}."
        return _page("login", {"problem": problem}, 403)
    response = RedirectResponse("/status", 303)
    response.set_cookie(
        COOKIE,
        session_id,
        max_age=LASTS_US // US_PER_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/status/logout")
def log_out(request: Request, form: OwnFormDep) -> Response:
    """End the session."""
    sessions_of(request).end(request.cookies[COOKIE])
    response = RedirectResponse("/status", 303)
    response.delete_cookie(COOKIE)
    return response


@router.get("/status/assets/{name}")
def asset(name: str) -> Response:
    """Stylesheets and scripts, ours and those of two libraries. The only route without a session."""
    if name not in _assets():
        raise HTTPException(404, "no asset has this name")
    return Response(_assets()[name], media_type=mimetypes.guess_type(name)[0], headers=CACHED_FOR_A_YEAR)


def install(app: FastAPI) -> None:
    """Add sessions and the login form to an app that has API keys."""
    app.state.sessions = Sessions(app.state.api_keys)
    app.add_exception_handler(LoggedOut, _login_form)


def _act(form: Form, change: Callable[[str, Status], object]) -> str:
    """Change a status; returns the reason for a refusal, "" for success."""
    status = STATUS_AFTER.get(form.get("action", ""))
    if status is None:
        return "action: expects pause or resume"
    return _problem_of(lambda: change(form.get("id", ""), status))


def _problem_of(change: Callable[[], object]) -> str:
    """Make a change; returns the reason for a refusal, "" for success."""
    try:
        change()
    except (ConflictError, InputError, MissingError) as error:
        return str(error)
    return ""


def _changed(request: Request, fragment: str, session: Session, view: View, problem: str) -> Response:
    """The changed fragment; a redirect to the whole page for a browser without scripts."""
    if not problem and "hx-request" not in request.headers:
        return RedirectResponse("/status", 303)
    view["problem"] = problem or view["problem"]
    return _page(fragment, {"csrf": session.csrf, fragment: view}, 409 if problem else 200)


def _login_form(request: Request, _: Exception) -> Response:
    """The login form; a fragment's request makes the browser reload the whole page."""
    response = _page("login", {"problem": ""}, 401)
    response.headers["WWW-Authenticate"] = 'Cookie realm="LEADRE", form-action="/status/login"'
    if "hx-request" in request.headers:
        response.headers["HX-Refresh"] = "true"
    return response


def _page(template: str, values: View, status: int = 200) -> Response:
    rendered = creatives.templates("leadre.serve.manage").get_template(f"{template}.html")
    return HTMLResponse(rendered.render(values, version=__version__, asset=_asset_url), status, HEADERS)


def _asset_url(name: str) -> str:
    """URL of an asset; it changes with the content, as browsers cache assets for a year."""
    return f"/status/assets/{name}?{hashlib.sha256(_assets()[name]).hexdigest()[:12]}"


@lru_cache(maxsize=1)
def _assets() -> dict[str, bytes]:
    folder = importlib.resources.files("leadre.serve.manage") / "assets"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
