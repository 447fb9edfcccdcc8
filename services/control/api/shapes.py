"""Shapes and habits that several resources share: pages, entity tags, times as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from starlette.requests import Request
from starlette.responses import Response

from services.control.api.context import Call
from services.control.page_tokens import DEFAULT_SIZE, MAX_SIZE
from services.control.problems import Refusal
from services.control.store.moments import z

#: A time as REST tells it.
Time = Annotated[datetime, PlainSerializer(z, return_type=str)]


class Answer(BaseModel):
    """What responses carry."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PageQuery(BaseModel):
    """What each list with pages takes."""

    page_size: int = Field(DEFAULT_SIZE, ge=1, le=MAX_SIZE)
    page_token: str = Field("", max_length=2048)


Paging = Annotated[PageQuery, Query()]

T = TypeVar("T", bound=BaseModel)


class Page(Answer, Generic[T]):
    items: list[T]
    next_page_token: str


def start_of(call: Call, listing: str, query: PageQuery) -> str:
    """The key behind which this page begins; empty at first. Raises INVALID_PAGE_TOKEN."""
    if not query.page_token:
        return ""
    return call.control.pages.read(call.tenant, listing, query.page_token)


def split(
    call: Call,
    listing: str,
    query: PageQuery,
    rows: Sequence[Mapping[str, Any]],
    key: Callable[[Mapping[str, Any]], str],
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Rows were asked for one more than fits: if it came, there is a next page."""
    if len(rows) <= query.page_size:
        return rows, ""
    shown = rows[: query.page_size]
    return shown, token_behind(call, listing, key(shown[-1]))


def token_behind(call: Call, listing: str, key: str) -> str:
    """Of the page that begins behind this key; of none, none."""
    return call.control.pages.make(call.tenant, listing, key) if key else ""


def etag(revision: int) -> str:
    return f'"{revision}"'


def tag(response: Response, revision: int) -> None:
    response.headers["etag"] = etag(revision)


def check_if_match(request: Request, revision: int, *, required: bool = False) -> None:
    """Raises STALE_REVISION, with the present tag, or PRECONDITION_REQUIRED."""
    sent = request.headers.get("if-match")
    if sent is None:
        if required:
            raise Refusal("PRECONDITION_REQUIRED", "Send If-Match with the ETag you have read.")
        return
    if sent.strip() not in {"*", etag(revision)}:
        raise Refusal("STALE_REVISION", "Read it again first.", headers={"etag": etag(revision)})


def not_modified(request: Request, tag: str) -> bool:
    """If-None-Match, weak comparison (RFC 9110 13.1.2)."""
    sent = request.headers.get("if-none-match", "")
    tags = {item.strip().removeprefix("W/") for item in sent.split(",")}
    return tag in tags or "*" in tags
