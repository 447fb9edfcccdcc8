"""Who runs the installation, said on its host: the database itself, past control, which cannot.

Decides how a person is found and what is recorded; the record commits with the change.
"""

from __future__ import annotations

import getpass
from importlib.metadata import version
from pathlib import Path
from typing import Final
from uuid import UUID

import asyncpg

from services.cli.output import CommandFailed, Exit
from services.common.clock import SystemClock, micros
from services.common.ids import PlaneId, TenantId, uuid7
from services.common.outbox.digests import Digester
from services.common.outbox.record import Record
from services.common.outbox.stamp import Origin
from services.common.outbox.table import TableOutbox
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log

TIMEOUT_S: Final = 10
_OWNER: Final = "SET LOCAL ROLE behavry_control_owner"
_FIND: Final = """
SELECT tenant_id, id, is_super_admin FROM control.users
WHERE username = $1 AND status = 'active'"""
_TENANT: Final = "SELECT set_config('behavry.tenant_id', $1, true)"
_SET: Final = "UPDATE control.users SET is_super_admin = $2 WHERE id = $1"


async def set_super_admin(
    dsn: str, username: str, *, wanted: bool, plane_id: PlaneId, digest_keys: Path
) -> bool:
    """1. the person  2. the right  3. the record, in one transaction. False: it was so already."""
    try:
        connection = await asyncpg.connect(dsn, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        raise CommandFailed("the database does not answer", status=Exit.UNREACHABLE) from None
    try:
        async with connection.transaction():
            await connection.execute(_OWNER)
            found = await connection.fetchrow(_FIND, username.strip().lower())  # 1
            if found is None:
                raise CommandFailed("there is no such active person")
            if found["is_super_admin"] == wanted:
                return False
            await connection.execute(_TENANT, str(found["tenant_id"]))
            await connection.execute(_SET, found["id"], wanted)  # 2
            record = _record(found["tenant_id"], found["id"], wanted=wanted)
            await _outbox(plane_id, digest_keys).put(connection, record)  # 3
    finally:
        await connection.close(timeout=TIMEOUT_S)
    return True


def _record(tenant: UUID, user: UUID, *, wanted: bool) -> Record:
    now_ns = SystemClock().now_ns()
    return Record(
        type=f"admin.user.super_admin_{'granted' if wanted else 'revoked'}",
        tenant=TenantId(str(tenant)),
        chain="admin",
        at_us=micros(now_ns),
        fields={
            "actor": {"kind": "host", "name": getpass.getuser()},
            "route": f"behavry admin {'grant' if wanted else 'revoke'}",
            "request_id": uuid7(now_ns),
            "client_ip": "",
            "resource": "user",
            "resource_id": str(user),
            "changes": [{"field": "is_super_admin", "old": not wanted, "new": wanted}],
            "reason": None,
            "step_up": None,
        },
    )


def _outbox(plane_id: PlaneId, digest_keys: Path) -> TableOutbox:
    """Control ships what lies in it."""
    return TableOutbox(
        schema="control",
        origin=Origin(kind="control", plane=plane_id, version=version("behavry")),
        clock=SystemClock(),
        counters=Counters(),
        log=get_log("cli"),
        digester=Digester.load(digest_keys),
    )
