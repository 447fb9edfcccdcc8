"""Second factors of people, their recovery codes, and the challenges that are out.

What may be used once is used by one statement with its condition, so of two at once one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.second_factors import MAX_ATTEMPTS

_COLUMNS: Final = "id, kind, name, created_at, confirmed_at"
_LIST: Final = f"""
SELECT {_COLUMNS},
       (SELECT count(*) FROM control.recovery_codes r
        WHERE r.user_id = $1 AND r.used_at IS NULL) AS codes_left
FROM control.user_factors
WHERE user_id = $1 AND removed_at IS NULL AND confirmed_at IS NOT NULL ORDER BY created_at, id"""  # noqa: S608  # a constant list of columns
_COUNT: Final = """
SELECT count(*) FROM control.user_factors WHERE user_id = $1 AND removed_at IS NULL"""
_TOTP: Final = """
SELECT id, secret, last_step FROM control.user_factors
WHERE user_id = $1 AND kind = 'totp' AND removed_at IS NULL AND confirmed_at IS NOT NULL"""
_UNCONFIRMED: Final = """
SELECT id, secret, last_step FROM control.user_factors
WHERE user_id = $1 AND id = $2 AND kind = 'totp' AND removed_at IS NULL AND confirmed_at IS NULL"""
_PASSKEYS: Final = """
SELECT id, credential_id, public_key, sign_count FROM control.user_factors
WHERE user_id = $1 AND kind = 'passkey' AND removed_at IS NULL AND confirmed_at IS NOT NULL"""
_ADD_TOTP: Final = """
INSERT INTO control.user_factors (id, tenant_id, user_id, kind, name, secret, created_at)
VALUES ($1, $2, $3, 'totp', $4, $5, $6)"""
_DROP_UNCONFIRMED: Final = """
DELETE FROM control.user_factors WHERE user_id = $1 AND confirmed_at IS NULL"""
_ADD_PASSKEY: Final = """
INSERT INTO control.user_factors
    (id, tenant_id, user_id, kind, name, credential_id, public_key, sign_count, created_at,
     confirmed_at)
