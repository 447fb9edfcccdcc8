"""Users and their sessions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_FIND_USER: Final = """
SELECT tenant_id, tenant_status, user_id, password_hash, status, factors
FROM control.find_user($1)"""
_FIND_SESSION: Final = """
SELECT tenant_id, tenant_slug, tenant_status, user_id, username, role, user_status, is_super_admin,
       factors, session_id, kind, method, created_at, seen_at, stepped_up_at, ended_at
FROM control.find_user_session($1)"""
_INSERT_USER: Final = """
INSERT INTO control.users (id, tenant_id, username, role, password_hash, status, created_at, email)
VALUES ($1, $2, $3, $4, $5, 'active', $6, $7)
ON CONFLICT (username) DO NOTHING"""
_IS_ACTIVE: Final = """
SELECT EXISTS (SELECT 1 FROM control.users WHERE id = $1 AND status = 'active')"""
_ANY_USER: Final = "SELECT EXISTS (SELECT 1 FROM control.users)"
_INSERT_SESSION: Final = """
INSERT INTO control.user_sessions
    (token_sha256, tenant_id, user_id, kind, created_at, seen_at, stepped_up_at, id, client_ip,
     method)
VALUES ($1, $2, $3, $4, $5, $5, $5, $6, $7, $8)"""
#: The session goes on under another token; it was opened when it was opened.
_ROTATE_SESSION: Final = """
WITH ended AS (
    UPDATE control.user_sessions SET ended_at = $3 WHERE token_sha256 = $1 AND ended_at IS NULL
    RETURNING tenant_id, user_id, kind, created_at, id, client_ip
)
INSERT INTO control.user_sessions
    (token_sha256, tenant_id, user_id, kind, created_at, seen_at, stepped_up_at, id, client_ip,
     method)
SELECT $2, tenant_id, user_id, kind, created_at, $3, $3, id, client_ip, $4 FROM ended"""
#: Nobody changes the row until the session is there.
_MAY_BEGIN: Final = """
SELECT status = 'active' AND ($2::text IS NULL OR password_hash = $2) FROM control.users
WHERE id = $1 FOR SHARE"""
_HALF: Final = """
SELECT EXISTS (SELECT 1 FROM control.sign_in_challenges WHERE user_id = $1 AND token_sha256 = $2)"""
_TOUCH_SESSION: Final = """
UPDATE control.user_sessions SET seen_at = $2 WHERE token_sha256 = $1 AND ended_at IS NULL"""
_END_SESSION: Final = """
UPDATE control.user_sessions SET ended_at = $2 WHERE token_sha256 = $1 AND ended_at IS NULL"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What sign-in needs of a user."""

    tenant: TenantId
    tenant_status: str
    user_id: str
    #: None: signs in elsewhere.
    password_hash: str | None = field(repr=False)
    status: str
    #: `totp`, `passkey`: what they have confirmed.
    factors: tuple[str, ...] = ()

    @property
    def is_active(self) -> bool:
        return self.status == "active" == self.tenant_status


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    tenant: TenantId
    tenant_slug: str
    tenant_status: str
    user_id: str
    username: str
    role: str
    user_status: str
    is_super_admin: bool
    factors: tuple[str, ...]
    session_id: str
    kind: str
    method: str
    created_at: datetime
    seen_at: datetime
    stepped_up_at: datetime
    ended_at: datetime | None


async def find_account(connection: Connection, username: str) -> Account | None:
    row = await connection.fetchrow(_FIND_USER, username)
    if row is None:
        return None
    return Account(
        tenant=TenantId(str(row["tenant_id"])),
        tenant_status=row["tenant_status"],
        user_id=str(row["user_id"]),
        password_hash=row["password_hash"],
        status=row["status"],
        factors=tuple(row["factors"]),
    )


async def find_session(connection: Connection, token_sha256: bytes) -> SessionRow | None:
    """The session with its user and tenant, in one statement."""
    row = await connection.fetchrow(_FIND_SESSION, token_sha256)
    if row is None:
        return None
    found = dict(row)
    return SessionRow(
        tenant=TenantId(str(found.pop("tenant_id"))),
        user_id=str(found.pop("user_id")),
        session_id=str(found.pop("session_id")),
        factors=tuple(found.pop("factors")),
        **found,
    )


async def insert_user(
    connection: Connection,
    tenant: TenantId,
    *,
    id: str,
    username: str,
    role: str,
    password_hash: str | None,
    now: datetime,
    email: str = "",
) -> bool:
    """False when somebody has that name already, in whichever tenant."""
    args = (id, tenant, username, role, password_hash, now, email)
    return await connection.execute(_INSERT_USER, *args) == "INSERT 0 1"


async def is_active(connection: Connection, id: str) -> bool:
    """Whether the transaction's tenant has such a person."""
    return bool(await connection.fetchval(_IS_ACTIVE, id))


async def has_users(connection: Connection) -> bool:
    return bool(await connection.fetchval(_ANY_USER))


async def may_begin(
    connection: Connection, user: str, *, password: str | None, half: bytes | None
) -> bool:
    """Whether what a sign-in rests on is still so: their password, or a half of a sign-in."""
    if not await connection.fetchval(_MAY_BEGIN, user, password):
        return False
    return half is None or bool(await connection.fetchval(_HALF, user, half))


async def start_session(
    connection: Connection,
    tenant: TenantId,
    *,
    token_sha256: bytes,
    user_id: str,
    kind: str,
    now: datetime,
    id: str,
    client_ip: str = "",
    method: str = "password",
) -> None:
    args = (token_sha256, tenant, user_id, kind, now, id, client_ip, method)
    await connection.execute(_INSERT_SESSION, *args)


async def rotate_session(
    connection: Connection,
    *,
    old_sha256: bytes,
    new_sha256: bytes,
    now: datetime,
    method: str = "password",
) -> bool:
    """Proven again: a new token, and the old one ends. False when it had ended."""
    done = await connection.execute(_ROTATE_SESSION, old_sha256, new_sha256, now, method)
    return done == "INSERT 0 1"


async def touch_session(connection: Connection, token_sha256: bytes, now: datetime) -> None:
    await connection.execute(_TOUCH_SESSION, token_sha256, now)


async def end_session(connection: Connection, token_sha256: bytes, now: datetime) -> None:
    await connection.execute(_END_SESSION, token_sha256, now)
