"""Agents: register, list, suspend, resume, revoke, rotate and remove secrets.

A secret is in exactly one answer, the one that made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import Response

from services.common.ids import AgentId
from services.common.postgres.connection import Connection
from services.control import agents as rules
from services.control import credentials
from services.control.api import plan_limits
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change, Visit
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Page, Paging, Time, split, start_of, tag
from services.control.audit_records import change
from services.control.problems import FieldError, Refusal, invalid, not_found
from services.control.roles import Role
from services.control.store import agent_sessions, agents, people, roles
from services.control.tokens import DEFAULT_LIFE_S

router = APIRouter(prefix="/api/v1/agents", tags=["agents"])

RoleName = Annotated[str, StringConstraints(pattern=rules.ROLE)]
ClassName = Annotated[str, StringConstraints(pattern=rules.CLASS)]
AgentName = Annotated[
    str, StringConstraints(min_length=1, max_length=rules.NAME_MAX, pattern=r"^\S(.*\S)?$")
]
TagName = Annotated[str, StringConstraints(pattern=rules.TAG)]
Roles = Annotated[list[RoleName], Field(max_length=rules.MAX_ROLES)]


class NewAgent(Body):
    name: AgentName
    type: rules.AgentType = "autonomous"
    class_: ClassName = Field(rules.DEFAULT_CLASS, alias="class")
    roles: Roles = Field([])
    tags: Annotated[list[TagName], Field(max_length=rules.MAX_TAGS)] = Field([])
    token_life_seconds: int = Field(DEFAULT_LIFE_S, ge=60, le=28_800)
    #: Who answers for it, and so does not approve its calls; without one, the person who makes it.
    owner: UUID | None = None


class Secret(Answer):
    id: str
    created_at: Time
    expires_at: Time | None


class Agent(Answer):
    id: str
    client_id: str
    name: str
    type: str
    class_: str = Field(alias="class")
    owner: str | None
    tags: list[str]
    roles: list[str]
    status: str
    token_life_seconds: int
    revision: int
    created_at: Time


class AgentWithSecrets(Agent):
    secrets: list[Secret]


class AgentMade(Agent):
    """The only answer that holds the secret."""

    secret_id: str
    client_secret: str


class SecretMade(Answer):
    client_id: str
    secret_id: str
    client_secret: str


@router.get("")
async def list_agents(call: Annotated[Call, needs(Role.VIEWER)], query: Paging) -> Page[Agent]:
    after = start_of(call, "agents", query) or str(UUID(int=0))
    async with call.read() as connection:
        rows = await agents.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "agents", query, rows, lambda row: str(row["id"]))
    return Page(items=[Agent(**fields(row)) for row in shown], next_page_token=following)


@router.post("", status_code=201)
async def create_agent(
    call: Annotated[Call, needs(Role.ADMIN)],
    body: Annotated[NewAgent, json_body(NewAgent)],
    response: Response,
) -> AgentMade:
    async with call.change() as change:
        await check_roles(change.connection, body.roles)
        if not await roles.has_class(change.connection, body.class_):
            raise invalid("/class", "unknown", "There is no such class of agents.")
        if body.owner and not await people.is_active(change.connection, str(body.owner)):
            raise invalid("/owner", "unknown", "There is no such person.")
        new = agents.NewAgent(
            id=AgentId(call.control.new_id()),
            name=body.name,
            type=body.type,
            agent_class=body.class_,
            owner=str(body.owner) if body.owner else _maker(call),
            tags=body.tags,
            roles=body.roles,
            token_life_s=body.token_life_seconds,
        )
        made = await register(call, change, new, verb="created")
    response.headers["location"] = f"/api/v1/agents/{new.id}"
    return made


@router.get("/{agent_id:uuid}")
async def get_agent(
    agent_id: UUID, call: Annotated[Call, needs(Role.VIEWER)], response: Response
) -> AgentWithSecrets:
    wanted = AgentId(str(agent_id))
    async with call.read() as connection:
        found = await agents.with_secrets(connection, wanted, call.now)
    if found is None:
        raise not_found("agent")
    agent, secrets = found
    tag(response, agent["revision"])
    listed = [Secret(**{**secret, "id": str(secret["id"])}) for secret in secrets]
    return AgentWithSecrets(**fields(agent), secrets=listed)


@router.post("/{agent_id:uuid}:suspend")
async def suspend_agent(agent_id: UUID, call: Annotated[Call, needs(Role.ANALYST)]) -> Agent:
    return await _move(call, agent_id, "suspend")


@router.post("/{agent_id:uuid}:resume")
async def resume_agent(agent_id: UUID, call: Annotated[Call, needs(Role.ADMIN)]) -> Agent:
    return await _move(call, agent_id, "resume")


@router.post("/{agent_id:uuid}:revoke")
async def revoke_agent(agent_id: UUID, call: Annotated[Call, needs(Role.ADMIN)]) -> Agent:
    return await _move(call, agent_id, "revoke")


@router.post("/{agent_id:uuid}:rotate", status_code=201)
async def rotate_agent_secret(
    agent_id: UUID, call: Annotated[Call, needs(Role.ADMIN)]
) -> SecretMade:
    """A new secret; the older one goes on for at most 7 days."""
    wanted = AgentId(str(agent_id))
    async with call.change(desired=False) as change:
        connection, now = change.connection, call.now
        agent = await _locked(connection, wanted)
        if agent["status"] == "revoked":
            raise Refusal("CONFLICT", "The agent is revoked.")
        if len(await agents.live_secrets(connection, wanted, now)) >= credentials.MAX_SECRETS:
            raise Refusal("CONFLICT", "Two secrets live already: delete one first.")
        secret_id, secret = await _add_secret(call, change, wanted)
        await agents.expire_other_secrets(
            connection, wanted, newest=secret_id, at=now + credentials.OVERLAP
        )
        await change.record("admin.agent.rotated", resource="agent", resource_id=wanted)
    return SecretMade(client_id=wanted, secret_id=secret_id, client_secret=secret)


@router.delete("/{agent_id:uuid}/secrets/{secret_id:uuid}", status_code=204)
async def delete_agent_secret(
    agent_id: UUID, secret_id: UUID, call: Annotated[Call, needs(Role.ADMIN)]
) -> Response:
    """Ends the secret and every session that it opened, at once."""
    wanted = AgentId(str(agent_id))
    async with call.change() as change:
        await _locked(change.connection, wanted)
        if not await agents.remove_secret(change.connection, wanted, str(secret_id), call.now):
            raise not_found("secret")
        ended = await agent_sessions.end_of_secret(change.connection, str(secret_id), call.now)
        await change.record("admin.agent.secret_deleted", resource="agent", resource_id=wanted)
    call.control.signals.revoke(call.tenant, sessions=ended)
    return Response(status_code=204)


async def register(call: Visit, change: Change, new: agents.NewAgent, *, verb: str) -> AgentMade:
    """Makes an agent with its first secret; `call` is whoever asks, by role or by enrolment."""
    await plan_limits.check_agents(call, change)
    row = await agents.insert(change.connection, change.tenant, new, call.now)
    if row is None:
        raise Refusal("CONFLICT", "An agent of that name exists.")
    secret_id, secret = await _add_secret(call, change, new.id)
    await change.record(
        f"admin.agent.{verb}",
        resource="agent",
        resource_id=new.id,
        changes=_recorded(new),
    )
    return AgentMade(**fields(row), secret_id=secret_id, client_secret=secret)


async def check_roles(connection: Connection, names: Sequence[str]) -> None:
    if unknown := await roles.unknown(connection, names):
        errors = [FieldError(f"/roles/{index}", "unknown") for index in unknown]
        raise Refusal("VALIDATION_FAILED", "There is no such role.", errors=errors)


def fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as answers spell it."""
    return {
        **row,
        "id": str(row["id"]),
        "client_id": str(row["id"]),
        "owner": str(row["owner"]) if row["owner"] else None,
        "token_life_seconds": row["token_life_s"],
    }