VALUES ($1, $2, $3, 'passkey', $4, $5, $6, $7, $8, $8) ON CONFLICT DO NOTHING"""
_CONFIRM: Final = """
UPDATE control.user_factors SET confirmed_at = $2 WHERE id = $1 AND confirmed_at IS NULL"""
_USE_STEP: Final = """
UPDATE control.user_factors SET last_step = $2 WHERE id = $1 AND last_step < $2"""
_COUNTED: Final = "UPDATE control.user_factors SET sign_count = $2 WHERE id = $1"
_REMOVE: Final = """
UPDATE control.user_factors SET removed_at = $3, secret = NULL
WHERE user_id = $1 AND id = $2 AND removed_at IS NULL RETURNING kind"""
_FORGET_CODES: Final = "DELETE FROM control.recovery_codes WHERE user_id = $1"
_ADD_CODES: Final = """
INSERT INTO control.recovery_codes (tenant_id, user_id, code_sha256, created_at)
SELECT $1, $2, code, $4 FROM unnest($3::bytea[]) AS code"""
_USE_CODE: Final = """
UPDATE control.recovery_codes SET used_at = $3
WHERE user_id = $1 AND code_sha256 = $2 AND used_at IS NULL"""
_FORGET_CHALLENGES: Final = """
DELETE FROM control.sign_in_challenges WHERE user_id = $1 AND expires_at <= $2"""
_BEGIN: Final = """
INSERT INTO control.sign_in_challenges
    (token_sha256, tenant_id, user_id, purpose, challenge, session_kind, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"""
_FIND: Final = """
SELECT tenant_id, tenant_status, user_id, username, user_status
FROM control.find_sign_in_challenge($1)"""
_TAKE: Final = """
UPDATE control.sign_in_challenges SET attempts = attempts + 1
WHERE token_sha256 = $1 AND user_id = $2 AND purpose = $3 AND used_at IS NULL AND expires_at > $4
  AND attempts < $5
RETURNING challenge, session_kind"""
_FINISH: Final = """
UPDATE control.sign_in_challenges SET used_at = $2 WHERE token_sha256 = $1 AND used_at IS NULL"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whose challenge it is that a token belongs to."""

    tenant: TenantId
    tenant_status: str
    user_id: str
    username: str
    user_status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    challenge: bytes = field(repr=False)
    session_kind: str


async def listed(connection: Connection, user: str) -> list[dict[str, Any]]:
    return [{**row, "id": str(row["id"])} for row in await connection.fetch(_LIST, user)]


async def count(connection: Connection, user: str) -> int:
    return int(await connection.fetchval(_COUNT, user))


async def totp(connection: Connection, user: str) -> list[dict[str, Any]]:
    return [{**row, "id": str(row["id"])} for row in await connection.fetch(_TOTP, user)]


async def unconfirmed(connection: Connection, user: str, id: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(_UNCONFIRMED, user, id)
    return {**row, "id": str(row["id"])} if row else None


async def passkeys(connection: Connection, user: str) -> list[dict[str, Any]]:
    return [{**row, "id": str(row["id"])} for row in await connection.fetch(_PASSKEYS, user)]


async def add_totp(
    connection: Connection,
    tenant: TenantId,
    user: str,
    *,
    id: str,
    name: str,
    sealed: bytes,
    now: datetime,
) -> None:
    """Whatever was begun before and never confirmed is dropped."""
    await connection.execute(_DROP_UNCONFIRMED, user)
    await connection.execute(_ADD_TOTP, id, tenant, user, name, sealed, now)


async def add_passkey(
    connection: Connection,
    tenant: TenantId,
    user: str,
    *,
    id: str,
    name: str,
    credential_id: bytes,
    public_key: bytes,
    sign_count: int,
    now: datetime,
) -> bool:
    """False when it is somebody's already."""
    args = (id, tenant, user, name, credential_id, public_key, sign_count, now)
    return await connection.execute(_ADD_PASSKEY, *args) == "INSERT 0 1"


async def confirm(connection: Connection, id: str, now: datetime) -> bool:
    return await connection.execute(_CONFIRM, id, now) == "UPDATE 1"


async def use_step(connection: Connection, id: str, step: int) -> bool:
    """False when this step or a later one was used."""
    return await connection.execute(_USE_STEP, id, step) == "UPDATE 1"


async def counted(connection: Connection, id: str, sign_count: int) -> None:
    await connection.execute(_COUNTED, id, sign_count)


async def remove(connection: Connection, user: str, id: str, now: datetime) -> str | None:
    """Its kind; None when there is none."""
    kind: str | None = await connection.fetchval(_REMOVE, user, id, now)
    return kind


async def put_codes(
    connection: Connection, tenant: TenantId, user: str, codes: Sequence[bytes], now: datetime
) -> None:
    """In the place of all earlier ones."""
    await connection.execute(_FORGET_CODES, user)
    await connection.execute(_ADD_CODES, tenant, user, list(codes), now)


async def use_code(connection: Connection, user: str, code_sha256: bytes, now: datetime) -> bool:
    return await connection.execute(_USE_CODE, user, code_sha256, now) == "UPDATE 1"


async def begin(
    connection: Connection,
    tenant: TenantId,
    user: str,
    *,
    token_sha256: bytes,
    purpose: str,
    challenge: bytes,
    session_kind: str,
    now: datetime,
    expires_at: datetime,
) -> None:
    await connection.execute(_FORGET_CHALLENGES, user, now)
    await connection.execute(
        _BEGIN, token_sha256, tenant, user, purpose, challenge, session_kind, now, expires_at
    )


async def find(connection: Connection, token_sha256: bytes) -> Asked | None:
    """Of a sign-in alone; the others are asked by whoever is signed in."""
    row = await connection.fetchrow(_FIND, token_sha256)
    if row is None:
        return None
    found = dict(row)
    return Asked(
        tenant=TenantId(str(found.pop("tenant_id"))), user_id=str(found.pop("user_id")), **found
    )


async def take(
    connection: Connection, user: str, *, token_sha256: bytes, purpose: str, now: datetime
) -> Taken | None:
    """One of the few tries that a challenge has; None when none is left."""
    row = await connection.fetchrow(_TAKE, token_sha256, user, purpose, now, MAX_ATTEMPTS)
    return Taken(**row) if row else None


async def finish(connection: Connection, token_sha256: bytes, now: datetime) -> bool:
    """False when somebody was quicker."""
    return await connection.execute(_FINISH, token_sha256, now) == "UPDATE 1"
