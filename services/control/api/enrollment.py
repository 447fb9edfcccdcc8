"""Enrolment: a token made by an admin lets one agent register itself, once."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from services.common.ids import AgentId
from services.control import agents as rules
from services.control import credentials, limits, principals
from services.control.api.agents import (
    AgentMade,
    AgentName,
    ClassName,
    Roles,
    check_roles,
    register,
)
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Visit
from services.control.api.guards import anyone, needs
from services.control.api.shapes import Answer, Time
from services.control.audit_records import change as changed
from services.control.problems import Refusal, invalid
from services.control.roles import Role
from services.control.store import agents, roles

router = APIRouter(prefix="/api/v1", tags=["agents"])

DEFAULT_TTL_S = 24 * 3600
MAX_TTL_S = 7 * 24 * 3600


class NewEnrollment(Body):
    label: str = Field(min_length=1, max_length=80)
    type: rules.AgentType = "autonomous"
    class_: ClassName = Field(rules.DEFAULT_CLASS, alias="class")
    roles: Roles = Field([])
    ttl: int = Field(DEFAULT_TTL_S, ge=60, le=MAX_TTL_S)


class EnrollmentMade(Answer):
    """The only answer that holds the token."""

    id: str
    token: str
    expires_at: Time


class Enrol(Body):
    token: str = Field(min_length=1, max_length=200)
    name: AgentName


@router.post("/enrollment-tokens", status_code=201)
async def create_enrollment_token(
    call: Annotated[Call, needs(Role.ADMIN)],
    body: Annotated[NewEnrollment, json_body(NewEnrollment)],
) -> EnrollmentMade:
    token, enrollment_id = credentials.new_enrollment_token(), call.control.new_id()
    expires_at = call.now + timedelta(seconds=body.ttl)
    async with call.change(desired=False) as change:
        await check_roles(change.connection, body.roles)
        if not await roles.has_class(change.connection, body.class_):
            raise invalid("/class", "unknown", "There is no such class of agents.")
        await agents.insert_enrollment(
            change.connection,
            call.tenant,
            id=enrollment_id,
            token_sha256=credentials.stored(token),
            label=body.label,
            type=body.type,
            agent_class=body.class_,
            roles=body.roles,
            created_by=call.principal.label,
            now=call.now,
            expires_at=expires_at,
        )
        await change.record(
            "admin.enrollment_token.created",
            resource="enrollment_token",
            resource_id=enrollment_id,
            changes=[
                changed("label", None, body.label),
                changed("class", None, body.class_),
                changed("roles", None, list(body.roles)),
                changed("token", None, ""),
            ],
        )
    return EnrollmentMade(id=enrollment_id, token=token, expires_at=expires_at)


@router.post("/enroll", status_code=201)
async def enroll(
    visit: Annotated[Visit, anyone()], body: Annotated[Enrol, json_body(Enrol)]
) -> AgentMade:
    """Unknown, used and expired tokens look alike. A name that is taken uses nothing up."""
    async with visit.control.pool.acquire() as connection:
        found = await agents.find_enrollment(connection, credentials.stored(body.token))
    if found is None:
        _count_failure(visit)
        raise _unusable()
    tenant, enrollment_id = found
    agent = AgentId(visit.control.new_id())
    actor = {"kind": "enrollment_token", "id": enrollment_id}
    async with visit.change_in(tenant, actor, desired=True) as change:
        granted = await agents.use_enrollment(
            change.connection, enrollment_id, agent=agent, now=visit.now
        )
        if granted is None:
            raise _unusable()
        new = agents.NewAgent(
            id=agent,
            name=body.name,
            type=granted["type"],
            agent_class=granted["class"],
            owner=principals.person(granted["created_by"]),
            roles=granted["roles"],
        )
        return await register(visit, change, new, verb="enrolled")


def _count_failure(visit: Visit) -> None:
    """Only tokens that are none are limited: a guesser at one address stops nobody else there."""
    try:
        visit.control.limits.enroll_failures.take(visit.address)
    except limits.TooMany as too_many:
        raise Refusal(
            "RATE_LIMITED",
            "Too many enrolments. Try again later.",
            headers={"retry-after": str(too_many.retry_after_s)},
        ) from None


def _unusable() -> Refusal:
    return Refusal("ENROLLMENT_INVALID", "The token is unknown, used or expired.")
