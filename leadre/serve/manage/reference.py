"""The reference of the management API at /docs: HTML from the OpenAPI description, without scripts or a key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from leadre.serve.manage import pages

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def show(request: Request) -> Response:
    """All operations, with the key that each requires."""
    return HTMLResponse(pages.reference(request.app.openapi(), str(request.base_url)), headers=pages.HEADERS)
