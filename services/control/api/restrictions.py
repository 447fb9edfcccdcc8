"""Restricted mode: an agent, or one of its sessions, is held to less for a while. An analyst may
tighten, an admin may loosen; success is never faked, what is refused says `restricted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import AwareDatetime, Field, StringConstraints
from starlette.responses import Response

from services.common.ids import AgentId
from services.common.postgres.connection import Connection
from services.control import restrictions as rules
from services.control.api.bodies import Body, Reason, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Time
from services.control.audit_records import change as changed
from services.control.audit_records import differences
from services.control.problems import Refusal, invalid, not_found
from services.control.restrictions import Restriction
from services.control.roles import Role
from services.control.store import agents, restrictions

router = APIRouter(prefix="/api/v1/agents", tags=["stops"])

ToolGlob = Annotated[str, StringConstraints(max_length=170, pattern=rules.TOOL)]
Prefix = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class NewRestriction(Body):
    profile: rules.Profile
    until: AwareDatetime
    #: Absent: everything; empty: nothing.
    tools: Annotated[list[ToolGlob], Field(max_length=rules.MAX_ITEMS)] | None = None
    resources: Annotated[list[Prefix], Field(max_length=rules.MAX_ITEMS)] | None = None
    max_arg_bytes: Annotated[int, Field(ge=0, le=rules.MAX_ARG_BYTES)] | None = None
    rate_factor: float = Field(1.0, ge=0.001, le=1, allow_inf_nan=False)
    #: Absent: all sessions of the agent.
    session: UUID | None = None
    reason: Reason


class Unrestriction(Body):
    session: UUID | None = None
    reason: Reason


class RestrictionShown(Answer):
    agent_id: str
    session_id: str | None
    profile: str
    until: Time
    tools: list[str] | None
    resources: list[str] | None
    max_arg_bytes: int | None
    rate_factor: float
    reason: str
    restricted_by: str
    restricted_at: Time


class Restrictions(Answer):
    items: list[RestrictionShown]


@router.get("/{agent_id:uuid}/restrictions")
async def list_agent_restrictions(
    agent_id: UUID, call: Annotated[Call, needs(Role.VIEWER)]
) -> Restrictions:
    """What holds now, of the agent and of its sessions."""
    wanted = AgentId(str(agent_id))
    async with call.read() as connection:
        rows = await restrictions.of_agent(connection, wanted)
    if rows is None:
        raise not_found("agent")
    return Restrictions(items=[_shown(row) for row in rows if Restriction.of(row).holds(call.now)])


@router.post("/{agent_id:uuid}:restrict")
async def restrict_agent(
    agent_id: UUID,
    call: Annotated[Call, needs(Role.ANALYST)],
    body: Annotated[NewRestriction, json_body(NewRestriction)],
) -> RestrictionShown:
    """In the place of what the agent, or that session, was held to before."""
    wanted = AgentId(str(agent_id))
    subject = str(body.session or wanted)
    asked = _asked(body)
    async with call.change() as change:
        agent = await _find(change.connection, wanted, lock=True)
        if agent["status"] == "revoked":
            raise Refusal("CONFLICT", "The agent is revoked.")
        _check(call, asked)
        await _check_session(change.connection, wanted, body.session)
        row = await restrictions.get_locked(change.connection, wanted, subject)
        before = Restriction.of(row) if row else None
        if before and before.holds(call.now) and rules.loosens(before, asked):
            _check_may_loosen(call)
        made = await restrictions.put(
            change.connection,
            call.tenant,
            wanted,
            subject=subject,
            restriction=asked,
            reason=body.reason,
            by=call.principal.label,
            now=call.now,
        )
        await change.record(
            "admin.agent.restricted",
            resource="agent",
            resource_id=wanted,
            changes=[
                *differences(before.desired() if before else {}, asked.desired()),
                *_named(body.session),
            ],
            reason=body.reason,
        )
    return _shown(made)


@router.post("/{agent_id:uuid}:unrestrict", status_code=204)
async def unrestrict_agent(
    agent_id: UUID,
    call: Annotated[Call, needs(Role.ADMIN)],
    body: Annotated[Unrestriction, json_body(Unrestriction)],
) -> Response:
    wanted = AgentId(str(agent_id))
    subject = str(body.session or wanted)
    async with call.change() as change:
        await _find(change.connection, wanted, lock=True)
        row = await restrictions.get_locked(change.connection, wanted, subject)
        if row is None:
            raise not_found("restriction")
        await restrictions.delete(change.connection, subject)
        await change.record(
            "admin.agent.unrestricted",
            resource="agent",
            resource_id=wanted,
            changes=[{"field": "profile", "old": row["profile"]}, *_named(body.session)],
            reason=body.reason,
        )
    return Response(status_code=204)


def _asked(body: NewRestriction) -> Restriction:
    return Restriction(
        profile=body.profile,
        until=body.until,
        tools=None if body.tools is None else tuple(body.tools),
        resources=None if body.resources is None else tuple(body.resources),
        max_arg_bytes=body.max_arg_bytes,
        rate_factor_milli=round(body.rate_factor * 1000),
    )


def _check(call: Call, asked: Restriction) -> None:
    if asked.until <= call.now:
        raise invalid("/until", "too_small", "It must end in the future.")
    if asked.until > call.now + rules.LONGEST:
        raise invalid("/until", "too_large", "It may last 30 days.")
    if not asked.restricts():
        raise invalid("/profile", "restricts_nothing", "A custom restriction must say what.")


async def _check_session(connection: Connection, agent: AgentId, session: UUID | None) -> None:
    if session and not await restrictions.has_session(connection, agent, str(session)):
        raise invalid("/session", "unknown", "The agent has no such session.")


def _check_may_loosen(call: Call) -> None:
    if call.principal.role < Role.ADMIN:
        raise Refusal(
            "ROLE_REQUIRED",
            "What holds now is stricter; loosening it needs the role admin.",
            required_role=Role.ADMIN.key,
        )


def _named(session: UUID | None) -> list[dict[str, Any]]:
    return [changed("session", None, str(session))] if session else []


async def _find(connection: Connection, id: AgentId, *, lock: bool = False) -> dict[str, Any]:
    agent = await agents.get(connection, id, lock=lock)
    if agent is None:
        raise not_found("agent")
    return agent


def _shown(row: Mapping[str, Any]) -> RestrictionShown:
    of_session = row["subject_id"] != row["agent_id"]
    return RestrictionShown(
        **{
            **row,
            "agent_id": str(row["agent_id"]),
            "session_id": str(row["subject_id"]) if of_session else None,
            "rate_factor": row["rate_factor_milli"] / 1000,
        }
    )
