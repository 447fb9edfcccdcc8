"""How a tenant's people sign in: one row with a revision; without one, by password, at 0.

`document` holds what the provider in force needs (`oidc`). A change that waits is a row of its own
(auth_changes.py); each step of one is a revision here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_GET: Final = "SELECT provider, document, revision, in_force FROM control.auth_settings"
_GET_LOCKED: Final = f"{_GET} FOR UPDATE"
_FIRST: Final = """
INSERT INTO control.auth_settings (tenant_id, provider, document, revision, updated_at, in_force)
VALUES ($1, $2, $3, 1, $4, CASE WHEN $5 THEN 1 ELSE 0 END)
ON CONFLICT (tenant_id) DO NOTHING RETURNING revision"""
_NEXT: Final = """
UPDATE control.auth_settings
SET provider = $2, document = $3, updated_at = $4, revision = revision + 1,
    in_force = CASE WHEN $5 THEN revision + 1 ELSE in_force END
WHERE tenant_id = $1 RETURNING revision"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    provider: str = "password"
    document: dict[str, Any] = field(default_factory=dict)
    revision: int = 0
    #: The revision that the provider in force came with.
    in_force: int = 0


async def get(connection: Connection, *, lock: bool = False) -> AuthSettings:
    """Of the tenant that the transaction has set."""
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET)
    if row is None:
        return AuthSettings()
    document = json.loads(row["document"])
    return AuthSettings(**{**row, "document": document})


async def put(
    connection: Connection, tenant: TenantId, after: AuthSettings, *, now: datetime
) -> AuthSettings | None:
    """The next revision, with another provider in force; None when somebody else wrote the first
    one meanwhile.
    """
    return await _written(connection, tenant, after, in_force=True, now=now)


async def touch(
    connection: Connection, tenant: TenantId, held: AuthSettings, *, now: datetime
) -> AuthSettings | None:
    """The next revision of the same: something was said to a change."""
    return await _written(connection, tenant, held, in_force=False, now=now)


async def _written(
    connection: Connection, tenant: TenantId, after: AuthSettings, *, in_force: bool, now: datetime
) -> AuthSettings | None:
    statement = _NEXT if after.revision else _FIRST
    args = (tenant, after.provider, json.dumps(after.document), now, in_force)
    revision = await connection.fetchval(statement, *args)
    if revision is None:
        return None
    since = revision if in_force else after.in_force
    return replace(after, revision=int(revision), in_force=int(since))
