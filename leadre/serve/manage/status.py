"""The status page of operators: server-rendered, renewed in pieces, with a button that pauses.

It shows the whole market, so an operator's key opens it and an advertiser's does not. The key is asked for once, and a
session stands for it in a cookie that scripts cannot read and other sites cannot send. What changes something is a POST
that brings what only our own page knows. The browser may load nothing that we did not send: no inline script or style.
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
from leadre.errors import ConflictError, MissingError
from leadre.serve.catalogue.validation import MAX_ID_CHARS
from leadre.serve.manage import views
from leadre.serve.manage.access import TheBook, TheOutside
from leadre.serve.manage.sessions import LASTS_US, Session, Sessions, is_ours
from leadre.types import Status
from leadre.units import US_PER_S

COOKIE = "leadre_session"
AFTER: dict[str, Status] = {"pause": "paused", "resume": "active"}
LOADS = "script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'"
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; {LOADS}; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FOR_A_YEAR = {"Cache-Control": "max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
Form = dict[str, str]
View = views.View


class LoggedOut(Exception):
    """Nobody is logged in: show where to."""


def sessions_of(request: Request) -> Sessions:
    sessions: Sessions = request.app.state.sessions
    return sessions


def visitor(request: Request, outside: TheOutside) -> Session:
    """The session that a request belongs to. LoggedOut."""
    session = sessions_of(request).find(request.cookies.get(COOKIE, ""), outside.clock.now_us())
    if session is None:
        raise LoggedOut
    return session


async def sent(request: Request) -> Form:
    """The fields of a form."""
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), max_num_fields=20))


Visitor = Annotated[Session, Depends(visitor)]
Sent = Annotated[Form, Depends(sent)]


def ours(session: Visitor, form: Sent) -> Form:
    """The fields of a form of our own page. 403 for a form of another's."""
    if not is_ours(session, form.get("csrf", "")):
        raise HTTPException(403, "this did not come from the status page: load it again")
    return form


Ours = Annotated[Form, Depends(ours)]
Wanted = Annotated[str, Query(max_length=MAX_ID_CHARS)]
router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/status")
def show(
    session: Visitor, book: TheBook, outside: TheOutside, campaign: Wanted = "", ad: Wanted = "", id: Wanted = ""
) -> Response:
    """The whole page."""
    pieces = {
        "now": views.now(outside),
        "campaigns": views.campaigns(book, outside, campaign.strip()),
        "ads": views.ads(book, outside, ad.strip()),
        "request": views.request(book, outside, id.strip()),
    }
    return _page("page", {"csrf": session.csrf, **pieces})


@router.get("/status/now")
def show_now(session: Visitor, outside: TheOutside) -> Response:
    return _page("now", {"now": views.now(outside)})


@router.get("/status/campaigns")
def show_campaigns(session: Visitor, book: TheBook, outside: TheOutside, campaign: Wanted = "") -> Response:
    return _page("campaigns", {"csrf": session.csrf, "campaigns": views.campaigns(book, outside, campaign.strip())})


@router.get("/status/ads")
def show_ads(session: Visitor, book: TheBook, outside: TheOutside, ad: Wanted = "") -> Response:
    return _page("ads", {"csrf": session.csrf, "ads": views.ads(book, outside, ad.strip())})


@router.get("/status/request")
def show_request(session: Visitor, book: TheBook, outside: TheOutside, id: Wanted = "") -> Response:
    return _page("request", {"request": views.request(book, outside, id.strip())})


@router.post("/status/campaigns")
def act_on_campaign(request: Request, session: Visitor, form: Ours, book: TheBook, outside: TheOutside) -> Response:
    """Pause or resume a campaign."""
    problem = _act(form, book.set_campaign_status)
    view = views.campaigns(book, outside, form.get("campaign", ""))
    return _acted(request, "campaigns", session, view, problem)


@router.post("/status/ads")
def act_on_ad(request: Request, session: Visitor, form: Ours, book: TheBook, outside: TheOutside) -> Response:
    """Pause or resume an ad."""
    problem = _act(form, book.set_ad_status)
    return _acted(request, "ads", session, views.ads(book, outside, form.get("ad", "")), problem)


@router.post("/status/login")
def log_in(request: Request, form: Sent, outside: TheOutside) -> Response:
    """Begin a session with an operator's key."""
    name = sessions_of(request).start(form.get("key", "").strip(), outside.clock.now_us())
    if name is None:
        return _page("login", {"problem": "This is not an operator's key that is in force."}, 403)
    answer = RedirectResponse("/status", 303)
    answer.set_cookie(
        COOKIE,
        name,
        max_age=LASTS_US // US_PER_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/status/logout")
def log_out(request: Request, form: Ours) -> Response:
    """End the session."""
    sessions_of(request).end(request.cookies[COOKIE])
    answer = RedirectResponse("/status", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/status/assets/{name}")
def asset(name: str) -> Response:
    """Style and scripts, ours and the two libraries that come along; the one thing here that wants no session."""
    if name not in _assets():
        raise HTTPException(404, "nothing has this name")
    return Response(_assets()[name], media_type=mimetypes.guess_type(name)[0], headers=FOR_A_YEAR)


def install(app: FastAPI) -> None:
    """Give an app with keys what the routes need."""
    app.state.sessions = Sessions(app.state.keys)
    app.add_exception_handler(LoggedOut, _ask_for_key)


def _act(form: Form, change: Callable[[str, Status], object]) -> str:
    """Make a change; what stood against it, "" for nothing."""
    status = AFTER.get(form.get("action", ""))
    if status is None:
        return "action: pause or resume"
    try:
        change(form.get("id", ""), status)
    except (ConflictError, MissingError) as error:
        return str(error)
    return ""


def _acted(request: Request, piece: str, session: Session, view: View, problem: str) -> Response:
    """The piece as it is now; to a browser without scripts the page."""
    if not problem and "hx-request" not in request.headers:
        return RedirectResponse("/status", 303)
    view["problem"] = problem or view["problem"]
    return _page(piece, {"csrf": session.csrf, piece: view}, 409 if problem else 200)


def _ask_for_key(request: Request, _: Exception) -> Response:
    """The form that asks for a key; a page that is open already is to load itself anew."""
    answer = _page("login", {"problem": ""}, 401)
    answer.headers["WWW-Authenticate"] = 'Cookie realm="LEADRE", form-action="/status/login"'
    if "hx-request" in request.headers:
        answer.headers["HX-Refresh"] = "true"
    return answer


def _page(template: str, values: View, status: int = 200) -> Response:
    rendered = creatives.templates("leadre.serve.manage").get_template(f"{template}.html")
    return HTMLResponse(rendered.render(values, version=__version__, asset=_address), status, HEADERS)


def _address(name: str) -> str:
    """Where an asset is; another one after a change, as browsers keep it."""
    return f"/status/assets/{name}?{hashlib.sha256(_assets()[name]).hexdigest()[:12]}"


@lru_cache(maxsize=1)
def _assets() -> dict[str, bytes]:
    folder = importlib.resources.files("leadre.serve.manage") / "assets"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
