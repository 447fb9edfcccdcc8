"""A tenant's limits: one document with a revision; without a row, the shipped ones at 0."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.tenant_limits import SHIPPED

_GET: Final = "SELECT document, revision FROM control.tenant_limits"
_GET_LOCKED: Final = f"{_GET} FOR UPDATE"
_FIRST: Final = """
INSERT INTO control.tenant_limits (tenant_id, document, revision, updated_at)
VALUES ($1, $2, 1, $3) ON CONFLICT (tenant_id) DO NOTHING RETURNING revision"""
_NEXT: Final = """
UPDATE control.tenant_limits SET document = $2, updated_at = $3, revision = revision + 1
WHERE tenant_id = $1 RETURNING revision"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    document: dict[str, Any]
    revision: int


async def get(connection: Connection, *, lock: bool = False) -> TenantLimits:
    """Of the tenant that the transaction has set."""
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET)
    if row is None:
        return TenantLimits(document=SHIPPED, revision=0)
    return TenantLimits(document=json.loads(row["document"]), revision=row["revision"])


async def put(
    connection: Connection,
    tenant: TenantId,
    *,
    after: int,
    document: dict[str, Any],
    now: datetime,
) -> int | None:
    """The new revision; None when somebody else wrote the first one meanwhile."""
    statement = _NEXT if after else _FIRST
    revision = await connection.fetchval(statement, tenant, json.dumps(document), now)
    return None if revision is None else int(revision)
