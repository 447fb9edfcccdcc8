"""Where notices go, and what the newest attempts to get there said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection

_COLUMNS: Final = (
    "id, name, kind, settings, events, enabled, revision, created_at, failing_since, last_error, "
    "last_delivered_at"
)
_INSERT: Final = f"""
INSERT INTO control.notification_destinations
    (id, tenant_id, name, kind, settings, events, enabled, revision, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8)
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING {_COLUMNS}"""  # noqa: S608  # a constant list of columns
_GET: Final = f"SELECT {_COLUMNS} FROM control.notification_destinations WHERE id = $1"  # noqa: S608  # as above
_GET_LOCKED: Final = f"{_GET} FOR NO KEY UPDATE"
_PAGE: Final = f"""
SELECT {_COLUMNS} FROM control.notification_destinations WHERE name > $1 ORDER BY name LIMIT $2"""  # noqa: S608  # as above
_COUNT: Final = "SELECT count(*) FROM control.notification_destinations"
_HEALTH: Final = """
SELECT count(*) AS enabled, count(failing_since) AS failing, min(failing_since) AS failing_since
FROM control.notification_destinations WHERE enabled"""
#: One that works before one that does not.
_MAIL: Final = """
SELECT settings FROM control.notification_destinations
WHERE kind = 'email' AND enabled ORDER BY failing_since IS NOT NULL, created_at, id LIMIT 1"""
_NAME_TAKEN: Final = """
SELECT 1 FROM control.notification_destinations WHERE name = $1 AND id <> $2"""
_UPDATE: Final = f"""
UPDATE control.notification_destinations
SET name = $2, settings = $3, events = $4, enabled = $5, revision = revision + 1
WHERE id = $1
RETURNING {_COLUMNS}"""  # noqa: S608  # as above
_DELETE_NOTICES: Final = "DELETE FROM control.notification_deliveries WHERE destination_id = $1"
_DELETE: Final = "DELETE FROM control.notification_destinations WHERE id = $1"
_WORKS: Final = """
UPDATE control.notification_destinations AS d
SET failing_since = NULL, last_error = '', last_delivered_at = $2
FROM (SELECT id, failing_since FROM control.notification_destinations
      WHERE id = $1 FOR NO KEY UPDATE) AS o
WHERE d.id = o.id
RETURNING o.failing_since IS NOT NULL AS changed"""
_FAILS: Final = """
UPDATE control.notification_destinations AS d
SET failing_since = coalesce(d.failing_since, $2), last_error = $3
FROM (SELECT id, failing_since FROM control.notification_destinations
      WHERE id = $1 FOR NO KEY UPDATE) AS o
WHERE d.id = o.id
RETURNING o.failing_since IS NULL AS changed"""


async def insert(
    connection: Connection,
    tenant: TenantId,
    *,
    id: str,
    name: str,
    kind: str,
    settings: Mapping[str, Any],
    events: Sequence[str],
    enabled: bool,
    now: datetime,
) -> dict[str, Any] | None:
    """None when the name is taken."""
    row = await connection.fetchrow(
        _INSERT, id, tenant, name, kind, json.dumps(settings), list(events), enabled, now
    )
    return _read(row) if row else None


async def get(connection: Connection, id: str, *, lock: bool = False) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET, id)
    return _read(row) if row else None


async def page(connection: Connection, *, after: str, limit: int) -> list[dict[str, Any]]:
    return [_read(row) for row in await connection.fetch(_PAGE, after, limit)]


async def count(connection: Connection) -> int:
    return int(await connection.fetchval(_COUNT))


async def health(connection: Connection) -> dict[str, Any]:
    """How many there are, how many of them cannot be reached now, and since when."""
    return dict(await connection.fetchrow(_HEALTH) or {})


async def mail(connection: Connection) -> dict[str, Any] | None:
    """The settings by which the tenant's mail goes out; None where nobody set any up."""
    found = await connection.fetchval(_MAIL)
    return json.loads(found) if found else None


async def name_taken(connection: Connection, name: str, *, but_by: str) -> bool:
    return await connection.fetchval(_NAME_TAKEN, name, but_by) is not None


async def update(
    connection: Connection,
    id: str,
    *,
    name: str,
    settings: Mapping[str, Any],
    events: Sequence[str],
    enabled: bool,
) -> dict[str, Any]:
    row = await connection.fetchrow(_UPDATE, id, name, json.dumps(settings), list(events), enabled)
    return _read(row)


async def delete(connection: Connection, id: str) -> None:
    """With its notices, which are locked in the order in which everybody locks: they come first."""
    await connection.execute(_DELETE_NOTICES, id)
    await connection.execute(_DELETE, id)


async def works(connection: Connection, id: str, now: datetime) -> bool:
    """Something arrived. Whether nothing did before."""
    return bool(await connection.fetchval(_WORKS, id, now))


async def fails(connection: Connection, id: str, code: str, now: datetime) -> bool:
    """Something did not arrive. Whether it is the first since it worked."""
    return bool(await connection.fetchval(_FAILS, id, now, code))


def _read(row: Any) -> dict[str, Any]:
    return {**row, "id": str(row["id"]), "settings": json.loads(row["settings"])}
