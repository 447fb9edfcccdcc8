"""People of a tenant as whoever manages them sees them, and what ends with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import asyncpg

from services.common.postgres.connection import Connection

_COLUMNS: Final = "id, username, email, role, status, is_super_admin, revision, created_at"
_FACTORS: Final = """
ARRAY(SELECT DISTINCT f.kind FROM control.user_factors f
      WHERE f.tenant_id = u.tenant_id AND f.user_id = u.id AND f.confirmed_at IS NOT NULL
        AND f.removed_at IS NULL ORDER BY f.kind) AS factors"""
_PAGE: Final = f"""
SELECT {_COLUMNS}, {_FACTORS} FROM control.users u
WHERE id > $1 AND status <> 'deleted' ORDER BY id LIMIT $2"""  # noqa: S608  # constants
_GET: Final = f"""
SELECT {_COLUMNS}, {_FACTORS} FROM control.users u WHERE id = $1 AND status <> 'deleted'"""  # noqa: S608  # constants
_LOCK: Final = """
SELECT role, status, revision, username FROM control.users
WHERE id = $1 AND status <> 'deleted' FOR NO KEY UPDATE"""
_SET_ROLE: Final = "UPDATE control.users SET role = $2, revision = revision + 1 WHERE id = $1"
_SET_STATUS: Final = "UPDATE control.users SET status = $2, revision = revision + 1 WHERE id = $1"
#: The name is free again; whoever is named in records is found by id.
_DELETE: Final = """
UPDATE control.users
SET status = 'deleted', username = 'deleted:' || id, password_hash = NULL, email = '',
    revision = revision + 1
WHERE id = $1"""
_END_SESSIONS: Final = """
UPDATE control.user_sessions SET ended_at = $2 WHERE user_id = $1 AND ended_at IS NULL"""
_END_KEYS: Final = """
UPDATE control.api_keys SET revoked_at = $2 WHERE created_by = $1 AND revoked_at IS NULL
RETURNING id"""
_END_KEYS_ABOVE: Final = """
UPDATE control.api_keys SET revoked_at = $2
WHERE created_by = $1 AND revoked_at IS NULL AND role = ANY($3) RETURNING id"""
#: Links to another password, and sign-ins that are half done.
_END_RESETS: Final = """
UPDATE control.password_resets SET ended_at = $2
WHERE user_id = $1 AND used_at IS NULL AND ended_at IS NULL"""
_END_CHALLENGES: Final = "DELETE FROM control.sign_in_challenges WHERE user_id = $1"
_APPROVED_BY: Final = """
SELECT e.id FROM control.escalations e
JOIN control.escalation_votes v ON v.tenant_id = e.tenant_id AND v.escalation_id = e.id
WHERE v.user_id = $1 AND v.verdict = 'approve' AND e.state = 'approved' AND e.execute_by > $2
ORDER BY e.id"""
_TAKEN: Final = """
SELECT EXISTS (SELECT 1 FROM control.users WHERE username = $1 OR (email = $1 AND email <> ''))"""
_SESSIONS: Final = """
SELECT id, kind, method, client_ip, created_at, seen_at FROM control.user_sessions
WHERE user_id = $1 AND ended_at IS NULL AND created_at > $2 AND seen_at > $3
ORDER BY created_at DESC, id LIMIT 100"""
_END_SESSION: Final = """
UPDATE control.user_sessions SET ended_at = $3
WHERE user_id = $1 AND id = $2 AND ended_at IS NULL RETURNING id"""
_END_OTHERS: Final = """
UPDATE control.user_sessions SET ended_at = $3
WHERE user_id = $1 AND id <> $2 AND ended_at IS NULL RETURNING id"""


class LastAdmin(Exception):
    """The tenant would be left without an active admin."""


@asynccontextmanager
async def keeping_an_admin() -> AsyncIterator[None]:
    """The database is the judge of who is the last one. Raises LastAdmin."""
    try:
        yield
    except asyncpg.CheckViolationError as refused:
        if refused.constraint_name == "last_admin":
            raise LastAdmin from None
        raise


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    first = after or "00000000-0000-0000-0000-000000000000"
    return [_told(row) for row in await connection.fetch(_PAGE, first, limit)]


async def get(connection: Connection, id: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET, id)
    return _told(row) if row else None


async def lock(connection: Connection, id: str) -> dict[str, Any] | None:
    """Of the transaction's tenant; nobody else changes it meanwhile."""
    row = await connection.fetchrow(_LOCK, id)
    return dict(row) if row else None


async def set_role(connection: Connection, id: str, role: str) -> None:
    await connection.execute(_SET_ROLE, id, role)


async def set_status(connection: Connection, id: str, status: str) -> None:
    await connection.execute(_SET_STATUS, id, status)


async def delete(connection: Connection, id: str) -> None:
    await connection.execute(_DELETE, id)


async def end_access(connection: Connection, id: str, now: datetime) -> list[str]:
    """Ends their sessions, the keys that they made and what could begin another session; which keys
    those were.
    """
    await connection.execute(_END_SESSIONS, id, now)
    await connection.execute(_END_RESETS, id, now)
    await connection.execute(_END_CHALLENGES, id)
    return [row["id"] for row in await connection.fetch(_END_KEYS, f"user:{id}", now)]


async def end_keys_above(
    connection: Connection, id: str, roles: Sequence[str], now: datetime
) -> list[str]:
    """Ends the keys that they made and that may more than they; which ones those were."""
    rows = await connection.fetch(_END_KEYS_ABOVE, f"user:{id}", now, list(roles))
    return [row["id"] for row in rows]


async def approved_by(connection: Connection, id: str, now: datetime) -> list[str]:
    """Escalations that stand approved with their vote and may still be used."""
    return [str(row["id"]) for row in await connection.fetch(_APPROVED_BY, id, now)]


async def is_taken(connection: Connection, address: str) -> bool:
    """Whether somebody of the transaction's tenant has this name or address."""
    return bool(await connection.fetchval(_TAKEN, address))


async def sessions(
    connection: Connection, user: str, *, opened_after: datetime, seen_after: datetime
) -> list[dict[str, Any]]:
    rows = await connection.fetch(_SESSIONS, user, opened_after, seen_after)
    return [{**row, "id": str(row["id"])} for row in rows]


async def end_session(connection: Connection, user: str, id: str, now: datetime) -> bool:
    return await connection.fetchval(_END_SESSION, user, id, now) is not None


async def end_other_sessions(
    connection: Connection, user: str, *, but: str, now: datetime
) -> list[str]:
    return [str(row["id"]) for row in await connection.fetch(_END_OTHERS, user, but, now)]


def _told(row: Any) -> dict[str, Any]:
    return {**row, "id": str(row["id"])}
