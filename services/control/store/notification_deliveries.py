"""Notices on their way: which are due, taken for one attempt, and what became of it.

Due ones are learnt of all tenants, by ids alone; each is then read and changed in its own tenant.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.notifications.notices import Alert, Event
from services.control.store.notification_plans import CHANNEL, GIVE_UP_AFTER

_DUE: Final = """
SELECT tenant_id, id, destination_id, subject_id, attempts
FROM control.due_notifications($1, $2, $3)"""
_NEXT: Final = "SELECT control.next_notification($1)"
_TAKE: Final = """
WITH taken AS (
    UPDATE control.notification_deliveries SET attempts = attempts + 1, next_at = $3
    WHERE id = $1 AND state = 'queued' AND next_at <= $2
    RETURNING *
)
SELECT n.id, n.tenant_id, n.destination_id, n.event, n.subject_id, n.content, n.planned_at,
       n.give_up_at, n.attempts, d.kind, d.settings, t.slug,
       d.failing_since IS NULL AND d.last_delivered_at > $2 - interval '1 minute' AS known_to_work
FROM taken n
JOIN control.notification_destinations d ON d.id = n.destination_id
JOIN control.tenants t ON t.id = n.tenant_id"""
_DELIVERED: Final = """
UPDATE control.notification_deliveries
SET state = 'delivered', delivered_at = $2, last_error = $3
WHERE id = $1 AND state <> 'delivered'"""
_FAILED: Final = """
UPDATE control.notification_deliveries SET state = $2, next_at = $3, last_error = $4
WHERE id = $1 AND state = 'queued'
RETURNING id"""
_DROP_ALL: Final = """
UPDATE control.notification_deliveries SET state = 'dropped'
WHERE destination_id = $1 AND state = 'queued'"""
_AT_ONCE: Final = """
UPDATE control.notification_deliveries SET next_at = $2
WHERE destination_id = $1 AND state = 'queued' AND attempts > 0 AND next_at > $2"""
_NOTIFY: Final = "SELECT pg_notify($1, '')"
_COLUMNS: Final = (
    "id, destination_id, event, subject_id, state, attempts, planned_at, next_at, delivered_at, "
    "last_error"
)
_PAGE: Final = f"""
SELECT {", ".join(f"n.{name}" for name in _COLUMNS.split(", "))}
FROM control.notification_destinations d
LEFT JOIN control.notification_deliveries n
       ON n.destination_id = d.id AND ($2 = '' OR n.id < $2::text::uuid)
WHERE d.id = $1
ORDER BY n.id DESC LIMIT $3"""  # noqa: S608  # a constant list of columns
_GET: Final = f"""
SELECT {_COLUMNS} FROM control.notification_deliveries WHERE id = $1 FOR UPDATE"""  # noqa: S608  # as above
_AGAIN: Final = f"""
UPDATE control.notification_deliveries
SET state = 'queued', next_at = $2, give_up_at = $3, delivered_at = NULL, last_error = ''
WHERE id = $1
RETURNING {_COLUMNS}"""  # noqa: S608  # as above


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    tenant: TenantId
    id: str
    destination: str
    subject: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A notice that is being sent; `attempts` counts this time too."""

    id: str
    tenant: TenantId
    tenant_slug: str
    destination: str
    kind: str
    settings: dict[str, Any]
    event: Event | Alert
    subject: str
    #: The facts, as they were stored.
    content: str = field(repr=False)
    planned_at: datetime
    give_up_at: datetime
    attempts: int
    #: Something arrived there lately, and nothing has failed since.
    known_to_work: bool


async def due(
    connection: Connection, now: datetime, *, of_each: int, at_most: int
) -> Sequence[Due]:
    """Of all tenants, oldest first; runs outside a tenant's transaction."""
    return [
        Due(
            tenant=TenantId(str(row["tenant_id"])),
            id=str(row["id"]),
            destination=str(row["destination_id"]),
            subject=str(row["subject_id"]),
            attempts=row["attempts"],
        )
        for row in await connection.fetch(_DUE, now, of_each, at_most)
    ]


async def next_at(connection: Connection, after: datetime) -> datetime | None:
    """When the next one is due that is not due yet; of all tenants."""
    found: datetime | None = await connection.fetchval(_NEXT, after)
    return found


async def take(
    connection: Connection, id: str, *, now: datetime, again_at: datetime
) -> Taken | None:
    """Before anything is sent: should the process end meanwhile, it is tried again then. None when
    it need not be sent any more.
    """
    row = await connection.fetchrow(_TAKE, id, now, again_at)
    if row is None:
        return None
    return Taken(
        id=str(row["id"]),
        tenant=TenantId(str(row["tenant_id"])),
        tenant_slug=row["slug"],
        destination=str(row["destination_id"]),
        kind=row["kind"],
        settings=json.loads(row["settings"]),
        event=row["event"],
        subject=str(row["subject_id"]),
        content=row["content"],
        planned_at=row["planned_at"],
        give_up_at=row["give_up_at"],
        attempts=row["attempts"],
        known_to_work=bool(row["known_to_work"]),
    )


async def delivered(connection: Connection, id: str, *, note: str, now: datetime) -> None:
    """Also where it was dropped meanwhile: it is what happened."""
    await connection.execute(_DELIVERED, id, now, note)


async def failed(
    connection: Connection, id: str, *, state: str, again_at: datetime, code: str
) -> bool:
    """False when there was nothing left to tell, so that nothing is lost."""
    return await connection.fetchval(_FAILED, id, state, again_at, code) is not None


async def drop_all(connection: Connection, destination: str) -> None:
    """The destination is switched off."""
    await connection.execute(_DROP_ALL, destination)


async def try_at_once(connection: Connection, destination: str, now: datetime) -> None:
    """What waits for its next attempt need not: the destination was changed, or works again."""
    await connection.execute(_AT_ONCE, destination, now)
    await connection.execute(_NOTIFY, CHANNEL)


async def page(
    connection: Connection, destination: str, *, before: str, limit: int
) -> list[dict[str, Any]] | None:
    """Newest first. None: there is no such destination."""
    rows = await connection.fetch(_PAGE, destination, before, limit)
    return [_read(row) for row in rows if row["id"] is not None] if rows else None


async def get(connection: Connection, id: str) -> dict[str, Any] | None:
    """Locked."""
    row = await connection.fetchrow(_GET, id)
    return _read(row) if row else None


async def send_again(connection: Connection, id: str, now: datetime) -> dict[str, Any]:
    row = await connection.fetchrow(_AGAIN, id, now, now + GIVE_UP_AFTER)
    await connection.execute(_NOTIFY, CHANNEL)
    return _read(row)


def _read(row: Any) -> dict[str, Any]:
    ids = ("id", "destination_id", "subject_id")
    return {**row, **{name: str(row[name]) for name in ids}}
