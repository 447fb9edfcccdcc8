"""Sessions of agents: begun and renewed at the token endpoint, ended by revocation or silence."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from services.common.ids import AgentId, SessionId, TenantId
from services.common.postgres.connection import Connection
from services.control.credentials import SESSION_IDLE

_LIVE: Final = """
SELECT count(*) FROM control.agent_sessions
WHERE agent_id = $1 AND ended_at IS NULL AND renewed_at > $2"""
_INSERT: Final = """
INSERT INTO control.agent_sessions
    (id, tenant_id, agent_id, secret_id, created_at, renewed_at, token_expires_at)
VALUES ($1, $2, $3, $4, $5, $5, $6)"""
_RENEW: Final = """
UPDATE control.agent_sessions
SET renewed_at = $3, token_expires_at = greatest(token_expires_at, $4), secret_id = $5
WHERE id = $1 AND agent_id = $2 AND ended_at IS NULL AND renewed_at > $6
RETURNING id"""
_END_OF_AGENT: Final = """
UPDATE control.agent_sessions SET ended_at = $2 WHERE agent_id = $1 AND ended_at IS NULL"""
_END_THOSE: Final = """
UPDATE control.agent_sessions SET ended_at = $2 WHERE secret_id = $1 AND ended_at IS NULL
RETURNING id"""


async def count_live(connection: Connection, agent: AgentId, now: datetime) -> int:
    return int(await connection.fetchval(_LIVE, agent, now - SESSION_IDLE))


async def begin(
    connection: Connection,
    tenant: TenantId,
    agent: AgentId,
    *,
    id: SessionId,
    secret_id: str,
    now: datetime,
    token_expires_at: datetime,
) -> None:
    await connection.execute(_INSERT, id, tenant, agent, secret_id, now, token_expires_at)


async def renew(
    connection: Connection,
    agent: AgentId,
    *,
    id: SessionId,
    secret_id: str,
    now: datetime,
    token_expires_at: datetime,
) -> bool:
    """False when it is not this agent's live session. It now hangs on this secret."""
    idle_since = now - SESSION_IDLE
    renewed = await connection.fetchval(
        _RENEW, id, agent, now, token_expires_at, secret_id, idle_since
    )
    return renewed is not None


async def end_of_agent(connection: Connection, agent: AgentId, now: datetime) -> None:
    await connection.execute(_END_OF_AGENT, agent, now)


async def end_of_secret(connection: Connection, secret_id: str, now: datetime) -> list[SessionId]:
    rows = await connection.fetch(_END_THOSE, secret_id, now)
    return [SessionId(str(row["id"])) for row in rows]
