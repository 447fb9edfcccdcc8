"""Tenants: the one table that is not under row-level security, because it says who there is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_ALL: Final = "SELECT id, slug, name, status FROM control.tenants ORDER BY slug"
_INSERT: Final = """
INSERT INTO control.tenants (id, slug, name, status, created_at, sole_operator)
VALUES ($1, $2, $3, 'active', $4, $5) ON CONFLICT (slug) DO NOTHING"""
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
