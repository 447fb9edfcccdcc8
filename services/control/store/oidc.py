"""Sign-ins by a provider, on their way and done, and who somebody is there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.oidc.flow import Transaction, kept
from services.control.oidc.tokens import Logout, Person
from services.control.store.moments import moment

_OF_ISSUER: Final = "SELECT tenant_id FROM control.find_tenants_of_issuer($1)"
_SWEEP: Final = "DELETE FROM control.sign_in_transactions WHERE expires_at < $1"
_BEGIN: Final = """
INSERT INTO control.sign_in_transactions
    (state_sha256, tenant_id, browser_sha256, revision, return_to, session_sha256, created_at,
     expires_at, change_id, tester)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"""
_FIND: Final = "SELECT tenant_id, tenant_status FROM control.find_sign_in_transaction($1)"
_GET: Final = """
SELECT browser_sha256, revision, return_to, session_sha256, created_at, expires_at, used_at,
       change_id, tester
FROM control.sign_in_transactions WHERE state_sha256 = $1"""
_TAKE: Final = """
UPDATE control.sign_in_transactions SET used_at = $2
WHERE state_sha256 = $1 AND used_at IS NULL RETURNING true"""
#: Two sign-ins of the same subject at once: the second sees what the first made.
_ALONE: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_IDENTITY: Final = """
SELECT u.id, u.username, u.role, u.status
FROM control.user_identities i
JOIN control.users u ON u.tenant_id = i.tenant_id AND u.id = i.user_id
WHERE i.issuer = $1 AND i.subject = $2
FOR NO KEY UPDATE OF u"""
_INSERT_IDENTITY: Final = """
INSERT INTO control.user_identities (tenant_id, issuer, subject, user_id, created_at)
VALUES ($1, $2, $3, $4, $5)"""
_OPEN_INVITE: Final = """
SELECT id, role FROM control.invites
WHERE email = $1 AND accepted_at IS NULL AND revoked_at IS NULL AND expires_at > $2"""
_OPEN_SESSION: Final = """
INSERT INTO control.user_sessions
    (token_sha256, tenant_id, user_id, kind, created_at, seen_at, stepped_up_at, id, client_ip,
     method, provider_sid)
VALUES ($1, $2, $3, 'browser', $4, $4, $5, $6, $7, 'oidc', $8)"""
_ROTATE: Final = """
WITH ended AS (
    UPDATE control.user_sessions SET ended_at = $3
    WHERE token_sha256 = $1 AND ended_at IS NULL AND user_id = $5
    RETURNING tenant_id, user_id, kind, created_at, id, client_ip
)
INSERT INTO control.user_sessions
    (token_sha256, tenant_id, user_id, kind, created_at, seen_at, stepped_up_at, id, client_ip,
     method, provider_sid)
