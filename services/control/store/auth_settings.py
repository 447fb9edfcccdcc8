"""How a tenant's people sign in: one row with a revision; without one, by password, at 0.

`document` holds what the provider in force needs (`oidc`), and a change that waits (`proposed`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_GET: Final = "SELECT provider, document, revision FROM control.auth_settings"
_GET_LOCKED: Final = f"{_GET} FOR UPDATE"
_FIRST: Final = """
INSERT INTO control.auth_settings (tenant_id, provider, document, revision, updated_at)
VALUES ($1, $2, $3, 1, $4) ON CONFLICT (tenant_id) DO NOTHING RETURNING revision"""
_NEXT: Final = """
UPDATE control.auth_settings
SET provider = $2, document = $3, updated_at = $4, revision = revision + 1
WHERE tenant_id = $1 RETURNING revision"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    provider: str = "password"
    document: dict[str, Any] = field(default_factory=dict)
    revision: int = 0


async def get(connection: Connection, *, lock: bool = False) -> AuthSettings:
    """Of the tenant that the transaction has set."""
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET)
    if row is None:
        return AuthSettings()
    document = json.loads(row["document"])
    return AuthSettings(provider=row["provider"], document=document, revision=row["revision"])


async def put(
    connection: Connection,
    tenant: TenantId,
    *,
    after: int,
    provider: str,
    document: dict[str, Any],
    now: datetime,
) -> int | None:
    """The new revision; None when somebody else wrote the first one meanwhile."""
    statement = _NEXT if after else _FIRST
    revision = await connection.fetchval(statement, tenant, provider, json.dumps(document), now)
    return None if revision is None else int(revision)
