"""Passwords that are replaced, and the links that allow it. Only the hash of either is here."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

#: The row stays as it is until the transaction ends.
_HOLDER: Final = """
SELECT username, email, role, status, is_super_admin, password_hash FROM control.users
WHERE id = $1 AND status <> 'deleted' FOR NO KEY UPDATE"""
_SET: Final = "UPDATE control.users SET password_hash = $2 WHERE id = $1"
_END_OPEN: Final = """
UPDATE control.password_resets SET ended_at = $2
WHERE user_id = $1 AND used_at IS NULL AND ended_at IS NULL"""
#: Halves of sign-ins that the old password opened.
_END_CHALLENGES: Final = "DELETE FROM control.sign_in_challenges WHERE user_id = $1"
_INSERT: Final = """
INSERT INTO control.password_resets
    (id, tenant_id, user_id, token_sha256, created_by, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)"""
_FIND: Final = """
SELECT tenant_id, tenant_status, reset_id, user_id FROM control.find_password_reset($1)"""
_USE: Final = """
UPDATE control.password_resets SET used_at = $2
WHERE id = $1 AND used_at IS NULL AND ended_at IS NULL AND expires_at > $2"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whose password it is."""

    username: str
    email: str
    role: str
    status: str
    is_super_admin: bool
    #: None: signs in elsewhere.
    password_hash: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Whose link a token is; whether it may still be used, using it says."""

    tenant: TenantId
    tenant_status: str
    id: str
    user: str


async def holder(connection: Connection, user: str) -> Holder | None:
    """Of the transaction's tenant, locked."""
    row = await connection.fetchrow(_HOLDER, user)
    return Holder(**row) if row else None


async def replace(connection: Connection, user: str, hashed: str, now: datetime) -> None:
    """What the old one opened half-way, and links to another one, end with it."""
    await connection.execute(_SET, user, hashed)
    await connection.execute(_END_OPEN, user, now)
    await connection.execute(_END_CHALLENGES, user)


async def insert(
    connection: Connection,
    tenant: TenantId,
    user: str,
    *,
    id: str,
    token_sha256: bytes,
    created_by: str,
    now: datetime,
    expires_at: datetime,
) -> None:
    """In the place of the one that was open."""
    await connection.execute(_END_OPEN, user, now)
    args = (id, tenant, user, token_sha256, created_by, now, expires_at)
    await connection.execute(_INSERT, *args)


async def find(connection: Connection, token_sha256: bytes) -> Candidate | None:
    row = await connection.fetchrow(_FIND, token_sha256)
    if row is None:
        return None
    return Candidate(
        tenant=TenantId(str(row["tenant_id"])),
        tenant_status=row["tenant_status"],
        id=str(row["reset_id"]),
        user=str(row["user_id"]),
    )


async def use(connection: Connection, id: str, now: datetime) -> bool:
    """False when it was used, replaced or has expired."""
    return await connection.execute(_USE, id, now) == "UPDATE 1"
