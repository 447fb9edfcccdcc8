"""`me/sessions`: where somebody is signed in, and how they end it elsewhere."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from services.control import sessions as rules
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Time
from services.control.problems import not_found
from services.control.roles import Role
from services.control.store import users as store

router = APIRouter(prefix="/api/v1/me", tags=["people"])


class Session(Answer):
    id: str
    #: browser or bearer.
    kind: str
    #: What proved who it is, last.
    method: str
    client_ip: str
    created_at: Time
    seen_at: Time
    #: The one that asks.
    current: bool


class Sessions(Answer):
    items: list[Session]


class Ended(Answer):
    ended: int


@router.get("/sessions")
async def list_my_sessions(
    call: Annotated[Call, needs(Role.VIEWER, human=True)],
) -> Sessions:
    async with call.read() as connection:
        rows = await store.sessions(
            connection,
            call.principal.id,
            opened_after=call.now - rules.ABSOLUTE,
            seen_after=call.now - rules.IDLE,
        )
    mine = call.principal.session_id
    return Sessions(items=[Session(**row, current=row["id"] == mine) for row in rows])


@router.delete("/sessions/{session_id:uuid}", status_code=204)
async def end_my_session(
    session_id: UUID, call: Annotated[Call, needs(Role.VIEWER, human=True)]
) -> Response:
    """Counts from its next request on."""
    async with call.change(desired=False) as change:
        ended = await store.end_session(
            change.connection, call.principal.id, str(session_id), call.now
        )
        if not ended:
            raise not_found("session")
        await change.record("admin.session.ended", resource="session", resource_id=str(session_id))
    return Response(status_code=204)


@router.post("/sessions:end-others")
async def end_my_other_sessions(call: Annotated[Call, needs(Role.VIEWER, human=True)]) -> Ended:
    """All but the one that asks."""
    async with call.change(desired=False) as change:
        ended = await store.end_other_sessions(
            change.connection,
            call.principal.id,
            but=call.principal.session_id or "",
            now=call.now,
        )
        for session in ended:
            await change.record("admin.session.ended", resource="session", resource_id=session)
    return Ended(ended=len(ended))
