"""Sign-ins of devices: what was asked, and what somebody said to it, once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

#: How long it is remembered that a code has expired.
_REMEMBERED: Final = timedelta(minutes=10)
_SWEEP: Final = "DELETE FROM control.device_requests WHERE expires_at < $1"
_OPEN: Final = "SELECT count(*) FROM control.device_requests WHERE expires_at > $1"
_BEGIN: Final = """
INSERT INTO control.device_requests
    (device_sha256, user_code_sha256, client_ip, step_up, created_at, expires_at, interval_s)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING true"""
_BY_USER_CODE: Final = """
SELECT device_sha256, client_ip, step_up, created_at, expires_at, interval_s, polled_at
FROM control.device_requests WHERE user_code_sha256 = $1"""
_LOCK: Final = """
SELECT device_sha256, client_ip, step_up, created_at, expires_at, interval_s, polled_at
FROM control.device_requests WHERE device_sha256 = $1 FOR UPDATE"""
_POLLED: Final = """
UPDATE control.device_requests SET polled_at = $2, interval_s = $3 WHERE device_sha256 = $1"""
_ANSWERED: Final = """
SELECT tenant_id, tenant_status, approved FROM control.find_device_answer($1)"""
_ANSWER: Final = """
INSERT INTO control.device_answers
    (device_sha256, tenant_id, user_id, session_id, approved, answered_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING true"""
#: The session goes on elsewhere for no longer than it would have here: with its proofs, its age and
#: the provider's name for it.
_USE: Final = """
WITH used AS (
    UPDATE control.device_answers SET used_at = $2
    WHERE device_sha256 = $1 AND approved AND used_at IS NULL
    RETURNING tenant_id, user_id, session_id
)
INSERT INTO control.user_sessions
    (token_sha256, tenant_id, user_id, kind, created_at, seen_at, stepped_up_at, id, client_ip,
     method, provider_sid)
SELECT $3, s.tenant_id, s.user_id, 'bearer', s.created_at, $2,
       coalesce(s.stepped_up_at, s.created_at), $4, $5, s.method, s.provider_sid
FROM used
JOIN control.user_sessions s ON s.tenant_id = used.tenant_id AND s.id = used.session_id
    AND s.user_id = used.user_id AND s.ended_at IS NULL AND s.created_at > $6
JOIN control.users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id AND u.status = 'active'
RETURNING user_id, created_at"""
_NAME: Final = "SELECT username FROM control.users WHERE id = $1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    device_sha256: bytes
    client_ip: str
    step_up: bool
    created_at: datetime
    expires_at: datetime
    interval_s: int
    polled_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    tenant: TenantId
    tenant_status: str
    approved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A device's session, as it will be."""

    token_sha256: bytes
    id: str
    client_ip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Whose it is, and since when by the clock of the session that it came from."""

    user: str
    name: str
    since: datetime


async def count_open(connection: Connection, now: datetime) -> int:
    await connection.execute(_SWEEP, now - _REMEMBERED)
    return int(await connection.fetchval(_OPEN, now))


async def begin(connection: Connection, asked: Asked, *, user_code_sha256: bytes) -> bool:
    """False where one of the codes is in use."""
    args = (asked.client_ip, asked.step_up, asked.created_at, asked.expires_at, asked.interval_s)
    done = await connection.fetchval(_BEGIN, asked.device_sha256, user_code_sha256, *args)
    return bool(done)


async def by_user_code(connection: Connection, user_code_sha256: bytes) -> Asked | None:
    row = await connection.fetchrow(_BY_USER_CODE, user_code_sha256)
    return Asked(**dict(row)) if row else None


async def lock(connection: Connection, device_sha256: bytes) -> Asked | None:
    """Nobody else asks for this one meanwhile."""
    row = await connection.fetchrow(_LOCK, device_sha256)
    return Asked(**dict(row)) if row else None


async def polled(
    connection: Connection, device_sha256: bytes, *, interval_s: int, now: datetime
) -> None:
    await connection.execute(_POLLED, device_sha256, now, interval_s)


async def answered(connection: Connection, device_sha256: bytes) -> Answer | None:
    """Whatever tenant's."""
    row = await connection.fetchrow(_ANSWERED, device_sha256)
    if row is None:
        return None
    tenant = TenantId(str(row["tenant_id"]))
    return Answer(tenant=tenant, tenant_status=row["tenant_status"], approved=row["approved"])


async def answer(
    connection: Connection,
    tenant: TenantId,
    device_sha256: bytes,
    *,
    user: str,
    session: str,
    approved: bool,
    now: datetime,
) -> bool:
    """False where somebody has answered."""
    args = (device_sha256, tenant, user, session, approved, now)
    return bool(await connection.fetchval(_ANSWER, *args))


async def use(
    connection: Connection,
    device_sha256: bytes,
    opening: Opening,
    *,
    now: datetime,
    opened_after: datetime,
) -> Opened | None:
    """Once. None where it was used, or where they or the session that it was approved in are not
    there any more.
    """
    args = (device_sha256, now, opening.token_sha256, opening.id, opening.client_ip, opened_after)
    row = await connection.fetchrow(_USE, *args)
    if row is None:
        return None
    name = str(await connection.fetchval(_NAME, row["user_id"]))
    return Opened(user=str(row["user_id"]), name=name, since=row["created_at"])
