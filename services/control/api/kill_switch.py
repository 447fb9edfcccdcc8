"""The kill switch: one admin stops an agent, a class, a server or the whole tenant at once; two
release it. Planes hear of a stop before any bundle says it; only a bundle gives back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from services.common.ids import AgentId, is_uuid
from services.common.postgres.connection import Connection
from services.control import kill_switches as rules
from services.control.api.bodies import Body, Reason, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Page, Paging, Time, split, start_of
from services.control.audit_records import change as changed
from services.control.problems import Refusal, invalid, not_found
from services.control.roles import Role
from services.control.signals import Stop
from services.control.store import agents, kill_switches, roles, servers

router = APIRouter(prefix="/api/v1/kill-switch", tags=["stops"])

_LAST_ID = str(UUID(int=(1 << 128) - 1))


class NewStop(Body):
    scope: rules.Scope
    #: An agent's id, a class's name or a server's slug; none for `tenant`.
    subject: str = Field("", max_length=128)
    reason: Reason


class Release(Body):
    reason: Reason


class Vote(Answer):
    user_id: str
    reason: str
    given_at: str


class KillSwitch(Answer):
    id: str
    scope: str
    subject: str
    reason: str
    #: `on` or `off`.
    state: str
    on_by: str
    on_at: Time
    #: Admins who want it off, so far.
    releases: list[Vote]
    off_at: Time | None


@router.get("")
async def list_kill_switches(
    call: Annotated[Call, needs(Role.VIEWER)], query: Paging
) -> Page[KillSwitch]:
    """Newest first, released ones too."""
    before = start_of(call, "kill-switch", query) or _LAST_ID
    async with call.read() as connection:
        rows = await kill_switches.page(connection, before=before, limit=query.page_size + 1)
    shown, following = split(call, "kill-switch", query, rows, lambda row: str(row["id"]))
    return Page(items=[_answer(row) for row in shown], next_page_token=following)


@router.get("/{switch_id:uuid}")
async def get_kill_switch(switch_id: UUID, call: Annotated[Call, needs(Role.VIEWER)]) -> KillSwitch:
    async with call.read() as connection:
        return _answer(await _find(connection, str(switch_id)))


@router.post("", status_code=201)
async def throw_kill_switch(
    call: Annotated[Call, needs(Role.ADMIN)],
    body: Annotated[NewStop, json_body(NewStop)],
    response: Response,
) -> KillSwitch:
    """Again while it is on: 200, the same one, and planes are told once more."""
    if body.scope == "fleet":
        raise Refusal(
            "ROLE_REQUIRED",
            "The fleet is a super-admin's to stop; on one machine: behavry kill --local.",
            required_role="super_admin",
        )
    async with call.change() as change:
        await _check_subject(change.connection, body)
        switch_id = call.control.new_id()
        thrown = await kill_switches.throw(
            change.connection,
            call.tenant,
            id=switch_id,
            scope=body.scope,
            subject=body.subject,
            reason=body.reason,
            on_by=call.principal.label,
            now=call.now,
        )
        if thrown:
            await change.record(
                "admin.kill_switch.thrown",
                resource="kill_switch",
                resource_id=switch_id,
                changes=_recorded(body),
                reason=body.reason,
            )
        else:
            switch_id = await kill_switches.id_on(change.connection, body.scope, body.subject)
        row = await _find(change.connection, switch_id)
    call.control.signals.revoke(call.tenant, stops=[Stop(scope=body.scope, subject=body.subject)])
    response.status_code = 201 if thrown else 200
    response.headers["location"] = f"/api/v1/kill-switch/{switch_id}"
    return _answer(row)


@router.post("/{switch_id:uuid}:release")
async def release_kill_switch(
    switch_id: UUID,
    call: Annotated[Call, needs(Role.ADMIN, human=True, fresh=True)],
    body: Annotated[Release, json_body(Release)],
) -> KillSwitch:
    """1. it is on  2. the vote  3. off, if that was enough."""
    wanted = str(switch_id)
    async with call.change() as change:
        before = await _find(change.connection, wanted, lock=True)
        if before["off_at"] is not None:  # 1
            raise Refusal("CONFLICT", "It is off already.")
        await kill_switches.vote(  # 2
            change.connection,
            call.tenant,
            wanted,
            user=call.principal.id,
            reason=body.reason,
            now=call.now,
        )
        row = await _find(change.connection, wanted)
        needed = rules.releases_needed(await kill_switches.count_admins(change.connection))
        released = len(row["releases"]) >= needed
        if released:  # 3
            await kill_switches.turn_off(change.connection, wanted, call.now)
            row["off_at"] = call.now
        alone = released and needed == 1
        await change.record(
            f"admin.kill_switch.{'released' if released else 'release_asked'}",
            resource="kill_switch",
            resource_id=wanted,
            changes=[changed("sole_operator", None, True)] if alone else [],
            reason=body.reason,
            step_up=True,
        )
    return _answer(row)


async def _check_subject(connection: Connection, stop: NewStop) -> None:
    """A stop of what does not exist would calm whoever mistyped it."""
    if stop.scope in rules.WHOLE:
        if stop.subject:
            raise invalid("/subject", "not_for_tenant", "The tenant's switch has no subject.")
        return
    if not await _exists(connection, stop):
        raise invalid("/subject", "unknown", f"There is no such {stop.scope}.")


async def _exists(connection: Connection, stop: NewStop) -> bool:
    if "\0" in stop.subject:
        return False
    match stop.scope:
        case "agent":
            agent = AgentId(stop.subject)
            return is_uuid(agent) and await agents.get(connection, agent) is not None
        case "class":
            return await roles.has_class(connection, stop.subject)
        case _:  # planes know servers by their slugs alone
            server = await servers.get(connection, stop.subject)
            return server is not None and server["slug"] == stop.subject


async def _find(connection: Connection, id: str, *, lock: bool = False) -> dict[str, Any]:
    row = await kill_switches.get(connection, id, lock=lock)
    if row is None:
        raise not_found("kill switch")
    return row


def _recorded(stop: NewStop) -> list[dict[str, Any]]:
    said = {"scope": stop.scope, "subject": stop.subject}
    return [changed(name, None, value) for name, value in said.items() if value]


def _answer(row: Mapping[str, Any]) -> KillSwitch:
    state = "on" if row["off_at"] is None else "off"
    return KillSwitch(**{**row, "id": str(row["id"]), "state": state})
