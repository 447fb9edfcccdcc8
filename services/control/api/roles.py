"""Agents' roles: names for sets of permissions `<domain>:<action>`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field, StringConstraints
from starlette.responses import Response

from services.control import agents as rules
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import (
    Answer,
    Page,
    Paging,
    Time,
    check_if_match,
    split,
    start_of,
    tag,
)
from services.control.audit_records import change as changed
from services.control.problems import not_found
from services.control.roles import Role
from services.control.store import roles

router = APIRouter(prefix="/api/v1/roles", tags=["agents"])

Permission = Annotated[str, StringConstraints(pattern=rules.PERMISSION)]
Name = Annotated[str, Path(pattern=rules.ROLE)]


class PutRole(Body):
    permissions: Annotated[list[Permission], Field(max_length=rules.MAX_PERMISSIONS)]


class AgentRole(Answer):
    name: str
    permissions: list[str]
    revision: int
    updated_at: Time


@router.get("")
async def list_roles(call: Annotated[Call, needs(Role.VIEWER)], query: Paging) -> Page[AgentRole]:
    after = start_of(call, "roles", query)
    async with call.read() as connection:
        rows = await roles.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "roles", query, rows, lambda row: str(row["name"]))
    return Page(items=[AgentRole(**row) for row in shown], next_page_token=following)


@router.get("/{name}")
async def get_role(
    name: Name, call: Annotated[Call, needs(Role.VIEWER)], response: Response
) -> AgentRole:
    async with call.read() as connection:
        role = await roles.get(connection, name)
    if role is None:
        raise not_found("role")
    tag(response, role["revision"])
    return AgentRole(**role)


@router.put("/{name}")
async def put_role(
    name: Name,
    call: Annotated[Call, needs(Role.ADMIN)],
    body: Annotated[PutRole, json_body(PutRole)],
    response: Response,
) -> AgentRole:
    permissions = list(dict.fromkeys(body.permissions))
    async with call.change() as change:
        before = await roles.get(change.connection, name, lock=True)
        check_if_match(call.request, before["revision"] if before else 0)
        role = await roles.put(
            change.connection, call.tenant, name=name, permissions=permissions, now=call.now
        )
        old = before["permissions"] if before else None
        await change.record(
            "admin.role.updated" if before else "admin.role.created",
            resource="role",
            resource_id=name,
            changes=[changed("permissions", old, permissions)],
        )
    tag(response, role["revision"])
    return AgentRole(**role)
