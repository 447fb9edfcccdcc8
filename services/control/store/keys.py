"""API keys: only the hash of a key's secret is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.api_keys import ApiKey

_FIND: Final = """
SELECT tenant_id, tenant_slug, tenant_status, name, role, scopes, secret_sha256, expires_at,
       revoked_at
FROM control.find_api_key($1)"""
_INSERT: Final = """
INSERT INTO control.api_keys
    (id, tenant_id, name, role, prefix, secret_sha256, created_by, created_at, expires_at, scopes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING"""
#: One that is replaced already has its successor.
_LOCK: Final = """
SELECT name, role, scopes FROM control.api_keys
WHERE id = $1 AND revoked_at IS NULL AND expires_at > $2 AND replaced_by IS NULL FOR UPDATE"""
_REPLACE: Final = """
UPDATE control.api_keys SET replaced_by = $2, expires_at = least(expires_at, $3) WHERE id = $1"""
_LIST: Final = """
SELECT id, name, role, scopes, prefix, created_by, created_at, expires_at, revoked_at, replaced_by
FROM control.api_keys WHERE id > $1 ORDER BY id LIMIT $2"""
_REVOKE: Final = """
UPDATE control.api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    tenant: TenantId
    tenant_slug: str
    tenant_status: str
    name: str
    role: str
    scopes: tuple[str, ...]
    secret_sha256: bytes = field(repr=False)
    expires_at: datetime
    revoked_at: datetime | None


async def find(connection: Connection, id: str) -> KeyRow | None:
    row = await connection.fetchrow(_FIND, id)
    if row is None:
        return None
    found = dict(row)
    return KeyRow(
        tenant=TenantId(str(found.pop("tenant_id"))), scopes=tuple(found.pop("scopes")), **found
    )


async def insert(
    connection: Connection,
    tenant: TenantId,
    key: ApiKey,
    *,
    name: str,
    role: str,
    created_by: str,
    now: datetime,
    expires_at: datetime,
    scopes: Sequence[str] = (),
) -> bool:
    """False when a key of that id exists already."""
    args = (key.id, tenant, name, role, key.prefix, key.secret_sha256, created_by, now, expires_at)
    return await connection.execute(_INSERT, *args, list(scopes)) == "INSERT 0 1"


async def lock(connection: Connection, id: str, now: datetime) -> dict[str, Any] | None:
    """A live key that nobody replaces meanwhile."""
    row = await connection.fetchrow(_LOCK, id, now)
    return dict(row) if row else None


async def replace(connection: Connection, id: str, *, by: str, ends_at: datetime) -> None:
    """It goes on beside its successor, no longer than it would have."""
    await connection.execute(_REPLACE, id, by, ends_at)


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_LIST, after, limit)]


async def revoke(connection: Connection, id: str, now: datetime) -> str | None:
    """The name of the key that ended; None when no live one has this id."""
    name: str | None = await connection.fetchval(_REVOKE, id, now)
    return name
