"""Work that outlives a request: what it is, how far it got, how it ended."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_INSERT: Final = """
INSERT INTO control.jobs
    (id, tenant_id, kind, state, remote_id, progress, error, created_by, created_at)
VALUES ($1, $2, $3, 'running', $4, '{}', '', $5, $6)"""
_GET: Final = """
SELECT id, kind, state, remote_id, progress, result, error, created_at, finished_at
FROM control.jobs WHERE id = $1"""
_OPEN: Final = """
SELECT id, kind, remote_id FROM control.jobs WHERE finished_at IS NULL ORDER BY created_at"""
_PROGRESS: Final = """
UPDATE control.jobs SET progress = $2 WHERE id = $1 AND finished_at IS NULL"""
_FINISH: Final = """
UPDATE control.jobs SET state = $2, result = $3, error = $4, finished_at = $5
WHERE id = $1 AND finished_at IS NULL"""


async def insert(
    connection: Connection,
    tenant: TenantId,
    *,
    id: str,
    kind: str,
    remote_id: str,
    created_by: str,
    now: datetime,
) -> None:
    await connection.execute(_INSERT, id, tenant, kind, remote_id, created_by, now)


async def get(connection: Connection, id: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET, id)
    if row is None:
        return None
    found = dict(row)
    found["progress"] = json.loads(found["progress"])
    found["result"] = json.loads(found["result"]) if found["result"] else None
    return found


async def unfinished(connection: Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_OPEN)]


async def progress(connection: Connection, id: str, done: dict[str, Any]) -> None:
    await connection.execute(_PROGRESS, id, json.dumps(done))


async def finish(
    connection: Connection,
    id: str,
    *,
    state: str,
    now: datetime,
    result: dict[str, Any] | None = None,
    error: str = "",
) -> None:
    """A job ends once: a second end changes nothing."""
    packed = None if result is None else json.dumps(result)
    await connection.execute(_FINISH, id, state, packed, error, now)
