"""Kill switches and the votes to release them. A row stays after its release, as history."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.notifications import notices
from services.control.store import notification_plans

#: Only votes of people who are admins now count.
_COLUMNS: Final = """
k.id, k.scope, k.subject, k.reason, k.on_by, k.on_at, k.off_at,
(SELECT coalesce(json_agg(json_build_object('user_id', r.user_id, 'reason', r.reason,
                                            'given_at', r.given_at) ORDER BY r.given_at), '[]')
 FROM control.kill_switch_releases r
 JOIN control.users u ON u.tenant_id = r.tenant_id AND u.id = r.user_id
 WHERE r.tenant_id = k.tenant_id AND r.kill_switch_id = k.id
   AND u.role = 'admin' AND u.status = 'active') AS releases"""
_INSERT: Final = """
INSERT INTO control.kill_switches (id, tenant_id, scope, subject, reason, on_by, on_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (tenant_id, scope, subject) WHERE off_at IS NULL DO NOTHING
RETURNING id"""
_ID_ON: Final = """
SELECT id FROM control.kill_switches WHERE scope = $1 AND subject = $2 AND off_at IS NULL"""
_GET: Final = f"SELECT {_COLUMNS} FROM control.kill_switches k WHERE k.id = $1"  # noqa: S608  # a constant list of columns
_GET_LOCKED: Final = f"{_GET} FOR UPDATE OF k"
_PAGE: Final = f"""
SELECT {_COLUMNS} FROM control.kill_switches k WHERE k.id < $1 ORDER BY k.id DESC LIMIT $2"""  # noqa: S608  # a constant list of columns
_VOTE: Final = """
INSERT INTO control.kill_switch_releases (tenant_id, kill_switch_id, user_id, reason, given_at)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant_id, kill_switch_id, user_id)
DO UPDATE SET reason = excluded.reason, given_at = excluded.given_at"""
_OFF: Final = """
UPDATE control.kill_switches SET off_at = $2 WHERE id = $1
RETURNING tenant_id, scope, subject"""
_ADMINS: Final = """
SELECT count(*) FROM control.users WHERE role = 'admin' AND status = 'active'"""


async def throw(
    connection: Connection,
    tenant: TenantId,
    *,
    id: str,
    scope: str,
    subject: str,
    reason: str,
    on_by: str,
    now: datetime,
) -> bool:
    """False when it is on already."""
    made = await connection.fetchval(_INSERT, id, tenant, scope, subject, reason, on_by, now)
    if made is None:
        return False
    stop = notices.stop(id=id, scope=scope, subject=subject, at=now)
    await notification_plans.kill_switch(connection, tenant, stop, on=True, now=now)
    return True


async def id_on(connection: Connection, scope: str, subject: str) -> str:
    """Of the one that is on."""
    return str(await connection.fetchval(_ID_ON, scope, subject))


async def get(connection: Connection, id: str, *, lock: bool = False) -> dict[str, Any] | None:
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET, id)
    return _switch(row) if row else None


async def page(connection: Connection, *, before: str, limit: int) -> list[dict[str, Any]]:
    return [_switch(row) for row in await connection.fetch(_PAGE, before, limit)]


async def vote(
    connection: Connection, tenant: TenantId, id: str, *, user: str, reason: str, now: datetime
) -> None:
    """The same person again replaces their own vote."""
    await connection.execute(_VOTE, tenant, id, user, reason, now)


async def turn_off(connection: Connection, id: str, now: datetime) -> None:
    row = await connection.fetchrow(_OFF, id, now)
    if row is None:
        return
    stop = notices.stop(id=id, scope=row["scope"], subject=row["subject"], at=now)
    tenant = TenantId(str(row["tenant_id"]))
    await notification_plans.kill_switch(connection, tenant, stop, on=False, now=now)


async def count_admins(connection: Connection) -> int:
    return int(await connection.fetchval(_ADMINS))


def _switch(row: Any) -> dict[str, Any]:
    return {**row, "releases": json.loads(row["releases"])}
