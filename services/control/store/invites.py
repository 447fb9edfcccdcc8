"""Invites. Only the hash of a token is here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_COLUMNS: Final = (
    "id, email, role, created_by, created_at, expires_at, accepted_at, revoked_at, user_id"
)
#: An expired one makes room for another.
_CLOSE_EXPIRED: Final = """
UPDATE control.invites SET revoked_at = expires_at
WHERE email = $1 AND expires_at <= $2 AND accepted_at IS NULL AND revoked_at IS NULL"""
_INSERT: Final = f"""
INSERT INTO control.invites
    (id, tenant_id, email, role, token_sha256, created_by, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (tenant_id, email) WHERE accepted_at IS NULL AND revoked_at IS NULL DO NOTHING
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_PAGE: Final = f"""
SELECT {_COLUMNS} FROM control.invites WHERE id > $1 ORDER BY id LIMIT $2"""  # noqa: S608  # as above
_REVOKE: Final = f"""
UPDATE control.invites SET revoked_at = $2
WHERE id = $1 AND accepted_at IS NULL AND revoked_at IS NULL RETURNING {_COLUMNS}"""  # noqa: S608  # as above
_FIND: Final = "SELECT tenant_id, tenant_status, invite_id FROM control.find_invite($1)"
#: Used once, by whoever comes first.
_ACCEPT: Final = f"""
UPDATE control.invites SET accepted_at = $2, user_id = $3
WHERE id = $1 AND accepted_at IS NULL AND revoked_at IS NULL AND expires_at > $2
RETURNING {_COLUMNS}"""  # noqa: S608  # as above


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Of which invite a token is; whether it may still be used, accepting it says."""

    tenant: TenantId
    tenant_status: str
    id: str


async def insert(
    connection: Connection,
    tenant: TenantId,
    *,
    id: str,
    email: str,
    role: str,
    token_sha256: bytes,
    created_by: str,
    now: datetime,
    expires_at: datetime,
) -> dict[str, Any] | None:
    """None when one is open for this address."""
    await connection.execute(_CLOSE_EXPIRED, email, now)
    args = (id, tenant, email, role, token_sha256, created_by, now, expires_at)
    return _told(await connection.fetchrow(_INSERT, *args))


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    first = after or "00000000-0000-0000-0000-000000000000"
    rows = await connection.fetch(_PAGE, first, limit)
    return [{**row, "id": str(row["id"])} for row in rows]


async def revoke(connection: Connection, id: str, now: datetime) -> dict[str, Any] | None:
    return _told(await connection.fetchrow(_REVOKE, id, now))


async def find(connection: Connection, token_sha256: bytes) -> Candidate | None:
    row = await connection.fetchrow(_FIND, token_sha256)
    if row is None:
        return None
    return Candidate(
        tenant=TenantId(str(row["tenant_id"])),
        tenant_status=row["tenant_status"],
        id=str(row["invite_id"]),
    )


async def accept(
    connection: Connection, id: str, *, user: str, now: datetime
) -> dict[str, Any] | None:
    """None when it was used, revoked or has expired."""
    return _told(await connection.fetchrow(_ACCEPT, id, now, user))


def _told(row: Any) -> dict[str, Any] | None:
    return {**row, "id": str(row["id"])} if row else None
