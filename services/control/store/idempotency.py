"""Claims on idempotency keys, and the answers that completed them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.idempotency import KEPT

_FORGET: Final = "DELETE FROM control.idempotency WHERE created_at < $1"
_CLAIM: Final = """
INSERT INTO control.idempotency (tenant_id, principal, route, key, request_sha256, created_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING"""
_FIND: Final = """
SELECT request_sha256, status, answer FROM control.idempotency
WHERE principal = $1 AND route = $2 AND key = $3"""
_COMPLETE: Final = """
UPDATE control.idempotency SET status = $4, answer = $5
WHERE principal = $1 AND route = $2 AND key = $3"""
_RELEASE: Final = """
DELETE FROM control.idempotency
WHERE principal = $1 AND route = $2 AND key = $3 AND status IS NULL"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Whose claim it is: a principal's, on one route, with one key."""

    tenant: TenantId
    principal: str
    route: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The request that came first with this key."""

    request_sha256: bytes
    status: int | None
    answer: bytes | None


async def claim(
    connection: Connection, what: Claimed, *, request_sha256: bytes, now: datetime
) -> Earlier | None:
    """None: the key is ours. Otherwise who had it first."""
    await connection.execute(_FORGET, now - KEPT)
    args = (what.tenant, what.principal, what.route, what.key, request_sha256, now)
    if await connection.execute(_CLAIM, *args) == "INSERT 0 1":
        return None
    row = await connection.fetchrow(_FIND, what.principal, what.route, what.key)
    if row is None:  # given back between the two statements: whoever asks again gets it
        return Earlier(request_sha256=request_sha256, status=None, answer=None)
    return Earlier(**row)


async def complete(connection: Connection, what: Claimed, *, status: int, answer: bytes) -> None:
    await connection.execute(_COMPLETE, what.principal, what.route, what.key, status, answer)


async def release(connection: Connection, what: Claimed) -> None:
    await connection.execute(_RELEASE, what.principal, what.route, what.key)
