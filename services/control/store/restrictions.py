"""Restrictions of agents and of their sessions: what is in force now."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from services.common.ids import AgentId, TenantId
from services.common.postgres.connection import Connection
from services.control.restrictions import Restriction

_COLUMNS: Final = (
    "subject_id, agent_id, profile, until, tools, resources, max_arg_bytes, rate_factor_milli, "
    "reason, restricted_by, restricted_at"
)
_OF_AGENT: Final = f"""
SELECT {", ".join(f"r.{name}" for name in _COLUMNS.split(", "))}
FROM control.agents a LEFT JOIN control.restrictions r ON r.agent_id = a.id
WHERE a.id = $1 ORDER BY r.subject_id"""  # noqa: S608  # a constant list of columns
_GET_LOCKED: Final = f"""
SELECT {_COLUMNS} FROM control.restrictions
WHERE agent_id = $1 AND subject_id = $2 FOR UPDATE"""  # noqa: S608  # a constant list of columns
_PUT: Final = f"""
INSERT INTO control.restrictions (tenant_id, {_COLUMNS})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (tenant_id, subject_id) DO UPDATE
SET profile = excluded.profile, until = excluded.until, tools = excluded.tools,
    resources = excluded.resources, max_arg_bytes = excluded.max_arg_bytes,
    rate_factor_milli = excluded.rate_factor_milli, reason = excluded.reason,
    restricted_by = excluded.restricted_by, restricted_at = excluded.restricted_at
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_DELETE: Final = "DELETE FROM control.restrictions WHERE subject_id = $1"
_HAS_SESSION: Final = """
SELECT EXISTS (
    SELECT 1 FROM control.agent_sessions WHERE id = $1 AND agent_id = $2 AND ended_at IS NULL)"""


async def of_agent(connection: Connection, agent: AgentId) -> list[dict[str, Any]] | None:
    """Its own and its sessions', also those that have run out. None: there is no such agent."""
    rows = await connection.fetch(_OF_AGENT, agent)
    return [dict(row) for row in rows if row["subject_id"] is not None] if rows else None


async def get_locked(connection: Connection, agent: AgentId, subject: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET_LOCKED, agent, subject)
    return dict(row) if row else None


async def put(
    connection: Connection,
    tenant: TenantId,
    agent: AgentId,
    *,
    subject: str,
    restriction: Restriction,
    reason: str,
    by: str,
    now: datetime,
) -> dict[str, Any]:
    row = await connection.fetchrow(
        _PUT, tenant, subject, agent, restriction.profile, restriction.until,
        None if restriction.tools is None else list(restriction.tools),
        None if restriction.resources is None else list(restriction.resources),
        restriction.max_arg_bytes, restriction.rate_factor_milli, reason, by, now,
    )  # fmt: skip
    return dict(row or {})


async def delete(connection: Connection, subject: str) -> None:
    await connection.execute(_DELETE, subject)


async def has_session(connection: Connection, agent: AgentId, session: str) -> bool:
    return bool(await connection.fetchval(_HAS_SESSION, session, agent))
