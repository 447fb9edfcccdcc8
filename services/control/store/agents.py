"""Agents, their secrets and enrolment tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from services.common.ids import AgentId, TenantId
from services.common.postgres.connection import Connection
from services.control.credentials import StoredSecret

_COLUMNS: Final = (
    "id, name, type, class, owner, tags, roles, status, token_life_s, revision, created_at"
)
_INSERT: Final = f"""
INSERT INTO control.agents
    (id, tenant_id, name, type, class, owner, tags, roles, status, token_life_s, revision,
     created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'active', $9, 1, $10)
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_GET: Final = f"SELECT {_COLUMNS} FROM control.agents WHERE id = $1"  # noqa: S608  # a constant list of columns
_GET_LOCKED: Final = f"{_GET} FOR UPDATE"
_PAGE: Final = f"""
SELECT {_COLUMNS} FROM control.agents WHERE id > $1 ORDER BY id LIMIT $2"""  # noqa: S608  # a constant list of columns
_COUNT: Final = "SELECT count(*) FROM control.agents WHERE status <> 'revoked'"
_SET_STATUS: Final = f"""
UPDATE control.agents SET status = $2, revision = revision + 1 WHERE id = $1
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_SECRETS: Final = """
SELECT id, created_at, expires_at FROM control.agent_secrets
WHERE agent_id = $1 AND removed_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
ORDER BY created_at, id"""
_WITH_SECRETS: Final = f"""
SELECT {", ".join(f"a.{name}" for name in _COLUMNS.split(", "))},
       s.id AS secret_id, s.created_at AS secret_created_at, s.expires_at AS secret_expires_at
FROM control.agents a
LEFT JOIN control.agent_secrets s
       ON s.agent_id = a.id AND s.removed_at IS NULL
          AND (s.expires_at IS NULL OR s.expires_at > $2)
WHERE a.id = $1 ORDER BY s.created_at, s.id"""  # noqa: S608  # a constant list of columns
_FIND_SECRETS: Final = """
SELECT tenant_id, tenant_status, agent_name, secret_id, secret_sha256, expires_at
FROM control.find_agent_secrets($1)"""
_ADD_ONE: Final = """
INSERT INTO control.agent_secrets (id, tenant_id, agent_id, secret_sha256, created_at)
VALUES ($1, $2, $3, $4, $5)"""
_EXPIRE_OTHERS: Final = """
UPDATE control.agent_secrets SET expires_at = least(coalesce(expires_at, $3), $3)
WHERE agent_id = $1 AND id <> $2 AND removed_at IS NULL"""
_REMOVE_ONE: Final = """
UPDATE control.agent_secrets SET removed_at = $3
WHERE agent_id = $1 AND id = $2 AND removed_at IS NULL RETURNING id"""
_INSERT_ENROLLMENT: Final = """
INSERT INTO control.enrollment_tokens
    (id, tenant_id, token_sha256, label, type, class, roles, created_by, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"""
_FIND_ENROLLMENT: Final = """
SELECT tenant_id, tenant_status, enrollment_id FROM control.find_enrollment($1)"""
_USE_ENROLLMENT: Final = """
UPDATE control.enrollment_tokens SET used_at = $2, agent_id = $3
WHERE id = $1 AND used_at IS NULL AND expires_at > $2
RETURNING label, type, class, roles, created_by"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAgent:
    id: AgentId
    name: str
    type: str
    agent_class: str
    owner: str | None = None
    tags: Sequence[str] = ()
    roles: Sequence[str] = ()
    token_life_s: int = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An agent whose token is asked for, before its tenant is entered."""

    tenant: TenantId
    tenant_status: str
    name: str
    secrets: tuple[StoredSecret, ...] = field(repr=False)


async def insert(
    connection: Connection, tenant: TenantId, agent: NewAgent, now: datetime
) -> dict[str, Any] | None:
    """None when the name is taken."""
    row = await connection.fetchrow(
        _INSERT, agent.id, tenant, agent.name, agent.type, agent.agent_class, agent.owner,
        list(agent.tags), list(agent.roles), agent.token_life_s, now,
    )  # fmt: skip
    return dict(row) if row else None


async def get(connection: Connection, id: AgentId, *, lock: bool = False) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET, id)
    return dict(row) if row else None


async def with_secrets(
    connection: Connection, id: AgentId, now: datetime
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """An agent and its live secrets, the older first."""
    rows = await connection.fetch(_WITH_SECRETS, id, now)
    if not rows:
        return None
    secrets = [
        {name: row[f"secret_{name}"] for name in ("id", "created_at", "expires_at")}
        for row in rows
        if row["secret_id"] is not None
    ]
    return dict(rows[0]), secrets


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_PAGE, after, limit)]


async def count(connection: Connection) -> int:
    """The tenant's agents that are not revoked."""
    return int(await connection.fetchval(_COUNT))


async def set_status(connection: Connection, id: AgentId, status: str) -> dict[str, Any]:
    row = await connection.fetchrow(_SET_STATUS, id, status)
    return dict(row or {})


async def live_secrets(connection: Connection, id: AgentId, now: datetime) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_SECRETS, id, now)]


async def candidate(connection: Connection, id: str) -> Candidate | None:
    """Of a client id that nobody has proven yet. None when no agent with a secret has it."""
    rows = await connection.fetch(_FIND_SECRETS, id)
    if not rows:
        return None
    return Candidate(
        tenant=TenantId(str(rows[0]["tenant_id"])),
        tenant_status=rows[0]["tenant_status"],
        name=rows[0]["agent_name"],
        secrets=tuple(
            StoredSecret(
                id=str(row["secret_id"]),
                secret_sha256=row["secret_sha256"],
                expires_at=row["expires_at"],
            )
            for row in rows
        ),
    )


async def add_secret(
    connection: Connection,
    tenant: TenantId,
    agent: AgentId,
    *,
    id: str,
    secret_sha256: bytes,
    now: datetime,
) -> None:
    await connection.execute(_ADD_ONE, id, tenant, agent, secret_sha256, now)


async def expire_other_secrets(
    connection: Connection, agent: AgentId, *, newest: str, at: datetime
) -> None:
    await connection.execute(_EXPIRE_OTHERS, agent, newest, at)


async def remove_secret(connection: Connection, agent: AgentId, id: str, now: datetime) -> bool:
    return await connection.fetchval(_REMOVE_ONE, agent, id, now) is not None


async def insert_enrollment(
    connection: Connection,
    tenant: TenantId,
    *,
    id: str,
    token_sha256: bytes,
    label: str,
    type: str,
    agent_class: str,
    roles: Sequence[str],
    created_by: str,
    now: datetime,
    expires_at: datetime,
) -> None:
    await connection.execute(
        _INSERT_ENROLLMENT, id, tenant, token_sha256, label, type, agent_class, list(roles),
        created_by, now, expires_at,
    )  # fmt: skip


async def find_enrollment(
    connection: Connection, token_sha256: bytes
) -> tuple[TenantId, str] | None:
    """(tenant, enrolment) of an active tenant's token, used or not."""
    row = await connection.fetchrow(_FIND_ENROLLMENT, token_sha256)
    if row is None or row["tenant_status"] != "active":
        return None
    return TenantId(str(row["tenant_id"])), str(row["enrollment_id"])


async def use_enrollment(
    connection: Connection, id: str, *, agent: AgentId, now: datetime
) -> dict[str, Any] | None:
    """What the token grants, now used up; None when it was used or has expired."""
    row = await connection.fetchrow(_USE_ENROLLMENT, id, now, agent)
    return dict(row) if row else None
