"""The change of a tenant's sign-in that waits: at most one, the newest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.auth_changes import Pending, digest
from services.control.store.auth_settings import AuthSettings

_COLUMNS: Final = """
id, document, settings_sha256, proposed_by, proposed_at, approved_by, approved_at, approved_sha256,
sole_operator, tested_by, tested_at, tested_sha256, test_failure"""
_GET: Final = f"SELECT {_COLUMNS} FROM control.auth_changes"  # noqa: S608  # constants
_GET_LOCKED: Final = f"{_GET} FOR UPDATE"
#: Who proposes makes the row of what is in force, too.
_BOTH: Final = """
SELECT s.provider, s.document AS held, s.revision, s.in_force, c.*
FROM control.auth_settings s LEFT JOIN control.auth_changes c ON c.tenant_id = s.tenant_id"""
_PROPOSE: Final = """
INSERT INTO control.auth_changes
    (tenant_id, id, document, settings_sha256, proposed_by, proposed_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant_id) DO UPDATE SET
    id = excluded.id, document = excluded.document, settings_sha256 = excluded.settings_sha256,
    proposed_by = excluded.proposed_by, proposed_at = excluded.proposed_at,
    approved_by = NULL, approved_at = NULL, approved_sha256 = NULL, sole_operator = false,
    tested_by = NULL, tested_at = NULL, tested_sha256 = NULL, test_failure = NULL"""
_APPROVE: Final = """
UPDATE control.auth_changes
SET approved_by = $2, approved_at = $3, sole_operator = $4, approved_sha256 = settings_sha256
WHERE id = $1"""
_TESTED: Final = """
UPDATE control.auth_changes
SET tested_by = $2, tested_at = $3, tested_sha256 = settings_sha256, test_failure = NULL
WHERE id = $1"""
_TEST_FAILED: Final = "UPDATE control.auth_changes SET test_failure = $2 WHERE id = $1"
_REMOVE: Final = "DELETE FROM control.auth_changes WHERE id = $1"
#: Nobody stops being an admin meanwhile (see the trigger of users).
_HOLD_ADMINS: Final = "SELECT 1 FROM control.tenants WHERE id = $1 FOR NO KEY UPDATE"
_ADMINS_STAND: Final = """
SELECT count(*) FROM control.users
WHERE id = ANY($1::uuid[]) AND role = 'admin' AND status = 'active'"""
_IS_SUPER_ADMIN: Final = "SELECT control.is_super_admin($1)"
_ALONE: Final = """
SELECT NOT control.has_super_admin_besides($1) AND NOT EXISTS (
    SELECT 1 FROM control.users WHERE id <> $1 AND role = 'admin' AND status = 'active')"""


async def get(connection: Connection, *, lock: bool = False) -> Pending | None:
    """Of the tenant that the transaction has set."""
    row = await connection.fetchrow(_GET_LOCKED if lock else _GET)
    return None if row is None else _pending(dict(row))


async def both(connection: Connection) -> tuple[AuthSettings, Pending | None]:
    """What is in force, and what waits."""
    row = await connection.fetchrow(_BOTH)
    if row is None:
        return AuthSettings(), None
    found = dict(row)
    found.pop("tenant_id")
    held = AuthSettings(
        document=json.loads(found.pop("held")),
        **{name: found.pop(name) for name in ("provider", "revision", "in_force")},
    )
    return held, None if found["id"] is None else _pending(found)


async def propose(
    connection: Connection,
    tenant: TenantId,
    document: Mapping[str, Any],
    *,
    id: str,
    by: str,
    now: datetime,
) -> None:
    """In place of whatever waited."""
    text = json.dumps(document)
    await connection.execute(_PROPOSE, tenant, id, text, digest(document), by, now)


async def approve(
    connection: Connection, id: str, *, by: str, sole_operator: bool, now: datetime
) -> None:
    await connection.execute(_APPROVE, id, by, now, sole_operator)


async def passed(connection: Connection, id: str, *, by: str, now: datetime) -> None:
    await connection.execute(_TESTED, id, by, now)


async def failed(connection: Connection, id: str, reason: str) -> None:
    await connection.execute(_TEST_FAILED, id, reason)


async def remove(connection: Connection, id: str) -> None:
    await connection.execute(_REMOVE, id)


async def parties_stand(connection: Connection, tenant: TenantId, pending: Pending) -> bool:
    """Whether all who had a part in it may still have one."""
    await connection.execute(_HOLD_ADMINS, tenant)
    admins = {one for one in (pending.proposed_by, pending.tested_by) if one}
    standing = await connection.fetchval(_ADMINS_STAND, sorted(admins))
    approver = await connection.fetchval(_IS_SUPER_ADMIN, pending.approved_by)
    return bool(standing == len(admins) and approver)


async def is_alone(connection: Connection, user: str) -> bool:
    """Whether there is no other super-admin anywhere, and no other admin here."""
    return bool(await connection.fetchval(_ALONE, user))


def _pending(row: dict[str, Any]) -> Pending:
    people = {name: _id(row[name]) for name in ("approved_by", "tested_by")}
    named = {"id": str(row["id"]), "proposed_by": str(row["proposed_by"])}
    return Pending(**{**row, **people, **named, "document": json.loads(row["document"])})


def _id(value: Any) -> str | None:
    return None if value is None else str(value)
