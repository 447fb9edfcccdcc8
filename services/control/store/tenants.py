"""Tenants: the one table that is not under row-level security, because it says who there is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

#: One that is deleted has rows, and no part in anything.
_ALL: Final = """
SELECT id, slug, name, status FROM control.tenants WHERE status <> 'deleted' ORDER BY slug"""
_INSERT: Final = """
INSERT INTO control.tenants (id, slug, name, status, created_at, sole_operator)
VALUES ($1, $2, $3, 'active', $4, $5) ON CONFLICT (slug) DO NOTHING"""
_COLUMNS: Final = "id, slug, name, status, created_at"
_PAGE: Final = f"""
SELECT {_COLUMNS} FROM control.tenants WHERE slug > $1 ORDER BY slug LIMIT $2"""  # noqa: S608  # a constant list of columns
_GET: Final = f"SELECT {_COLUMNS} FROM control.tenants WHERE id = $1"  # noqa: S608  # a constant list of columns
_SET_STATUS: Final = f"""
UPDATE control.tenants SET status = $2, revision = revision + 1 WHERE id = $1
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_LOCK: Final = "SELECT status FROM control.tenants WHERE id = $1 FOR NO KEY UPDATE"
_BY_ID: Final = "SELECT id, slug, name, status FROM control.tenants WHERE id = $1"
_BY_SLUG: Final = "SELECT id, slug, name, status FROM control.tenants WHERE slug = $1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    id: TenantId
    slug: str
    name: str
    status: str


async def every(connection: Connection) -> list[Tenant]:
    rows = await connection.fetch(_ALL)
    return [Tenant(**{**row, "id": TenantId(str(row["id"]))}) for row in rows]


async def find(connection: Connection, id: str) -> Tenant | None:
    row = await connection.fetchrow(_BY_ID, id)
    return Tenant(**{**row, "id": TenantId(str(row["id"]))}) if row else None


async def ensure(
    connection: Connection,
    *,
    id: TenantId,
    slug: str,
    name: str,
    sole_operator: bool,
    now: datetime,
) -> Tenant:
    """The tenant of that slug, made with `id` if there is none. `sole_operator`: its only person
    may approve what their own agent asks for.
    """
    await connection.execute(_INSERT, id, slug, name, now, sole_operator)
    row = await connection.fetchrow(_BY_SLUG, slug)
    assert row is not None  # noqa: S101  # just made
    return Tenant(**{**row, "id": TenantId(str(row["id"]))})


async def insert(
    connection: Connection, *, id: TenantId, slug: str, name: str, now: datetime
) -> bool:
    """False when one of that slug exists."""
    done: str = await connection.execute(_INSERT, id, slug, name, now, False)
    return done == "INSERT 0 1"


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    return [_told(row) for row in await connection.fetch(_PAGE, after, limit)]


async def get(connection: Connection, id: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET, id)
    return _told(row) if row else None


async def lock(connection: Connection, id: str) -> str | None:
    """The status of a tenant that nobody else changes meanwhile."""
    status: str | None = await connection.fetchval(_LOCK, id)
    return status


async def set_status(connection: Connection, id: str, status: str) -> dict[str, Any]:
    row = await connection.fetchrow(_SET_STATUS, id, status)
    assert row is not None  # noqa: S101  # locked before
    return _told(row)


def _told(row: Any) -> dict[str, Any]:
    return {**row, "id": str(row["id"])}