async def _move(call: Call, agent_id: UUID, verb: str) -> Agent:
    """1. the new status  2. what it ends  3. the record; after the commit, planes are told."""
    wanted = AgentId(str(agent_id))
    async with call.change() as change:
        before = await _locked(change.connection, wanted)
        try:
            status = rules.after(verb, before["status"])
        except rules.NotAllowedNow:
            raise Refusal("CONFLICT", "The agent's status does not allow that.") from None
        agent = before
        if status != before["status"]:
            agent = await agents.set_status(change.connection, wanted, status)  # 1
        if status != "active":
            await agent_sessions.end_of_agent(change.connection, wanted, call.now)  # 2
        await change.record(  # 3
            f"admin.agent.{verb}",
            resource="agent",
            resource_id=wanted,
            changes=[_status_change(before["status"], status)],
        )
    if status != "active":
        call.control.signals.revoke(call.tenant, agents=[wanted])
    return Agent(**fields(agent))


def _maker(call: Call) -> str | None:
    return call.principal.id if call.principal.is_human else None


def _status_change(old: str, new: str) -> dict[str, Any]:
    return change("status", old, new)


def _recorded(new: agents.NewAgent) -> list[dict[str, Any]]:
    made = {
        "name": new.name,
        "type": new.type,
        "class": new.agent_class,
        "owner": new.owner,
        "tags": list(new.tags),
        "roles": list(new.roles),
        "token_life_s": new.token_life_s,
        "client_secret": "",
    }
    return [change(name, None, value) for name, value in made.items()]


async def _locked(connection: Connection, id: AgentId) -> dict[str, Any]:
    agent = await agents.get(connection, id, lock=True)
    if agent is None:
        raise not_found("agent")
    return agent


async def _add_secret(call: Visit, change: Change, agent: AgentId) -> tuple[str, str]:
    secret, secret_id = credentials.new_secret(), call.control.new_id()
    await agents.add_secret(
        change.connection,
        change.tenant,
        agent,
        id=secret_id,
        secret_sha256=credentials.stored(secret),
        now=call.now,
    )
    return secret_id, secret
