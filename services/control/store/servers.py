"""Tool servers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId, is_uuid
from services.common.postgres.connection import Connection

_COLUMNS: Final = (
    "id, slug, domain, trust, transport, urls, stdio, era, case_fold, credential_kind, "
    "credential_header, credential_ref, credential_settings, grants, first_byte_s, share, headers, "
    "ca, revision, created_at"
)
_INSERT: Final = f"""
INSERT INTO control.servers
    (id, tenant_id, slug, domain, trust, transport, urls, stdio, era, case_fold,
     credential_kind, credential_header, credential_ref, credential_settings, grants, first_byte_s,
     share, headers, ca, revision, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, 1,
        $20)
ON CONFLICT (tenant_id, slug) DO NOTHING
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_BY_SLUG: Final = f"SELECT {_COLUMNS} FROM control.servers WHERE slug = $1"  # noqa: S608  # a constant list of columns
_BY_ID: Final = f"SELECT {_COLUMNS} FROM control.servers WHERE id = $1"  # noqa: S608  # a constant list of columns
_PAGE: Final = f"""
SELECT {_COLUMNS} FROM control.servers WHERE slug > $1 ORDER BY slug LIMIT $2"""  # noqa: S608  # a constant list of columns
_UPDATE: Final = f"""
UPDATE control.servers
SET domain = $2, trust = $3, transport = $4, urls = $5, stdio = $6, era = $7, case_fold = $8,
    credential_kind = $9, credential_header = $10, credential_ref = $11,
    credential_settings = $12, grants = $13, first_byte_s = $14, share = $15, headers = $16,
    ca = $17, revision = revision + 1
WHERE id = $1
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_DELETE: Final = "DELETE FROM control.servers WHERE id = $1"
_EDITABLE: Final = (
    "domain", "trust", "transport", "urls", "stdio", "era", "case_fold", "credential_kind",
    "credential_header", "credential_ref", "credential_settings", "grants", "first_byte_s", "share",
    "headers", "ca",
)  # fmt: skip
_DOCUMENTS: Final = frozenset({"credential_settings", "grants", "headers"})


async def insert(
    connection: Connection, tenant: TenantId, *, id: str, server: Mapping[str, Any], now: datetime
) -> dict[str, Any] | None:
    """None when the slug is taken."""
    values = _values(server)
    row = await connection.fetchrow(_INSERT, id, tenant, server["slug"], *values, now)
    return _row(dict(row)) if row else None


async def get(connection: Connection, name: str, *, lock: bool = False) -> dict[str, Any] | None:
    """By slug, or by the server's UUID."""
    query = _BY_ID if is_uuid(name) else _BY_SLUG
    row = await connection.fetchrow(f"{query} FOR UPDATE" if lock else query, name)
    return _row(dict(row)) if row else None


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    return [_row(dict(row)) for row in await connection.fetch(_PAGE, after, limit)]


async def update(connection: Connection, id: str, server: Mapping[str, Any]) -> dict[str, Any]:
    values = _values(server)
    row = await connection.fetchrow(_UPDATE, id, *values)
    return _row(dict(row)) if row else {}


async def delete(connection: Connection, id: str) -> None:
    """Its tools go with it."""
    await connection.execute(_DELETE, id)


def _values(server: Mapping[str, Any]) -> list[Any]:
    return [json.dumps(server[name]) if name in _DOCUMENTS else server[name] for name in _EDITABLE]


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.loads(value) if name in _DOCUMENTS else value for name, value in row.items()}
