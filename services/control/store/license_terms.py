"""What of each tenant's term was told last: one row per tenant, locked by whoever tells more."""

from __future__ import annotations

import json
from typing import Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.license_terms import Noted

#: Nobody of a tenant that is gone is told anything. The lock orders all replicas.
_LOCK: Final = """
SELECT 1 FROM control.tenants WHERE id = $1 AND status <> 'deleted' FOR NO KEY UPDATE"""
_GET: Final = """
SELECT epoch, revision, event, term, ends_at_s, step, modes FROM control.license_terms"""
_PUT: Final = """
INSERT INTO control.license_terms
    (tenant_id, epoch, revision, event, term, ends_at_s, step, modes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (tenant_id) DO UPDATE SET
    epoch = excluded.epoch, revision = excluded.revision, event = excluded.event,
    term = excluded.term, ends_at_s = excluded.ends_at_s, step = excluded.step,
    modes = excluded.modes"""


async def lock(connection: Connection, tenant: TenantId) -> bool:
    """False: there is no such tenant."""
    return await connection.fetchval(_LOCK, tenant) is not None


async def get(connection: Connection) -> Noted | None:
    row = await connection.fetchrow(_GET)
    if row is None:
        return None
    return Noted(**{**row, "event": row["event"] or None, "modes": json.loads(row["modes"])})


async def put(connection: Connection, tenant: TenantId, noted: Noted) -> None:
    await connection.execute(
        _PUT,
        tenant,
        noted.epoch,
        noted.revision,
        noted.event or "",
        noted.term,
        noted.ends_at_s,
        noted.step,
        json.dumps(dict(noted.modes)),
    )