SELECT $2, tenant_id, user_id, kind, created_at, $3, $4, id, client_ip, 'oidc', $6 FROM ended"""
#: Whose password still opens something where people sign in by a provider: for the day that it is
#: away.
_BREAK_GLASS: Final = """
SELECT id FROM control.users
WHERE role = 'admin' AND status = 'active' AND password_hash IS NOT NULL
ORDER BY created_at, id LIMIT 1"""
_HEAR: Final = """
INSERT INTO control.logout_tokens
    (tenant_id, id_sha256, expires_at, issuer, subject, sid, issued_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING RETURNING true"""
#: Sign-ins of an issuer go beside each other; a logout of it goes alone, so that each of them comes
#: before it, and is ended by it, or after it, and sees it.
_BESIDE: Final = "SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 1))"
_APART: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 1))"
_LOGGED_OUT: Final = """
SELECT EXISTS (
    SELECT 1 FROM control.logout_tokens
    WHERE issuer = $1 AND CASE
        WHEN sid IS NULL THEN subject = $2 AND issued_at > $4
        ELSE sid = $3 AND (subject IS NULL OR subject = $2) END)"""
_FORGET: Final = "DELETE FROM control.logout_tokens WHERE expires_at < $1"
_END: Final = """
UPDATE control.user_sessions s SET ended_at = $1
WHERE s.ended_at IS NULL AND s.method = 'oidc' AND s.created_at <= $1
  AND ($4::text IS NULL OR s.provider_sid = $4)
  AND EXISTS (
      SELECT 1 FROM control.user_identities i
      WHERE i.user_id = s.user_id AND i.issuer = $2 AND ($3::text IS NULL OR i.subject = $3))
RETURNING s.user_id"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A sign-in on its way."""

    browser_sha256: bytes = field(repr=False)
    revision: int
    return_to: str
    session_sha256: bytes | None = field(repr=False)
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    #: Of a trial: what it tries, and for whom.
    change_id: str | None
    tester: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A sign-in that opens nothing: of which proposal, and whose."""

    change: str
    tester: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The person behind an identity."""

    id: str
    username: str
    role: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    id: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a session rests on."""

    user: str
    #: By the provider's word.
    proven_at: datetime
    #: The provider's session.
    sid: str | None


async def tenants_of(connection: Connection, issuer: str) -> list[TenantId]:
    rows = await connection.fetch(_OF_ISSUER, issuer)
    return [TenantId(str(row["tenant_id"])) for row in rows]


async def begin(
    connection: Connection,
    tenant: TenantId,
    transaction: Transaction,
    *,
    revision: int,
    return_to: str,
    now: datetime,
    expires_at: datetime,
    session_sha256: bytes | None = None,
    trial: Trial | None = None,
) -> None:
    state, browser = kept(transaction.state), kept(transaction.browser)
    of = (trial.change, trial.tester) if trial else (None, None)
    await connection.execute(_SWEEP, now)
    args = (state, tenant, browser, revision, return_to, session_sha256, now, expires_at)
    await connection.execute(_BEGIN, *args, *of)


async def find(connection: Connection, state_sha256: bytes) -> tuple[TenantId, str] | None:
    """Whose it is, and the status of that tenant."""
    row = await connection.fetchrow(_FIND, state_sha256)
    return (TenantId(str(row["tenant_id"])), row["tenant_status"]) if row else None


async def get(connection: Connection, state_sha256: bytes) -> Begun | None:
    row = await connection.fetchrow(_GET, state_sha256)
    if row is None:
        return None
    named = {name: str(row[name]) if row[name] else None for name in ("change_id", "tester")}
    return Begun(**{**row, **named})


async def take(connection: Connection, state_sha256: bytes, now: datetime) -> bool:
    """Once."""
    return bool(await connection.fetchval(_TAKE, state_sha256, now))


async def alone(connection: Connection, issuer: str, subject: str) -> None:
    """Until the transaction ends nobody else signs this subject in."""
    await connection.execute(_ALONE, json.dumps([issuer, subject]))


async def identified(connection: Connection, issuer: str, subject: str) -> Known | None:
    row = await connection.fetchrow(_IDENTITY, issuer, subject)
    return Known(**{**row, "id": str(row["id"])}) if row else None


async def add_identity(
    connection: Connection, tenant: TenantId, *, issuer: str, subject: str, user: str, now: datetime
) -> None:
    await connection.execute(_INSERT_IDENTITY, tenant, issuer, subject, user, now)


async def open_invite(connection: Connection, address: str, now: datetime) -> Invite | None:
    row = await connection.fetchrow(_OPEN_INVITE, address, now)
    return Invite(id=str(row["id"]), role=row["role"]) if row else None


async def open_session(
    connection: Connection,
    tenant: TenantId,
    proof: Proof,
    *,
    token_sha256: bytes,
    now: datetime,
    id: str,
    client_ip: str,
) -> None:
    args = (token_sha256, tenant, proof.user, now, proof.proven_at, id, client_ip, proof.sid)
    await connection.execute(_OPEN_SESSION, *args)


async def rotate_session(
    connection: Connection, proof: Proof, *, old_sha256: bytes, new_sha256: bytes, now: datetime
) -> bool:
    """False when it had ended, or is somebody else's."""
    args = (old_sha256, new_sha256, now, proof.proven_at, proof.user, proof.sid)
    return bool(await connection.execute(_ROTATE, *args) == "INSERT 0 1")


async def hear(
    connection: Connection,
    tenant: TenantId,
    issuer: str,
    told: Logout,
    *,
    now: datetime,
    until: datetime,
) -> bool:
    """False when this logout was heard before."""
    await connection.execute(_APART, issuer)
    await connection.execute(_FORGET, now)
    whose = (issuer, told.subject, told.sid, moment(told.issued_s * 1_000_000_000))
    return bool(await connection.fetchval(_HEAR, tenant, kept(told.id), until, *whose))


async def is_logged_out(connection: Connection, issuer: str, person: Person) -> bool:
    """Whether a logout of them, or of their session there, came before they did."""
    await connection.execute(_BESIDE, issuer)
    issued_at = moment(person.issued_s * 1_000_000_000)
    args = (issuer, person.subject, person.sid, issued_at)
    return bool(await connection.fetchval(_LOGGED_OUT, *args))


async def end_sessions(
    connection: Connection, *, issuer: str, subject: str | None, sid: str | None, now: datetime
) -> list[str]:
    """Of whoever is meant; each person whose sessions ended, once."""
    rows = await connection.fetch(_END, now, issuer, subject, sid)
    return sorted({str(row["user_id"]) for row in rows})


async def break_glass(connection: Connection) -> str | None:
    """The one admin who may sign in by password whatever the provider is."""
    found = await connection.fetchval(_BREAK_GLASS)
    return str(found) if found else None
