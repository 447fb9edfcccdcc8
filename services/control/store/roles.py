"""Agents' roles and classes: tenant data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_GET: Final = """
SELECT name, permissions, revision, updated_at FROM control.agent_roles WHERE name = $1"""
_GET_LOCKED: Final = f"{_GET} FOR UPDATE"
_PAGE: Final = """
SELECT name, permissions, revision, updated_at FROM control.agent_roles
WHERE name > $1 ORDER BY name LIMIT $2"""
_PUT: Final = """
INSERT INTO control.agent_roles (tenant_id, name, permissions, revision, updated_at)
VALUES ($1, $2, $3, 1, $4)
ON CONFLICT (tenant_id, name) DO UPDATE
SET permissions = excluded.permissions, updated_at = excluded.updated_at,
    revision = agent_roles.revision + 1
RETURNING name, permissions, revision, updated_at"""
_KNOWN: Final = "SELECT name FROM control.agent_roles WHERE name = ANY($1::text[])"
_PERMISSIONS: Final = """
SELECT DISTINCT unnest(permissions) AS permission
FROM control.agent_roles WHERE name = ANY($1::text[]) ORDER BY permission"""
_ENSURE_CLASS: Final = """
INSERT INTO control.agent_classes (tenant_id, name, critical) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING"""
_HAS_CLASS: Final = "SELECT EXISTS (SELECT 1 FROM control.agent_classes WHERE name = $1)"


async def get(connection: Connection, name: str, *, lock: bool = False) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET, name)
    return dict(row) if row else None


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_PAGE, after, limit)]


async def put(
    connection: Connection,
    tenant: TenantId,
    *,
    name: str,
    permissions: Sequence[str],
    now: datetime,
) -> dict[str, Any]:
    row = await connection.fetchrow(_PUT, tenant, name, list(permissions), now)
    return dict(row or {})


async def unknown(connection: Connection, names: Sequence[str]) -> list[int]:
    """The places in `names` of roles that the tenant does not have."""
    known = {row["name"] for row in await connection.fetch(_KNOWN, list(names))}
    return [index for index, name in enumerate(names) if name not in known]


async def permissions_of(connection: Connection, names: Sequence[str]) -> tuple[str, ...]:
    rows = await connection.fetch(_PERMISSIONS, list(names))
    return tuple(row["permission"] for row in rows)


async def ensure_class(
    connection: Connection, tenant: TenantId, *, name: str, critical: bool
) -> None:
    await connection.execute(_ENSURE_CLASS, tenant, name, critical)


async def has_class(connection: Connection, name: str) -> bool:
    return bool(await connection.fetchval(_HAS_CLASS, name))
