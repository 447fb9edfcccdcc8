"""Traces: decisions and their outcomes, as audit holds them."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from services.common.errors import BehavryError
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, PageQuery, start_of, token_behind
from services.control.problems import Refusal, not_found
from services.control.roles import Role

router = APIRouter(prefix="/api/v1/traces", tags=["traces"])


class TraceQuery(PageQuery):
    filter: str = Field("", max_length=2048)


class Event(Answer):
    id: str
    chain: str
    incarnation: int
    position: int
    #: Microseconds since 1970.
    committed_at: int
    previous_hash: str
    hash: str
    record: dict[str, Any]


class Trace(Answer):
    id: str
    type: str | None
    #: Microseconds since 1970.
    at: int | None
    agent: dict[str, Any] | None
    server: str | None
    tool: str | None
    action: str | None
    verdict: str | None
    reason: str | None
    reasons: list[str]
    policies: list[str]
    status: str | None
    decision: Event
    outcome: Event | None


class Traces(Answer):
    items: list[Trace]
    next_page_token: str


class OneTrace(Answer):
    id: str
    events: list[Event]
    #: The decided envelope without arguments, while it is kept.
    input: dict[str, Any] | None


@router.get("")
async def list_traces(
    call: Annotated[Call, needs(Role.VIEWER)], query: Annotated[TraceQuery, Query()]
) -> Traces:
    """Newest first. With a filter, a page may be short or empty while there are more:
    `next_page_token` tells.
    """
    if "\0" in query.filter:
        raise Refusal("INVALID_FILTER", "The filter cannot be used.")
    listing = f"traces:{hashlib.sha256(query.filter.encode()).hexdigest()}"
    after = start_of(call, listing, query)
    items, following = await call.control.audit.traces(
        call.tenant, filter=query.filter, page_size=query.page_size, page_token=after
    )
    token = token_behind(call, listing, following)
    return Traces(items=[Trace(**item) for item in items], next_page_token=token)


@router.get("/{trace_id:uuid}")
async def get_trace(trace_id: UUID, call: Annotated[Call, needs(Role.VIEWER)]) -> OneTrace:
    wanted = str(trace_id)
    try:
        events, envelope = await call.control.audit.trace(call.tenant, wanted)
    except BehavryError as refused:
        if refused.reason == "NOT_FOUND":
            raise not_found("trace") from None
        raise
    return OneTrace(id=wanted, events=[Event(**event) for event in events], input=envelope)
