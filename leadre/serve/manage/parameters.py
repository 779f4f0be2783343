"""Parameters and responses that several routes of the management API share."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel

from leadre.serve.catalogue.validation import MAX_ID_CHARS
from leadre.serve.manage.forms import problems

T = TypeVar("T")

MAX_USER_CHARS = 512


class Page(BaseModel, Generic[T]):
    """One page of items. Pass ``next`` as `after` to get the next page; it is null on the last page."""

    items: list[T]
    next: str | None


Name = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)]
UserId = Annotated[str, Query(min_length=1, max_length=MAX_USER_CHARS)]  # any text, also text that no path can hold
Filter = Annotated[str, Query(max_length=MAX_ID_CHARS, description="only this one; empty = all")]
StatusFilter = Annotated[Literal["", "active", "paused", "ended"], Query(description="empty = all")]
ReviewFilter = Annotated[Literal["", "pending", "approved", "rejected"], Query(description="empty = all")]
After = Annotated[str, Query(max_length=MAX_ID_CHARS, description="`next` of the previous page; empty = first page")]
Limit = Annotated[int, Query(ge=1, le=1000, description="items of a page")]
TOO_LARGE = {"description": "The body is too large.", "content": {"text/plain": {}}}
BODY = problems(400, 422) | {413: TOO_LARGE}
